"""Logistic regression on standardised columns: L-BFGS, preconditioned by the Gram matrix.

    min over W, b of  sum_i loss_i + |W|^2 / (2 C),   logits = X D^-1 W + b

X are centred rows, D the standard deviations. At W = 0 with b the log shares of the classes the
Hessian of the loss is, class by class, q D^-1 G D^-1 with q the mean of p (1 - p). Its Cholesky
factor R^T R = q D^-1 G D^-1 + I / C changes variables to U = R W: every direction then has about
the same curvature, and tens of iterations take the place of hundreds. A gradient of 1 in U is about
one standard error of one direction, whatever the number of samples; the fit stops far below it.

Sources: Nocedal and Wright (2006), "Numerical optimization", chapter 7, for L-BFGS; Boehning
(1992), "Multinomial logistic regression algorithm", for a fixed curvature. Two classes have one
column of logits, as in scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.stages.fidelity.centred_rows import CentredRows

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

# Of the gradient in U: a share of a standard error
TOLERANCE = 3e-4
# Pairs of steps that L-BFGS keeps
MEMORY = 20


@dataclass(frozen=True)
class LogisticFit:
    """A fitted classifier.

    Args:
        classes: codes, ascending [class].
        weight: of the rows as they are [component, logit]; one logit for two classes.
        bias: [logit].
        converged: whether the fit ended by itself.
    """

    classes: Index
    weight: Float
    bias: Float
    converged: bool

    def probability(self, rows: Float) -> Float:
        """Probability of every class of ``classes`` [sample, class] for rows."""
        return _probability(rows @ self.weight + self.bias)


def fit_logistic(rows: CentredRows, label: Index, C: float, max_iterations: int) -> LogisticFit:
    """Fit the classifier.

    Args:
        rows: of the fit samples.
        label: their class codes [sample]; two classes at least.
        C: inverse regularisation of the standardised weights.
        max_iterations: of L-BFGS.
    """
    from scipy.linalg import cholesky, solve_triangular  # on first use: scipy costs 0.2 s
    from scipy.optimize import minimize

    classes, member = np.unique(label, return_inverse=True)
    share = np.bincount(member) / len(member)
    Y = np.eye(len(classes))[member]
    bias = np.log(share)
    if len(classes) == 2:
        # One column of logits: the second class against the first
        Y = Y[:, 1:]
        bias = bias[1:] - bias[:1]
    m = rows.centred.shape[1]
    n_logits = Y.shape[1]
    X = rows.centred
    inverse_deviation = 1.0 / rows.deviation

    # R^T R, the curvature at the start
    q = float(np.mean(share * (1.0 - share)))
    curvature = q * rows.gram * inverse_deviation * inverse_deviation[:, None]
    curvature[np.diag_indices(m)] += 1.0 / C
    R = cholesky(curvature, overwrite_a=True, check_finite=False)
    bias_scale = 1.0 / np.sqrt(q * len(X))

    def parameters(flat: Float) -> tuple[Float, Float]:
        U = flat.reshape(m + 1, n_logits)
        W = solve_triangular(R, U[:m], check_finite=False)
        return W, bias + bias_scale * U[m]

    def loss(flat: Float) -> tuple[float, Float]:
        W, b = parameters(flat)
        # Standardised weights act on centred rows after a division by D
        logits = X @ (inverse_deviation[:, None] * W) + b
        value, error = _cross_entropy(logits, Y)
        slope = inverse_deviation[:, None] * (X.T @ error) + W / C
        gradient = np.empty((m + 1, n_logits))
        gradient[:m] = solve_triangular(R, slope, trans=1, check_finite=False)
        gradient[m] = bias_scale * error.sum(axis=0)
        return value + float(np.sum(W * W)) / (2.0 * C), gradient.ravel()

    # Stopped by the gradient alone: the relative change of the loss says nothing of the directions
    found = minimize(
        loss, np.zeros((m + 1) * n_logits), jac=True, method="L-BFGS-B",
        options={"maxiter": max_iterations, "gtol": TOLERANCE, "ftol": 0.0, "maxcor": MEMORY},
    )  # fmt: skip
    W, b = parameters(found.x)
    weight = inverse_deviation[:, None] * W
    return LogisticFit(classes, weight, b - rows.mean @ weight, bool(found.nit < max_iterations))


def _cross_entropy(logits: Float, Y: Float) -> tuple[float, Float]:
    """Sum of the losses, and probability minus membership [sample, logit]."""
    if logits.shape[1] == 1:
        value = np.logaddexp(0.0, logits).sum() - np.sum(logits * Y)
        return float(value), _sigmoid(logits) - Y
    largest = logits.max(axis=1, keepdims=True)
    weight = np.exp(logits - largest)
    total = weight.sum(axis=1, keepdims=True)
    value = np.sum(np.log(total) + largest) - np.sum(logits * Y)
    return float(value), weight / total - Y


def _probability(logits: Float) -> Float:
    if logits.shape[1] == 1:
        second = _sigmoid(logits)
        return np.hstack([1.0 - second, second])
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def _sigmoid(logits: Float) -> Float:
    from scipy.special import expit

    return np.asarray(expit(logits))
