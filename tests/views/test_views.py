from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core import counter_rng
from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import DataError, SourceError
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source
from krepes_ooc.sources.tables.table import TableSource, open_table
from krepes_ooc.views.spec import ViewSpec
from krepes_ooc.views.user import UserViews
from krepes_ooc.views.views import Views

BUSY = ViewSpec(flip=True, crop=0.5, jitter=0.4, shift=2, noise=0.05)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("digits")
    return open_source(SourceSpec(kind="digits"), folder, folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TableSource:
    folder = tmp_path_factory.mktemp("table")
    draw = np.random.default_rng(3)
    rows = 5000
    columns = {
        "x": draw.normal(10, 3, rows),
        "k": draw.choice(list("abcd"), rows, p=[0.7, 0.1, 0.1, 0.1]).tolist(),
        "secret": draw.choice(["f", "m"], rows).tolist(),
        "y": draw.exponential(2, rows),
        "kept": draw.normal(size=rows),
    }
    pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=1000)
    spec = SourceSpec(kind="table", path="t.parquet", audit_only=("secret",))
    return open_table(spec, folder, folder / "cache")


def assert_same_under_any_batching(views: Views, cuts: list[int]) -> None:
    ids = counter_rng.Bijection(views.source.n_samples, 1)(np.arange(60))
    raw = views.source.read(ids)
    whole = views.apply(raw, ids, 1)
    edges = sorted({0, 60, *cuts})
    parts = [views.apply(raw[a:b], ids[a:b], 1) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), whole)
    backwards = views.apply(raw[::-1], ids[::-1], 1)
    assert np.array_equal(backwards[::-1], whole)


cut_points = st.lists(st.integers(0, 60), max_size=8)


@given(cuts=cut_points)
def test_image_views_do_not_depend_on_batching(digits: Source, cuts: list[int]) -> None:
    assert_same_under_any_batching(Views(BUSY, digits, 5), cuts)


@given(cuts=cut_points)
def test_table_views_do_not_depend_on_batching(table: TableSource, cuts: list[int]) -> None:
    assert_same_under_any_batching(Views(ViewSpec(), table, 5), cuts)


@pytest.mark.parametrize("which", ["digits", "table"])
def test_views_seeds_and_epochs_differ(which: str, request: pytest.FixtureRequest) -> None:
    source: Source = request.getfixturevalue(which)
    views, ids = Views(ViewSpec(count=3), source, 5), np.arange(40)
    raw = source.read(ids)
    made = [views.apply(raw, ids, view) for view in range(3)]
    made += [Views(ViewSpec(), source, 6).apply(raw, ids, 0), views.apply(raw, ids, 0, seed=7)]
    for i, first in enumerate(made):
        assert np.array_equal(first, made[i])
        for second in made[i + 1 :]:
            assert not np.array_equal(first, second)
    assert views.apply(raw, ids, -1) is raw
    batch = views.batch(ids, 0)
    assert len(batch) == 3
    assert batch[0].shape == (40, *source.input_shape)
    assert batch[0].dtype == np.float32
    assert np.array_equal(batch[1], views.batch(ids, 0)[1])
    assert not np.array_equal(batch[1], views.batch(ids, 1)[1])
    assert np.array_equal(views.draw(ids, [2], 5)[0], views.inputs(raw, ids, 2))


def test_raw_samples_are_never_changed_in_place(digits: Source, table: TableSource) -> None:
    for source, spec in [(digits, BUSY), (table, ViewSpec())]:
        raw = source.read(np.arange(30))
        cached = raw.copy()
        Views(spec, source, 1).apply(raw, np.arange(30), 0)
        assert np.array_equal(raw, cached)


def test_table_views_against_the_formula(table: TableSource) -> None:
    spec = ViewSpec(corruption=0.3, noise=0.2, keep=("kept",))
    ids = np.arange(100, 140)
    raw = table.read(ids)
    made = Views(spec, table, 9).apply(raw, ids, 1)
    for row, sample in enumerate(ids.tolist()):
        for index, column in enumerate(table.columns):
            want = raw[row, index]
            if column.shown and column.name != "kept":
                if counter_rng.uniform(9, 1, 1, sample, index) < 0.3:
                    want = table.marginal_rows[
                        counter_rng.integers(9, 4096, 1, 2, sample, index), index
                    ]
                if column.kind == "numeric":
                    want += 0.2 * column.std * counter_rng.normal(9, 1, 3, sample, index)
            assert made[row, index] == pytest.approx(want, rel=1e-12, abs=1e-12)


