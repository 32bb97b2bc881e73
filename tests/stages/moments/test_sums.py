from __future__ import annotations

from functools import reduce
from itertools import pairwise

import array_api_strict as strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core import blocks
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.moments import sums
from krepes_ooc.stages.moments.sums import (
    MomentSums,
    block_shift,
    finish,
    merge,
    moment_sums,
    pair_index,
)


def kernels(p: int, n: int, m: int, mean: float = 0.0, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, m)) @ rng.normal(size=(m, m))
    views = [mean * rng.normal(1, 0.1, m) + common + rng.normal(size=(n, m)) for _ in range(p)]
    return [K.astype(np.float32) for K in views]


def naive(views: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    exact = [K.astype(np.float64) for K in views]
    mean = np.array([K.mean(axis=0) for K in exact])
    second = np.array(
        [
            [(K - a).T @ (L - b) / len(K) for L, b in zip(exact, mean, strict=True)]
            for K, a in zip(exact, mean, strict=True)
        ]
    )
    return mean, second


def streamed(views: list[np.ndarray], block: int, sub_rows: int) -> MomentSums:
    shift = block_shift([K[:block] for K in views])
    blocks = range(0, len(views[0]), block)
    return reduce(
        merge, (moment_sums([K[i : i + block] for K in views], shift, sub_rows) for i in blocks)
    )


def test_pair_index_lists_every_pair_once() -> None:
    assert pair_index(1) == ((0, 0),)
    assert pair_index(3) == ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(("block", "sub_rows"), [(103, 103), (32, 7), (64, 64), (10, 1)])
def test_streamed_moments_are_the_moments(p: int, block: int, sub_rows: int) -> None:
    views = kernels(p, 103, 6, mean=3.0)
    mean, second = finish(streamed(views, block, sub_rows))
    true_mean, true_second = naive(views)
    assert mean.shape == (p, 6)
    assert second.shape == (p, p, 6, 6)
    np.testing.assert_allclose(mean, true_mean, rtol=1e-6)
    np.testing.assert_allclose(second, true_second, atol=2e-6 * np.abs(true_second).max())


def test_second_moments_are_exactly_symmetric() -> None:
    views = kernels(3, 200, 9)
    views[2] = views[1]  # a tie between views must not break the symmetry either
    _, second = finish(streamed(views, 64, 16))
    for a, b in np.ndindex(3, 3):
        np.testing.assert_array_equal(second[a, b], second[b, a].T)


def test_cancellation_does_not_cost_digits() -> None:
    """Mean 100 times the deviation: without the shift float32 products lose four digits."""
    views = kernels(2, 400, 8, mean=400.0)
    true = naive(views)[1]
    _, second = finish(streamed(views, 50, 25))
    size = np.abs(true).max()
    assert np.abs(second - true).max() < 5e-6 * size
    unshifted = moment_sums(views, np.zeros(8), 400)
    assert np.abs(finish(unshifted)[1] - true).max() > 1e-4 * size
    difference = second[0, 0] + second[1, 1] - second[0, 1] - second[1, 0]
    assert np.linalg.eigvalsh(difference)[0] > -1e-6 * np.trace(difference)


def test_float64_views_keep_float64() -> None:
    views = [K.astype(np.float64) for K in kernels(2, 80, 5, mean=50.0)]
    mean, second = finish(streamed(views, 16, 16))
    np.testing.assert_allclose(mean, naive(views)[0], rtol=1e-14)
    np.testing.assert_allclose(second, naive(views)[1], rtol=1e-11, atol=1e-11)


@given(
    cuts=st.lists(st.integers(1, 63), max_size=5),
    p=st.integers(1, 3),
    sub_rows=st.integers(1, 64),
)
def test_integers_merge_exactly_in_any_order(cuts: list[int], p: int, sub_rows: int) -> None:
    """Integer kernels have exact sums, so blocks, sub-blocks and tree must not matter at all."""
    views = [np.round(K) for K in kernels(p, 64, 4)]
    shift = np.arange(4.0)
    whole = moment_sums(views, shift, 64)
    edges = [0, *sorted(set(cuts)), 64]
    parts = [moment_sums([K[a:b] for K in views], shift, sub_rows) for a, b in pairwise(edges)]
    for merged in (reduce(merge, parts), reduce(lambda x, y: merge(y, x), parts)):
        assert merged.rows == whole.rows
        np.testing.assert_array_equal(merged.sums, whole.sums)
        np.testing.assert_array_equal(merged.products, whole.products)


def test_shift_is_the_block_mean_in_the_type_of_the_block() -> None:
    views = kernels(2, 30, 4, mean=7.0)
    shift = block_shift(views)
    assert shift.dtype == np.float64
    np.testing.assert_array_equal(shift, shift.astype(np.float32))
    np.testing.assert_allclose(shift, np.mean(views, axis=(0, 1)), rtol=1e-6)


def test_one_sample_has_no_variance() -> None:
    views = kernels(2, 1, 3)
    mean, second = finish(streamed(views, 1, 1))
    np.testing.assert_array_equal(mean, np.array(views)[:, 0])
    np.testing.assert_allclose(second, 0.0, atol=1e-6)  # float32 products


def test_misuse_raises() -> None:
    views = kernels(2, 10, 3)
    with pytest.raises(ValueError, match=r"shapes \[\(10, 3\), \(9, 3\)\]"):
        moment_sums([views[0], views[1][:9]], np.zeros(3), 4)
    with pytest.raises(ValueError, match="sub_rows 0"):
        moment_sums(views, np.zeros(3), 0)
    with pytest.raises(ValueError, match="different shifts"):
        merge(moment_sums(views, np.zeros(3), 4), moment_sums(views, np.ones(3), 4))
    with pytest.raises(ValueError, match="different shifts or views"):
        merge(moment_sums(views, np.zeros(3), 4), moment_sums(views[:1], np.zeros(3), 4))
    empty = moment_sums([K[:0] for K in views], np.zeros(3), 4)
    with pytest.raises(StageFailed, match="moments: no sample; expected at least one kernel row"):
        finish(empty)


def test_tiles_cover_one_triangle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sums.landmark_tiles(2048) == ((slice(0, 2048), slice(0, 2048)),)
    monkeypatch.setattr(blocks, "TILE", 4)
    seen = np.zeros((10, 10), dtype=int)
    for left, right in sums.landmark_tiles(10):
        seen[left, right] += 1
        if left != right:
            seen[right, left] += 1
    np.testing.assert_array_equal(seen, 1)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_tiled_moments_are_the_moments(p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "TILE", 4)
    views = kernels(p, 103, 10, mean=30.0)
    shift, true = block_shift([K[:32] for K in views]), naive(views)[1]
    got = np.full((p, p, 10, 10), np.nan)
    for left, right in sums.landmark_tiles(10):
        if left == right:
            tile = [K[:, left] for K in views]
            got[:, :, left, left] = finish(moment_sums(tile, shift[left], 16))[1]
            continue
        parts = [
            sums.cross_sums(
                [K[i : i + 32, left] for K in views],
                [K[i : i + 32, right] for K in views],
                shift[left],
                shift[right],
                16,
            )
            for i in range(0, 103, 32)
        ]
        C = sums.finish_cross(reduce(sums.merge_cross, parts))
        got[:, :, left, right] = C
        got[:, :, right, left] = C.transpose(1, 0, 3, 2)
    np.testing.assert_allclose(got, true, atol=1e-5 * np.abs(true).max())


def test_moments_keep_to_the_array_api() -> None:
    here, cpu = strict.Device("device1"), strict.Device("CPU_DEVICE")
    views = kernels(2, 50, 4, mean=3.0)
    there = [strict.asarray(K, device=here) for K in views]
    part = moment_sums(there, block_shift(there), 16)
    mean, second = finish(merge(part, part))
    assert mean.device == second.device == here
    expected = finish(moment_sums(views, block_shift(views), 16))
    np.testing.assert_allclose(np.asarray(mean.to_device(cpu)), expected[0], rtol=1e-12)
    np.testing.assert_allclose(np.asarray(second.to_device(cpu)), expected[1], rtol=1e-5)
    shift = block_shift(there)
    cross = sums.cross_sums(there, there, shift, shift, 16)
    assert sums.finish_cross(sums.merge_cross(cross, cross)).device == here
