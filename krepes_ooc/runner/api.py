"""The Python interface: what the commands do, for scripts and notebooks.

A recipe is a ``Recipe``, a shipped name or the path of a YAML file; a workspace is a ``Workspace``,
its folder, or the recipe that was run in it. Options have the names and the grammar of the command
line: ``memory="2GiB"``, ``max_time="45m"``, ``shard="3/16"``. Everything that goes wrong on purpose
is a ``KrepesError``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krepes_ooc.core.option_values import path_text
from krepes_ooc.core.progress_lines import Lines
from krepes_ooc.engine.run_control import Progress, Silent, StopFlag
from krepes_ooc.errors import UsageError
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.explanation.questions import answer
from krepes_ooc.runner.plan import make_plan
from krepes_ooc.runner.recipe import Overrides
from krepes_ooc.runner.run import run as run_recipe
from krepes_ooc.runner.run_history import Summary
from krepes_ooc.runner.status import read_status, read_verdict, verify_workspace
from krepes_ooc.runner.targets import RecipeLike, WorkspaceLike, as_recipe, find_workspace

if TYPE_CHECKING:
    from krepes_ooc.core.verdict import Verdict
    from krepes_ooc.rendering.comparison import Comparison
    from krepes_ooc.rendering.explanation import Explained
    from krepes_ooc.rendering.explanation_sum import ExplainedSum
    from krepes_ooc.rendering.explanation_without import ExplainedWithout
    from krepes_ooc.storage.verify import Verification


def run(
    recipe: RecipeLike,
    workspace: WorkspaceLike | None = None,
    options: Options | None = None,
    *,
    settings: Overrides = (),
    with_stages: Sequence[str] = (),
    progress: Progress | bool | None = None,
    stop: StopFlag | None = None,
    **keywords: Any,
) -> Summary:
    """Run a recipe to its sealed end, or on from where it stopped.

    Args:
        recipe: what is run.
        workspace: folder; default ``krepes-workspace/<recipe>``.
        options: as one object; or each as a keyword of its own.
        settings: changed keys of the recipe, ``{"stages.landmarks.count": 128}`` or as ``--set``.
        with_stages: optional stages that are switched on.
        progress: a listener; True: printed lines; False: none; default: lines in a notebook.
        stop: checked between units; default one that signals and the time limit set.
        keywords: ``memory``, ``workers``, ``device``, ``cluster``, ``until``, ``only``, ``shard``,
            ``restart_stale``, ``repair``, ``allow_mixed_numerics`` and ``max_time``, as the
            command's options.

    Raises:
        UsageError: no such recipe, option or setting, or the workspace cannot be written.
        WorkspaceError: the workspace is locked, of another recipe or format, or has stale stages.
        DamageError: a record of the workspace or of a stage is damaged.
        PlanRefused: memory or disk cannot hold the plan.
        StageFailed: a stage cannot give a result.
        Stopped: stopped early on request; nothing is lost.
    """
    chosen = as_recipe(recipe, settings, tuple(with_stages))
    options = _options(options, keywords)
    if progress is None or isinstance(progress, bool):
        loud = "ipykernel" in sys.modules if progress is None else progress
        progress = Lines(print) if loud else Silent()
    return run_recipe(chosen, _folder(workspace), options, progress, stop)


def plan(
    recipe: RecipeLike,
    workspace: WorkspaceLike | None = None,
    options: Options | None = None,
    *,
    settings: Overrides = (),
    with_stages: Sequence[str] = (),
    timed: bool = False,
    **keywords: Any,
) -> dict[str, Any]:
    """Expected cost of every stage, as plain values; opens source and network, computes nothing.

    Args:
        recipe: what would be run.
        workspace: where; need not exist, and stays so.
        options: as one object; or ``memory`` and ``workers`` as keywords.
        settings: as ``run``.
        with_stages: as ``run``.
        timed: measure this machine for two seconds and estimate the time of every stage.
        keywords: as ``run``.

    Raises:
        UsageError: no such recipe or option, or a setting that is not allowed for this source and
            network.
        WorkspaceError: the workspace is of another recipe or format.
    """
    chosen = as_recipe(recipe, settings, tuple(with_stages))
    return make_plan(chosen, _folder(workspace), _options(options, keywords), timed=timed)


def status(workspace: RecipeLike, recipe: RecipeLike | None = None) -> dict[str, Any]:
    """State of every stage, as plain values; takes no lock.

    Args:
        workspace: the workspace, or the recipe that was run in it.
        recipe: to compare with; default the one that is recorded.

    Raises:
        UsageError: no such workspace or recipe.
        WorkspaceError: the workspace is of another recipe or format.
    """
    root, named = find_workspace(workspace)
    return read_status(as_recipe(recipe) if recipe is not None else named, root)


def verify(workspace: RecipeLike, store: str | None = None) -> Verification:
    """Recompute every checksum of a workspace; damage is returned, not raised.

    Args:
        workspace: the workspace, or the recipe that was run in it.
        store: one stage or store.

    Raises:
        UsageError: no such workspace, stage or store.
    """
    root, _ = find_workspace(workspace)
    return verify_workspace(root, store)


def verdict(workspace: RecipeLike) -> Verdict:
    """The verdict of a finished audit: every check with its criterion and figures.

    Args:
        workspace: the workspace, or the recipe that was run in it.

    Raises:
        UsageError: no such workspace, or its stage verdict is not sealed.
        DamageError: its store is damaged.
    """
    root, _ = find_workspace(workspace)
    return read_verdict(root)


def compare(*workspaces: RecipeLike) -> Comparison:
    """Finished audits of one source side by side, each beside the first.

    Args:
        workspaces: two workspaces or more, or the recipes that were run in them.

    Raises:
        UsageError: fewer than two or too many of them, no such workspace, or too few samples in
            common.
        WorkspaceError: an audit has no influence yet, or its stores do not belong together.
        DamageError: stored bytes are not those that were written.
    """
    # Its figures need numbers of stages, which no other function does
    from krepes_ooc.runner.comparison.compare import compare as compare_workspaces

    return compare_workspaces([find_workspace(workspace)[0] for workspace in workspaces])


def explain(
    workspace: RecipeLike,
    *,
    sample: int | Sequence[int] | None = None,
    file: WorkspaceLike | None = None,
    against: int | None = None,
    probe: str | None = None,
    without: str | None = None,
    corpus: bool = False,
    coefficients: str | None = None,
    top: int | None = None,
    recipe: RecipeLike | None = None,
) -> Sequence[Explained | ExplainedSum | ExplainedWithout]:
    """Explain samples of the source, or the new samples of a file.

    Args:
        workspace: the workspace, or the recipe that was run in it.
        sample: position in the source, or several.
        file: new samples instead, in the form of the source.
        against: position of another sample: its similarity as a sum over landmarks.
        probe: label: the logit of its linear probe as a sum over landmarks.
        without: group: nearest landmarks with and without it.
        corpus: all samples of the source in the place of landmarks.
        coefficients: of the sums: ``auto``, ``step``, ``minimiser`` or ``distilled``.
        top: landmarks to rank; default as many as the audit keeps.
        recipe: the recipe, if it names code or files that a new sample needs.

    Returns:
        One explanation for each sample.

    Raises:
        UsageError: neither or both of sample and file are given, more than one question, no such
            sample, class or group, or the recorded recipe names code or files that ``recipe`` does
            not.
        DataError: the file holds what the network cannot be shown.
        WorkspaceError: the audit has not got that far, or its recipe is stale.
    """
    root, named = find_workspace(workspace)
    if recipe is not None:
        named = as_recipe(recipe)
    asked = {"sample": sample, "file": file, "top": top, "recipe": named}
    return answer(
        root,
        asked,
        against=against,
        probe=probe,
        without=without,
        corpus=corpus,
        coefficients=coefficients,
    )


# Keywords of the command line that have another name in ``Options``.
_RENAMED = {"max_time": "max_seconds", "allow_mixed_numerics": "mixed_numerics"}


def _options(options: Options | None, keywords: dict[str, Any]) -> Options:
    """Options from one object or from keywords.

    Raises:
        UsageError: both, an unknown keyword, or a text that cannot be read.
    """
    if not keywords:
        return options or Options()
    if options is not None:
        raise UsageError(
            f"options and {next(iter(keywords))}", expected="one object, or keywords of their own"
        )
    known = sorted({*Options.__dataclass_fields__, *_RENAMED} - set(_RENAMED.values()))
    if unknown := [name for name in keywords if name not in known]:
        raise UsageError(f"no option {unknown[0]!r}", expected="one of " + ", ".join(known))
    return Options(**{_RENAMED.get(name, name): value for name, value in keywords.items()})


def _folder(workspace: WorkspaceLike | None) -> Path | None:
    return None if workspace is None else Path(path_text(workspace, "workspace"))
