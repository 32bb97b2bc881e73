"""Recipes: YAML files, shipped or the user's, read into frozen settings."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from krepes_ooc.core import resources
from krepes_ooc.core.live_objects import LIVE, NOT_LIVE, LiveObjects
from krepes_ooc.core.option_values import path_text
from krepes_ooc.core.settings import read_settings, setting, unknown_key
from krepes_ooc.errors import RecipeError, UsageError
from krepes_ooc.network.spec import FACTORY, PRETRAIN, SHIPPED_CODE, NetworkSpec
from krepes_ooc.network.training_objective import (
    contradiction,
    difference,
    training_objective,
)
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.stages.base.stage import Stage, is_enabled
from krepes_ooc.stages.registry import BY_NAME, STAGES
from krepes_ooc.views.spec import ViewSpec

# ``key.key=value`` texts, or values by ``key.key``.
Overrides: TypeAlias = Iterable[str | tuple[str, Any]] | Mapping[str, Any]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class RecipeFile:
    """The keys of a recipe."""

    recipe: str = setting(about="name of the recipe")
    source: SourceSpec = setting(about="where samples come from")
    network: NetworkSpec = setting(about="the frozen network")
    about: str = setting("", about="one line for people")
    seed: int = setting(0, about="key of every random draw", minimum=0)
    views: ViewSpec = setting(ViewSpec(), about="how views are drawn")
    stages: dict[str, Any] = setting({}, about="settings of single stages")


@dataclass(frozen=True)
class Recipe:
    """One audit, declared: source, network, views and the settings of every stage.

    Args:
        name: also the default workspace.
        about: one line for people.
        seed: key of every random draw.
        source: where samples come from.
        network: what is audited.
        views: how views are drawn.
        settings: settings of every stage by name.
        base: folder that relative paths start from.
        text: the recipe as it was read, overrides included.
        live: objects of the running script, where the recipe says ``live``.
    """

    name: str
    about: str
    seed: int
    source: SourceSpec
    network: NetworkSpec
    views: ViewSpec
    settings: Mapping[str, Any]
    base: Path
    text: str
    live: LiveObjects = field(default=NOT_LIVE, compare=False, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people on the network: an objective that is not the one that trained it."""
        trained = training_objective(self.network, self.settings[PRETRAIN].objective)
        words = difference(trained, self.settings["newton"].objective)
        return (words,) if words else ()

    @property
    def training_objective(self) -> str:
        """Objective that trained the network; empty if the recipe does not say."""
        return training_objective(self.network, str(self.settings[PRETRAIN].objective))

    @property
    def code(self) -> frozenset[str]:
        """Python code that a run loads and that krepes does not ship, files with their folder."""
        return self.code_of_data | self._user_code([self.network.factory, *self._code_of_stages])

    @property
    def code_of_data(self) -> frozenset[str]:
        """The part of ``code`` that runs when inputs are only compared.

        A factory's file is then hashed and not run, but its parent package is imported.
        """
        source = self.source.factory if self.source.kind == "factory" else ""
        place, _, _ = self.network.factory.rpartition(":")
        package = "" if place.endswith(".py") or "." not in place else self.network.factory
        # What the network states of its input is known when its factory has run.
        if self.source.transform == "from_model":
            package = self.network.factory
        return self._user_code([source, self.views.function, package])

    @property
    def _code_of_stages(self) -> list[str]:
        """Callables that the settings of stages of this recipe name."""
        named = (getattr(self.settings[stage.name], "code", ()) for stage in self.stages)
        return [name for names in named for name in names]

    @property
    def files(self) -> frozenset[str]:
        """Files and folders of the user that the recipe names: source, labels, weights, groups."""
        weights = "" if self.network.weights in (PRETRAIN, FACTORY) else self.network.weights
        source = (self.source.path, self.source.labels, self.source.encoding)
        groups = self.settings["groups"].file
        names = filter(None, (*source, weights, groups))
        return frozenset(os.path.abspath(self.base / name) for name in names)

    def _user_code(self, names: Iterable[str]) -> frozenset[str]:
        used = [n for n in names if n not in ("", LIVE) and not n.startswith(SHIPPED_CODE)]
        return frozenset(self._with_folder(name) for name in used)

    def _with_folder(self, name: str) -> str:
        place, _, function = name.rpartition(":")
        if not place.endswith(".py"):
            return name
        return f"{os.path.realpath(self.base / place)}:{function}"

    @classmethod
    def load(cls, name: str | os.PathLike[str], overrides: Overrides = ()) -> Recipe:
        """Read a shipped recipe by name, or any YAML file by path.

        Args:
            name: ``digits``, or ``path/to/mine.yaml``. Relative paths in a file start from its
                folder, those of a shipped recipe from the current folder.
            overrides: ``key.key=value`` texts, as ``--set`` takes them, or values by ``key.key``.

        Raises:
            UsageError: no such recipe or file.
            RecipeError: an unknown key or a value that is not allowed.
        """
        path, base = _locate(path_text(name, "recipe"))
        return cls._read(resources.load_yaml(path), base, path.name, overrides)

    @classmethod
    def parse(cls, text: str, base: Path, where: str, overrides: Overrides = ()) -> Recipe:
        """Read a recipe from its text.

        Args:
            text: YAML.
            base: folder that relative paths start from.
            where: name of the text in messages.
            overrides: as ``load``.

        Raises:
            UsageError: an override has another form.
            RecipeError: an unknown key or a value that is not allowed.
        """
        values = resources.parse_value(text)
        if not isinstance(values, dict):
            raise RecipeError("no mapping at the top", where=where, expected="keys with values")
        return cls._read(values, base, where, overrides)

    @classmethod
    def _read(cls, values: dict[str, Any], base: Path, where: str, overrides: Overrides) -> Recipe:
        """Apply the overrides, then check and freeze every key.

        Raises:
            UsageError: an override has another form.
            RecipeError: an unknown key or a value that is not allowed.
        """
        for override in overrides.items() if isinstance(overrides, Mapping) else overrides:
            _override(values, override)
        # The file's own keys; stages are read below, each by the settings of its stage.
        file = read_settings(RecipeFile, values, where)
        if not NAME.fullmatch(file.recipe):
            raise RecipeError(
                f"recipe name {file.recipe!r}",
                where=where,
                expected="letters, digits, - and _, at most 64",
            )
        for stage in file.stages:
            if stage not in BY_NAME:
                raise unknown_key(stage, list(BY_NAME), f"{where}.stages")
        # Every stage has settings, whether the recipe names it or not.
        settings = {
            stage.name: read_settings(
                stage.settings, file.stages.get(stage.name), f"{where}.stages.{stage.name}"
            )
            for stage in STAGES
        }
        if words := contradiction(file.network, settings[PRETRAIN].objective):
            raise RecipeError(
                words,
                where=f"{where}.network.objective",
                expected="the objective of stages.pretrain, or no key",
            )
        return cls(
            name=file.recipe,
            about=file.about,
            seed=file.seed,
            source=file.source,
            network=file.network,
            views=file.views,
            settings=settings,
            base=base,
            text=resources.dump_yaml(values),
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages of this recipe in order.

        The demo trainer only where the weights ask for it, and optional stages where they are on.
        """
        trained = self.network.weights == PRETRAIN
        return tuple(
            stage
            for stage in STAGES
            if (trained or stage.name != PRETRAIN) and is_enabled(self.settings[stage.name])
        )


def enable_stages(names: Iterable[str]) -> tuple[str, ...]:
    """Overrides of a recipe that switch optional stages on, as ``--with`` asks for.

    Raises:
        UsageError: a stage is unknown or not optional.
    """
    chosen = tuple(names)
    optional = [stage.name for stage in STAGES if not is_enabled(stage.settings())]
    for name in chosen:
        if name not in optional:
            always = "is part of every run" if name in BY_NAME else "does not exist"
            raise UsageError(
                f"stage {name!r} {always}",
                where="--with",
                expected="an optional stage: " + ", ".join(optional),
            )
    return tuple(f"stages.{name}.enabled=true" for name in chosen)


def copy_recipe(name: str, target: Path) -> None:
    """Copy a shipped recipe to a new file, to be edited.

    Raises:
        UsageError: no such recipe, or the target exists.
    """
    source = resources.find("pipelines", name)
    if target.exists():
        raise UsageError("the file exists", where=str(target), expected="a new file")
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(target)) from error


def _locate(name: str) -> tuple[Path, Path]:
    """File of a recipe, and the folder that its relative paths start from.

    Raises:
        UsageError: no such recipe or file.
    """
    # A file brings its own folder.
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UsageError("no such recipe file", where=name, expected="a YAML file")
        return path, path.resolve().parent
    # A shipped recipe is run where the user is.
    known = resources.names("pipelines")
    # A folder that a run wrote is taken for its recipe.
    if name not in known and (Path(name) / ".krepes").is_dir():
        raise UsageError(
            f"{name!r} is a workspace, not a recipe",
            expected="the recipe that is run in it",
            advice=f"krepes run RECIPE --workspace {name}; live objects: run their script",
        )
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            f"no recipe {name!r}",
            expected="one of " + ", ".join(known) + ", or the path of a .yaml file",
            advice=f"did you mean {near[0]!r}?" if near else "",
        )
    return resources.find("pipelines", name), Path.cwd()


def _override(values: dict[str, Any], override: str | tuple[str, Any]) -> None:
    """Apply one ``a.b.c=value``, or a value by its keys, to the parsed recipe.

    Raises:
        UsageError: it has another form, or a key on the way holds a value.
    """
    if isinstance(override, tuple):
        keys, value = str(override[0]), _plain(override[1])
    else:
        keys, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r}", where="--set", expected="key.key=value")
        value = resources.parse_value(text)
    path = keys.strip().split(".")
    if not all(path):
        raise UsageError(f"{keys!r}", where="--set", expected="key.key=value")
    # Down to the mapping of the last key; a missing or empty one is made.
    mapping: Any = values
    for key in path[:-1]:
        if mapping.get(key) is None:
            mapping[key] = {}
        mapping = mapping[key]
        if not isinstance(mapping, dict):
            raise UsageError(f"{key!r} holds a value", where=f"--set {keys}", expected="a mapping")
    mapping[path[-1]] = value


def _plain(value: Any) -> Any:
    """A value of Python as YAML has it: paths as text, tuples as lists, no NumPy scalars."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") else value
