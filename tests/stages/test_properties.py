"""What every measure of the audit must obey, whatever the data: range, invariance, order.

The formulas themselves are compared with loops in the files of their modules and in
``test_against_dense``; here nothing is compared with another implementation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krepes_ooc.stages.concepts import cav
from krepes_ooc.stages.fidelity import baselines, confidence_drop, metrics
from krepes_ooc.stages.influence import scores
from krepes_ooc.stages.spectrum import nystrom

# Thirty random audits are enough for laws that break on the first one.
FEW = settings(max_examples=30)
SEED = st.integers(0, 10**6)
SCALE = st.sampled_from([1e-3, 0.5, 3.0, 1e4])


@dataclass(frozen=True)
class Drawn:
    """A small audit of random numbers: kernel rows with moments and coefficients."""

    kernel: np.ndarray
    landmark_kernel: np.ndarray
    second: np.ndarray
    step: np.ndarray
    coefficients: np.ndarray
    offset: np.ndarray
    label: np.ndarray
    landmark_label: np.ndarray

    @property
    def embedding(self) -> np.ndarray:
        return self.kernel @ self.coefficients + self.offset


def draw(seed: int, n: int = 14, m: int = 7, h: int = 3, classes: int = 3) -> Drawn:
    rng = np.random.default_rng(seed)
    phi, marks = rng.normal(size=(n, 9)), rng.normal(size=(m, 9))
    K = phi @ marks.T
    many = rng.normal(size=(60, 9)) @ marks.T
    return Drawn(
        K,
        marks @ marks.T,
        many.T @ many / 60,
        rng.normal(size=(m, h)),
        rng.normal(size=(m, h)),
        rng.normal(size=h),
        rng.integers(classes, size=n),
        np.append(np.arange(classes), rng.integers(classes, size=m - classes)),
    )


def orders(seed: int, *sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed + 1)
    return [rng.permutation(size) for size in sizes]


# ------------------------------------------------------------------------------------ influence


def score(measure: str, d: Drawn) -> np.ndarray:
    return np.asarray(scores.scorer(measure, d.step, d.landmark_kernel, d.second)(d.kernel))


@pytest.mark.parametrize("measure", scores.MEASURES)
@FEW
@given(seed=SEED)
def test_influence_follows_samples_and_landmarks(measure: str, seed: int) -> None:
    d = draw(seed)
    rows, marks = orders(seed, 14, 7)
    moved = Drawn(
        d.kernel[np.ix_(rows, marks)],
        d.landmark_kernel[np.ix_(marks, marks)],
        d.second[np.ix_(marks, marks)],
        d.step[marks],
        d.coefficients[marks],
        d.offset,
        d.label[rows],
        d.landmark_label[marks],
    )
    assert score(measure, moved) == pytest.approx(
        score(measure, d)[np.ix_(rows, marks)], rel=1e-6, abs=1e-8
    )
    for function, args in (
        (scores.contribution, (moved.kernel, moved.step, moved.embedding)),
        (scores.embedding_contribution, (moved.kernel, moved.coefficients, moved.embedding)),
    ):
        plain = function(d.kernel, args[1][np.argsort(marks)], d.embedding)
        assert function(*args) == pytest.approx(plain[np.ix_(rows, marks)], abs=1e-9)


@FEW
@given(seed=SEED, scale=SCALE)
def test_ranges_and_scales_of_influence(seed: int, scale: float) -> None:
    d = draw(seed)
    pulled = scores.contribution(d.kernel, d.step, d.embedding)
    assert (score("is", d) >= 0).all()
    assert (np.abs(score("aligned", d)) <= np.abs(d.kernel) + 1e-9).all()
    assert (np.abs(pulled) <= score("is", d) + 1e-9).all()
    longer = replace(d, step=scale * d.step)
    # The step's length scales the paper's score and attraction, and leaves the others alone.
    assert score("is", longer) == pytest.approx(scale * score("is", d))
    assert score("aligned", longer) == pytest.approx(score("aligned", d), abs=1e-9)
    assert score("unique", longer) == pytest.approx(score("unique", d))
    brighter = scores.contribution(d.kernel, d.step, scale * d.embedding)
    assert brighter == pytest.approx(pulled)


@FEW
@given(seed=SEED)
def test_influence_does_not_see_a_rotation_of_the_embedding(seed: int) -> None:
    d = draw(seed)
    R = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    turned = replace(d, step=d.step @ R, coefficients=d.coefficients @ R, offset=d.offset @ R)
    for measure in scores.MEASURES:
        assert score(measure, turned) == pytest.approx(score(measure, d), abs=1e-9)
    before, after = (scores.contribution(x.kernel, x.step, x.embedding) for x in (d, turned))
    assert after == pytest.approx(before, abs=1e-9)


@FEW
@given(seed=SEED, scale=SCALE)
def test_unique_influence_follows_one_scale_of_all(seed: int, scale: float) -> None:
    d = draw(seed)
    plain = scores.unique(d.kernel, scores.leave_one_out(d.second))
    # The ridge is a share of the mean diagonal, so that it follows the scale.
    other = scores.unique(d.kernel * scale, scores.leave_one_out(d.second * scale**2))
    assert other == pytest.approx(scale * plain, rel=1e-6, abs=1e-9 * scale)


# ----------------------------------------------------------------------------------- confidence


def shares(d: Drawn, query: np.ndarray, k: int = 4, **more: Any) -> np.ndarray:
    bank = d.landmark_kernel @ d.coefficients + d.offset
    return confidence_drop.knn_shares(query, bank, d.landmark_label, 3, neighbours=k, **more)


@FEW
@given(seed=SEED, k=st.integers(1, 9), scale=SCALE)
def test_votes_are_shares_blind_to_length_and_order(seed: int, k: int, scale: float) -> None:
    d = draw(seed)
    found = shares(d, d.embedding, k)
    assert found.sum(axis=1) == pytest.approx(np.ones(14))
    assert ((found >= 0) & (found <= 1)).all()
    assert shares(d, scale * d.embedding, k) == pytest.approx(found, abs=1e-9)
    rows, marks, codes = orders(seed, 14, 7, 3)
    bank = (d.landmark_kernel @ d.coefficients + d.offset)[marks]
    label = codes[d.landmark_label[marks]]
    moved = confidence_drop.knn_shares(d.embedding[rows], scale * bank, label, 3, neighbours=k)
    assert moved[:, codes] == pytest.approx(found[rows], abs=1e-9)
    barred = np.tile(np.argsort(marks)[:2], (14, 1))  # rows 0 and 1 of the bank as it was
    without = confidence_drop.knn_shares(
        d.embedding[rows], bank, label, 3, neighbours=k, without=barred
    )
    plain = shares(d, d.embedding, k, without=np.tile([0, 1], (14, 1)))
    assert without[:, codes] == pytest.approx(plain[rows], abs=1e-9)


@FEW
@given(seed=SEED)
def test_drops_are_bounded_and_nothing_lost_is_no_drop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.dirichlet(np.ones(4), 9), rng.dirichlet(np.ones(4), 9)
    drop = confidence_drop.confidence_drop(before, after)
    assert (drop <= before.max(axis=1)).all()
    assert (drop >= before.max(axis=1) - 1).all()
    assert (confidence_drop.confidence_drop(before, before) == 0).all()
    rows, codes = orders(seed, 9, 4)
    moved = confidence_drop.confidence_drop(before[np.ix_(rows, codes)], after[np.ix_(rows, codes)])
    assert moved == pytest.approx(drop[rows])


@FEW
@given(seed=SEED, count=st.integers(1, 6))
def test_removals_follow_the_landmarks_and_not_their_rank(seed: int, count: int) -> None:
    d = draw(seed)
    removed = np.argsort(np.random.default_rng(seed).random((14, 7)), axis=1)[:, :count]
    inverse = confidence_drop.refit_inverse(d.second)
    marks, ranks = orders(seed, 7, count)
    place = np.argsort(marks)
    for plain, moved in (
        (
            confidence_drop.remove_from_sum(d.embedding, d.kernel, d.coefficients, removed),
            confidence_drop.remove_from_sum(
                d.embedding, d.kernel[:, marks], d.coefficients[marks], place[removed][:, ranks]
            ),
        ),
        (
            confidence_drop.refit_without(d.embedding, d.kernel, d.coefficients, removed, inverse),
            confidence_drop.refit_without(
                d.embedding, d.kernel[:, marks], d.coefficients[marks],
                place[removed][:, ranks], inverse[np.ix_(marks, marks)],
            ),
        ),
    ):  # fmt: skip
        assert moved == pytest.approx(plain, rel=1e-5, abs=1e-6)


@FEW
@given(seed=SEED, count=st.integers(1, 6))
def test_a_refit_loses_no_more_than_the_removal_on_the_data(seed: int, count: int) -> None:
    """The takeover is the least-squares one, so it is never farther away than leaving them out."""
    rng = np.random.default_rng(seed)
    K, A = rng.normal(size=(60, 7)) @ rng.normal(size=(7, 7)), rng.normal(size=(7, 2))
    removed = np.tile(rng.permutation(7)[:count], (60, 1))
    inverse = confidence_drop.refit_inverse(K.T @ K / 60, relative=1e-12)
    f = K @ A
    left = confidence_drop.refit_without(f, K, A, removed, inverse)
    gone = confidence_drop.remove_from_sum(f, K, A, removed)
    assert np.sum((f - left) ** 2) <= np.sum((f - gone) ** 2) * (1 + 1e-6)
    # And what is left lies in the span of the others: they cannot express the rest.
    others = np.setdiff1d(np.arange(7), removed[0])
    assert K[:, others].T @ (f - left) == pytest.approx(0, abs=1e-4 * np.abs(K.T @ f).max())


@FEW
@given(seed=SEED, count=st.integers(1, 7))
def test_random_landmarks_grow_and_follow_their_sample(seed: int, count: int) -> None:
    ids = np.random.default_rng(seed).permutation(50)[:9]
    drawn = confidence_drop.random_landmarks(ids, 7, count, seed)
    assert all(len(set(row)) == count for row in drawn.tolist())
    assert drawn.min() >= 0
    assert drawn.max() < 7
    more = confidence_drop.random_landmarks(ids, 7, 7, seed)
    assert (more[:, :count] == drawn).all()
    (rows,) = orders(seed, 9)
    assert (confidence_drop.random_landmarks(ids[rows], 7, count, seed) == drawn[rows]).all()


@settings(max_examples=15)
@given(seed=SEED, scale=SCALE)
def test_the_drop_ratio_does_not_see_a_common_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    targeted, random = rng.random(30), 0.1 + rng.random((3, 30))
    found = confidence_drop.drop_ratio(targeted, random, seed=1, resamples=50)
    assert 0 <= found.low <= found.high
    scaled = confidence_drop.drop_ratio(scale * targeted, scale * random, seed=1, resamples=50)
    assert vars(scaled) == pytest.approx(vars(found))
    mean = confidence_drop.mean_interval(targeted, seed=1, resamples=50)
    moved = confidence_drop.mean_interval(scale * targeted + 2, seed=1, resamples=50)
    assert targeted.min() <= mean.low <= mean.high <= targeted.max()
    for name in ("value", "low", "high"):
        assert getattr(moved, name) == pytest.approx(scale * getattr(mean, name) + 2)


# ------------------------------------------------------------------------------------- measures


@FEW
@given(seed=SEED, scale=SCALE)
def test_entropy_is_a_share_blind_to_scale_rotation_and_order(seed: int, scale: float) -> None:
    d = draw(seed)
    found = nystrom.spectral_entropy(d.step)
    assert 0 <= found <= 1 + 1e-12
    R = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    (marks,) = orders(seed, 7)
    assert nystrom.spectral_entropy(scale * d.step[marks] @ R) == pytest.approx(found)


@FEW
@given(seed=SEED)
def test_tau_sees_ranks_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 12))
    found = metrics.kendall_tau(x, y)
    assert -1 <= found <= 1
    assert metrics.kendall_tau(y, x) == pytest.approx(found)
    assert metrics.kendall_tau(np.exp(x), y**3) == pytest.approx(found)
    assert metrics.kendall_tau(-x, y) == pytest.approx(-found)
    (rows,) = orders(seed, 12)
    assert metrics.kendall_tau(x[rows], y[rows]) == pytest.approx(found)


@FEW
@given(seed=SEED, scale=SCALE)
def test_cka_is_a_share_blind_to_scale_and_order(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(15, 4)), rng.normal(size=(15, 2))
    found = metrics.linear_cka(X, Y)
    assert 0 <= found <= 1
    assert metrics.linear_cka(Y, X) == pytest.approx(found)
    (rows,) = orders(seed, 15)
    assert metrics.linear_cka(scale * X[rows] + 1, Y[rows]) == pytest.approx(found)


@settings(max_examples=20)
@given(seed=SEED, scale=SCALE)
def test_the_ceiling_follows_landmarks_and_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    K, target = rng.normal(size=(30, 5)), rng.normal(size=(30, 2))
    parts = slice(0, 20), slice(20, 30)
    found = metrics.ridge_ceiling(K[parts[0]], target[parts[0]], K[parts[1]], target[parts[1]])
    assert found.r_squared <= 1
    (marks,) = orders(seed, 5)
    moved, aim = scale * K[:, marks], 7 * target - 3
    other = metrics.ridge_ceiling(moved[parts[0]], aim[parts[0]], moved[parts[1]], aim[parts[1]])
    assert other.damping == found.damping
    assert other.r_squared == pytest.approx(found.r_squared, abs=1e-8)


@settings(max_examples=10)
@given(seed=SEED)
def test_a_probe_follows_components_and_names_of_classes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, label = rng.normal(size=(40, 3)), np.arange(40) % 3
    found = metrics.linear_probe(rows[:30], label[:30], rows[30:], label[30:])
    assert 0 <= found.accuracy <= 1
    columns, codes = orders(seed, 3, 3)
    other = metrics.linear_probe(
        rows[:30][:, columns], codes[label[:30]], rows[30:][:, columns], codes[label[30:]]
    )
    assert other.probability[:, codes] == pytest.approx(found.probability, abs=2e-3)


@FEW
@given(seed=SEED)
def test_shares_of_labels_follow_samples_and_names(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nearest, label = np.append(rng.integers(-1, 3, 11), 0), np.append(rng.integers(-1, 3, 11), 0)
    rows, codes = orders(seed, 12, 3)
    named = np.append(codes, -1)  # code -1 stays -1
    found = metrics.precision_at_1(nearest, label)
    assert 0 <= found <= 1
    assert metrics.precision_at_1(named[nearest][rows], named[label][rows]) == found
    most = metrics.majority_share(label)
    assert 1 / 3 <= most <= 1
    assert metrics.majority_share(named[label][rows]) == most


@FEW
@given(seed=SEED)
def test_coverage_lies_between_classes_and_landmarks(seed: int) -> None:
    d = draw(seed)
    size, label = scores.row_norms(d.step), d.landmark_label
    found = metrics.coverage(size, label, 3)
    assert 3 <= found <= 7
    assert metrics.coverage(np.exp(size), label, 3) == found
    marks, codes = orders(seed, 7, 3)
    assert metrics.coverage(size[marks], codes[label[marks]], 3) == found
    assert metrics.coverage(size, np.minimum(label, 1), 2) <= found
    assert 3 <= metrics.random_coverage(label, 3, seed, shuffles=20) <= 7


# ------------------------------------------------------------------------ concepts, comparators


@FEW
@given(seed=SEED, scale=SCALE)
def test_concept_scores_are_linear_in_step_and_vector(seed: int, scale: float) -> None:
    d, vectors = draw(seed), np.random.default_rng(seed).normal(size=(2, 3))
    found = cav.sample_scores(d.kernel, d.step, vectors)
    assert cav.sample_scores(d.kernel, scale * d.step, -vectors) == pytest.approx(-scale * found)
    rows, marks = orders(seed, 14, 7)
    moved = cav.sample_scores(d.kernel[np.ix_(rows, marks)], d.step[marks], vectors)
    assert moved == pytest.approx(found[rows], abs=1e-9)
    by_landmark = cav.landmark_scores(d.kernel, d.step, vectors)
    assert cav.landmark_scores(
        d.kernel[np.ix_(rows, marks)], d.step[marks], vectors
    ) == pytest.approx(by_landmark[:, marks])
    assert cav.landmark_scores(-d.kernel, d.step, vectors) == pytest.approx(by_landmark)


@settings(max_examples=10)
@given(seed=SEED)
def test_values_of_a_probe_follow_its_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.append(np.arange(3), rng.integers(3, size=17))
    rows, new = rng.normal(size=(20, 2)) + label[:, None], rng.normal(size=(4, 2))
    probe = baselines.LinearProbe.fit(rows, label, 3)
    (order,) = orders(seed, 20)
    for values in (baselines.representer_values, baselines.influence_functions):
        found = values(probe, rows, label, new)
        moved = values(probe, rows[order], label[order], new)
        assert moved == pytest.approx(found[:, order], abs=1e-8 * np.abs(found).max())


@FEW
@given(seed=SEED, shift=st.floats(-5, 5))
def test_fourier_rows_are_bounded_and_blind_to_a_shift(seed: int, shift: float) -> None:
    x = np.random.default_rng(seed).normal(size=(12, 3))
    mapped = baselines.FourierMap.draw(x, 64, seed)
    rows = mapped.rows(x)
    assert (np.abs(rows) <= np.sqrt(2 / 64)).all()
    # The width is one of distances; inputs moved and stretched together keep theirs.
    wide = baselines.FourierMap.draw(3 * x + shift, 64, seed)
    assert pytest.approx(mapped.W / 3) == wide.W
