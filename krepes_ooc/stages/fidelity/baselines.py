"""Baselines: other attributions and kernels, measured by the same figures as the audit.

    cosine                 cosine of two embeddings or inputs
    random Fourier         cos(W x + b), a kernel of the inputs that knows no network
    representer values     alpha_i <phi_i, phi_t>, alpha_i = (y_i - p_i) / (damping n)
    influence functions    g_t^T H^-1 g_i

Sources: Yeh et al. (2018), "Representer point selection"; Koh and Liang (2017), "Understanding
black-box predictions via influence functions".

The last two need labels: phi are network embeddings of the landmarks, p and g the probabilities and
loss gradients of a linear softmax probe that is fitted on them. Both ask about the predicted class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.influence.scores import unit_rows

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

MAX_UNKNOWNS = 4096
_FREQUENCY = 501
_PHASE = 502


def cosine(first: Float, second: Float) -> Float:
    """Cosine of every pair of rows of two embeddings [first, second]."""
    return np.asarray(unit_rows(first) @ unit_rows(second).T)


@dataclass(frozen=True)
class FourierMap:
    """Random Fourier features of the Gaussian kernel exp(-|x - y|^2 / (2 width^2)).

    Source: Rahimi and Recht (2007), "Random features for large-scale kernel machines".

    Args:
        W: frequencies [component, feature].
        phase: [feature].
    """

    W: Float
    phase: Float

    @classmethod
    def draw(cls, rows: Float, n_features: int, seed: int) -> FourierMap:
        """Frequencies for inputs like ``rows`` [sample, component]; width: their median distance.

        Raises:
            StageFailed: all rows are the same.
        """
        # Median heuristic: the width is the median distance of the first rows
        few = rows[:512]
        square = np.sum(few**2, axis=1)
        distance = square[:, None] + square[None, :] - 2.0 * few @ few.T
        width = np.sqrt(np.median(distance[np.triu_indices(len(few), 1)])) if len(few) > 1 else 0.0
        if not width > 0:
            raise StageFailed("the inputs are alike", where="fidelity", expected="varied inputs")
        # W ~ N(0, I / width^2), phase ~ U(0, 2 pi), each entry keyed by its place
        component = np.arange(rows.shape[1])[:, None]
        feature = np.arange(n_features)
        W = counter_rng.normal(seed, _FREQUENCY, component, feature) / width
        return cls(W, 2.0 * np.pi * counter_rng.uniform(seed, _PHASE, feature))

    def rows(self, inputs: Float) -> Float:
        """sqrt(2 / D) cos(W x + b) [sample, feature] of inputs [sample, component]."""
        return np.asarray(np.sqrt(2.0 / len(self.phase)) * np.cos(inputs @ self.W + self.phase))


@dataclass(frozen=True)
class LinearProbe:
    """A softmax probe with weight decay, minimising mean cross entropy + damping |W|^2 / 2.

    Args:
        W: weights [component, class]; the last component is the constant 1.
        mean: of the fitted rows [component].
        scale: their standard deviation [component].
        damping: weight decay.
    """

    W: Float
    mean: Float
    scale: Float
    damping: float

    @classmethod
    def fit(cls, rows: Float, label: Index, n_classes: int, damping: float = 1e-2) -> LinearProbe:
        """Fit the probe on standardised rows [sample, component] with class codes [sample].

        Raises:
            StageFailed: fewer than two classes, or too many unknowns for the exact curvature.
        """
        from scipy.optimize import minimize
        from scipy.special import logsumexp, softmax

        if len(np.unique(label)) < 2:
            raise StageFailed(
                "a linear probe is not defined", where="fidelity", expected="at least two classes"
            )
        size = (rows.shape[1] + 1) * n_classes
        if size > MAX_UNKNOWNS:
            raise StageFailed(
                f"{size} unknowns", where="fidelity", expected=f"at most {MAX_UNKNOWNS}"
            )
        spread = rows.std(axis=0)
        scale = np.where(spread > 0, spread, 1.0)
        probe = cls(np.zeros((rows.shape[1] + 1, n_classes)), rows.mean(axis=0), scale, damping)
        X = probe.design(rows)
        Y = np.eye(n_classes)[label]

        def loss(flat: Float) -> tuple[float, Float]:
            W = flat.reshape(X.shape[1], n_classes)
            logits = X @ W
            value = np.mean(logsumexp(logits, axis=1) - np.sum(logits * Y, axis=1))
            gradient = X.T @ (softmax(logits, axis=1) - Y) / len(X) + damping * W
            return float(value + damping * np.sum(W**2) / 2), gradient.ravel()

        # The representer theorem holds at the exact optimum only, hence the tight tolerances
        solution = minimize(
            loss, probe.W.ravel(), jac=True, method="L-BFGS-B",
            options={"maxiter": 2000, "gtol": 1e-9, "ftol": 1e-14},
        )  # fmt: skip
        return cls(solution.x.reshape(X.shape[1], n_classes), probe.mean, scale, damping)

    def design(self, rows: Float) -> Float:
        """Standardised rows with a constant column [sample, component + 1]."""
        return np.hstack([(rows - self.mean) / self.scale, np.ones((len(rows), 1))])

    def probability(self, rows: Float) -> Float:
        """Class probabilities [sample, class]."""
        from scipy.special import softmax

        return np.asarray(softmax(self.design(rows) @ self.W, axis=1))


def representer_values(probe: LinearProbe, fitted: Float, label: Index, rows: Float) -> Float:
    """Representer value of every fitted row for the predicted class [sample, fitted].

    Summed over the fitted rows it is the logit of that class (without approximation, because the
    probe is at its optimum).

    Args:
        probe: fitted on ``fitted`` and ``label``.
        fitted: rows that the probe was fitted on [fitted, component].
        label: their class codes [fitted].
        rows: rows to explain [sample, component].
    """
    # alpha_i = (y_i - p_i) / (damping n), then alpha_i <phi_i, phi_t> of the predicted class
    error = np.eye(probe.W.shape[1])[label] - probe.probability(fitted)
    alpha = error / (probe.damping * len(fitted))
    predicted = probe.probability(rows).argmax(axis=1)
    return np.asarray((probe.design(rows) @ probe.design(fitted).T) * alpha.T[predicted])


def influence_functions(probe: LinearProbe, fitted: Float, label: Index, rows: Float) -> Float:
    """Decrease of the predicted class's loss by every fitted row [sample, fitted].

    g_t^T H^-1 g_i with H the exact Hessian of the probe's objective; above 0: training on the
    fitted row helps the sample.

    Args:
        probe: fitted on ``fitted`` and ``label``.
        fitted: rows that the probe was fitted on [fitted, component].
        label: their class codes [fitted].
        rows: rows to explain [sample, component].
    """
    X = probe.design(fitted)
    P = probe.probability(fitted)
    D = X.shape[1]
    C = P.shape[1]
    # H[d c, e c'] = damping delta + mean_i x_id x_ie p_ic (delta_cc' - p_ic')
    H = probe.damping * np.eye(D * C)
    blocks = H.reshape(D, C, D, C)
    for c in range(C):
        for other in range(C):
            weight = P[:, c] * (float(c == other) - P[:, other])
            blocks[:, c, :, other] += (X * weight[:, None]).T @ X / len(X)
    # g = x (p - y)^T, flat; y is the predicted class of the row, the label of the fitted row
    p = probe.probability(rows)
    residual = p - np.eye(C)[p.argmax(axis=1)]
    gradient = np.einsum("td,tc->tdc", probe.design(rows), residual).reshape(len(rows), -1)
    fitted_gradient = np.einsum("id,ic->idc", X, P - np.eye(C)[label]).reshape(len(X), -1)
    return np.asarray(gradient @ np.linalg.solve(H, fitted_gradient.T))
