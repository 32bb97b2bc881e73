"""Random walk over settings, choices of stages, kills, harm and repairs.

Whatever came before: after each command that ends with exit 0, every byte of the stages that it was
asked for is that of a clean run of its settings, but for files that were harmed since and not
repaired. A walk ends with a repair, after which nothing differs at all. Forty steps through the
first stages in ``make test``; 500 steps through all stages in ``make crash``:

    pytest -m crash tests/crash/test_random_walk.py
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from krepes_ooc.runner.recipe import Recipe
from tests import small
from tests.crash import children
from tests.crash.compare import differences
from tests.crash.replayed_files import ROWS, TINY
from tests.crash.share import share_of

SETTINGS = ("seed=0", "seed=1", "stages.landmarks.count=10")
LATER = ("views.corruption=0.4", "stages.newton.objective=vicreg", "stages.spectrum.components=3")
HARMS = ("flip", "delete", "cut", "exchange", "replay")
STEPS, FEW = 20, 8


class Walk(RuleBasedStateMachine):
    """Commands on one workspace, up to the stage ``last``."""

    root: ClassVar[Path]
    names: ClassVar[list[str]]
    counts: ClassVar[Counter[str]]
    wanted: ClassVar[int]
    last: ClassVar[str] = "moments"
    settings_walked: ClassVar[tuple[str, ...]] = SETTINGS
    most_changes: ClassVar[int] = 100

    def __init__(self) -> None:
        super().__init__()
        self.workspace = Path(tempfile.mkdtemp(dir=self.root)) / "w"
        self.earlier = self.workspace.with_name("earlier")
        # Files that were harmed since the last repair of the whole workspace.
        self.harmed: set[str] = set()
        self.change = self.settings_walked[0]

    @rule(
        change=st.one_of(st.none(), st.integers(0, 5)),
        choice=st.sampled_from(["all", "until", "only"]),
        stage=st.integers(0, 30),
        restart=st.sampled_from([True, True, False]),
        repair=st.booleans(),
        kill_at=st.one_of(st.just(0), st.just(0), st.floats(0.01, 1)),
        keep=st.booleans(),
    )
    def step(
        self,
        change: int | None,
        choice: str,
        stage: int,
        restart: bool,
        repair: bool,
        kill_at: float,
        keep: bool,
    ) -> None:
        """One run, to its end or killed; without ``change`` under the settings of the last one."""
        if self.counts.total() >= self.wanted:
            return
        # A later harm lays old files in.
        if keep and self.workspace.is_dir():
            shutil.rmtree(self.earlier, ignore_errors=True)
            shutil.copytree(self.workspace, self.earlier)
        if change is not None:
            self.change = self.settings_walked[change % len(self.settings_walked)]
        chosen = self.names if choice == "all" else self.names[: stage % len(self.names) + 1]
        extra = ["--until", chosen[-1]]
        if choice == "only":
            chosen = chosen[-1:]
            extra = ["--only", chosen[-1]]
        extra += ["--restart-stale"] * restart + ["--repair"] * repair
        self.command_ends(chosen, extra, int(kill_at * self.most_changes))

    def command_ends(self, chosen: list[str], extra: list[str], kill: int) -> None:
        """Run, and look at the exit code; after exit 0 at the bytes of the chosen stages."""
        done = children.command(self.command("run", *extra), kill)
        story = f"{self.change} {extra} killed at {kill}: {done}; harmed: {self.harmed}"
        self.counts["killed" if done.code == -9 else f"exit {done.code}"] += 1
        assert "unexpected" not in done.text, story
        assert "Traceback" not in done.text, story
        # What each code may stand for.
        repair, only = "--repair" in extra, "--only" in extra
        allowed = {0}
        allowed |= {-9} if kill else set()
        allowed |= {2} if only else set()
        allowed |= set() if "--restart-stale" in extra else {4}
        allowed |= {5} if self.harmed and (only or not repair) else set()
        assert done.code in allowed, story
        if done.code == 0:
            self.check(chosen, repair, story)

    @rule(place=st.integers(0, 10**6), look=st.booleans())
    def harm(self, place: int, look: bool) -> None:
        """Harm a file: another bit, a part, none, a chunk of another place, one of another run.

        With ``look`` a run of all stages, which does not repair, comes next.
        """
        if self.counts.total() >= self.wanted:
            return
        # The search likes to draw the same again: with the count every harm has its share.
        draw = random.Random(f"{place} {self.counts.total()}")
        files = self.files()
        possible = {kind: [f for f in files if self.others(f, files, kind)] for kind in HARMS}
        kinds = [kind for kind in HARMS if possible[kind]]
        if not kinds:
            return
        harm = draw.choice(kinds)
        # Chunks are far more than records: each has half of the turns.
        halves = [
            [f for f in possible[harm] if ("/c/" in f) == is_chunk] for is_chunk in (True, False)
        ]
        file = draw.choice(draw.choice([half for half in halves if half]))
        path = self.workspace / file
        data = path.read_bytes()
        other = draw.choice(self.others(file, files, harm))
        if harm == "flip" and data:
            bit = draw.randrange(8 * len(data))
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
        elif harm == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif harm == "delete":
            path.unlink()
        elif harm in ("exchange", "replay"):
            path.write_bytes(other.read_bytes())
            if harm == "exchange":
                other.write_bytes(data)
                self.harmed.add(other.relative_to(self.workspace).as_posix())
        else:
            return
        self.harmed.add(file)
        self.counts[harm] += 1
        if look:
            self.command_ends(self.names, ["--until", self.last, "--restart-stale"], 0)

    def teardown(self) -> None:
        """Repair; then nothing at all differs."""
        if not self.workspace.is_dir():
            return
        extra = ["--until", self.last, "--repair", "--restart-stale"]
        done = children.command(self.command("run", *extra))
        assert done.code == 0, (self.change, self.harmed, done)
        self.check(self.names, True, str(done))
        verified = children.command(["verify", "-w", str(self.workspace)])
        assert verified.code == 0, (self.change, verified)
        shutil.rmtree(self.workspace.parent)

    def check(self, chosen: list[str], repair: bool, story: str) -> None:
        """Compare the stages that a run was asked for with a clean run of the same settings."""
        lines = differences(self.reference(), self.workspace)
        found = {f"audit.zarr/{line.partition(': ')[2]}" for line in lines}
        wrong = {file for file in found if file.split("/")[1] in chosen}
        if repair:
            assert not wrong, (story, wrong)
        assert wrong <= self.harmed, (story, wrong)
        if repair and chosen == self.names:
            self.harmed.clear()

    def others(self, file: str, files: list[str], harm: str) -> list[Path]:
        """Files of which one takes part in the harm of ``file``: by itself, or to be laid in."""
        if harm == "replay":
            earlier = self.earlier / file
            return [earlier] if earlier.is_file() else []
        if harm != "exchange":
            return [self.workspace / file]
        array, is_chunk, _ = file.partition("/c/")
        return [
            self.workspace / f
            for f in files
            if is_chunk and f.startswith(f"{array}/c/") and f != file
        ]

    def files(self) -> list[str]:
        """Files of stores and of the records of their stages."""
        folders = (self.workspace / "audit.zarr", self.workspace / ".krepes/stages")
        found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return sorted(path.relative_to(self.workspace).as_posix() for path in found)

    def command(self, name: str, *extra: str, workspace: Path | None = None) -> list[str]:
        """A command with the settings of this step."""
        sets = [part for change in (*TINY, self.change) for part in ("--set", change)]
        given = [name, str(self.root / "recipe/own.yaml"), "-w", str(workspace or self.workspace)]
        return [*given, "--quiet", "--workers", "2", "--device", "cpu", *sets, *extra]

    def reference(self) -> Path:
        """A clean run of the settings, made once."""
        workspace = self.root / f"clean-{self.change}"
        if not workspace.is_dir():
            given = self.command("run", "--until", self.last, workspace=workspace)
            done = children.command(given)
            assert done.code == 0, done
        return workspace


class LongWalk(Walk):
    """The same through all stages."""

    last = "report"
    settings_walked = SETTINGS + LATER
    most_changes = 500


def walk(machine: type[Walk], root: Path, steps: int, each: int = STEPS) -> Counter[str]:
    """Walks of at most ``each`` steps, until ``steps`` things have happened; which they were."""
    small.own_recipe(root / "recipe", small.rows_csv(ROWS))
    names = [stage.name for stage in Recipe.load(str(root / "recipe/own.yaml")).stages]
    machine.root = root
    machine.names = names[: names.index(machine.last) + 1]
    machine.counts = Counter()
    machine.wanted = steps
    children.load()
    # Shrinking would repeat whole walks: a failure tells its steps as they were.
    run_state_machine_as_test(
        machine,
        settings=settings(
            # The first walk is the simplest: the same rule again and again. Many end early, and
            # those that come when enough has happened do nothing.
            max_examples=steps,
            stateful_step_count=each,
            phases=(Phase.generate,),
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return machine.counts


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_short_walk(tmp_path: Path) -> None:
    # A walk has harm or none: several short ones have both.
    counts = walk(Walk, tmp_path, 40, FEW)
    print(dict(counts))
    assert counts["exit 0"] > 3
    assert counts["killed"] > 0
    assert sum(counts[harm] for harm in HARMS) > 0


@pytest.mark.crash
@pytest.mark.timeout(7200)
def test_long_walk(tmp_path: Path, campaign_row: Callable[..., None]) -> None:
    counts = walk(LongWalk, tmp_path, share_of(500))
    campaign_row(cases=counts.total())
    print(dict(counts))
    assert counts.total() >= share_of(500)
    assert min(counts[event] for event in ("exit 0", "exit 5", "killed", *HARMS)) >= share_of(5)
