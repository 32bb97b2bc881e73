"""Inputs, what is shown of samples, and the words of tickets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from krepes_ooc.errors import DataError, WorkspaceError
from krepes_ooc.runner.audit import Audit
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.staleness import _changed
from krepes_ooc.sources.base import check_finite
from krepes_ooc.sources.display import display_arrays, picture
from krepes_ooc.stages.base import inputs as module
from krepes_ooc.stages.base.stage import digest_of
from krepes_ooc.storage.workspace import Workspace
from krepes_ooc.views.spec import CLEAN
from tests import small


def test_values_that_are_not_finite_are_named() -> None:
    values = np.ones((3, 2, 2), dtype=np.float32)
    check_finite(values, np.arange(3), "network input")
    values[1, 0, 1] = np.inf
    with pytest.raises(DataError, match=r"sample 17, position \[0, 1\]: network input is inf"):
        check_finite(values, np.array([5, 17, 3]), "network input")


def test_pictures() -> None:
    full = np.array([[[[0], [255]]]], dtype=np.uint8)
    assert picture(full) is full
    sixteen = np.array([[[[0], [16]]]], dtype=np.uint8)
    assert picture(sixteen).ravel().tolist() == [0, 255]
    assert picture(np.full((1, 2, 2, 1), 0.5)).max() == 0
    assert picture(np.zeros((0, 2, 2, 1))).shape == (0, 2, 2, 1)


def test_encoding_is_the_same_in_any_batch(tmp_path: Path) -> None:
    inputs = Audit(small.recipe(), Workspace(tmp_path)).inputs
    rows = np.array([3, 250, 17, 4])
    for view in (CLEAN, 0, 1):
        whole, _ = inputs.encode(rows, view)
        single = np.concatenate([inputs.encode(rows[i : i + 1], view)[0] for i in range(4)])
        np.testing.assert_array_equal(whole, single)


@pytest.mark.parametrize("kind", ["pictures", "table"])
def test_views_of_a_few_samples_at_a_time_are_those_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Every step of the views and of the encoding, in parts of 1, 2 and 3 samples."""
    views = {"count": 2, "crop": 0.4, "flip": True, "shift": 3, "jitter": 0.3, "noise": 0.1}
    if kind == "pictures":
        draw = np.random.default_rng(0)
        np.save(tmp_path / "x.npy", draw.integers(0, 256, (13, 67, 45, 3), dtype=np.uint8))
        changes = [f"views.{key}={value}" for key, value in views.items()]
        changes += ["source.kind=arrays", f"source.path={tmp_path / 'x.npy'}", "source.limit=13"]
        inputs = Audit(small.recipe(*changes), Workspace(tmp_path / "w")).inputs
    else:
        recipe = small.own_recipe(tmp_path, small.rows_csv(13))
        inputs = Audit(Recipe.load(str(recipe)), Workspace(tmp_path / "w")).inputs
    rows = np.arange(inputs.source.n_samples)[::-1]
    raw = inputs.source.read(rows)
    for view in (CLEAN, 0, 1):
        whole, content = inputs.encode(rows, view)
        for count in (1, 2, 3):
            of_one = raw[0].size * max(4, raw.dtype.itemsize)
            with monkeypatch.context() as patch:
                patch.setattr(module, "VIEWED_BYTES", count * of_one)
                assert module.samples_at_once(raw) == count
                parts, same = inputs.encode(rows, view)
            np.testing.assert_array_equal(parts, whole)
            assert parts.dtype == whole.dtype
            assert same == content


def test_content_is_that_of_the_raw_rows(tmp_path: Path) -> None:
    inputs = Audit(small.recipe(), Workspace(tmp_path)).inputs
    rows = np.array([3, 250])
    assert inputs.encode(rows, 0)[1] == inputs.encode(rows, CLEAN)[1]
    assert inputs.encode(rows[::-1], CLEAN)[1] != inputs.encode(rows, CLEAN)[1]


def test_shown_samples(tmp_path: Path) -> None:
    source = Audit(small.recipe(), Workspace(tmp_path)).inputs.source
    shown = display_arrays(source, np.array([7, 2]))
    assert shown.arrays["image"].shape == (2, shown.sizes["y"], shown.sizes["x"], 1)
    assert shown.arrays["sample_id"].tolist() == [7, 2]
    assert len(shown.array_attributes["sample_name"]["categories"]) == 2
    assert shown.arrays["label"].tolist() == source.labels(np.array([7, 2])).tolist()


def test_outputs_of_the_network_are_remembered(tmp_path: Path) -> None:
    inputs = Audit(small.recipe("network.weights=factory"), Workspace(tmp_path)).inputs
    inputs.check_network_outputs("a")
    inputs.check_network_outputs("a")
    with torch.no_grad():
        next(iter(inputs.network.inner.parameters())).mul_(1.5)
    with pytest.raises(WorkspaceError, match="gives other outputs on two fixed samples"):
        inputs.check_network_outputs("a")
    inputs.check_network_outputs("b")


def test_digest_depends_on_content_and_not_on_order() -> None:
    assert digest_of({"a": 1, "b": (2, 3)}) == digest_of({"b": [2, 3], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_differences_in_words() -> None:
    was = {"grid": [1, 2], "rank": 3, "code": "x" * 64, "same": None, "gone": 1}
    now = {"grid": [1, 2, 3], "rank": 3, "code": "y" * 64, "same": None, "new": 2}
    assert _changed("s", was, now) == [
        "s.grid was [1,2], is [1,2,3]",
        "s.code changed",
        "s.new was null, is 2",
        "s.gone was 1, is null",
    ]
    assert _changed("s", was, dict(was)) == []
