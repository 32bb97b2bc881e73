"""Let every single disk call of a small audit fail, resume, and compare every bit.

    python -m tests.crash.faults --every 1 --seed 0

For every stage: from a workspace whose earlier stages are sealed, run that stage with the k-th
write (rename, fsync, read, ...) failing, for k = 1, 2, ... until the run passes untouched. A run
that met the failure must end with one of krepes' own errors or not be harmed at all; no seal may
be wrong; and the next run must get to the same bits. ``--every 17`` takes a strided subset that
begins at a place drawn from the seed; ``--lasting`` lets all later calls fail too.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from krepes_ooc.errors import KrepesError
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import verify_workspace
from tests import small
from tests.crash.compare import differences
from tests.crash.disk import KINDS, FailingDisk

MOST_CALLS = 100_000


@dataclass
class Tally:
    """What happened."""

    runs: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    unharmed: int = 0
    recomputed: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ladder:
    """One undisturbed audit, kept as it was before every stage.

    Args:
        folder: where the copies lie.
        recipe: what is run.
    """

    folder: Path
    recipe: Recipe

    @classmethod
    def climb(cls, folder: Path) -> Ladder:
        """Run the audit stage by stage."""
        ladder = cls(folder, Recipe.load(str(small.own_recipe(folder / "recipe"))))
        step = ladder.before(0)
        for index, stage in enumerate(ladder.names):
            if step.exists():
                shutil.copytree(step, ladder.before(index + 1))
            step = ladder.before(index + 1)
            ladder.run(step, stage)
        return ladder

    @property
    def names(self) -> list[str]:
        """The stages in order."""
        return [stage.name for stage in self.recipe.stages]

    def before(self, index: int) -> Path:
        """The workspace before a stage; the last one is finished."""
        return self.folder / f"before-{index:02d}"

    def run(self, workspace: Path, until: str) -> list[str]:
        """Run to the end of a stage; the stages that ran."""
        return run(self.recipe, workspace, Options(workers=1, until=until)).ran


def fail_and_resume(ladder: Ladder, index: int, disk: FailingDisk, tally: Tally) -> bool:
    """One run with a failing disk and one without; whether a call failed at all."""
    stage, workspace = ladder.names[index], Path(disk.root)
    shutil.rmtree(workspace, ignore_errors=True)
    if ladder.before(index).exists():
        shutil.copytree(ladder.before(index), workspace)
    told = ""
    try:
        with disk:
            ladder.run(workspace, stage)
    except KrepesError as error:
        told = type(error).__name__
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        tally.wrong.append(f"{stage}, {disk.failed[0] if disk.failed else ''}: {told}")
    if not disk.failed:
        if told:
            tally.wrong.append(f"{stage}: fails without a fault: {told}")
        return False
    tally.runs += 1
    tally.errors[told] += bool(told)
    tally.unharmed += not told
    where = f"{stage}, {disk.failed[0]} ({told or 'unharmed'})"
    tally.wrong += [f"{where}: {text}" for text in _wrong(ladder, index, workspace, tally, told)]
    return True


def _wrong(ladder: Ladder, index: int, workspace: Path, tally: Tally, told: str) -> Iterator[str]:
    """What is wrong after a failure."""
    stage = ladder.names[index]
    if (workspace / ".krepes").exists():
        yield from (f"before resuming: {item}" for item in verify_workspace(workspace).damage)
    if not told and differences(ladder.before(index + 1), workspace):
        yield "said nothing, and differs"
    try:
        ladder.run(workspace, stage)
    except Exception as error:
        yield f"does not resume: {type(error).__name__}: {error}"
        return
    yield from differences(ladder.before(index + 1), workspace)
    yield from map(str, verify_workspace(workspace).damage)
    yield from (f"left behind: {p.name}" for p in (workspace / ".krepes/temp").iterdir())
    again = journalled_twice(workspace)
    tally.recomputed += again
    if again > 1:
        yield f"{again} journalled units were computed again"


def journalled_twice(workspace: Path) -> int:
    """Units that the journals name more than once: whole ones that were computed again."""
    units: Counter[str] = Counter()
    for path in (workspace / ".krepes/stages").glob("*/journal-*.jsonl"):
        for line in path.read_bytes().splitlines():
            units[f"{path.parent.name} {json.loads(line)['body']['unit']}"] += 1
    return sum(count - 1 for count in units.values())


def campaign(
    ladder: Ladder,
    root: Path,
    every: int,
    seed: int,
    kinds: Iterable[str] = KINDS,
    stages: Iterable[str] = (),
    *,
    lasting: bool = False,
) -> Tally:
    """Fail every ``every``-th call of each kind in each stage."""
    tally, draw = Tally(), random.Random(seed)
    gc.freeze()  # runs look for cycles: not among the modules, each time anew
    kinds, chosen = tuple(kinds), set(stages)
    for index, stage in enumerate(ladder.names):
        if chosen and stage not in chosen:
            continue
        for kind in kinds:
            first = at = draw.randint(1, every)
            while at < MOST_CALLS:
                failing, inputs = root / "failing", ladder.folder / "recipe"
                disk = FailingDisk(failing, kind, at, lasting=lasting, inputs=inputs)
                if not fail_and_resume(ladder, index, disk, tally):
                    break
                at += every
            tally.calls[kind] += at - 1 if every == 1 else (at - first) // every
    return tally


def main() -> None:
    """Run a campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--stages", nargs="*", default=())
    parser.add_argument("--lasting", action="store_true")
    given = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="krepes-faults-") as root:
        tally = campaign(
            Ladder.climb(Path(root)),
            Path(root),
            given.every,
            given.seed,
            given.kinds,
            given.stages,
            lasting=given.lasting,
        )
    print(json.dumps(vars(tally) | {"seconds": time.monotonic() - begin}, indent=1))
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
