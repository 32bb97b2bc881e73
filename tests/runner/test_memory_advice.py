"""Advice of a memory refusal: settings that are named make every stage fit, or none is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.errors import PlanRefused
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.plan import make_plan, refuse_unfit_plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from tests.runner.test_network_memory import MIB, large, pictures

SET = re.compile(r"(stages\.\w+\.\w+) to (\d+)")


def planned(path: Path, overrides: list[str], memory: int | None = None) -> dict[str, Any]:
    return make_plan(
        Recipe.load(str(path), overrides), path.parent / "w", Options(workers=1, memory=memory)
    )


def needed(plan: dict[str, Any]) -> int:
    """Bytes of one worker of the largest stage."""
    return max(row["memory_bytes"] for row in plan["stages"])


def refusal(path: Path, overrides: list[str], memory: int) -> str:
    """The words of the run; the plan names the same settings."""
    recipe = Recipe.load(str(path), overrides)
    with pytest.raises(PlanRefused) as caught:
        run(recipe, path.parent / "w", Options(workers=1, memory=memory))
    with pytest.raises(PlanRefused) as again:
        refuse_unfit_plan(planned(path, overrides, memory), path.parent / "w")
    # Bases of both may differ by a few MiB, and the values with them.
    keys = [key for key, _ in SET.findall(str(caught.value))]
    assert [key for key, _ in SET.findall(str(again.value))] == keys
    return str(caught.value)


def followed(path: Path, overrides: list[str], memory: int, words: str) -> dict[str, int]:
    """The settings that the words name, with which every stage has a worker."""
    found = {key: int(value) for key, value in SET.findall(words)}
    changed = [f"{key}={value}" for key, value in found.items()]
    after = planned(path, [*overrides, *changed], memory)
    assert all(row["workers"] for row in after["stages"]), words
    # Twice as much of any of them does not fit.
    for key, value in found.items():
        larger = [*changed, f"{key}={2 * value}"]
        assert not all(
            row["workers"] for row in planned(path, [*overrides, *larger], memory)["stages"]
        )
    return found


def test_batches_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pictures(tmp_path)
    memory = needed(planned(path, [])) + 700 * MIB
    large(monkeypatch, 8 * MIB)
    found = followed(path, [], memory, refusal(path, [], memory))
    assert found == {"stages.features.forward_batch": 64}


def test_too_many_landmarks(tmp_path: Path) -> None:
    path = pictures(tmp_path, side=2, samples=4000, forward_batch=8)
    most = ["stages.landmarks.count=2000"]
    memory = (needed(planned(path, [])) + needed(planned(path, most))) // 2
    found = followed(path, most, memory, refusal(path, most, memory))
    assert list(found) == ["stages.landmarks.count"]
    assert 500 < found["stages.landmarks.count"] < 2000


def test_blocks_that_are_too_large(tmp_path: Path) -> None:
    path = pictures(tmp_path, samples=2000, forward_batch=8)
    wide = ["stages.features.sketch=65536", "stages.features.block_rows=2048"]
    small = [*wide, "stages.features.block_rows=128"]
    memory = (needed(planned(path, small)) + needed(planned(path, wide))) // 2
    found = followed(path, wide, memory, refusal(path, wide, memory))
    assert list(found) == ["stages.features.block_rows"]
    assert 128 <= found["stages.features.block_rows"] < 2048


def test_batches_and_landmarks_that_are_both_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pictures(tmp_path, side=2, samples=4000)
    least = needed(planned(path, []))
    large(monkeypatch, 8 * MIB)
    most = ["stages.landmarks.count=2000"]
    memory = least + 100 * MIB
    found = followed(path, most, memory, refusal(path, most, memory))
    assert set(found) == {"stages.features.forward_batch", "stages.landmarks.count"}


def test_where_no_setting_helps_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pictures(tmp_path)
    least = needed(planned(path, []))
    large(monkeypatch, MIB, fixed=900 * MIB)
    words = refusal(path, [], least + 100 * MIB)
    assert not SET.search(words)
    assert "landmarks do not suffice" in words
    # The memory that is named does.
    enough = re.search(r"raise --memory to (\S+ \S+), because", words)
    assert enough is not None
    after = planned(path, [], Options(memory=enough[1]).memory)  # type: ignore[arg-type]
    assert all(row["workers"] for row in after["stages"])


def test_what_the_features_were_begun_with_stays(tmp_path: Path) -> None:
    path = pictures(tmp_path, side=2, samples=4000, forward_batch=8)
    most = ["stages.landmarks.count=2000"]
    run(Recipe.load(str(path), most), tmp_path / "w", Options(workers=1, until="landmarks"))
    memory = (needed(planned(path, [])) + needed(planned(path, most))) // 2
    words = refusal(path, most, memory)
    assert list(followed(path, most, memory, words)) == ["stages.landmarks.count"]
    assert words.endswith(" with --restart-stale")
    # Less than any number of landmarks takes.
    words = refusal(path, most, 64 * MIB)
    assert "features that are begun keep their batches" in words
    assert not SET.search(words)
