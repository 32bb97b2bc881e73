"""The solution of a small audit, from kernel rows of a few samples held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.array_columns import BlockFunction
from krepes_ooc.core.blocks import Block
from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.minimiser.minimise import minimise
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.moments.sums import block_shift, finish, moment_sums
from krepes_ooc.stages.newton.basis import Basis
from krepes_ooc.stages.newton.damping import absolute_damping
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.preconditioners import Kronecker, KroneckerPath
from krepes_ooc.stages.newton.solvers import choose_solver
from krepes_ooc.stages.spectrum import nystrom

Float = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]

MOMENT_TOLERANCE, STREAM_TOLERANCE = 1e-6, 1e-3
MOMENT_PRODUCTS, STREAM_PRODUCTS = 2000, 200
# Of the minimiser; after 100 evaluations its embedding hardly changes.
EVALUATIONS, GRADIENT = 100, 1e-3
# Krylov solver above that: the rows of a wide Barlow Twins problem do not enter the plan.
DIRECT_BYTES = 2**26
_SUB_ROWS = 512


@dataclass(frozen=True)
class ArrayStream:
    """Kernel rows in memory as a stream of blocks.

    Args:
        kernels: K_a [view, sample, landmark].
        block_rows: samples of one block.
    """

    kernels: Rows
    block_rows: int

    @property
    def n_samples(self) -> int:
        """Rows of the kernel."""
        return int(self.kernels.shape[1])

    @property
    def n_views(self) -> int:
        """Number of views p."""
        return int(self.kernels.shape[0])

    def reduce(self, function: BlockFunction) -> tuple[Any, ...]:
        """Sum ``function(K of each view, block)`` over the blocks in their order."""
        total: tuple[Any, ...] | None = None
        for index, start in enumerate(range(0, self.n_samples, self.block_rows)):
            block = Block(index, start, min(start + self.block_rows, self.n_samples))
            part = function(tuple(self.kernels[:, block.start : block.stop]), block)
            total = part if total is None else tuple(map(np.add, total, part))
        assert total is not None
        return total


@dataclass(frozen=True)
class StepRule:
    """Rule by which the audit got its coefficients.

    Args:
        objective: name of the loss.
        constants: its settings.
        damping_relative: in units of the curvature's mean diagonal.
        metric: euclidean or rkhs.
        n_components: components h at most.
        minimiser_damping: relative damping of the minimiser, if it explains the audit; None: one
            Newton step.
    """

    objective: str
    constants: Mapping[str, Any]
    damping_relative: float
    metric: str
    n_components: int
    minimiser_damping: float | None = None


@dataclass(frozen=True)
class StepResult:
    """The audit's embedding f = K A + gamma, A = start + step.

    Args:
        start: A0 [landmark, component].
        step: dA [landmark, component].
        offset: gamma [component].
        second: un-centred S [landmark, landmark_] of the rows that were used.
    """

    start: Float
    step: Float
    offset: Float
    second: Float

    def embedding(self, kernel: npt.NDArray[Any]) -> Float:
        """Embedding f [sample, component] of kernel rows [sample, landmark]."""
        return np.asarray(kernel @ (self.start + self.step) + self.offset)


def array_moments(stream: ArrayStream) -> Moments:
    """Means and centred second moments of kernel rows in memory, summed in float64."""
    views = tuple(stream.kernels)
    shift = block_shift([K[: stream.block_rows] for K in views])
    mean, second = finish(moment_sums(views, shift, _SUB_ROWS))
    return Moments(mean, second, stream.n_samples)


def solve_audit(rule: StepRule, landmark_kernel: Float, stream: ArrayStream) -> StepResult:
    """The coefficients of an audit with the same objective and relative damping.

    Args:
        rule: how the audit took its step.
        landmark_kernel: K_mm [landmark, landmark_].
        stream: kernel rows of the views.

    Raises:
        StageFailed: the kernel has no positive eigenvalue, or the loss no curvature at the start.
    """
    # Start and offset: kernel principal components of as many directions as the kernel carries.
    moments = array_moments(stream)
    second = np.asarray(moments.mean_uncentred())
    values, vectors = nystrom.eigenpairs(landmark_kernel)
    m = len(values)
    rms = float(np.sqrt(np.trace(second) / m))
    rank = nystrom.usable_rank(values, rms, m, "float32")
    if rank < registry.least_components(rule.objective):
        raise StageFailed(f"the kernel has a usable rank of {rank}", where="randomised")
    start = nystrom.start(values, vectors, min(rule.n_components, rank))
    offset = nystrom.offset(start, moments.mean.mean(axis=0))

    # The metric is a change of coordinates of start, moments and stream.
    in_rkhs = rule.metric == "rkhs" and rule.minimiser_damping is None
    basis = Basis.rkhs(values, vectors, rank) if in_rkhs else None
    step = _solve(rule, basis, start, offset, moments, stream)
    return StepResult(start, step, offset, second)


def _solve(
    rule: StepRule,
    basis: Basis | None,
    start: Float,
    offset: Float,
    moments: Moments,
    stream: ArrayStream,
) -> Float:
    """Step dA [landmark, component] of the damped Newton system at the start."""
    source: Any = stream
    if basis is not None:
        start, moments, source = basis.to_basis(start), basis.moments(moments), basis.stream(stream)
    kind = registry.settings_type(rule.objective)
    constants = read_settings(kind, dict(rule.constants), "newton")
    objective = registry.create(
        rule.objective, constants, moments=moments, stream=source, start=start, offset=offset
    )
    at_start = objective.linearise(start)
    if rule.minimiser_damping is not None:
        relative = rule.minimiser_damping
        return _minimise(objective, at_start, start, moments, relative)
    damping = absolute_damping([rule.damping_relative], at_start, start)
    exact = registry.uses_moments(rule.objective)
    solver = choose_solver(
        at_start,
        lambda: Kronecker.build(at_start, moments),
        memory_bytes=DIRECT_BYTES,
        tolerance=MOMENT_TOLERANCE if exact else STREAM_TOLERANCE,
        max_iterations=MOMENT_PRODUCTS if exact else STREAM_PRODUCTS,
    )
    step = solver.solve(damping).step[..., 0]
    return step if basis is None else np.asarray(basis.from_basis(step))


def _minimise(
    objective: Any, at_start: Any, start: Float, moments: Moments, relative: float
) -> Float:
    """A - A0 [landmark, component] at the damped minimum."""
    damping = relative * float(at_start.mean_diagonal)
    found = minimise(
        objective,
        start,
        damping,
        model=KroneckerPath.build(at_start, moments),
        tolerance=GRADIENT,
        max_evaluations=EVALUATIONS,
    )
    return found.coefficients - start
