"""Kill whole runs at random instants, resume, and compare every bit with an undisturbed run.

    python -m tests.crash.kill_and_resume --kills 60 --seed 0
    python -m tests.crash.kill_and_resume --kills 60 --seed 1 -- --set stages.newton.objective=byol

A kill is SIGKILL: every other one at a random instant, the others while a random task runs, since
block tasks take a small part of a short run. Runs are forked from a process that has imported every
library, so that an instant falls into the work and not into the imports. When a run gets through to
its end before it is killed, its workspace is compared and a new one is begun. A run writes down
every block task that it begins and ends, and every unit that reaches a journal. So after a kill the
tasks in flight are known: begun and not ended. The next run may compute these again, and nothing
that a journal named. Prints one line a kill and a summary; exit 1 if a bit differs, or if more was
computed again.
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
        in_flight: tasks begun and not ended at a kill; how often so many.
        resumed: tasks in flight at a kill that the next run computed again.
        journalled: units that reached a journal, in all runs.
        recomputed: units in a journal that were computed again nevertheless.
        wrong: what differs, or was computed again without need.
    """

    kills: int = 0
    workspaces: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[int] = field(default_factory=Counter)
    resumed: int = 0
    journalled: int = 0
    recomputed: int = 0
    wrong: list[str] = field(default_factory=list)


def start(recipe: str, workspace: Path, extra: list[str]) -> Any:
    """Start one run in a forked process."""

    def work() -> None:
        from krepes_ooc.cli import main

        diary_of(workspace).keep()
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


def run_and_kill(
    recipe: str, workspace: Path, extra: list[str], seconds: float, task: int = 0
) -> bool:
    """Run and kill after a time, or once so many tasks were begun; whether it was still going."""
    process = start(recipe, workspace, extra)
    begun, end = Begun(diary_of(workspace)), time.monotonic() + seconds
    while task and process.is_alive() and begun.count() < task and time.monotonic() < end:
        time.sleep(0.001)
    process.join(0 if task else seconds)
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


class Diary:
    """What runs of one workspace begin and end: lines that a kill cannot take back.

    Args:
        path: the file; a run appends to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self) -> None:
        """Write down every task and every journalled unit of this process from now on."""
        from krepes_ooc.engine.executor import Executor
        from krepes_ooc.storage.journal import Journal

        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        tasks, append = Executor._tasks, Journal.append

        def write(*words: str) -> None:
            os.write(handle, (json.dumps(words) + "\n").encode())

        def told(executor: Any, function: Any, items: Any) -> Any:
            whole = getattr(function, "func", function)  # of a partial
            # An object that is called has the name of its class.
            name = f"{whole.__module__}.{getattr(whole, '__qualname__', type(whole).__qualname__)}"

            def task(index: int) -> Any:
                key = f"{name} {index} {items[index]!r}"[:200]
                write("begin", key)
                result = function(items[index])
                write("end", key)
                return result

            return tasks(executor, task, range(len(items)))

        def appended(journal: Any, unit: Any) -> None:
            append(journal, unit)
            write("unit", f"{journal.path.parent.name} {unit.name}")

        write("run", "")
        Executor._tasks, Journal.append = told, appended  # type: ignore[method-assign]

    def runs(self) -> list[list[tuple[str, str]]]:
        """Lines of each run."""
        runs: list[list[tuple[str, str]]] = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            word, key = json.loads(line)
            runs += [[]] if word == "run" else []
            runs[-1].append((word, key))
        return runs

    def in_flight(self) -> list[Counter[str]]:
        """Tasks that each run had begun and not ended, with how often."""
        return [
            Counter(k for w, k in run if w == "begin") - Counter(k for w, k in run if w == "end")
            for run in self.runs()
        ]

    def resumed(self) -> int:
        """Tasks in flight at a kill that the run after it began again."""
        pairs = zip(self.in_flight(), self.runs()[1:], strict=False)
        return sum(len(set(lost) & {k for w, k in run if w == "begin"}) for lost, run in pairs)

    def units(self) -> Counter[str]:
        """Units that reached a journal, with how often."""
        return Counter(key for run in self.runs() for word, key in run if word == "unit")


class Begun:
    """Counts the tasks that a diary begins from now on.

    Args:
        diary: may not be there yet.
    """

    def __init__(self, diary: Diary) -> None:
        self.diary, self.tasks = diary, 0
        self.place = diary.path.stat().st_size if diary.path.exists() else 0

    def count(self) -> int:
        """Tasks so far."""
        if self.diary.path.exists():
            with self.diary.path.open("rb") as file:
                file.seek(self.place)
                new = file.read()
            self.place += len(new)
            self.tasks += new.count(b'["begin"')
        return self.tasks


def diary_of(workspace: Path) -> Diary:
    """The diary of the runs of one workspace, beside it."""
    return Diary(workspace.with_name(f"{workspace.name}.diary"))


def campaign(recipe: str, kills: int, seed: int, extra: list[str], root: Path) -> Tally:
    """Kill runs until ``kills`` kills are counted; compare every finished workspace."""
    reference, tally, draw = root / "reference", Tally(), random.Random(seed)
    extra = ["--workers", str(WORKERS), *extra]
    for library in LIBRARIES:
        __import__(library)
    seconds = run_to_end(recipe, reference, extra)
    tasks = sum(word == "begin" for word, _ in diary_of(reference).runs()[0])
    print(f"undisturbed run: {seconds:.1f} s, {tasks} tasks", flush=True)
    # A machine that others use is slower or faster from run to run: the time follows it, so that
    # about two runs in three are killed.
    while tally.kills < kills:
        workspace = root / "killed"
        diary = diary_of(workspace)
        killed_here = 0
        while tally.kills < kills:
            instant = (LIMIT_SECONDS, draw.randint(1, tasks))
            if tally.kills % 2:
                instant = (draw.uniform(0, seconds), 0)
            if not run_and_kill(recipe, workspace, extra, *instant):
                break
            tally.kills, killed_here = tally.kills + 1, killed_here + 1
            seconds *= 1.1
            stage, lost = current_stage(workspace), diary.in_flight()[-1].total()
            tally.stages[stage] += 1
            tally.in_flight[lost] += 1
            print(f"kill {tally.kills}: in {stage}, {lost} tasks in flight", flush=True)
            if lost > WORKERS:
                tally.wrong.append(f"kill {tally.kills}: {lost} tasks in flight")
        seconds *= 0.8
        run_to_end(recipe, workspace, extra)
        tally.workspaces += 1
        units = diary.units()
        again = max(journalled_twice(workspace), units.total() - len(units))
        tally.journalled += len(units)
        tally.resumed += diary.resumed()
        tally.recomputed += again
        found = differences(reference, workspace)
        tally.wrong += found + [f"{again} journalled units were computed again"] * bool(again)
        told = f"{killed_here} kills, {len(found)} differences, {again} units computed again"
        print(f"workspace {tally.workspaces}: {told}", flush=True)
        shutil.rmtree(workspace)
        diary.path.unlink()
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
