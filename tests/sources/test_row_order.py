from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.sources.row_order import ShuffledOrder


@given(n=st.integers(1, 3000), seed=st.integers(-5, 2**63))
def test_random_access_is_a_bijection(n: int, seed: int) -> None:
    positions = ShuffledOrder(n, None, seed).positions(0, n)
    assert sorted(positions.tolist()) == list(range(n))


@given(
    groups=st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any),
    window=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_row_groups_are_a_bijection(groups: list[int], window: int, seed: int) -> None:
    n = sum(groups)
    positions = ShuffledOrder(n, groups, seed, window_rows=window).positions(0, n)
    assert sorted(positions.tolist()) == list(range(n))


@given(
    cuts=st.lists(st.integers(0, 300), max_size=6),
    groups=st.sampled_from([None, (100, 50, 150), (1,) * 300]),
)
def test_any_cut_gives_the_same_positions(cuts: list[int], groups: tuple[int, ...] | None) -> None:
    order = ShuffledOrder(300, groups, 11, window_rows=120)
    edges = sorted({0, 300, *cuts})
    parts = [order.positions(a, b) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), order.positions(0, 300))


def test_a_window_touches_few_row_groups() -> None:
    groups = (100,) * 40
    order = ShuffledOrder(4000, groups, 5, window_rows=250)
    for start in range(0, 4000, 200):
        touched = np.unique(order.positions(start, start + 200) // 100)
        assert touched.size <= 2
    first_groups = [int(order.positions(i, i + 1)[0]) // 100 for i in range(0, 4000, 200)]
    assert first_groups != sorted(first_groups), "the row groups are not shuffled"
    inside = order.positions(0, 200)
    assert (np.diff(inside) != 1).mean() > 0.9, "the rows of a window are not shuffled"


def test_a_row_group_larger_than_the_window_is_shuffled_alone() -> None:
    order = ShuffledOrder(1000, (600, 300, 100), 5, window_rows=350)
    assert sorted(order.positions(0, 1000).tolist()) == list(range(1000))


def test_windows_are_shuffled_differently() -> None:
    order = ShuffledOrder(2000, (100,) * 20, 5, window_rows=100)
    inside = {tuple((order.positions(a, a + 100) % 100).tolist()) for a in range(0, 2000, 100)}
    assert len(inside) == 20


def test_source_order_is_the_identity() -> None:
    order = ShuffledOrder(10, (4, 6), 1, "source")
    assert order.positions(2, 99).tolist() == list(range(2, 10))


def test_seeds_differ_and_positions_look_uniform() -> None:
    first, second = (ShuffledOrder(5000, None, seed).positions(0, 5000) for seed in (1, 2))
    assert (first == second).mean() < 0.01
    assert abs(np.corrcoef(first, np.arange(5000))[0, 1]) < 0.05
    assert abs(first[:500].mean() - 2500) < 300


def test_row_groups_must_add_up() -> None:
    with pytest.raises(ValueError, match="row groups hold 7 rows, the source 8"):
        ShuffledOrder(8, (3, 4), 1)
