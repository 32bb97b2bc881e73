"""Kill whole runs at random instants, resume, and compare every bit with an undisturbed run.

    python -m tests.crash.kill_and_resume --kills 30 --seed 0

A kill is SIGKILL of the process group. When a run gets through to its end before it is killed, its
workspace is compared and a new one is begun. Prints one line a kill and a summary; exit 1 if a bit
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.compare import differences

LIMIT_SECONDS = 1800


@dataclass
class Tally:
    """What happened."""

    kills: int = 0
    workspaces: int = 0
    stages: dict[str, int] = field(default_factory=dict)
    recomputed: list[int] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)


def command(recipe: str, workspace: Path, extra: list[str]) -> list[str]:
    """The command of one run."""
    return [
        sys.executable,
        "-m",
        "krepes_ooc",
        "run",
        recipe,
        "-w",
        str(workspace),
        "--quiet",
        *extra,
    ]


def run_to_end(recipe: str, workspace: Path, extra: list[str]) -> float:
    """Run without disturbance; seconds it took."""
    begin = time.monotonic()
    subprocess.run(command(recipe, workspace, extra), check=True, timeout=LIMIT_SECONDS)
    return time.monotonic() - begin


def run_and_kill(recipe: str, workspace: Path, extra: list[str], seconds: float) -> bool:
    """Run and kill after a time; whether the run was still going."""
    process = subprocess.Popen(command(recipe, workspace, extra), start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if code:
        raise SystemExit(f"a run failed with exit code {code}")
    return False


def current_stage(workspace: Path) -> str:
    """Stage that the killed run had begun and not sealed."""
    folders = sorted((workspace / ".krepes" / "stages").glob("*/begun.json"), key=os.path.getmtime)
    return folders[-1].parent.name if folders else "before the first stage"


def units_on_disk(workspace: Path) -> int:
    """Journal lines of all stages: a unit that is computed twice has two."""
    journals = (workspace / ".krepes" / "stages").glob("*/journal-*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in journals)


def campaign(recipe: str, kills: int, seed: int, extra: list[str], root: Path) -> Tally:
    """Kill runs until ``kills`` kills are counted; compare every finished workspace."""
    reference, tally, draw = root / "reference", Tally(), random.Random(seed)
    seconds = run_to_end(recipe, reference, extra)
    clean_units = units_on_disk(reference)
    print(f"undisturbed run: {seconds:.1f} s, {clean_units} journalled units", flush=True)
    while tally.kills < kills:
        workspace = root / f"killed-{tally.workspaces}"
        killed_here = 0
        while tally.kills < kills and run_and_kill(
            recipe, workspace, extra, draw.uniform(0, seconds)
        ):
            tally.kills, killed_here = tally.kills + 1, killed_here + 1
            stage = current_stage(workspace)
            tally.stages[stage] = tally.stages.get(stage, 0) + 1
            print(f"kill {tally.kills}: in {stage}", flush=True)
        run_to_end(recipe, workspace, extra)
        tally.workspaces += 1
        tally.recomputed.append(units_on_disk(workspace) - clean_units)
        found = differences(reference, workspace)
        tally.differing += found
        print(
            f"workspace {tally.workspaces}: {killed_here} kills, {len(found)} differences",
            flush=True,
        )
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
    sys.exit(1 if tally.differing else 0)


if __name__ == "__main__":
    main()
