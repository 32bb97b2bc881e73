"""Kill whole runs at random instants, resume, and compare every bit with an undisturbed run.

    python -m tests.crash.kill_and_resume --kills 60 --seed 0
    python -m tests.crash.kill_and_resume --kills 60 --seed 1 -- --set stages.newton.objective=byol

A kill is SIGKILL. Runs are forked from a process that has imported every library, so that an
instant falls into the work and not into the imports. When a run gets through to its end before it
is killed, its workspace is compared and a new one is begun. After every kill the blocks are counted
that are on disk but not in a journal: those in flight, which the next run computes again. Prints
one line a kill and a summary; exit 1 if a bit differs, or if more was computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.crash.compare import differences
from tests.crash.faults import journalled_twice

LIMIT_SECONDS = 1800
WORKERS = 2
LIBRARIES = ("dask.threaded", "pyarrow", "scipy.stats", "sklearn.linear_model", "torch", "xarray")


@dataclass
class Tally:
    """What happened.

    Args:
        kills: runs that were killed.
        workspaces: workspaces that were compared.
        stages: kills by the stage that was begun last.
        in_flight: blocks on disk without a journal line after a kill; how often so many.
        recomputed: blocks in a journal that were computed again nevertheless.
        wrong: what differs, or was computed again without need.
    """

    kills: int = 0
    workspaces: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[int] = field(default_factory=Counter)
    recomputed: int = 0
    wrong: list[str] = field(default_factory=list)


def start(recipe: str, workspace: Path, extra: list[str]) -> Any:
    """Start one run in a forked process."""

    def work() -> None:
        from krepes_ooc.cli import main

        try:
            main(["run", recipe, "-w", str(workspace), "--quiet", *extra])
        except SystemExit as exit_:
            os._exit(int(exit_.code or 0))
        os._exit(0)

    process = get_context("fork").Process(target=work)
    process.start()
    return process


def run_to_end(recipe: str, workspace: Path, extra: list[str]) -> float:
    """Run without disturbance; seconds it took."""
    begin = time.monotonic()
    if run_and_kill(recipe, workspace, extra, LIMIT_SECONDS):
        raise SystemExit(f"a run took more than {LIMIT_SECONDS} s")
    return time.monotonic() - begin


def run_and_kill(recipe: str, workspace: Path, extra: list[str], seconds: float) -> bool:
    """Run and kill after a time; whether the run was still going."""
    process = start(recipe, workspace, extra)
    process.join(seconds)
    going = process.is_alive()
    process.kill()
    process.join()
    if not going and process.exitcode:
        raise SystemExit(f"a run failed with exit code {process.exitcode}")
    return going


def current_stage(workspace: Path) -> str:
    """Stage that the killed run had begun last."""
    folders = sorted((workspace / ".krepes/stages").glob("*/begun.json"), key=os.path.getmtime)
    return folders[-1].parent.name if folders else "before the first stage"


def blocks_in_flight(workspace: Path) -> int:
    """Blocks of the stage begun last with a chunk on disk and no journal line."""
    stage = current_stage(workspace)
    folder, store = workspace / ".krepes/stages" / stage, workspace / "audit.zarr" / stage
    if (folder / "seal.json").exists() or not (store / "values/c").is_dir():
        return 0
    journalled: set[str] = set()
    for path in folder.glob("journal-*.jsonl"):
        for line in path.read_bytes().splitlines():
            journalled |= json.loads(line)["body"]["files"].keys()
    chunks = (path for path in (store / "values/c").rglob("*") if path.is_file())
    lost = [p for p in chunks if p.relative_to(store).as_posix() not in journalled]
    return len({path.parent.name for path in lost})


def campaign(recipe: str, kills: int, seed: int, extra: list[str], root: Path) -> Tally:
    """Kill runs until ``kills`` kills are counted; compare every finished workspace."""
    reference, tally, draw = root / "reference", Tally(), random.Random(seed)
    extra = ["--workers", str(WORKERS), *extra]
    for library in LIBRARIES:
        __import__(library)
    seconds = run_to_end(recipe, reference, extra)
    print(f"undisturbed run: {seconds:.1f} s", flush=True)
    # A machine that others use is slower or faster from run to run: the time follows it, so that
    # about two runs in three are killed.
    while tally.kills < kills:
        workspace = root / "killed"
        killed_here = 0
        while tally.kills < kills and run_and_kill(
            recipe, workspace, extra, draw.uniform(0, seconds)
        ):
            tally.kills, killed_here = tally.kills + 1, killed_here + 1
            seconds *= 1.1
            stage, lost = current_stage(workspace), blocks_in_flight(workspace)
            tally.stages[stage] += 1
            tally.in_flight[lost] += 1
            print(f"kill {tally.kills}: in {stage}, {lost} blocks in flight", flush=True)
            if lost > WORKERS:
                tally.wrong.append(f"kill {tally.kills}: {lost} blocks in flight")
        seconds *= 0.8
        run_to_end(recipe, workspace, extra)
        tally.workspaces += 1
        again = journalled_twice(workspace)
        tally.recomputed += again
        found = differences(reference, workspace)
        tally.wrong += found + [f"{again} journalled blocks were computed again"] * bool(again)
        told = f"{killed_here} kills, {len(found)} differences, {again} blocks computed again"
        print(f"workspace {tally.workspaces}: {told}", flush=True)
        shutil.rmtree(workspace)
    return tally


def main() -> None:
    """Run a campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("extra", nargs="*", help="further options of krepes run, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="krepes-crash-") as root:
        tally = campaign(given.recipe, given.kills, given.seed, given.extra, Path(root))
    print(json.dumps(vars(tally), indent=1, sort_keys=True))
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
