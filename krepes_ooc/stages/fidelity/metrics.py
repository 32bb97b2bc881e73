"""Figures about an audit: fidelity to the network, coverage of classes, and their controls.

Every function takes plain arrays and returns a number or a small record. A figure that the data do
not define (a constant column, one class only) raises StageFailed in words instead of giving NaN, so
that a report can say why it is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.centred_rows import CentredRows
from krepes_ooc.stages.fidelity.logistic_regression import fit_logistic

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

PROBE_ITERATIONS = 1000
# Samples whose leave-one-out errors choose the damping; all samples are fitted
LEFT_OUT_SAMPLES = 4096
RIDGE_GRID = tuple(10.0**power for power in range(-8, 3))
_LEFT_OUT_ROWS = 1024
_SHUFFLES = 201


@dataclass(frozen=True)
class RidgeFit:
    """A linear map from kernel rows to a target: f = K A + gamma.

    Args:
        coefficients: A [landmark, output].
        offset: gamma [output].
        damping: relative to the mean eigenvalue of the centred kernel's covariance.
        r_squared: on the held-out rows.
    """

    coefficients: Float
    offset: Float
    damping: float
    r_squared: float

    def predict(self, kernel: Float) -> Float:
        """K A + gamma [sample, output] for kernel rows [sample, landmark]."""
        return np.asarray(kernel @ self.coefficients + self.offset)


@dataclass(frozen=True)
class Probe:
    """Predictions of a linear classifier on held-out rows.

    Args:
        accuracy: share of held-out rows that are classified rightly.
        probability: of every class [sample, class].
        true_probability: of the true class [sample].
        converged: whether the fit ended by itself.
    """

    accuracy: float
    probability: Float
    true_probability: Float
    converged: bool


def kendall_tau(first: Float, second: Float) -> float:
    """Rank correlation tau-b of two figures of the same samples [sample], in n log(n)^2 steps.

    tau_b = (pairs in the same order - pairs in the other) / sqrt(pairs untied in x, in y), from the
    inversions of y after a sort by x. Source: Knight (1966). scipy.stats alone loads in a second.

    Raises:
        StageFailed: fewer than two samples, or one side is constant or not finite.
    """
    n = len(first)
    needed = "two rankings that are not constant"
    if n < 2 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise undefined("Kendall's tau", needed)
    # Ranks in which ties are equal
    x, x_counts = np.unique(first, return_inverse=True, return_counts=True)[1:]
    y, y_counts = np.unique(second, return_inverse=True, return_counts=True)[1:]
    both_counts = np.unique(x * (y.max() + 1) + y, return_counts=True)[1]
    pairs = n * (n - 1) // 2
    tied_x, tied_y, tied_both = (
        int(np.sum(counts * (counts - 1) // 2)) for counts in (x_counts, y_counts, both_counts)
    )
    if tied_x == pairs or tied_y == pairs:
        raise undefined("Kendall's tau", needed)
    # Sorted by x, ties in x by y: an inversion of y is a pair in the other order
    discordant = _inversions(y[np.lexsort((y, x))])
    concordant = pairs - tied_x - tied_y + tied_both - discordant
    size = np.sqrt(float(pairs - tied_x) * float(pairs - tied_y))
    return float(np.clip((concordant - discordant) / size, -1.0, 1.0))


def _inversions(rank: Index) -> int:
    """Number of pairs i < j with rank_i > rank_j, by the levels of a merge sort."""
    n = len(rank)
    position = np.arange(n)
    key_size = int(rank.max()) + 1
    count = 0
    width = 1
    while width < n:
        # Neighbouring blocks: of every right element the left ones above it
        pair = position // (2 * width)
        is_left = position // width % 2 == 0
        key = pair * key_size + rank
        left = np.sort(key[is_left])
        right = ~is_left
        not_above = np.searchsorted(left, key[right], side="right")
        # Left blocks before a right element are whole
        count += int(np.sum((pair[right] + 1) * width - not_above))
        width *= 2
    return count


def linear_cka(first: Float, second: Float) -> float:
    """Linear centred kernel alignment of two embeddings [sample, component], within [0, 1].

    Source: Kornblith, Norouzi, Lee and Hinton (2019).

    Raises:
        StageFailed: one embedding is constant.
    """
    X = first - first.mean(axis=0)
    Y = second - second.mean(axis=0)
    # |X^T Y|^2 / (|X^T X| |Y^T Y|), Frobenius norms of centred rows
    size = np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y)
    if not size > 0:
        raise undefined("CKA", "two embeddings that are not constant")
    return float(np.clip(np.sum((X.T @ Y) ** 2) / size, 0.0, 1.0))


def r_squared(target: Float, predicted: Float) -> float:
    """Share of the target's variance [sample, output] that is predicted, all outputs together.

    Raises:
        StageFailed: the target is constant.
    """
    spread = np.sum((target - target.mean(axis=0)) ** 2)
    if not spread > 0:
        raise undefined("R squared", "a target that is not constant")
    return float(1.0 - np.sum((target - predicted) ** 2) / spread)


def ridge_ceiling(
    kernel_fit: Float,
    target_fit: Float,
    kernel_audit: Float,
    target_audit: Float,
    grid: tuple[float, ...] = RIDGE_GRID,
) -> RidgeFit:
    """Ridge regression from kernel rows to the network's embedding: a bound on any coefficients.

    Args:
        kernel_fit: rows to fit on [sample, landmark].
        target_fit: network embedding of them [sample, output].
        kernel_audit: held-out rows [sample, landmark].
        target_audit: network embedding of them [sample, output].
        grid: dampings relative to the mean eigenvalue of the covariance.

    Raises:
        StageFailed: the kernel rows or the held-out target are constant.
    """
    rows = CentredRows.of(kernel_fit)
    return ridge_on(rows, target_fit, kernel_audit, target_audit, grid)


def ridge_on(
    rows: CentredRows,
    target_fit: Float,
    kernel_audit: Float,
    target_audit: Float,
    grid: tuple[float, ...] = RIDGE_GRID,
) -> RidgeFit:
    """``ridge_ceiling`` on rows whose Gram matrix other regressions share.

    The damping is the one of the grid with the least leave-one-out error, in closed form from one
    eigendecomposition of all fitted rows, over at most ``LEFT_OUT_SAMPLES`` of them; the held-out
    rows are only scored.

    Args:
        rows: to fit on.
        target_fit: network embedding of them [sample, output].
        kernel_audit: held-out rows [sample, landmark].
        target_audit: network embedding of them [sample, output].
        grid: dampings relative to the mean eigenvalue of the covariance.

    Raises:
        StageFailed: the rows or the held-out target are constant.
    """
    # X^T X = V diag(eigenvalues) V^T: every damping of the grid from one decomposition
    eigenvalues, V = rows.eigenpairs
    if not eigenvalues[-1] > 0:
        raise undefined("the ridge ceiling", "kernel rows that are not constant")
    target_mean = target_fit.mean(axis=0)
    Y = target_fit - target_mean
    projected = V.T @ (rows.centred.T @ Y)
    dampings = np.array(grid) * eigenvalues.mean()
    shrink = 1.0 / (eigenvalues[:, None] + dampings)
    best = int(np.argmin(_left_out_errors(rows.centred, Y, V, projected, shrink)))
    # A = (X^T X + damping mean I)^-1 X^T Y, gamma restores the means
    A = V @ (projected * shrink[:, best : best + 1])
    gamma = target_mean - rows.mean @ A
    return RidgeFit(A, gamma, grid[best], r_squared(target_audit, kernel_audit @ A + gamma))


def _left_out_errors(X: Float, Y: Float, V: Float, projected: Float, shrink: Float) -> Float:
    """Sum of squared leave-one-out residuals of some samples for every damping [damping].

    Args:
        X: centred rows [sample, landmark].
        Y: centred target [sample, output].
        V: eigenvectors of X^T X [landmark, component].
        projected: V^T X^T Y [component, output].
        shrink: 1 / (eigenvalue + damping) [component, damping].
    """
    n_samples = len(X)
    # The error is a mean over samples: evenly spaced ones estimate it
    evenly = slice(0, n_samples, -(-n_samples // LEFT_OUT_SAMPLES))
    X, Y = X[evenly], Y[evenly]
    errors = np.zeros(shrink.shape[1])
    # Row ranges whose residuals fit the cache
    for start in range(0, len(X), _LEFT_OUT_ROWS):
        part = slice(start, start + _LEFT_OUT_ROWS)
        scores = X[part] @ V
        # Leave-one-out residual e_i / (1 - h_i), with the leverage h of the centred fit
        leverage = 1.0 / n_samples + (scores * scores) @ shrink
        weight = 1.0 / np.maximum(1.0 - leverage, 1e-9) ** 2
        for damping in range(len(errors)):
            residual = Y[part] - scores @ (projected * shrink[:, damping : damping + 1])
            squared = np.einsum("io,io->i", residual, residual)
            errors[damping] += float(weight[:, damping] @ squared)
    return errors


def linear_probe(
    fit: Float,
    fit_label: Index,
    audit: Float,
    audit_label: Index,
    C: float = 1.0,
) -> Probe:
    """Logistic regression on standardised features, fitted on one split and scored on another.

    Args:
        fit: features to fit on [sample, component].
        fit_label: class codes [sample], at least 0.
        audit: held-out features [sample, component].
        audit_label: class codes [sample]; a class that was never fitted counts as missed.
        C: inverse regularisation.

    Raises:
        StageFailed: only one class is there to fit.
    """
    if len(np.unique(fit_label)) < 2:
        raise undefined("the linear probe", "at least two classes among the fitted samples")
    return probe_on(CentredRows.of(fit), fit_label, audit, audit_label, C)


def probe_on(
    rows: CentredRows,
    fit_label: Index,
    audit: Float,
    audit_label: Index,
    C: float = 1.0,
) -> Probe:
    """``linear_probe`` on rows whose Gram matrix other regressions share.

    Args:
        rows: to fit on.
        fit_label: class codes [sample], at least 0.
        audit: held-out features [sample, component].
        audit_label: class codes [sample]; a class that was never fitted counts as missed.
        C: inverse regularisation.

    Raises:
        StageFailed: only one class is there to fit.
    """
    if len(np.unique(fit_label)) < 2:
        raise undefined("the linear probe", "at least two classes among the fitted samples")
    model = fit_logistic(rows, fit_label, C, PROBE_ITERATIONS)
    # Classes that were never fitted have probability 0
    n_classes = int(max(fit_label.max(), audit_label.max())) + 1
    probability = np.zeros((len(audit), n_classes))
    probability[:, model.classes] = model.probability(audit)
    hit = probability.argmax(axis=1) == audit_label
    truth = probability[np.arange(len(audit)), audit_label]
    return Probe(float(hit.mean()), probability, truth, model.converged)


def precision_at_1(nearest_label: Index, label: Index) -> float:
    """Share of samples whose first landmark has their label; labels below 0 are left out.

    Raises:
        StageFailed: no pair of labels is known.
    """
    known = (nearest_label >= 0) & (label >= 0)
    if not known.any():
        raise undefined("precision at 1", "samples and landmarks with labels")
    return float(np.mean(nearest_label[known] == label[known]))


def majority_share(label: Index) -> float:
    """Share of the most frequent class: what a constant answer scores; labels below 0 left out.

    Raises:
        StageFailed: no label is known.
    """
    if not (label >= 0).any():
        raise undefined("the majority share", "samples with labels")
    return float(np.bincount(label[label >= 0]).max() / np.sum(label >= 0))


def coverage(score: Float, label: Index, n_classes: int) -> int:
    """Number of landmarks, from the highest score down, that cover all classes (kappa).

    Args:
        score: of every landmark [landmark], usually |dA_l|; ties go to the lower index.
        label: class code of every landmark [landmark], -1 for none.
        n_classes: classes to be covered.

    Raises:
        StageFailed: no landmark has a certain class.
    """
    return _covered(label[np.argsort(-score, kind="stable")], n_classes)


def random_coverage(label: Index, n_classes: int, seed: int, shuffles: int = 200) -> float:
    """Mean coverage over random orders of the landmarks: the control of ``coverage``.

    Raises:
        StageFailed: no landmark has a certain class.
    """
    counts = []
    for shuffle in range(shuffles):
        order = np.argsort(counter_rng.bits(seed, _SHUFFLES, shuffle, np.arange(len(label))))
        counts.append(_covered(label[order], n_classes))
    return float(np.mean(counts))


def _covered(label: Index, n_classes: int) -> int:
    # Position of the first landmark of every class
    first = [np.flatnonzero(label == code)[:1] for code in range(n_classes)]
    missing = [code for code, position in enumerate(first) if not position.size]
    if missing:
        raise undefined("coverage", f"landmarks of every class (none of class {missing[0]})")
    return int(max(position[0] for position in first)) + 1


def undefined(what: str, needed: str) -> StageFailed:
    """The error for a figure that the data do not define."""
    return StageFailed(f"{what} is not defined", where="fidelity", expected=needed)
