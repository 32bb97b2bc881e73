"""The YAML declarations that ship with the package: pipelines/ and stores/, found and parsed."""

from __future__ import annotations

from collections.abc import Hashable
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from krepes_ooc.errors import RecipeError, UsageError

MAX_YAML_BYTES = 2**20


def folder(name: str) -> Path:
    """The shipped folder ``pipelines`` or ``stores``: inside the wheel, or beside the package."""
    # A wheel holds the folders; an editable install finds them beside the package.
    inside = Path(str(files("krepes_ooc"))) / name
    return inside if inside.is_dir() else inside.parent.parent / name


def names(kind: str) -> list[str]:
    """Names of all shipped declarations of a kind, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def site_files() -> dict[str, Path]:
    """Shipped files for computing sites by name: site files (.yaml) and batch scripts (.sh)."""
    found = sorted(folder("pipelines").joinpath("hpc").glob("*.*"))
    return {path.stem: path for path in found if path.suffix in (".yaml", ".sh")}


def find(kind: str, name: str) -> Path:
    """The file of a shipped declaration.

    Raises:
        UsageError: no such declaration; the message lists those that exist.
    """
    known = names(kind)
    if name not in known:
        raise UsageError(f"no {name!r} in {kind}", expected="one of " + ", ".join(known))
    return folder(kind) / f"{name}.yaml"


def load_yaml(path: Path) -> dict[str, Any]:
    """Parse one YAML file into a mapping; plain YAML only: no tags, no duplicate keys, no aliases.

    Raises:
        UsageError: the file cannot be read.
        RecipeError: the text is no plain YAML mapping.
    """
    # The size is looked at first: a declaration is short, and a huge file is never read.
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= MAX_YAML_BYTES else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "no such file" if isinstance(error, FileNotFoundError) else f"cannot read: {error}",
            where=str(path),
            expected="a YAML file",
        ) from error
    if size > MAX_YAML_BYTES:
        raise RecipeError(
            f"{size} bytes", where=str(path), expected=f"at most {MAX_YAML_BYTES} bytes"
        )
    try:
        parsed = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = str(error).replace('in "<unicode string>", ', "in ")
        raise RecipeError(f"not plain YAML: {reason}", where=str(path)) from error
    if not isinstance(parsed, dict):
        raise RecipeError("no mapping at the top", where=str(path), expected="keys with values")
    return parsed


def parse_value(text: str) -> Any:
    """One YAML value from the command line: ``3``, ``true``, ``[a, b]`` or plain text.

    Raises:
        UsageError: the text is no plain YAML.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{text!r} is no YAML value", where="--set") from error


def dump_yaml(values: Any) -> str:
    """Plain values as YAML text, keys in their order."""
    return str(yaml.dump(values, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True))


class _PlainDumper(yaml.SafeDumper):
    """SafeDumper that writes a value out each time it occurs, because aliases are not read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without aliases (no expansion bombs), tags and silent duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        # An explicit tag could name a type to build; plain declarations have none.
        tag = getattr(self.peek_event(), "tag", None)  # type: ignore[no-untyped-call]
        if tag is not None:
            raise yaml.YAMLError(f"tag {tag!r} is not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        # YAML takes the last of two equal keys in silence: here both are refused.
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"unhashable key, line {key_node.start_mark.line + 1}")
            if key in seen:
                raise yaml.YAMLError(
                    f"key {str(key)!r} stands twice, line {key_node.start_mark.line + 1}"
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
