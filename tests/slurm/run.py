"""A real Slurm on this machine: every way to spread an audit gives the bits of threads.

    make slurm-test                            (as root, on Debian: it installs slurm-wlm and munge)
    python tests/slurm/run.py --case digits --only killed,array      some of the scenarios

Each scenario of tests/slurm/scenarios.py brings its fault about, fails if it did not come, and
compares every stored bit with the run on threads; on digits and on --samples rows of Adult.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.slurm.case import Case, adult, digits  # noqa: E402
from tests.slurm.commands import start_slurm, stop_slurm  # noqa: E402
from tests.slurm.scenarios import SCENARIOS  # noqa: E402


def cases(asked: argparse.Namespace) -> Iterator[Case]:
    if asked.case in ("digits", ""):
        yield digits(asked.folder)
    if asked.case in ("adult", ""):
        yield adult(asked.folder, asked.adult, asked.samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--adult", type=Path, default=ROOT / ".cache/data/adult.parquet")
    parser.add_argument("--folder", type=Path, default=Path("slurm-test"))
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, with commas")
    parser.add_argument("--case", default="", choices=["", "digits", "adult"])
    asked = parser.parse_args()
    asked.folder = asked.folder.resolve()
    asked.folder.mkdir(parents=True, exist_ok=True)
    slurm, failed = asked.folder / "slurm", 0
    start_slurm(slurm)
    try:
        for case in cases(asked):
            for name in asked.only.split(","):
                begun = time.monotonic()
                try:
                    words = SCENARIOS[name](case)
                except AssertionError as error:
                    words, failed = f"FAILED: {error}", failed + 1
                seconds = time.monotonic() - begun
                print(f"{case.name:13} {name:10} {seconds:6.1f} s  {words}", flush=True)
    finally:
        stop_slurm(slurm)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
