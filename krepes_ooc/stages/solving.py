"""Solve the Newton system of a problem, so that a kill costs one pass over the kernel at most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.algebra.curvature import Linearisation
from krepes_ooc.algebra.damping import absolute
from krepes_ooc.algebra.descent import Descent, levenberg_marquardt
from krepes_ooc.algebra.krylov import CGState, Operator, Preconditioner
from krepes_ooc.algebra.preconditioners import (
    Kronecker,
    RandomizedNystrom,
    Rotations,
    rotation_curvature,
)
from krepes_ooc.algebra.solve import Solution, Solver, choose_solver, conjugate_gradient
from krepes_ooc.engine.device import eigh_on
from krepes_ooc.stages.problem import Problem, arrays_of, linearised

Float = npt.NDArray[np.float64]
DESCENT_TOLERANCE = 1e-3
SINGLE_PRECISION = float(np.finfo(np.float32).eps)
SKETCH_BYTES = 2**25


def solve(problem: Problem, relative: Float) -> tuple[str, Solution]:
    """The step for every relative damping, and the name of the solver."""
    settings, at_start = problem.context.settings, problem.at_start
    damping = absolute(relative, at_start, problem.start)
    if problem.objective.moment:
        solver = choose_solver(
            at_start,
            lambda: preconditioner(problem, at_start, problem.start, "step-0"),
            memory_bytes=settings.direct_bytes,
            tolerance=settings.reached_tolerance,
            max_iterations=settings.iteration_limit,
            eigh=eigh_on(problem.context.device),
        )
        return type(solver).__name__.removesuffix("Solver").lower(), solver.solve(damping)
    chosen = preconditioner(problem, at_start, problem.start, "step-0")
    tolerance = settings.reached_tolerance
    return "krylov", KeptSolver(problem, at_start, chosen, tolerance, count()).solve(damping)


def losses(problem: Problem, solution: Solution) -> Float:
    """The loss after the step of every damping [damping]; one pass for all if it is streamed."""
    reached = problem.start[..., None] + solution.step
    found = problem.stream.keep("losses", lambda: {"loss": problem.objective.values(reached)})
    return np.asarray(found["loss"])


@dataclass(frozen=True)
class KeptSolver:
    """Conjugate gradients whose iterate and result are kept: a kill costs one pass at most.

    Args:
        problem: whose stream does the keeping.
        here: the linearisation.
        preconditioner: of its system.
        tolerance: relative residual to reach.
        numbers: of the solves, which name what is kept; shared by all solvers of a descent.
    """

    problem: Problem
    here: Linearisation
    preconditioner: Preconditioner | None
    tolerance: float
    numbers: Iterator[int]

    def solve(self, damping: npt.ArrayLike) -> Solution:
        """The step for a damping, or one column for each of several dampings."""
        name = f"solve-{next(self.numbers)}"
        arrays = self.problem.stream.keep(name, lambda: self._compute(name, damping))
        found: dict[str, Any] = {**arrays, "advice": str(arrays["advice"])}
        return Solution(**found)

    def _compute(self, name: str, damping: npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
        context, stream = self.problem.context, self.problem.stream
        name = f"{name}-iterate"
        known = stream.recall(name)

        def checkpoint(state: CGState) -> None:
            context.progress.advance(1)
            stream.note(name, arrays_of(state))

        solution = conjugate_gradient(
            self.here.product,
            -self.here.gradient,
            damping,
            preconditioner=self.preconditioner,
            tolerance=self.tolerance,
            max_iterations=context.settings.iteration_limit,
            state=None if known is None else CGState(**known),
            checkpoint=None if self.problem.objective.moment else checkpoint,
        )
        return arrays_of(solution)


def preconditioner(
    problem: Problem, here: Linearisation, A: Float, name: str
) -> Preconditioner | None:
    """The preconditioner that the recipe names, at A; what it costs in passes is kept."""
    settings, stream, seed = problem.context.settings, problem.stream, problem.context.inputs.seed
    if settings.preconditioner == "none":
        return None
    if settings.preconditioner == "nystrom":
        product = in_parts(here.product)
        precision = 2e-16 if problem.objective.moment else SINGLE_PRECISION

        def sketch() -> dict[str, Float]:
            found = RandomizedNystrom.build(product, A.shape, settings.rank, seed, precision)
            return arrays_of(found)

        return RandomizedNystrom(**stream.keep(f"sketch-{name}", sketch))
    model = Kronecker.build(here, problem.moments, eigh_on(problem.context.device))
    if not problem.objective.rotates:
        return model

    def rotation() -> dict[str, Float]:
        return {"curvature": np.array(rotation_curvature(A, here.product, seed))}

    known = stream.keep(f"rotation-{name}", rotation)
    return Rotations.build(model, A, float(known["curvature"]))


def in_parts(product: Operator) -> Operator:
    """A product with many columns, a bounded number of bytes of them in each pass."""

    def parts(V: Float) -> Float:
        columns = max(1, SKETCH_BYTES // (8 * V.shape[0] * V.shape[1]))
        cuts = range(0, V.shape[2], columns)
        return np.concatenate([product(V[..., cut : cut + columns]) for cut in cuts], axis=-1)

    return parts


def descend(problem: Problem, relative: float, steps: int) -> Descent:
    """Levenberg-Marquardt from the start, kept after every trial: where several steps lead."""
    stream, objective = problem.stream, problem.objective
    known = stream.recall("descent")
    state = None if known is None else _descent_from(known)
    trials = count(1 if state is None else 1 + state.trials)
    accepted = count(0 if state is None else len(state.rho))

    def prepare(A: Float) -> tuple[Linearisation, Solver]:
        name = f"step-{next(accepted)}"
        here = linearised(stream, objective, A, f"linearised-{name}")
        chosen = preconditioner(problem, here, A, name)
        return here, KeptSolver(problem, here, chosen, DESCENT_TOLERANCE, trials)

    return levenberg_marquardt(
        objective,
        problem.start,
        prepare,
        steps=steps,
        damping_relative=relative,
        state=state,
        checkpoint=None if objective.moment else lambda s: stream.note("descent", arrays_of(s)),
    )


def _descent_from(arrays: Mapping[str, npt.NDArray[Any]]) -> Descent:
    plain = {name: value.item() for name, value in arrays.items() if not value.ndim}
    return Descent(**{**arrays, **plain})