def test_table_views_keep_the_marginals(table: TableSource) -> None:
    ids = np.arange(5000)
    raw = table.read(ids)
    made = Views(ViewSpec(corruption=0.4, noise=0.0), table, 2).apply(raw, ids, 0)
    changed = (made != raw).mean(axis=0)
    assert changed[0] == pytest.approx(0.4, abs=0.03)
    assert changed[2] == 0.0, "an audited-only column was changed"
    assert np.isin(made[:, 1], range(4)).all()
    assert (made[:, 1] == 0).mean() == pytest.approx((raw[:, 1] == 0).mean(), abs=0.03)
    assert made[:, 0].mean() == pytest.approx(raw[:, 0].mean(), abs=0.2)
    replaced = made[:, [0, 3]] != raw[:, [0, 3]]
    assert abs(np.corrcoef(replaced.T)[0, 1]) < 0.05, "columns are not corrupted independently"


def test_table_views_without_change_are_clean(table: TableSource) -> None:
    raw = table.read(np.arange(50))
    made = Views(ViewSpec(corruption=0.0, noise=0.0), table, 2).apply(raw, np.arange(50), 0)
    assert np.array_equal(made, raw)


def test_shift_moves_whole_pixels(digits: Source) -> None:
    ids = np.arange(400)
    raw = digits.read(ids).astype(np.float32)
    made = Views(ViewSpec(shift=2, noise=0.0), digits, 4).apply(raw, ids, 0)
    padded = np.pad(raw, [(0, 0), (2, 2), (2, 2), (0, 0)])
    seen = set()
    for sample in range(400):
        moves = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(padded[sample, y : y + 8, x : x + 8], made[sample])
        ]
        assert moves
        seen.update(moves[:1])
    assert len(seen) == 25


