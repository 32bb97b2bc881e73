"""Who may write the workspace: one plain run, or several processes with a shard each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from krepes_ooc.errors import UsageError
from krepes_ooc.runner.audit import Options
from krepes_ooc.stages.base.stage import Stage
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
            expected="features, kernel or moments",
            advice=f"run with --only {options.only} alone",
        )
    others = {"--restart-stale": options.restart_stale, "--repair": options.repair}
    for name, given in {**others, "--cluster": options.cluster is not None}.items():
        if given:
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
    """The workspace alone, or one shard of it.

    Raises:
        WorkspaceError: somebody else holds it.
    """
    private = space.private
    if options.shard is not None:
        with locks.lock_shard(private, str(options.only), options.shard, lost):
            with locks.lock_opening(private):
                space.create(recipe)
            yield
        return
    locks.refuse_running_shards(private)
    with space.lock(lost):
        locks.refuse_running_shards(private)
        locks.clear_shards(private)
        yield


def start_stage_lock(space: Workspace, options: Options) -> AbstractContextManager[None]:
    """One process at a time, where several may begin a stage at once."""
    return contextlib.nullcontext() if options.shard is None else locks.lock_opening(space.private)


def journal_owner(options: Options) -> str:
    """Who appends to the journal: a shard has one of its own."""
    if options.shard is None:
        return ""
    number, count = options.shard
    return f"shard-{number:06d}-of-{count:06d}"
