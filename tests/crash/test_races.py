"""Commands that start at the same instant on one workspace: one wins, the others say why not.

Once in ``make test``, a dozen times in ``make crash``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.runner.status import verify_workspace
from tests import small
from tests.crash.compare import differences
from tests.crash.share import share_of
from tests.storage import stores

FORK = get_context("fork")
LIBRARIES = ("dask.threaded", "pyarrow", "sklearn.linear_model", "torch", "xarray")


@pytest.fixture(
    params=[1, pytest.param(share_of(12), marks=[pytest.mark.crash, pytest.mark.timeout(3600)])]
)
def times(request: pytest.FixtureRequest, campaign_row: Callable[..., None]) -> int:
    campaign_row(cases=int(request.param))
    return int(request.param)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose first stage is features, so that nothing at all is there before it."""
    return small.own_recipe(tmp_path_factory.mktemp("recipe"), small.rows_csv(1700))


@pytest.fixture(scope="module")
def reference(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("reference") / "w"
    (outcome,) = race(command(recipe, workspace))
    assert outcome.code == 0, outcome
    return workspace


def command(recipe: Path, workspace: Path, *extra: str) -> tuple[str, ...]:
    return ("run", str(recipe), "-w", str(workspace), "--quiet", "--workers", "1", *extra)


def race(*commands: tuple[str, ...]) -> list[small.Outcome]:
    """Commands in processes of their own, let go at once; libraries are loaded before."""
    for library in LIBRARIES:
        __import__(library)
    barrier = FORK.Barrier(len(commands))
    pipes = [(FORK.Pipe(duplex=False), given) for given in commands]
    processes = []
    for (_, end), given in pipes:
        processes.append(FORK.Process(target=work, args=(given, barrier, end), daemon=True))
        processes[-1].start()
        end.close()
    outcomes = [receiver.recv() for (receiver, _), _ in pipes]
    for process in processes:
        process.join()
    return outcomes


def work(given: tuple[str, ...], barrier: Any, answer: Any) -> None:
    """One command; what it printed and its exit code go to the parent."""
    import contextlib
    import io

    from krepes_ooc.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    barrier.wait()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(given))
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    answer.send(small.Outcome(code, out.getvalue(), err.getvalue()))
    answer.close()
    os._exit(0)


def one_wins(outcomes: list[small.Outcome]) -> None:
    """Exactly one went through; every other one was told who holds the workspace."""
    assert sorted(outcome.code for outcome in outcomes) == [0, *[4] * (len(outcomes) - 1)]
    for outcome in outcomes:
        if outcome.code:
            assert "in use by process" in outcome.line
            assert "wait for it, stop it, or choose another --workspace" in outcome.line


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_fresh_starts(recipe: Path, reference: Path, tmp_path: Path, times: int, count: int):
    for turn in range(times):
        workspace = tmp_path / f"w{turn}"
        one_wins(race(*[command(recipe, workspace)] * count))
        assert differences(reference, workspace) == []
        assert verify_workspace(workspace).damage == ()
        assert list((workspace / ".krepes/temp").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 5])
def test_shards_of_a_store_that_is_not_there(
    recipe: Path, reference: Path, tmp_path: Path, times: int, count: int
):
    for turn in range(times):
        workspace = tmp_path / f"w{turn}"
        extra = ("--only", "features", "--shard")
        shards = [command(recipe, workspace, *extra, f"{n + 1}/{count}") for n in range(count)]
        for outcome in race(*shards):
            assert (outcome.code, outcome.err) == (0, "")
        (outcome,) = race(command(recipe, workspace))
        assert outcome.code == 0
        assert differences(reference, workspace) == []
        assert verify_workspace(workspace).damage == ()


@pytest.mark.slow
def test_shards_beside_a_plain_run_on_a_fresh_workspace(
    recipe: Path, reference: Path, tmp_path: Path, times: int
):
    """Either side may come first; who is refused is told, and the next run ends the work."""
    for turn in range(times):
        workspace = tmp_path / f"w{turn}"
        shards = [
            command(recipe, workspace, "--only", "features", "--shard", f"{n}/2") for n in (1, 2)
        ]
        for outcome in race(command(recipe, workspace), *shards):
            assert outcome.code in (0, 4)
            assert outcome.code == 0 or "process" in outcome.line
        (outcome,) = race(command(recipe, workspace))
        assert outcome.code == 0
        assert differences(reference, workspace) == []


@pytest.mark.slow
def test_a_run_beside_a_repair(recipe: Path, reference: Path, tmp_path: Path, times: int):
    for turn in range(times):
        workspace = tmp_path / f"w{turn}"
        shutil.copytree(reference, workspace)
        stores.flip(workspace / "audit.zarr/features/values/c/0/1/0", 77)
        shutil.rmtree(workspace / ".krepes/stages/newton")
        outcomes = race(
            command(recipe, workspace, "--repair"),
            command(recipe, workspace, "--repair"),
            command(recipe, workspace),
        )
        one_wins(outcomes)
        if outcomes[2].code == 0:  # it had no reason to look at that block
            one_wins(race(command(recipe, workspace, "--repair")))
        assert differences(reference, workspace) == []
        assert verify_workspace(workspace).damage == ()


@pytest.mark.slow
def test_verify_status_and_plan_beside_a_run(
    recipe: Path, reference: Path, tmp_path: Path, times: int
):
    """Who only reads needs no lock, finds no damage where there is none, and disturbs nobody."""
    for turn in range(times):
        workspace = tmp_path / f"w{turn}"
        (workspace / ".krepes").mkdir(parents=True)
        running = FORK.Event()

        def look(answer: Any, workspace: Path = workspace, running: Any = running) -> None:
            found: list[str] = []
            while not running.is_set():
                found += map(str, verify_workspace(workspace).damage)
            answer.send(found)

        receiver, end = FORK.Pipe(duplex=False)
        reader = stores.start(lambda: look(end))  # noqa: B023
        outcomes = race(
            command(recipe, workspace),
            ("status", "-w", str(workspace)),
            ("plan", str(recipe), "-w", str(workspace)),
        )
        running.set()
        assert [outcome.code for outcome in outcomes] == [0, 0, 0], outcomes
        assert receiver.recv() == []
        reader.join()
        assert differences(reference, workspace) == []