def test_flip_mirrors_half(digits: Source) -> None:
    ids = np.arange(300)
    raw = digits.read(ids)
    made = Views(ViewSpec(flip=True, shift=0, noise=0.0), digits, 4).apply(raw, ids, 0)
    same = (made == raw).all(axis=(1, 2, 3))
    mirrored = (made == raw[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | mirrored).all()
    assert 0.4 < mirrored.mean() < 0.6


def test_noise_is_in_full_scales(digits: Source) -> None:
    ids = np.arange(500)
    raw = digits.read(ids)
    made = Views(ViewSpec(shift=0, noise=0.25), digits, 4).apply(raw, ids, 0)
    noise = (made - raw) / 16
    assert noise.std() == pytest.approx(0.25, rel=0.02)
    assert abs(noise.mean()) < 0.01
    assert abs(np.corrcoef(noise[:, 0, 0, 0], noise[:, 0, 1, 0])[0, 1]) < 0.15


def test_crop_against_a_naive_bilinear_reading(digits: Source) -> None:
    ids = np.arange(20)
    raw = digits.read(ids).astype(np.float64)
    made = Views(ViewSpec(crop=0.3, shift=0, noise=0.0), digits, 4).apply(raw, ids, 1)
    for sample in range(20):
        u = [float(counter_rng.uniform(4, 1, 1, sample, k)) for k in range(3)]
        side = np.sqrt(0.3 + 0.7 * u[0])
        for y in range(8):
            for x in range(8):
                row = (u[1] * (1 - side) + side * (y + 0.5) / 8) * 8 - 0.5
                column = (u[2] * (1 - side) + side * (x + 0.5) / 8) * 8 - 0.5
                want = naive_bilinear(raw[sample, :, :, 0], row, column)
                assert made[sample, y, x, 0] == pytest.approx(want, abs=1e-4)


def naive_bilinear(image: npt.NDArray[np.float64], row: float, column: float) -> float:
    total = 0.0
    for y in (int(np.floor(row)), int(np.floor(row)) + 1):
        for x in (int(np.floor(column)), int(np.floor(column)) + 1):
            weight = max(0.0, 1 - abs(row - y)) * max(0.0, 1 - abs(column - x))
            total += weight * image[min(max(y, 0), 7), min(max(x, 0), 7)]
    return total


def test_jitter_is_a_change_of_brightness_and_contrast(digits: Source) -> None:
    ids = np.arange(50)
    raw = digits.read(ids).astype(np.float64)
    made = Views(ViewSpec(jitter=0.5, shift=0, noise=0.0), digits, 4).apply(raw, ids, 0)
    for sample in range(50):
        bright, contrast = 1 + 0.5 * (2 * counter_rng.uniform(4, 0, 4, sample, np.arange(2)) - 1)
        mean = raw[sample].mean()
        want = bright * (mean + contrast * (raw[sample] - mean))
        np.testing.assert_allclose(made[sample], want, atol=1e-3)


def test_auto_shift_follows_the_size(digits: Source) -> None:
    described = Views(ViewSpec(), digits, 4).describe()
    assert (described["pixel_shift"], described["pixel_noise"]) == (1, pytest.approx(1.6))
    assert json.loads(json.dumps(described)) == described


USER = """
import numpy as np
def blur(x, sample_id, view_id, seed):
    return x * 0.5 + sample_id + view_id + seed
def fails(x, sample_id, view_id, seed):
    raise RuntimeError("no luck")
def short(x, sample_id, view_id, seed):
    return x[:3]
def nan(x, sample_id, view_id, seed):
    return x * np.nan
number = 3
"""


@pytest.fixture
def recipe_folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(USER)
    return tmp_path


def test_a_user_callable(digits: Source, recipe_folder: Path) -> None:
    views = Views(ViewSpec(function="mine.py:blur"), digits, 5, recipe_folder)
    ids = np.asarray([3, 9])
    raw = digits.read(ids)
    want = raw * 0.5 + ids[:, None, None, None] + 1 + 5
    assert np.array_equal(views.apply(raw, ids, 1), want)
    assert views.apply(raw[:0], ids[:0], 1).shape == (0, 8, 8, 1)
    before = views.describe()
    travelled = pickle.loads(pickle.dumps(views))
    assert np.array_equal(travelled.apply(raw, ids, 1), want)
    (recipe_folder / "mine.py").write_text(USER + "\n# another\n")
    assert Views(views.spec, digits, 5, recipe_folder).describe() != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", r"views.function mine.py:fails, sample 4, view 0: RuntimeError: no luck"),
        ("short", r"returned uint8 of shape \[3, 8, 1\]; expected numbers of shape \[8, 8, 1\]"),
        ("nan", r"sample 4, view 0: returned NaN or infinity"),
    ],
)
def test_a_user_callable_that_fails(
    digits: Source, recipe_folder: Path, name: str, message: str
) -> None:
    views = UserViews(f"mine.py:{name}", recipe_folder)
    with pytest.raises(DataError, match=message):
        views(digits.read(np.asarray([4])), np.asarray([4]), 0, 5)
    # Found before the first block.
    with pytest.raises(DataError, match=f"views.function mine.py:{name}, sample"):
        Views(ViewSpec(function=f"mine.py:{name}"), digits, 5, recipe_folder)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"kind": "table"},
            r"views.kind: no table views for a source of kind 'image'; expected im",
        ),
        ({"kind": "callable"}, r"views.function: callable views need a function; expected module"),
        ({"function": "mine.py"}, r"views.function: 'mine.py' names no factory; expected module"),
        ({"function": "mine.py:number"}, r"views.function: no callable 'number'"),
        ({"function": "absent.py:view"}, r"views.function: no such file"),
    ],
)
def test_wrong_declarations(
    digits: Source, recipe_folder: Path, keys: dict[str, Any], message: str
) -> None:
    spec = read_settings(ViewSpec, keys, "views")
    with pytest.raises(SourceError, match=message):
        Views(spec, digits, 1, recipe_folder)


def test_wrong_declarations_for_tables(table: TableSource) -> None:
    with pytest.raises(
        SourceError, match=r"views.keep: no column 'z' to keep; expected one of 'x'"
    ):
        Views(ViewSpec(keep=("z",)), table, 1)
    with pytest.raises(SourceError, match=r"no image views for a source of kind 'table'"):
        Views(ViewSpec(kind="image"), table, 1)
