"""Recipes: YAML files, shipped or the user's, read into frozen settings."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krepes_ooc.core import resources
from krepes_ooc.core.settings import read_settings, setting, unknown_key
from krepes_ooc.errors import RecipeError, UsageError
from krepes_ooc.network.spec import PRETRAIN, SHIPPED_CODE, NetworkSpec
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.stages.base.stage import Stage
from krepes_ooc.stages.registry import BY_NAME, STAGES
from krepes_ooc.views.spec import ViewSpec

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

    @property
    def training_objective(self) -> str:
        """Objective that trained the network; empty if the recipe does not say."""
        if self.network.objective:
            return self.network.objective
        # The demo trainer's own loss.
        return str(self.settings[PRETRAIN].objective) if self.network.weights == PRETRAIN else ""

    @property
    def code(self) -> frozenset[str]:
        """Python code that a run loads and that krepes does not ship, files with their folder."""
        return self.code_of_data | self._user_code([self.network.factory])

    @property
    def code_of_data(self) -> frozenset[str]:
        """The part of ``code`` that runs when inputs are only compared.

        A factory's file is then hashed and not run, but its parent package is imported.
        """
        source = self.source.factory if self.source.kind == "factory" else ""
        place, _, _ = self.network.factory.rpartition(":")
        package = "" if place.endswith(".py") or "." not in place else self.network.factory
        return self._user_code([source, self.views.function, package])

    @property
    def files(self) -> frozenset[str]:
        """Files and folders of the user that the recipe names: source, labels, weights, groups."""
        weights = "" if self.network.weights == PRETRAIN else self.network.weights
        source = (self.source.path, self.source.labels, self.source.encoding)
        groups = self.settings["groups"].file
        names = filter(None, (*source, weights, groups))
        return frozenset(os.path.abspath(self.base / name) for name in names)

    def _user_code(self, names: Iterable[str]) -> frozenset[str]:
        used = [name for name in names if name and not name.startswith(SHIPPED_CODE)]
        return frozenset(self._with_folder(name) for name in used)

    def _with_folder(self, name: str) -> str:
        place, _, function = name.rpartition(":")
        if not place.endswith(".py"):
            return name
        return f"{(self.base / place).resolve()}:{function}"

    @classmethod
    def load(cls, name: str, overrides: Iterable[str] = ()) -> Recipe:
        """Read a shipped recipe by name, or any YAML file by path.

        Args:
            name: ``digits``, or ``path/to/mine.yaml``. Relative paths in a file start from its
                folder, those of a shipped recipe from the current folder.
            overrides: ``key.key=value`` texts, as ``--set`` takes them.

        Raises:
            UsageError: no such recipe or file.
            RecipeError: an unknown key or a value that is not allowed.
        """
        path, base = _locate(name)
        return cls._read(resources.load_yaml(path), base, path.name, overrides)

    @classmethod
    def parse(cls, text: str, base: Path, where: str, overrides: Iterable[str] = ()) -> Recipe:
        """Read a recipe from its text.

        Args:
            text: YAML.
            base: folder that relative paths start from.
            where: name of the text in messages.
            overrides: ``key.key=value`` texts, as ``--set`` takes them.

        Raises:
            UsageError: an override has another form.
            RecipeError: an unknown key or a value that is not allowed.
        """
        values = resources.parse_value(text)
        if not isinstance(values, dict):
            raise RecipeError("no mapping at the top", where=where, expected="keys with values")
        return cls._read(values, base, where, overrides)

    @classmethod
    def _read(
        cls, values: dict[str, Any], base: Path, where: str, overrides: Iterable[str]
    ) -> Recipe:
        """Apply the overrides, then check and freeze every key.

        Raises:
            UsageError: an override has another form.
            RecipeError: an unknown key or a value that is not allowed.
        """
        for override in overrides:
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
        return cls(
            name=file.recipe,
            about=file.about,
            seed=file.seed,
            source=file.source,
            network=file.network,
            views=file.views,
            settings={
                stage.name: read_settings(
                    stage.settings, file.stages.get(stage.name), f"{where}.stages.{stage.name}"
                )
                for stage in STAGES
            },
            base=base,
            text=resources.dump_yaml(values),
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages of this recipe in order; the demo trainer only where the weights ask for it."""
        trained = self.network.weights == PRETRAIN
        return tuple(stage for stage in STAGES if trained or stage.name != PRETRAIN)


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
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            f"no recipe {name!r}",
            expected="one of " + ", ".join(known) + ", or the path of a .yaml file",
            advice=f"did you mean {near[0]!r}?" if near else "",
        )
    return resources.find("pipelines", name), Path.cwd()


def _override(values: dict[str, Any], text: str) -> None:
    """Apply one ``a.b.c=value`` to the parsed recipe.

    Raises:
        UsageError: it has another form, or a key on the way holds a value.
    """
    keys, equals, value = text.partition("=")
    path = keys.strip().split(".")
    if not equals or not all(path):
        raise UsageError(f"{text!r}", where="--set", expected="key.key=value")
    # Down to the mapping of the last key; a missing or empty one is made.
    mapping: Any = values
    for key in path[:-1]:
        if mapping.get(key) is None:
            mapping[key] = {}
        mapping = mapping[key]
        if not isinstance(mapping, dict):
            raise UsageError(f"{key!r} holds a value", where=f"--set {keys}", expected="a mapping")
    mapping[path[-1]] = resources.parse_value(value)
