"""Locks of a run: the whole workspace for a plain run, one shard each for several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from krepes_ooc.errors import UsageError
from krepes_ooc.runner.audit import Options
from krepes_ooc.stages.base.stage import Stage
from krepes_ooc.stages.registry import STAGES
from krepes_ooc.storage import locks
from krepes_ooc.storage.workspace import Workspace


def refuse_shard(chosen: tuple[Stage, ...], options: Options) -> None:
    """Refuse a shard that cannot be computed alone.

    Raises:
        UsageError: its number is out of range, its stage is not cut, or another option needs the
            workspace alone.
    """
    if options.shard is None:
        return
    # A number in its range, of one stage whose work is cut into shards.
    number, count = options.shard
    where = f"--shard {number}/{count}"
    if not 1 <= number <= count:
        raise UsageError(f"shard {number} of {count}", where=where, expected=f"1 to {count}")
    if options.only is None:
        raise UsageError("no stage is named", where=where, expected="--only STAGE beside it")
    if chosen[0].parallel != "shards":
        raise UsageError(
            f"stage {options.only} is not cut into shards",
            where=where,
            expected="one of " + ", ".join(s.name for s in STAGES if s.parallel == "shards"),
            advice=f"run with --only {options.only} alone",
        )
    # Nothing that removes files which other shards may be using.
    exclusive = {
        "--restart-stale": options.restart_stale,
        "--repair": options.repair,
        "--cluster": options.cluster is not None,
    }
    for name, is_set in exclusive.items():
        if is_set:
            raise UsageError(
                f"{name} with a shard",
                where=where,
                expected="a plain run, which has the workspace alone",
                advice=f"run once without --shard, with {name}",
            )


@contextlib.contextmanager
def lock_workspace(
    space: Workspace, recipe: str, options: Options, lost: Callable[[], None]
) -> Iterator[None]:
    """Lock of the workspace, or of one shard of it.

    Args:
        space: the workspace.
        recipe: name of the recipe, for a workspace that is new.
        options: with or without a shard.
        lost: called if another host takes the lock over.

    Raises:
        WorkspaceError: another process has locked it.
    """
    private = space.private
    # Shards of a stage run beside each other; only the creation of the workspace excludes.
    if options.shard is not None:
        with locks.lock_shard(private, str(options.only), options.shard, lost):
            with locks.lock_opening(private):
                space.create(recipe)
            yield
        return
    # Before the lock, for its own message; and under it, against a shard that came in between.
    locks.refuse_running_shards(private)
    with space.lock(lost):
        locks.refuse_running_shards(private)
        locks.clear_shards(private)
        yield


def start_stage_lock(space: Workspace, options: Options) -> AbstractContextManager[None]:
    """Lock for starting a stage, where several shards may start it at once."""
    return contextlib.nullcontext() if options.shard is None else locks.lock_opening(space.private)


def journal_owner(options: Options) -> str:
    """Name of the writer of a journal: each shard appends to its own file."""
    if options.shard is None:
        return ""
    number, count = options.shard
    return f"shard-{number:06d}-of-{count:06d}"
