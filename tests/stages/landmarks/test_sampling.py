from __future__ import annotations

import array_api_strict as strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.stages.landmarks import sampling

RNG = np.random.default_rng(11)


def cosine_kernel(n: int, seed: int = 0, d: int = 6) -> np.ndarray:
    phi = np.random.default_rng(seed).normal(size=(n, d))
    phi /= np.linalg.norm(phi, axis=1, keepdims=True)
    return phi @ phi.T


@given(n=st.integers(1, 400), seed=st.integers(0, 50), data=st.data())
def test_uniform_positions_are_distinct_sorted_and_inside(
    n: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, n))
    chosen = sampling.choose_uniform(n, count, seed)
    assert len(set(chosen.tolist())) == count
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < n


def test_uniform_refuses_more_than_there_are() -> None:
    with pytest.raises(UsageError, match="12 landmarks of 10 samples; expected at most 10"):
        sampling.choose_uniform(10, 12, 0)


def test_uniform_positions_are_uniform() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        counts[sampling.choose_uniform(20, 5, seed)] += 1
    assert np.abs(counts / 500 - 1).max() < 0.2  # five standard deviations


def test_squared_distance_is_the_distance_of_features() -> None:
    phi = RNG.normal(size=(7, 4))
    K = phi @ phi.T
    own = np.diagonal(K)
    expected = np.sum((phi[:, None] - phi[None, :]) ** 2, axis=2)
    np.testing.assert_allclose(sampling.squared_distance(K, own, own), expected, atol=1e-12)
    unit = cosine_kernel(5)
    np.testing.assert_allclose(sampling.squared_distance(unit), 2 - 2 * unit, atol=1e-12)


def test_rounding_noise_is_no_distance() -> None:
    K = np.array([[1.0, 1.0 - 1e-7, 1.0 + 1e-7, 1.0 - 1e-5]], dtype=np.float32)
    distance = sampling.squared_distance(K)
    np.testing.assert_array_equal(distance[0, :3], 0.0)
    assert distance[0, 3] > 0


def test_oversampling_draws_in_proportion_and_by_key() -> None:
    n, expected = 20_000, 400.0
    distance = RNG.uniform(0, 1, n)
    distance[:100] = 0.0
    distance[100] = 1e6  # p = 1
    ids, total = np.arange(n), float(distance.sum())
    mask = sampling.oversample(distance, ids, total, expected, 3, 1)
    assert not mask[:100].any()
    assert mask[100]
    many = [sampling.oversample(distance, ids, total, 5e5, 3, turn).sum() for turn in range(5)]
    wanted = np.minimum(1, 5e5 * distance / total).sum()
    assert abs(np.mean(many) / wanted - 1) < 0.03
    shuffled = RNG.permutation(n)
    again = sampling.oversample(distance[shuffled], ids[shuffled], total, expected, 3, 1)
    np.testing.assert_array_equal(again, mask[shuffled])
    other = sampling.oversample(distance, ids, total, 5e5, 3, 2)
    assert (other != sampling.oversample(distance, ids, total, 5e5, 3, 1)).any()


def test_oversampling_nothing_left_draws_nothing() -> None:
    assert not sampling.oversample(np.zeros(4), np.arange(4), 0.0, 2.0, 0, 1).any()


