"""Slurm through its own commands, and a watch over the jobs of a scenario."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KREPES = [sys.executable, "-m", "krepes_ooc"]
WAIT = 1500


def said(*command: str) -> str:
    """What a command prints.

    Raises:
        CalledProcessError: it failed.
    """
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_for(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.2)


def start_slurm(folder: Path) -> None:
    """A cluster of one node; its commands find it through the environment."""
    script = str(ROOT / "tests/slurm/cluster.sh")
    os.environ["SLURM_CONF"] = said(script, "start", str(folder)).strip().splitlines()[-1]
    os.environ |= {"PYTHONPATH": str(ROOT), "KREPES": " ".join(KREPES)}


def stop_slurm(folder: Path) -> None:
    subprocess.run(["scancel", "--user=root"], check=False, capture_output=True)
    subprocess.run([str(ROOT / "tests/slurm/cluster.sh"), "stop", str(folder)], check=False)


def batch(*arguments: str) -> str:
    """Submit a script; returns the number of the job."""
    return said("sbatch", "--parsable", "-o", "/dev/null", f"--chdir={ROOT}", *arguments).strip()


class Watch:
    """Every state that every job was seen in, from entering to leaving; the jobs before are not.

    Jobs leave Slurm's memory minutes after their end, so they are looked at all the time.
    """

    def __init__(self) -> None:
        self.states: dict[str, list[str]] = {}
        self.restarts: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Watch:
        self._before = set(_jobs())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._stop.wait(0.25):
            self.look()

    def look(self) -> None:
        for job, (state, restarts) in _jobs().items():
            if job not in self._before:
                seen = self.states.setdefault(job, [])
                self.restarts[job] = restarts
                if seen[-1:] != [state]:
                    seen.append(state)

    def ever(self, state: str) -> list[str]:
        """Jobs that were seen in a state, in the order of their submission."""
        return [job for job, seen in self.states.items() if state in seen]

    def now(self, state: str) -> list[str]:
        """Jobs whose last state this is."""
        return [job for job, seen in self.states.items() if seen[-1] == state]


def _jobs() -> dict[str, tuple[str, int]]:
    """State and number of restarts of every job that Slurm still knows."""
    found = {}
    done = subprocess.run(["scontrol", "-o", "show", "job"], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        facts = dict(re.findall(r"(\w+)=(\S+)", line))
        if "JobId" in facts:
            name = facts["JobId"]
            if "ArrayTaskId" in facts:
                name = f"{facts['ArrayJobId']}_{facts['ArrayTaskId']}"
            found[name] = (facts["JobState"], int(facts.get("Restarts", 0)))
    return found
