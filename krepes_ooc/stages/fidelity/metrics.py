"""Figures about an audit: fidelity to the network, coverage of classes, and their controls.

Every function takes plain arrays and returns a number or a small record. A figure that the data do
not define (a constant column, one class only) raises StageFailed in words instead of giving NaN, so
that a report can say why it is missing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.errors import StageFailed

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

PROBE_ITERATIONS = 1000
RIDGE_GRID = tuple(10.0**power for power in range(-8, 3))
_SHUFFLES = 201
_TAU = 204


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
    """Rank correlation tau-b of two figures of the same samples [sample].

    Raises:
        StageFailed: fewer than two samples, or one side is constant.
    """
    from scipy.stats import kendalltau  # on first use: half a second

    tau = kendalltau(first, second).statistic if len(first) > 1 else np.nan
    if not np.isfinite(tau):
        raise undefined("Kendall's tau", "two rankings that are not constant")
    return float(tau)


def tau_interval(
    first: Float, second: Float, seed: int, resamples: int = 200
) -> tuple[float, float]:
    """Bootstrap interval of 95 % of Kendall's tau-b over samples [sample].

    Raises:
        StageFailed: as ``kendall_tau``.
    """
    n = len(first)
    taus = []
    for resample in range(resamples):
        picked = counter_rng.integers(seed, n, _TAU, resample, np.arange(n))
        taus.append(kendall_tau(first[picked], second[picked]))
    low, high = np.quantile(taus, [0.025, 0.975])
    return float(low), float(high)


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

    The damping is the one of the grid with the least leave-one-out error on the fitted rows, in
    closed form from one eigendecomposition; the held-out rows are only scored.

    Args:
        kernel_fit: rows to fit on [sample, landmark].
        target_fit: network embedding of them [sample, output].
        kernel_audit: held-out rows [sample, landmark].
        target_audit: network embedding of them [sample, output].
        grid: dampings relative to the mean eigenvalue of the covariance.

    Raises:
        StageFailed: the kernel rows or the held-out target are constant.
    """
    kernel_mean = kernel_fit.mean(axis=0)
    target_mean = target_fit.mean(axis=0)
    X = kernel_fit - kernel_mean
    Y = target_fit - target_mean
    # X^T X = V diag(eigenvalues) V^T: every damping of the grid from one decomposition
    eigenvalues, V = np.linalg.eigh(X.T @ X)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    if not eigenvalues[-1] > 0:
        raise undefined("the ridge ceiling", "kernel rows that are not constant")
    scores = X @ V
    projected = V.T @ (X.T @ Y)
    n_samples = len(X)
    del X  # as large as the scores, and as their squares below
    mean = eigenvalues.mean()
    errors = []
    for relative in grid:
        shrink = 1.0 / (eigenvalues + relative * mean)
        residual = Y - scores @ (shrink[:, None] * projected)
        # Leave-one-out residual e_i / (1 - h_i), with the leverage h of the centred fit
        leverage = 1.0 / n_samples + (scores**2) @ shrink
        left_out = residual / np.maximum(1.0 - leverage, 1e-9)[:, None]
        errors.append(float(np.sum(left_out**2)))
    damping = grid[int(np.argmin(errors))]
    # A = (X^T X + damping mean I)^-1 X^T Y, gamma restores the means
    A = V @ (projected / (eigenvalues + damping * mean)[:, None])
    gamma = target_mean - kernel_mean @ A
    return RidgeFit(A, gamma, damping, r_squared(target_audit, kernel_audit @ A + gamma))


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
    from sklearn.exceptions import ConvergenceWarning  # on first use: a second
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(fit_label)) < 2:
        raise undefined("the linear probe", "at least two classes among the fitted samples")
    scale = StandardScaler().fit(fit)
    model = LogisticRegression(C=C, max_iter=PROBE_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ``converged`` says it
        model.fit(scale.transform(fit), fit_label)
    # Classes that were never fitted have probability 0
    n_classes = int(max(fit_label.max(), audit_label.max())) + 1
    probability = np.zeros((len(audit), n_classes))
    probability[:, model.classes_] = model.predict_proba(scale.transform(audit))
    hit = probability.argmax(axis=1) == audit_label
    truth = probability[np.arange(len(audit)), audit_label]
    return Probe(float(hit.mean()), probability, truth, bool(model.n_iter_[0] < PROBE_ITERATIONS))


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