def test_nearest_lets_the_first_win_a_tie() -> None:
    K = np.array([[0.2, 0.9, 0.9], [0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(sampling.nearest(K), [1, 0])
    # With unequal self kernels the largest kernel is not the smallest distance.
    np.testing.assert_array_equal(sampling.nearest(K, np.array([1.0, 3.0, 2.9])), [0, 0])


def reference_kmeans(K: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.argmin(
        sampling.squared_distance(K[:, chosen], np.diagonal(K), np.diagonal(K)[chosen]), axis=1
    )


@given(n=st.integers(1, 40), seed=st.integers(0, 30), data=st.data())
def test_kmeans_chooses_distinct_candidates_and_their_nearest(
    n: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, n))
    K = cosine_kernel(n, seed)
    chosen, owner = sampling.kmeans_plus_plus(K, count, seed)
    assert len(set(chosen.tolist())) == count
    np.testing.assert_array_equal(owner, reference_kmeans(K, chosen))


def test_the_order_of_choice_makes_prefixes_choices_of_their_own() -> None:
    K = cosine_kernel(60)
    longer, _ = sampling.kmeans_plus_plus(K, 20, 4, trials=3)
    shorter, _ = sampling.kmeans_plus_plus(K, 8, 4, trials=3)
    np.testing.assert_array_equal(longer[:8], shorter)


def test_kmeans_spreads_better_than_uniform() -> None:
    """Ten tight groups of very unequal size: every group gets a landmark."""
    sizes = np.array([400, 200, 100, 50, 20, 10, 5, 3, 2, 1])
    centres = np.linalg.qr(RNG.normal(size=(12, 12)))[0][:10]
    phi = np.repeat(centres, sizes, axis=0) + 0.01 * RNG.normal(size=(sizes.sum(), 12))
    group = np.repeat(np.arange(10), sizes)
    for seed in range(5):
        chosen, _ = sampling.kmeans_plus_plus(phi @ phi.T, 10, seed)
        assert set(group[chosen].tolist()) == set(range(10))


def test_duplicates_fill_with_the_lowest_unused_indices() -> None:
    K = np.ones((6, 6))
    chosen, owner = sampling.kmeans_plus_plus(K, 4, 9)
    rest = [index for index in range(6) if index != chosen[0]]
    assert chosen[1:].tolist() == rest[:3]
    np.testing.assert_array_equal(owner, 0)


def test_fewer_candidates_than_asked_gives_all_of_them() -> None:
    chosen, share = sampling.reduce_candidates(cosine_kernel(3), np.array([2.0, 3.0, 5.0]), 10, 0)
    assert sorted(chosen.tolist()) == [0, 1, 2]
    assert share.sum() == 10.0


def test_weights_are_summed_over_the_nearest_and_zero_weight_is_last() -> None:
    K = cosine_kernel(30)
    weights = RNG.integers(0, 5, 30).astype(np.float64)
    weights[[3, 7]] = 0.0
    chosen, share = sampling.reduce_candidates(K, weights, 12, 2)
    assert not {3, 7} & set(chosen.tolist())
    owner = reference_kmeans(K, chosen)
    np.testing.assert_array_equal(share, [weights[owner == i].sum() for i in range(12)])


def test_first_choice_follows_the_weights() -> None:
    weights = np.array([1.0, 0.0, 3.0])
    first = [
        sampling.kmeans_plus_plus(np.eye(3), 1, seed, weights=weights)[0][0] for seed in range(2000)
    ]
    assert np.bincount(first, minlength=3)[1] == 0
    assert abs(np.mean(np.array(first) == 2) - 0.75) < 0.05


def test_kernel_rows_may_be_computed_on_demand() -> None:
    K = cosine_kernel(25)
    asked: list[int] = []

    def rows(index: np.ndarray) -> np.ndarray:
        asked.extend(index.tolist())
        return K[index]

    by_rows = sampling.kmeans_plus_plus(rows, 5, 1, weights=np.ones(25))
    by_array = sampling.kmeans_plus_plus(K, 5, 1)
    np.testing.assert_array_equal(by_rows[0], by_array[0])
    np.testing.assert_array_equal(by_rows[1], by_array[1])
    assert len(asked) <= 1 + 4 * 3
    with pytest.raises(ValueError, match="needs weights or a self kernel"):
        sampling.kmeans_plus_plus(rows, 5, 1)


def test_pilot_damping_is_the_tail_trace() -> None:
    phi = RNG.normal(size=(40, 8)) @ np.diag(2.0 ** -np.arange(8))
    eigenvalues = np.linalg.eigvalsh(phi @ phi.T)
    tail = np.sort(eigenvalues)[::-1][4:].sum()
    assert sampling.pilot_damping(eigenvalues, 40, 40, 4) == pytest.approx(tail / 4)
    assert sampling.pilot_damping(eigenvalues, 400, 40, 4) == pytest.approx(10 * tail / 4)
    assert sampling.pilot_damping(eigenvalues, 40, 40, 20) > 0  # no tail left
    with pytest.raises(StageFailed, match="kernel of the pilot samples is zero"):
        sampling.pilot_damping(np.zeros(4), 40, 4, 2)


def test_leverage_scores_with_all_samples_as_pilot_are_exact() -> None:
    phi = RNG.normal(size=(50, 8))
    K, damping = phi @ phi.T, 3.0
    whitening = sampling.pilot_whitening(K, 50, damping)
    scores = sampling.leverage_scores(np.diagonal(K), K, whitening, damping)
    exact = np.diagonal(K @ np.linalg.inv(K + damping * np.eye(50)))
    np.testing.assert_allclose(scores, exact, rtol=1e-9)
    beyond = sampling.leverage_scores(np.diagonal(K) * 1e6, K, whitening, damping)
    assert beyond.max() == 1.0
    below = sampling.leverage_scores(np.zeros(50), K, whitening, damping)
    assert below.min() > 0


def test_gumbel_top_m_draws_in_proportion_without_replacement() -> None:
    scores, ids = np.array([0.5, 0.3, 0.15, 0.05]), np.arange(4)
    first = np.zeros(4)
    for seed in range(4000):
        _, chosen = sampling.top_m(sampling.gumbel_keys(np.log(scores), ids, seed), ids, 2)
        assert chosen[0] != chosen[1]
        first[chosen[0]] += 1
    np.testing.assert_allclose(first / 4000, scores, atol=0.03)


@given(
    keys=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    cut=st.integers(0, 30),
    count=st.integers(1, 10),
)
def test_top_m_streams(keys: list[int], cut: int, count: int) -> None:
    values, ids = np.array(keys, dtype=np.float64), np.arange(len(keys))[::-1].copy()
    whole = sampling.top_m(values, ids, count)
    best = sampling.top_m(values[:cut], ids[:cut], count)
    joined = (np.append(best[0], values[cut:]), np.append(best[1], ids[cut:]))
    streamed = sampling.top_m(*joined, count)
    for a, b in zip(whole, streamed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_block_functions_keep_to_the_array_api() -> None:
    here, cpu = strict.Device("device1"), strict.Device("CPU_DEVICE")
    phi = RNG.normal(size=(20, 8))
    K, own = phi @ phi[:6].T, np.sum(phi**2, axis=1)
    whitening = sampling.pilot_whitening(K[:6], 20, 2.0)

    def there(values: np.ndarray) -> object:
        return strict.asarray(values, device=here)

    calls = {
        sampling.squared_distance: (K, own, own[:6]),
        sampling.nearest: (K, own[:6]),
        sampling.leverage_scores: (own, K, whitening),
    }
    for function, arrays in calls.items():
        extra = (2.0,) if function is sampling.leverage_scores else ()
        got = function(*map(there, arrays), *extra)
        assert got.device == here
        np.testing.assert_allclose(
            np.asarray(got.to_device(cpu)), function(*arrays, *extra), atol=1e-12
        )
