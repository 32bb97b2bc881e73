"""Failing disk calls: strided in ``make crash``, a few in ``make test``."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash import faults
from tests.crash.disk import KINDS, FailingDisk
from tests.crash.share import SHARE, share_of

# One of so many calls of a kind in every stage; ``python -m tests.crash.faults --every 1`` takes
# hours. Few calls of a stage remove or rename a file.
EVERY = dict.fromkeys(KINDS, 53) | {"rename": 17, "unlink": 3, "mkdir": 11}


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> faults.Ladder:
    return faults.Ladder.climb(tmp_path_factory.mktemp("ladder"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lasting", [False, True])
def test_some_calls_fail(ladder: faults.Ladder, tmp_path: Path, lasting: bool) -> None:
    stages = ("features", "kernel", "moments", "report")
    tally = faults.campaign(ladder, tmp_path, 211, 7, stages=stages, lasting=lasting)
    assert tally.wrong == []
    assert tally.runs > 6
    assert tally.recomputed == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_leftover_that_cannot_be_removed_ends_no_stage(
    ladder: faults.Ladder, tmp_path: Path
) -> None:
    stages = ("pretrain", "group_moments")
    tally = faults.campaign(ladder, tmp_path, 3, 0, ["unlink"], stages)
    assert tally.wrong == []
    assert tally.runs > 2


@pytest.mark.crash
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_failing_calls(
    ladder: faults.Ladder, tmp_path: Path, kind: str, campaign_row: Callable[..., None]
) -> None:
    tally = faults.campaign(ladder, tmp_path, round(EVERY[kind] / SHARE), 0, [kind])
    silent = [text for text in tally.wrong if "said nothing" in text]
    left = len(tally.wrong) - len(silent)
    campaign_row(cases=tally.runs, silent=len(silent), not_repaired=left)
    assert tally.wrong == []
    assert tally.runs >= share_of(10)
    assert tally.recomputed == 0


def test_failing_disk(tmp_path: Path) -> None:
    """The n-th call fails, takes half of the bytes, and only below the folder."""
    (tmp_path / "in").mkdir()
    with FailingDisk(tmp_path / "in", "write", 2) as disk:
        (tmp_path / "out").write_bytes(b"12345678")
        (tmp_path / "in/a").write_bytes(b"12345678")
        with (
            pytest.raises(OSError, match="No space left") as caught,
            (tmp_path / "in/b").open("wb", buffering=0) as file,
        ):
            file.write(b"12345678")
        (tmp_path / "in/c").write_bytes(b"12345678")
    assert caught.value.errno == errno.ENOSPC
    assert [(tmp_path / "in" / name).stat().st_size for name in "abc"] == [8, 4, 8]
    assert disk.calls["write"] == disk.calls["create"] == 3
    assert disk.failed == [f"write 2: {tmp_path / 'in/b'}"]
    with FailingDisk(tmp_path / "in", "read", 2, lasting=True) as disk:
        assert (tmp_path / "in/a").read_bytes() == b"12345678"
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                (tmp_path / "in/a").read_bytes()
    for kind, work in {
        "fsync": lambda: os.fsync(os.open(tmp_path / "in", os.O_RDONLY)),
        "rename": lambda: (tmp_path / "in/a").rename(tmp_path / "in/d"),
        "unlink": lambda: (tmp_path / "in/a").unlink(),
        "mkdir": lambda: (tmp_path / "in/e").mkdir(),
        "create": lambda: (tmp_path / "in/f").touch(),
    }.items():
        with FailingDisk(tmp_path / "in", kind, 1), pytest.raises(OSError, match=r"No space|Input"):
            work()
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a", "b", "c"]


def test_weights_that_cannot_be_read_are_no_figure_that_is_undefined(
    ladder: faults.Ladder, tmp_path: Path
) -> None:
    """Fidelity leaves out what is not defined; a failing disk ends it instead."""
    tally, index = faults.Tally(), ladder.names.index("fidelity")
    inputs = ladder.folder / "recipe/weights.safetensors"
    for at in range(1, 9):
        disk = FailingDisk(tmp_path / "failing", "read", at, inputs=inputs)
        disk._folders = (f"{inputs}{os.sep}",)
        if not faults.fail_and_resume(ladder, index, disk, tally):
            break
    assert tally.errors["NetworkError"] == tally.runs > 0
    assert tally.wrong == []
