"""Recipes and workspaces as people name them: by name, file, folder or object."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from krepes_ooc.core.option_values import path_text
from krepes_ooc.errors import UsageError
from krepes_ooc.runner.audit import WORKSPACES, default_workspace
from krepes_ooc.runner.recipe import Overrides, Recipe, enable_stages

RecipeLike: TypeAlias = Recipe | str | os.PathLike[str]
WorkspaceLike: TypeAlias = str | os.PathLike[str]


def as_recipe(
    recipe: RecipeLike, settings: Overrides = (), with_stages: tuple[str, ...] = ()
) -> Recipe:
    """A recipe with changed settings.

    Args:
        recipe: itself, a shipped name or the path of a YAML file.
        settings: ``key.key=value`` texts or values by ``key.key``, as ``--set``.
        with_stages: optional stages that are switched on, as ``--with``.

    Raises:
        UsageError: no such recipe or file, or no such optional stage.
        RecipeError: an unknown key or a value that is not allowed.
    """
    pairs = settings.items() if hasattr(settings, "items") else settings
    changes = [*pairs, *enable_stages(with_stages)]
    if not isinstance(recipe, Recipe):
        return Recipe.load(recipe, changes)
    if not changes:
        return recipe
    changed = Recipe.parse(recipe.text, recipe.base, recipe.name, changes)
    return replace(changed, live=recipe.live)


def find_workspace(
    named: RecipeLike | None, workspace: WorkspaceLike | None = None
) -> tuple[Path, Recipe | str | None]:
    """Folder of an audit, and the recipe that was named, which the user vouches for.

    Args:
        named: a recipe, or in its place the folder of a workspace or the name of one in
            ``krepes-workspace``.
        workspace: the folder, where it is not the recipe's own.

    Raises:
        UsageError: nothing is named, or there is no workspace.
    """
    if named is None and workspace is None:
        raise UsageError("no workspace was named", expected="a recipe, or --workspace FOLDER")
    recipe: Recipe | str | None = (
        named if isinstance(named, Recipe | None) else path_text(named, "workspace")
    )
    if workspace is not None:
        root = Path(path_text(workspace, "workspace"))
    else:
        assert recipe is not None
        root, recipe = _folder_of(recipe)
    # Reading makes no workspace: one must be there.
    if not (root / ".krepes").is_dir():
        raise UsageError(
            "no workspace there",
            where=str(root),
            expected="a folder that `krepes run` made",
            advice="run the recipe first, or name the folder with --workspace",
        )
    return root, recipe


def _folder_of(named: Recipe | str) -> tuple[Path, Recipe | str | None]:
    """The folder that a recipe, a folder or a name stands for, and the recipe if it is one."""
    if isinstance(named, Recipe):
        return default_workspace(named), named
    # A folder is its own answer; no recipe is named with it.
    if (Path(named) / ".krepes").is_dir():
        return Path(named), None
    try:
        return default_workspace(Recipe.load(named)), named
    except UsageError:
        # The name in a recipe file is that of its folder.
        if (folder := Path(WORKSPACES) / named / ".krepes").is_dir():
            return folder.parent, None
        raise
