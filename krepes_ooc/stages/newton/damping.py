"""Choice of the damping of the Newton step by the actual loss after the step.

The Gauss-Newton curvature leaves out part of the second derivative, so a full step can increase the
loss. Each damping of a grid is therefore evaluated by its actual loss, by the gain ratio rho,
actual over predicted decrease (Levenberg 1944, Marquardt 1963), and by the change of coefficients
and embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.array_columns import Number
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.newton.conjugate_gradient import Solution
from krepes_ooc.stages.newton.objectives.interface import Gradient

Array = npt.NDArray[np.float64]
# Curvature times squared coefficients below this share of the loss is rounding.
FLAT = 1e-13
RELATIVE_GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)


class EmbeddingSizes(Protocol):
    """Moments of the kernel, on the host or on a device."""

    def embedding_rms(self, A: Array, offset: Array | None = None) -> Number:
        """Root mean square of |K A + gamma| over samples and views."""


@dataclass(frozen=True)
class DampingSweep:
    """One Newton step for each damping, evaluated.

    Args:
        damping: lambda, as added to the curvature [damping].
        damping_relative: lambda in units of the curvature's mean diagonal [damping].
        loss: L(A0 + dA) [damping].
        predicted: decrease of the quadratic model, without damping [damping].
        rho: (L(A0) - L(A0 + dA)) / predicted; 0 where the model predicts no decrease [damping].
        step_norm: |dA| [damping].
        embedding_change: rms |K dA| / rms |f| [damping].
        solved: whether the step solves its system [damping].
        loss_start: L(A0).
        start_norm: |A0|.
        stability: ``top_landmark_overlap`` with the next larger damping [damping]; NaN until it has
            been computed from kernel rows.
    """

    damping: Array
    damping_relative: Array
    loss: Array
    predicted: Array
    rho: Array
    step_norm: Array
    embedding_change: Array
    solved: npt.NDArray[np.bool_]
    loss_start: float
    start_norm: float
    stability: Array = field(default_factory=lambda: np.array(np.nan))

    @property
    def admissible(self) -> npt.NDArray[np.bool_]:
        """Solved steps that change neither coefficients nor embedding by more than their size."""
        # |dA| <= |A0| and rms |K dA| <= rms |f|: the model is local.
        near = (self.step_norm <= self.start_norm) & (self.embedding_change <= 1.0)
        return near & self.solved & np.isfinite(self.loss)


def absolute_damping(relative: npt.ArrayLike, linearisation: Gradient, start: Array) -> Array:
    """Absolute dampings lambda: relative ones times the mean diagonal tr(H) / (m h).

    Args:
        relative: dampings in units of the mean diagonal.
        linearisation: at the start.
        start: A0 [landmark, component].

    Raises:
        StageFailed: the curvature is zero up to rounding, so that no damping has a meaning.
    """
    unit = float(linearisation.mean_diagonal)
    # <A0, H A0> is about unit |A0|^2: compared with the loss, it tells curvature from rounding.
    if not unit * np.sum(start**2) > FLAT * abs(linearisation.value):
        raise StageFailed(
            f"the loss {linearisation.value:g} has no curvature at the start (mean {unit:g})",
            where="newton",
            expected="an embedding that can change the loss",
            advice="take at least 2 components or another objective; if the kernel is the same for "
            "all samples, the network has collapsed",
        )
    return np.asarray(relative, dtype=np.float64) * unit


@dataclass(frozen=True)
class DampingChoice:
    """The chosen damping, whether its step is trusted, and the reason.

    Args:
        index: of the damping in the sweep.
        trusted: whether the step is a solved one that lowers the loss and stays near the start.
        reason: in words.
    """

    index: int
    trusted: bool
    reason: str


def choose_damping(sweep: DampingSweep) -> DampingChoice:
    """The admissible damping of the lowest actual loss, if that is below the loss at the start.

    If none lowers the loss, the largest gain ratio is taken and the step is not trusted.
    """
    lowers = sweep.admissible & (sweep.loss < sweep.loss_start)
    if lowers.any():
        index = int(np.argmin(np.where(lowers, sweep.loss, np.inf)))
        reason = f"lowest loss of {lowers.sum()} admissible dampings that lower it"
        return DampingChoice(index, True, reason)
    # Prefer a solved step, then an admissible one, then the larger gain ratio (the last key of
    # lexsort is the first criterion).
    ratio = np.nan_to_num(sweep.rho, nan=-np.inf, posinf=-np.inf)
    order = np.lexsort((ratio, sweep.admissible, sweep.solved))
    reason = "no admissible damping lowers the loss; largest gain ratio taken"
    return DampingChoice(int(order[-1]), False, reason)


def check_fixed_damping(sweep: DampingSweep, index: int) -> DampingChoice:
    """The damping that a recipe has fixed, and whether its step is trusted.

    Args:
        sweep: with the fixed damping among its dampings.
        index: of the fixed damping.
    """
    faults = [
        (not sweep.solved[index], "the step does not reach the tolerance"),
        (not sweep.loss[index] < sweep.loss_start, "the step does not lower the loss"),
        (sweep.step_norm[index] > sweep.start_norm, "the step is longer than the start"),
        (sweep.embedding_change[index] > 1.0, "the step moves the embedding by more than its size"),
    ]
    reasons = [words for fault, words in faults if fault]
    verdict = "; ".join(reasons) or "the step lowers the loss"
    return DampingChoice(index, not reasons, f"damping fixed by the recipe; {verdict}")


def evaluate_sweep(
    loss: Array,
    linearisation: Gradient,
    start: Array,
    solution: Solution,
    damping_relative: npt.ArrayLike,
    moments: EmbeddingSizes,
    offset: Array | None = None,
) -> DampingSweep:
    """Evaluate the steps of a solve from their losses: no pass over the data.

    Args:
        loss: after the step of each damping, L(A0 + dA) [column].
        linearisation: value, gradient and curvature at the start.
        start: A0 [landmark, component].
        solution: one step for each damping, [landmark, component, column].
        damping_relative: the dampings in units of the mean diagonal [column].
        moments: of the kernel, for rms |f| and rms |K dA|.
        offset: gamma [component] of the embedding f = K A + gamma.
    """
    relative = np.asarray(damping_relative, dtype=np.float64)
    steps = solution.step
    # rho = (L(A0) - L(A0 + dA)) / predicted.
    predicted = predicted_decrease(linearisation, solution)
    decreases = predicted > 0
    decrease = linearisation.value - loss
    # rms |K dA| / rms |K A0 + gamma|; the offset does not change.
    size = moments.embedding_rms(start, offset)
    change = [moments.embedding_rms(steps[..., column]) for column in range(steps.shape[-1])]
    return DampingSweep(
        damping=relative * linearisation.mean_diagonal,
        damping_relative=relative,
        loss=loss,
        predicted=predicted,
        rho=np.where(decreases, decrease, 0.0) / np.where(decreases, predicted, 1.0),
        step_norm=np.sqrt(np.einsum("lkc,lkc->c", steps, steps)),
        embedding_change=np.array(change) / size if size > 0 else np.full(len(change), np.inf),
        solved=solution.converged,
        loss_start=linearisation.value,
        start_norm=float(np.linalg.norm(start)),
        stability=np.full(len(relative), np.nan),
    )


def predicted_decrease(linearisation: Gradient, solution: Solution) -> Array:
    """-(<G, dA> + <dA, H dA> / 2) [column], or one number for a solution without columns.

    The decrease of the undamped quadratic model; H dA is the solution's image, so no product.

    Args:
        linearisation: the gradient G at the start.
        solution: steps dA and images H dA.
    """
    linear = np.einsum("lk,lk...->...", linearisation.gradient, solution.step)
    quadratic = np.einsum("lk...,lk...->...", solution.step, solution.image)
    return np.asarray(-(linear + quadratic / 2.0))


def top_landmark_overlap(kernel: Array, step: Array, other: Array, count: int = 10) -> float:
    """Mean share of the ``count`` most influential landmarks that two steps have in common.

    Influence is |k_l| |dA_l|, the source method's score.

    Args:
        kernel: kernel rows [sample, landmark].
        step: the step of one damping [landmark, component].
        other: the step of another damping.
        count: landmarks compared per sample.
    """
    first = _top_landmarks(kernel, step, count)
    second = _top_landmarks(kernel, other, count)
    # Members of the first ranking that occur anywhere in the second.
    common = (first[:, :, None] == second[:, None, :]).any(axis=2)
    return float(common.mean())


def _top_landmarks(kernel: Array, step: Array, count: int) -> npt.NDArray[np.intp]:
    """Indices of the largest scores [sample, rank]; the lower index first among equals."""
    score = np.abs(kernel) * np.linalg.norm(step, axis=1)
    return np.argsort(-score, axis=1, kind="stable")[:, :count]
