"""The Newton system of one objective: built from the stores, solved so that a kill costs one product."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.algebra import nystrom, objectives
from krepes_ooc.algebra.basis import Basis
from krepes_ooc.algebra.curvature import Linearisation, Moments, Objective
from krepes_ooc.algebra.krylov import CGState, Preconditioner
from krepes_ooc.algebra.objectives.base import SampleObjective
from krepes_ooc.algebra.preconditioners import Kronecker, RandomizedNystrom
from krepes_ooc.algebra.solve import Solution, choose_solver, conjugate_gradient
from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.stages.base import StageContext
from krepes_ooc.stages.spectrum import read_moments
from krepes_ooc.stages.stream import KernelStream
from krepes_ooc.storage.files import read_arrays, write_arrays

Float = npt.NDArray[np.float64]
SINGLE_PRECISION = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Problem:
    """The objective at the start of its step, in the coordinates of the chosen metric.

    Args:
        objective: the loss.
        at_start: its value, gradient and curvature at the start.
        start: A0, or its coordinates [landmark or direction, component].
        offset: gamma [component].
        moments: of the kernel rows, in the same coordinates.
        basis: from coordinates to coefficients; None for the euclidean metric.
    """

    objective: Objective
    at_start: Linearisation
    start: Float
    offset: Float
    moments: Moments
    basis: Basis | None

    def coefficients(self, values: Float) -> Float:
        """Coefficients [landmark, component(, column)] of coordinates."""
        return values if self.basis is None else self.basis.from_basis(values)

    @property
    def passes(self) -> int:
        """Passes over the kernel so far."""
        return int(getattr(self.objective, "passes", 0))


def open_problem(context: StageContext) -> Problem:
    """The Newton system from the sealed stores.

    Raises:
        StageFailed: the curvature vanishes, as it does for a collapsed network.
        UsageError: the objective's batch does not divide the block rows.
    """
    settings, spectrum = context.settings, context.reader("spectrum")
    coefficients = settings.coefficients()
    _check_batch(context, coefficients)
    moments, start, basis = read_moments(context), spectrum.array("start"), _basis(context)
    stream: Any = KernelStream(context)
    if basis is not None:
        moments, stream = basis.moments(moments), basis.stream(stream)
        start = basis.to_basis(start)
    offset = spectrum.array("offset")
    objective = objectives.create(
        settings.objective,
        coefficients,
        moments=moments,
        stream=stream,
        start=start,
        offset=offset,
        sub_rows=context.plan.sub_rows,
    )
    at_start = _linearised(context, objective, start)
    if not at_start.mean_diagonal > 0:
        raise StageFailed(
            f"the curvature of {settings.objective} vanishes at the start",
            where="stages.newton",
            expected="embeddings that differ between samples",
            advice="the network may have collapsed: look at the kernel and the views",
        )
    return Problem(objective, at_start, start, offset, moments, basis)


def solve(context: StageContext, problem: Problem, relative: Float) -> tuple[str, Solution]:
    """The step for every relative damping, and the name of the solver.

    A streamed solve keeps its iterate on disk after every product, and goes on from it.
    """
    settings, at_start = context.settings, problem.at_start
    damping = relative * at_start.mean_diagonal
    if problem.objective.moment:
        solver = choose_solver(
            at_start,
            lambda: preconditioner(context, problem),
            memory_bytes=settings.direct_bytes,
            tolerance=settings.reached_tolerance,
            max_iterations=settings.max_iterations,
        )
        return type(solver).__name__.removesuffix("Solver").lower(), solver.solve(damping)
    path = context.record.partials / "iterate.npz"

    def checkpoint(state: CGState) -> None:
        context.progress.advance(1)
        write_arrays(path, {f.name: getattr(state, f.name) for f in fields(state)}, context.record.temp)

    known = read_arrays(path)
    solution = conjugate_gradient(
        at_start.product,
        -at_start.gradient,
        damping,
        preconditioner=preconditioner(context, problem),
        tolerance=settings.reached_tolerance,
        max_iterations=settings.max_iterations,
        state=None if known is None else CGState(**known),
        checkpoint=checkpoint,
    )
    return "krylov", solution


def preconditioner(context: StageContext, problem: Problem) -> Preconditioner | None:
    """The preconditioner that the recipe names."""
    kind, objective = context.settings.preconditioner, context.settings.objective
    if kind == "none":
        return None
    if kind == "kronecker" or (kind == "auto" and objective != "simclr"):
        return Kronecker.build(problem.at_start, problem.moments)
    m, h = problem.start.shape
    return RandomizedNystrom.build(
        problem.at_start.product,
        (m, h),
        context.settings.rank,
        seed=context.inputs.seed,
        precision=2e-16 if problem.objective.moment else SINGLE_PRECISION,
    )


def _basis(context: StageContext) -> Basis | None:
    """Coordinates of the RKHS metric: damping is then the norm of the embedding's function."""
    if context.settings.metric == "euclidean":
        return None
    values, vectors = nystrom.eigenpairs(context.reader("kernel").array("landmark_kernel"))
    rank = int(context.reader("spectrum").attributes["usable_rank"])
    return Basis.rkhs(values, vectors, rank)


def _check_batch(context: StageContext, coefficients: Any) -> None:
    batch, rows = getattr(coefficients, "batch", None), context.plan.block_rows
    if batch is not None and rows % batch:
        near = [size for size in (2**i for i in range(1, 20)) if size <= rows]
        raise UsageError(
            f"a batch of {batch} does not divide blocks of {rows} rows",
            where="stages.newton.objective_settings.batch",
            expected=f"a divisor of {rows}",
            advice=f"take {min(near, key=lambda size: abs(size - batch))}",
        )


def _linearised(context: StageContext, objective: Objective, start: Float) -> Linearisation:
    """The linearisation at the start; a streamed one is kept on disk, since it costs a pass."""
    if not isinstance(objective, SampleObjective):
        return objective.linearise(start)
    path = context.record.partials / "linearised.npz"
    known = read_arrays(path)
    if known is not None:
        return objective.restore(start, known)
    found = objective.linearise(start)
    write_arrays(path, found.arrays(), context.record.temp)
    return found
