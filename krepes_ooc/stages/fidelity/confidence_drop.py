"""Deletion of landmarks: k-NN confidence before and after, with bootstrap intervals.

The k-NN classifier works on embeddings f = K A + gamma. Removing the landmarks R of sample t takes
their share out of the representer sum, f_t - sum_{l in R} k_lt A_l, or their rows out of the
reference set; random landmarks are the control.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.stages.fidelity.metrics import undefined

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

_RANDOM_LANDMARKS = 202
_BOOTSTRAP = 203
_ROWS = 256
# Column sets for each value that is looked for
_SETS = 8


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap interval of 95 %."""

    value: float
    low: float
    high: float


def knn_shares(
    query: Float,
    reference: Float,
    reference_label: Index,
    n_classes: int,
    *,
    neighbours: int = 50,
    temperature: float = 0.1,
    without: Index | None = None,
) -> Float:
    """Class shares [sample, class] of a k-NN classifier by cosine, weights exp(cos / T).

    Args:
        query: embeddings [sample, component].
        reference: embeddings of the reference set [reference, component].
        reference_label: their class codes [reference]; rows below 0 are left out.
        n_classes: number of classes.
        neighbours: k; the whole reference set if it is smaller.
        temperature: T.
        without: reference rows to leave out, per sample [sample, rank]; -1 for none.

    Raises:
        StageFailed: the reference set is empty, or nothing of it is left for a sample.
    """
    members = np.eye(n_classes)[np.maximum(reference_label, 0)]
    unit = _unit(reference)
    shares = np.empty((len(query), n_classes))
    for start in range(0, len(query), _ROWS):
        rows = slice(start, start + _ROWS)
        cosine = _unit(query[rows]) @ unit.T
        # Rows that are left out are farther than any other
        cosine[:, reference_label < 0] = -np.inf
        if without is not None:
            sample, rank = np.nonzero(without[rows] >= 0)
            cosine[sample, without[rows][sample, rank]] = -np.inf
        cosine[np.isnan(cosine)] = -np.inf
        nearest = largest(cosine, neighbours)
        near = np.take_along_axis(cosine, nearest, axis=1)
        if not near.size or not np.isfinite(near[:, 0]).all():
            raise undefined("the k-NN classifier", "at least one reference row for every sample")
        # The largest exponent is 0, so that no weight overflows; the shares do not change
        weight = np.exp((near - near[:, :1]) / temperature)
        shares[rows] = np.einsum("tk,tkc->tc", weight, members[nearest])
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def largest(score: Float, k: int) -> Index:
    """Positions of the k largest of every row [row, rank], ties by position, without a full sort.

    Args:
        score: free of NaN [row, column].
        k: all columns if there are fewer.
    """
    k = min(k, score.shape[1])
    if k == 0:
        return np.empty((len(score), 0), dtype=np.int64)
    # Flat positions are found four times faster than pairs
    row, column = np.divmod(np.flatnonzero(score >= _bound(score, k)), score.shape[1])
    value = -score[row, column]
    # By row, then value; a stable sort keeps ties by position
    order = np.lexsort((value, row))
    first = np.searchsorted(row, np.arange(len(score)))
    return np.asarray(column[order][first[:, None] + np.arange(k)])


def _bound(score: Float, k: int) -> Float:
    """A value that at least the k largest of every row reach, and few others [row, 1].

    The k-th largest of the maxima of disjoint column sets is not above the k-th largest of all, and
    is found by one pass. Where many values equal it, the k-th largest itself is not much better.
    """
    n_rows, n_columns = score.shape
    n_sets = min(n_columns, _SETS * k)
    width = n_columns // n_sets
    # Set j holds the columns j, j + n_sets, ...; the last few columns go to the first sets
    maxima = score[:, : width * n_sets].reshape(n_rows, width, n_sets).max(axis=1)
    left = score[:, width * n_sets :]
    np.maximum(maxima[:, : left.shape[1]], left, out=maxima[:, : left.shape[1]])
    return np.asarray(np.partition(maxima, n_sets - k, axis=1)[:, n_sets - k : n_sets - k + 1])


def confidence_drop(before: Float, after: Float) -> Float:
    """Drop of the share of the class predicted before [sample], from shares [sample, class]."""
    sample = np.arange(len(before))
    predicted = before.argmax(axis=1)
    return np.asarray(before[sample, predicted] - after[sample, predicted])


