"""Agreement of two audits over the samples that both have; arrays only.

    CKA     h(K, L) / sqrt(h(K, K) h(L, L)),  h the unbiased HSIC; 1: same geometry, 0: by chance
    change  1 - Pearson correlation of a sample's cosines with all other samples in two embeddings

Neither depends on a rotation of an embedding, so that networks of other outputs and audits of other
landmarks can be compared. Sources: Kornblith, Norouzi, Lee and Hinton (2019), "Similarity of neural
network representations revisited"; Song, Smola, Gretton, Bedo and Borgwardt (2012), "Feature
selection via dependence maximization", for h; the profile is that of stage group_influence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.stages.influence.scores import unit_rows

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

# Rows whose profiles are formed at a time.
ROWS = 256
# Half width of a 95 % interval in standard errors.
NORMAL_95 = 1.959963984540054
_SHUFFLE_STREAM = 861


def debiased_cka(first: Float, other: Float) -> float:
    """CKA of linear kernels with the unbiased HSIC; NaN where it is not defined.

    Args:
        first: rows [sample, output]; an offset, a scale and a rotation change nothing.
        other: of the same samples [sample, output_].
    """
    if len(first) < 4:
        return float("nan")
    # A copy, as BLAS rounds X^T X otherwise where both are one array.
    X = first - first.mean(axis=0)
    Y = other - other.mean(axis=0)
    own = unbiased_hsic(X, X.copy()), unbiased_hsic(Y, Y.copy())
    # Below the rounding of the sums nothing varies.
    if any(
        h <= 1e-12 * float(np.sum(rows**2)) ** 2 / len(rows) ** 2
        for h, rows in zip(own, (X, Y), strict=True)
    ):
        return float("nan")
    return unbiased_hsic(X, Y) / float(np.sqrt(own[0] * own[1]))


def unbiased_hsic(X: Float, Y: Float) -> float:
    """H = [tr KL + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'KL1 / (n-2)] / (n (n-3)), diagonals of K, L 0.

    Args:
        X: K = X X^T off its diagonal [sample, output].
        Y: L = Y Y^T likewise [sample, output_]; another array than X.
    """
    n = len(X)
    own = [np.einsum("so,so->s", rows, rows) for rows in (X, Y)]
    trace = float(np.sum((X.T @ Y) ** 2) - own[0] @ own[1])
    # K 1 and L 1 without the diagonals
    row_sums = [rows @ rows.sum(axis=0) - d for rows, d in zip((X, Y), own, strict=True)]
    totals = float(row_sums[0].sum()) * float(row_sums[1].sum()) / ((n - 1) * (n - 2))
    return (trace + totals - 2.0 / (n - 2) * float(row_sums[0] @ row_sums[1])) / (n * (n - 3))


def profile_change(first: Float, other: Float) -> Float:
    """1 - correlation of every sample's profile of cosines with the other samples [sample].

    A profile that does not vary equals another one that does not, and differs by 1 from any else.

    Args:
        first: embedding [sample, component]; centred here.
        other: of the same samples [sample, component_].
    """
    directions = [unit_rows(rows - rows.mean(axis=0)) for rows in (first, other)]
    change = np.empty(len(first))
    for start in range(0, len(first), ROWS):
        rows = np.arange(start, min(start + ROWS, len(first)))
        p, q = (_unit_profiles(unit, rows) for unit in directions)
        # 1 - <p, q> of unit vectors, which is exactly 0 for equal ones
        found = 0.5 * np.sum((p - q) ** 2, axis=1)
        constant = ~p.any(axis=1) | ~q.any(axis=1)
        change[rows] = np.where(constant & (found > 0), 1.0, found)
    return change


def _unit_profiles(unit: Float, rows: Index) -> Float:
    """Centred unit profiles of some samples, 0 at themselves [row, sample]."""
    cosine = unit[rows] @ unit.T
    place = np.arange(len(rows))
    cosine[place, rows] = 0.0
    centred = cosine - cosine.sum(axis=1, keepdims=True) / max(1, len(unit) - 1)
    centred[place, rows] = 0.0
    # Rounding of a profile that does not vary is no profile.
    varies = np.linalg.norm(centred, axis=1, keepdims=True) > 1e-12 * np.sqrt(len(unit))
    return np.asarray(unit_rows(np.where(varies, centred, 0.0)))


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a quantity over the same samples in two audits.

    Args:
        first: mean in the first audit.
        other: mean in the other one.
        difference: other - first.
        low: end of its 95 % interval over samples.
        high: the other end.
        samples: number of them.
    """

    first: float
    other: float
    difference: float
    low: float
    high: float
    samples: int


def paired_difference(first: Float, other: Float) -> PairedDifference:
    """Means and their difference with its normal interval, paired over samples; NaN ends for one.

    Args:
        first: quantity in the first audit [sample]; samples where either is NaN are left out.
        other: in the other audit [sample].
    """
    known = np.isfinite(first) & np.isfinite(other)
    a = first[known]
    b = other[known]
    if not len(a):
        nan = float("nan")
        return PairedDifference(nan, nan, nan, nan, nan, 0)
    change = b - a
    difference = float(change.mean())
    # One sample says nothing of how samples differ: no interval, rather than one of width 0.
    half = NORMAL_95 * float(change.std()) / np.sqrt(len(change)) if len(change) > 1 else np.nan
    return PairedDifference(
        float(a.mean()),
        float(b.mean()),
        difference,
        difference - half,
        difference + half,
        len(change),
    )


@dataclass(frozen=True)
class ConceptMatch:
    """Concepts of two audits, matched one to one.

    Args:
        first: concept of the first audit [pair], ascending.
        other: its match [pair].
        correlation: of their activations over samples [pair]; NaN for a constant activation.
        shared: samples that show both over samples that show either [pair]; NaN without any.
        chance: mean correlation if the samples of the other audit are shuffled.
    """

    first: Index
    other: Index
    correlation: Float
    shared: Float
    chance: float


def match_concepts(first: Float, other: Float) -> ConceptMatch:
    """One-to-one match of concepts by the largest sum of correlations (Kuhn 1955).

    Args:
        first: activation in the first audit [sample, concept].
        other: of the same samples in the other audit [sample, concept_].
    """
    winners = np.argmax(first, axis=1), np.argmax(other, axis=1)
    units = standardised(first), standardised(other)
    places, matches = _assign(*units)
    shared = np.full(len(places), np.nan)
    for place, (i, j) in enumerate(zip(places, matches, strict=True)):
        shows = winners[0] == i, winners[1] == j
        either = np.count_nonzero(shows[0] | shows[1])
        if either:
            shared[place] = np.count_nonzero(shows[0] & shows[1]) / either
    # The same match where samples have nothing to do with each other
    keys = counter_rng.bits(0, _SHUFFLE_STREAM, np.arange(len(first)))
    shuffled = units[1][np.argsort(keys, kind="stable")]
    by_chance = correlations(units[0], shuffled, *_assign(units[0], shuffled))
    known = np.isfinite(by_chance)
    return ConceptMatch(
        places.astype(np.int64),
        matches.astype(np.int64),
        correlations(*units, places, matches),
        shared,
        float(by_chance[known].mean()) if known.any() else float("nan"),
    )


def _assign(first: Float, other: Float) -> tuple[Index, Index]:
    """Matched columns of two standardised activations."""
    from scipy.optimize import linear_sum_assignment  # on first use: 0.2 s

    places, matches = linear_sum_assignment(-(first.T @ other))
    return np.asarray(places), np.asarray(matches)


def standardised(columns: Float) -> Float:
    """Columns [sample, column] of mean 0 and mean square 1; 0 where constant."""
    centred = columns - columns.mean(axis=0)
    size = np.sqrt(np.mean(centred**2, axis=0))
    varies = size > 1e-12 * np.abs(columns).max(axis=0, initial=0.0)
    return np.asarray(centred * np.where(varies, 1.0 / np.where(varies, size, 1.0), 0.0))


def correlations(first: Float, other: Float, places: Index, matches: Index) -> Float:
    """Correlation of matched standardised columns [pair]; exactly 1 for equal ones."""
    a = first[:, places]
    b = other[:, matches]
    constant = ~a.any(axis=0) | ~b.any(axis=0)
    return np.where(constant, np.nan, 1.0 - 0.5 * np.mean((a - b) ** 2, axis=0))


def top_overlap(first: Float, other: Float, count: int) -> Float:
    """Share of the landmarks of largest score that two audits have in common [sample].

    Args:
        first: scores of landmarks that both audits have [sample, landmark].
        other: theirs in the other audit [sample, landmark].
        count: landmarks that are compared; at most all of them.
    """
    count = min(count, first.shape[1])
    if not count:
        return np.full(len(first), np.nan)
    tops = [np.argsort(-np.abs(s), axis=1, kind="stable")[:, :count] for s in (first, other)]
    return np.asarray((tops[0][:, :, None] == tops[1][:, None, :]).sum(axis=(1, 2)) / count)
