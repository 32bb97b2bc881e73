"""A stage that takes more memory than planned: fewer workers or exit 75, and nothing is lost."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.engine.budget import release
from krepes_ooc.errors import Stopped
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.plan import make_plan
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import read_status
from krepes_ooc.stages.base import writing
from tests import small
from tests.crash.compare import differences

MIB = 2**20
PLANTED = 400 * MIB
# Several blocks, so that there is a next one.
BLOCKS = ("stages.features.block_rows=64", "stages.features.forward_batch=64")
BLOCK_COUNT = 5


class Notes:
    """A listener that remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ended: dict[str, str] = {}
        self.blocks = 0

    def begin(self, stage: str, total: int, done: int) -> None: ...

    def advance(self, units: int = 1, n_bytes: int = 0) -> None:
        self.blocks += units

    def end(self, stage: str, seconds: float, memory: str = "") -> None:
        self.ended[stage] = memory

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("reference") / "w"
    small.audit(workspace, *BLOCKS, until="kernel")
    return workspace


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the kernel take memory that no plan counts."""
    whole = writing.write_unit

    def hungry(context: Any, *arguments: Any) -> Any:
        if context.stage.name == "kernel":
            values = np.ones(PLANTED // 8)
            time.sleep(0.2)
            del values
        return whole(context, *arguments)

    monkeypatch.setattr(writing, "write_unit", hungry)


def start(workspace: Path) -> None:
    small.audit(workspace, *BLOCKS, until="audited")
    gc.collect()
    release()


def planned_memory(workspace: Path, workers: int) -> int:
    rows = make_plan(small.recipe(*BLOCKS), workspace, Options(workers=workers))["stages"]
    return int(next(row for row in rows if row["stage"] == "kernel")["memory_bytes"])


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
def test_one_worker_ends_with_75_and_resumes_to_the_same_bits(
    reference: Path, tmp_path: Path
) -> None:
    start(tmp_path)
    memory = planned_memory(tmp_path, 1) + PLANTED // 4
    recipe, finished = small.recipe(*BLOCKS), []
    # The blocks under way are finished: every start of the same command gains one.
    for _ in range(2):
        with pytest.raises(Stopped) as caught:
            run(recipe, tmp_path, Options(workers=1, memory=memory, until="kernel"))
        assert caught.value.exit_code == 75
        assert str(caught.value).startswith("stage kernel: stopped, because it takes ")
        assert "nothing is lost: run again with --memory " in str(caught.value)
        finished.append(row_of(recipe, tmp_path)["done"])
    assert 0 < finished[0] < finished[1]
    # Enough memory: above its plan is said, where the stage ends and in its record.
    listener = Notes()
    more = Options(workers=1, memory=memory + PLANTED, until="kernel")
    assert run(recipe, tmp_path, more, listener).ran == ["kernel"]
    assert listener.blocks < finished[1] + listener.blocks == BLOCK_COUNT
    assert differences(reference, tmp_path) == []
    assert [note for note in listener.notes if note.startswith("kernel: ")]
    assert " planned" in listener.ended["kernel"]
    seal = json.loads((tmp_path / ".krepes/stages/kernel/seal.json").read_text())["body"]
    assert seal["planned_memory"] < seal["anonymous_peak"] <= memory + PLANTED
    row = row_of(recipe, tmp_path)
    assert row["detail"].endswith(" planned")
    assert row["planned_memory"] == seal["planned_memory"]


def row_of(recipe: Any, workspace: Path) -> Any:
    return next(r for r in read_status(recipe, workspace)["stages"] if r["stage"] == "kernel")


@pytest.mark.slow
@pytest.mark.usefixtures("planted")
def test_two_workers_become_one_and_the_run_ends_well(reference: Path, tmp_path: Path) -> None:
    start(tmp_path)
    memory = planned_memory(tmp_path, 2) + PLANTED + PLANTED // 2
    listener = Notes()
    recipe = small.recipe(*BLOCKS)
    run(recipe, tmp_path, Options(workers=2, memory=memory, until="kernel"), listener)
    assert any("1 at a time from the next block on" in note for note in listener.notes)
    assert differences(reference, tmp_path) == []


def test_a_run_within_its_plan_says_both_and_warns_of_nothing(tmp_path: Path) -> None:
    listener = Notes()
    options = Options(workers=2, memory=4 << 30, until="kernel")
    run(small.recipe(*BLOCKS), tmp_path, options, listener)
    assert set(listener.ended) == {"pretrain", "features", "landmarks", "audited", "kernel"}
    assert all(" of memory, " in words for words in listener.ended.values())
    assert not [note for note in listener.notes if "at a time" in note]