def remove_from_sum(embedding: Float, kernel: Float, coefficients: Float, removed: Index) -> Float:
    """f_t - sum over removed l of k_lt A_l [sample, component].

    Args:
        embedding: f [sample, component].
        kernel: [sample, landmark].
        coefficients: A [landmark, component].
        removed: landmarks per sample [sample, rank].
    """
    values = np.take_along_axis(kernel, removed, axis=1)
    return np.asarray(embedding - np.einsum("tr,trc->tc", values, coefficients[removed]))


def refit_inverse(second: Float, relative: float = 1e-6) -> Float:
    """P = (S + ridge I)^-1 [landmark, landmark_] for ``refit_without``.

    Args:
        second: un-centred S [landmark, landmark_], mean over samples and views of k k^T.
        relative: ridge over the mean diagonal of S; keeps the rounding of stored values out.
    """
    ridge = relative * np.trace(second) / len(second)
    inverse = np.linalg.inv(second + ridge * np.eye(len(second)))
    return np.asarray((inverse + inverse.T) / 2)


def refit_without(
    embedding: Float, kernel: Float, coefficients: Float, removed: Index, inverse: Float
) -> Float:
    """f_t after a least-squares refit of the remaining landmarks [sample, component].

    The least-squares fit of K_R A_R by the columns of the other landmarks, over all samples, is
    exact in moment space: with P = S^-1 what they cannot express at t is (k_t P)_R (P_RR)^-1 A_R.

    Args:
        embedding: f [sample, component].
        kernel: [sample, landmark].
        coefficients: A [landmark, component].
        removed: landmarks R per sample [sample, rank], distinct.
        inverse: P [landmark, landmark_] of ``refit_inverse``.
    """
    # (k_t P)_R for every sample
    projected = np.take_along_axis(kernel @ inverse, removed, axis=1)
    # (P_RR)^-1 A_R: the Schur complement of the remaining landmarks
    blocks = inverse[removed[:, :, None], removed[:, None, :]]
    lost = np.linalg.solve(blocks, coefficients[removed])
    return np.asarray(embedding - np.einsum("tr,trc->tc", projected, lost))


def random_landmarks(sample_id: Index, n_landmarks: int, count: int, seed: int) -> Index:
    """``count`` distinct landmarks per sample [sample, rank], the control of a ranking."""
    key = counter_rng.bits(
        seed, _RANDOM_LANDMARKS, sample_id[:, None], np.arange(n_landmarks)[None, :]
    )
    return np.argsort(key, axis=1, kind="stable")[:, :count].astype(np.int64)


def drop_ratio(targeted: Float, random: Float, seed: int, resamples: int = 1000) -> Interval:
    """Mean targeted drop over mean random drop, with a bootstrap interval over the samples.

    The interval is open towards infinity where resampled random drops are not above 0.

    Args:
        targeted: drop after removing the top landmarks [sample].
        random: drop after removing random ones [repeat, sample].
        seed: of the bootstrap.
        resamples: bootstrap samples.

    Raises:
        StageFailed: the random drop is not above 0, so there is no ratio.
    """
    control = random.mean(axis=0)
    if not control.mean() > 0:
        raise undefined("the drop ratio", "a random drop above 0")
    n = len(targeted)
    ratios = np.full(resamples, np.inf)
    for resample in range(resamples):
        picked = counter_rng.integers(seed, n, _BOOTSTRAP, resample, np.arange(n))
        if (below := control[picked].mean()) > 0:
            ratios[resample] = targeted[picked].mean() / below
    # An order statistic: interpolation between infinite ratios is not defined
    low, high = np.quantile(ratios, [0.025, 0.975], method="inverted_cdf")
    return Interval(float(targeted.mean() / control.mean()), float(low), float(high))


def mean_interval(values: Float, seed: int, resamples: int = 1000) -> Interval:
    """Mean of values [sample] with its bootstrap interval of 95 %."""
    n = len(values)
    means = [
        values[counter_rng.integers(seed, n, _BOOTSTRAP, resample, np.arange(n))].mean()
        for resample in range(resamples)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def _unit(rows: Float) -> Float:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1.0))
