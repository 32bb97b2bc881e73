from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core import counter_rng
from krepes_ooc.core.counter_rng import Bijection

SEEDS = st.integers(-(2**70), 2**70)
DRAWS = [
    counter_rng.bits,
    counter_rng.uniform,
    counter_rng.normal,
    lambda seed, *k: counter_rng.integers(seed, 97, *k),
]


def mix_by_hand(value: int) -> int:
    """splitmix64 in unbounded integers, from the published C code."""
    z = (value + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_mix_gives_the_published_numbers():
    """The first three outputs of splitmix64 seeded with 1234567."""
    states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert counter_rng.mix(states).tolist() == published


@given(st.integers(0, 2**64 - 1))
def test_mix_equals_unbounded_integers(value: int):
    assert int(counter_rng.mix(np.uint64(value))) == mix_by_hand(value)


@pytest.mark.parametrize("draw", DRAWS)
@given(seed=SEEDS, cuts=st.lists(st.integers(0, 60), max_size=5), offset=st.integers(0, 10**12))
def test_draws_do_not_depend_on_batching(draw, seed: int, cuts: list[int], offset: int):
    ids, columns = offset + np.arange(60), np.arange(3)
    whole = draw(seed, 7, ids[:, None], columns)
    assert whole.shape == (60, 3)
    parts = np.split(ids, sorted(cuts))
    np.testing.assert_array_equal(
        np.concatenate([draw(seed, 7, part[:, None], columns) for part in parts]), whole
    )
    order = np.argsort(counter_rng.bits(seed, ids))
    np.testing.assert_array_equal(draw(seed, 7, ids[order, None], columns), whole[order])
    assert draw(seed, 7, int(ids[5]), 2) == whole[5, 2]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64, np.uint8])
def test_draws_do_not_depend_on_the_type_of_the_key(dtype: type):
    np.testing.assert_array_equal(
        counter_rng.bits(3, np.arange(100, dtype=dtype)), counter_rng.bits(3, list(range(100)))
    )


@given(SEEDS, st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4))
def test_bits_chain_the_keys(seed: int, keys: list[int]):
    state = mix_by_hand(seed % 2**64)
    for key in keys:
        state = mix_by_hand(state ^ key % 2**64)
    assert int(counter_rng.bits(seed, *keys)) == state


@given(st.permutations([0, 1, 2, 3]))
def test_seed_and_keys_do_not_commute(order: list[int]):
    if order != [0, 1, 2, 3]:
        assert counter_rng.bits(*order) != counter_rng.bits(0, 1, 2, 3)


def test_equal_seed_and_key_do_not_cancel():
    drawn = {int(counter_rng.bits(seed, seed, 5)) for seed in range(100)}
    assert len(drawn) == 100


def test_the_number_of_keys_matters():
    drawn = {int(counter_rng.bits(0, *[0] * count)) for count in range(5)}
    assert len(drawn) == 5


def test_scalars_make_no_overflow_warning():
    with np.errstate(all="raise"):
        counter_rng.normal(2**64 - 1, 2**63 - 1)


def test_uniform_is_uniform():
    drawn = counter_rng.uniform(11, np.arange(100_000))
    assert drawn.dtype == np.float64
    assert drawn.min() >= 0
    assert drawn.max() < 1
    heights = np.histogram(drawn, 100, (0, 1))[0]
    # chi-squared with 99 degrees of freedom: below 149 with probability 0.999
    assert ((heights - 1000) ** 2 / 1000).sum() < 149


def test_neighbouring_keys_are_uncorrelated():
    drawn = counter_rng.uniform(5, np.arange(300)[:, None], np.arange(300)) - 0.5
    for left, right in [(drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1]), (drawn, drawn.T)]:
        if left is drawn:  # the diagonal is shared
            left, right = left[np.triu_indices(300, 1)], right[np.triu_indices(300, 1)]
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.015


def test_normal_is_normal():
    drawn = np.sort(counter_rng.normal(2, np.arange(100_000)))
    assert np.isfinite(drawn).all()
    assert abs(drawn.mean()) < 0.013
    assert abs(drawn.std() - 1) < 0.009
    from scipy.stats import kstest

    assert kstest(drawn, "norm").pvalue > 0.001


@given(SEEDS, st.integers(1, 10**15))
def test_integers_are_in_range(seed: int, high: int):
    drawn = counter_rng.integers(seed, high, np.arange(50))
    assert drawn.dtype == np.int64
    assert drawn.min() >= 0
    assert drawn.max() < high


def test_integers_take_every_value_alike():
    heights = np.bincount(counter_rng.integers(1, 10, np.arange(100_000)), minlength=10)
    assert ((heights - 10_000) ** 2 / 10_000).sum() < 27.9


@given(st.integers(1, 5000), SEEDS)
def test_bijection_takes_every_position_once(size: int, seed: int):
    positions = Bijection(size, seed)(np.arange(size))
    assert positions.dtype == np.int64
    np.testing.assert_array_equal(np.sort(positions), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 64, 65, 255, 256, 257, 65_536, 65_537])
def test_bijection_at_the_edges_of_its_bits(size: int):
    positions = Bijection(size, 9)(np.arange(size))
    np.testing.assert_array_equal(np.sort(positions), np.arange(size))


@given(st.integers(1, 2**40), SEEDS, st.data())
def test_bijection_is_computed_per_element(size: int, seed: int, data: st.DataObject):
    index = data.draw(st.lists(st.integers(0, size - 1), max_size=20, unique=True))
    bijection = Bijection(size, seed)
    positions = bijection(index)
    assert positions.shape == (len(index),)
    assert ((positions >= 0) & (positions < size)).all()
    assert len(set(positions.tolist())) == len(index)
    assert [int(bijection(one)) for one in index] == positions.tolist()


def test_bijection_keeps_the_shape_and_its_input():
    index = np.arange(12).reshape(3, 4)
    positions = Bijection(12, 4)(index)
    assert positions.shape == (3, 4)
    assert Bijection(12, 4)(7).shape == ()
    np.testing.assert_array_equal(index.ravel(), np.arange(12))


def test_bijection_mixes():
    """Neighbours are torn apart and the seed matters."""
    size = 10_000
    first, second = (Bijection(size, seed)(np.arange(size)) for seed in (0, 1))
    assert (first == second).mean() < 0.01
    assert abs(np.corrcoef(first, np.arange(size))[0, 1]) < 0.04
    assert (np.abs(np.diff(first)) == 1).mean() < 0.01
