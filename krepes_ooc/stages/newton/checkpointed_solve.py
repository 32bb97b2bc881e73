"""Solve the Newton system of a problem, so that a kill costs a pass or half a minute at most.

What costs passes over the kernel is kept after each of them, what is computed in memory now and
then; both are kept, and the run ends there, when it is asked to stop. Iterates lie where products
are taken; what is kept, and every solution, is the host's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from krepes_ooc.engine.device import carried, eigh_on
from krepes_ooc.stages.newton.conjugate_gradient import (
    CGState,
    Operator,
    Preconditioner,
    Solution,
    conjugate_gradient,
)
from krepes_ooc.stages.newton.damping import absolute
from krepes_ooc.stages.newton.levenberg_marquardt import Descent, levenberg_marquardt
from krepes_ooc.stages.newton.preconditioners import (
    Kronecker,
    RandomizedNystrom,
    Rotations,
    rotation_curvature,
)
from krepes_ooc.stages.newton.problem import PlacedSlope, Problem, arrays_of, linearised
from krepes_ooc.stages.newton.solvers import DirectSolver, Solver, choose_solver

Float = npt.NDArray[np.float64]
DESCENT_TOLERANCE = 1e-3
SINGLE_PRECISION = float(np.finfo(np.float32).eps)
SKETCH_BYTES = 2**25


def solve(problem: Problem, relative: Float) -> tuple[str, Solution]:
    """The step for every relative damping, and the name of the solver."""
    settings, at_start, numbers = problem.context.settings, problem.at_start, count()
    damping = absolute(relative, at_start, problem.start)
    solver = choose_solver(
        at_start.there,
        lambda: preconditioner(problem, at_start, problem.start, "step-0"),
        memory_bytes=settings.direct_bytes,
        tolerance=settings.reached_tolerance,
        max_iterations=settings.iteration_limit,
        eigh=eigh_on(problem.context.device),
    )
    if isinstance(solver, DirectSolver):
        return "direct", _kept(problem, numbers, lambda _: solver.solve(damping))
    chosen, tolerance = solver.preconditioner, solver.tolerance
    return "krylov", KeptSolver(problem, at_start, chosen, tolerance, numbers).solve(damping)


def losses(problem: Problem, solution: Solution) -> Float:
    """The loss after the step of every damping [damping]; one pass for all if it is streamed."""
    reached = problem.start[..., None] + solution.step
    found = problem.stream.keep("losses", lambda: {"loss": problem.objective.values(reached)})
    return np.asarray(found["loss"])


@dataclass(frozen=True)
class KeptSolver:
    """Conjugate gradients whose iterate and result are kept.

    Args:
        problem: whose stream does the keeping.
        here: the linearisation.
        preconditioner: of its system.
        tolerance: relative residual to reach.
        numbers: of the solves, which name what is kept; shared by all solvers of a descent.
    """

    problem: Problem
    here: PlacedSlope
    preconditioner: Preconditioner | None
    tolerance: float
    numbers: Iterator[int]

    def solve(self, damping: npt.ArrayLike) -> Solution:
        """The step for a damping, or one column for each of several dampings."""
        return _kept(self.problem, self.numbers, lambda name: self._compute(name, damping))

    def _compute(self, name: str, damping: npt.ArrayLike) -> Solution:
        context, stream = self.problem.context, self.problem.stream
        name, streamed = f"{name}-iterate", not self.problem.objective.there.moment
        known, place = stream.recall(name), self.problem.place

        def checkpoint(state: CGState) -> None:
            context.progress.advance(int(streamed))
            stream.checkpoint(name, lambda: arrays_of(state, place))

        return conjugate_gradient(
            self.here.there.product,
            -self.here.there.gradient,
            damping,
            preconditioner=self.preconditioner,
            tolerance=self.tolerance,
            max_iterations=context.settings.iteration_limit,
            state=None if known is None else carried(place, CGState(**known)),
            checkpoint=checkpoint,
        )


def _kept(problem: Problem, numbers: Iterator[int], compute: Callable[[str], Solution]) -> Solution:
    """The solution of the next solve, computed under its name unless it was kept; on the host."""
    name = f"solve-{next(numbers)}"
    arrays = problem.stream.keep(name, lambda: arrays_of(compute(name), problem.place))
    found: dict[str, Any] = {**arrays, "advice": str(arrays["advice"])}
    return Solution(**found)


def preconditioner(
    problem: Problem, here: PlacedSlope, A: Float, name: str
) -> Preconditioner | None:
    """The preconditioner that the recipe names, at A; what it costs in passes is kept."""
    settings, stream, seed = problem.context.settings, problem.stream, problem.context.inputs.seed
    place, there = problem.place, here.there
    if settings.preconditioner == "none":
        return None
    if settings.preconditioner == "nystrom":
        product = in_parts(there.product)
        precision = 2e-16 if problem.objective.there.moment else SINGLE_PRECISION

        def sketch() -> dict[str, Float]:
            found = RandomizedNystrom.build(
                product, A.shape, settings.rank, seed, precision, there.gradient
            )
            return arrays_of(found, place)

        return carried(place, RandomizedNystrom(**stream.keep(f"sketch-{name}", sketch)))
    model = Kronecker.build(there, problem.moments.there, eigh_on(problem.context.device))
    if not problem.objective.there.rotates:
        return model
    moved = place.to(A)

    def rotation() -> dict[str, Float]:
        return {"curvature": np.asarray(place.back(rotation_curvature(moved, there.product, seed)))}

    known = stream.keep(f"rotation-{name}", rotation)
    return Rotations.build(model, moved, float(known["curvature"]))


def in_parts(product: Operator) -> Operator:
    """A product with many columns, a bounded number of bytes of them in each pass."""

    def parts(V: Any) -> Any:
        columns = max(1, SKETCH_BYTES // (8 * V.shape[0] * V.shape[1]))
        cuts = [(cut, min(cut + columns, V.shape[2])) for cut in range(0, V.shape[2], columns)]
        found = [product(V[..., start:stop]) for start, stop in cuts]
        return array_namespace(V).concat(found, axis=-1)

    return parts


def descend(problem: Problem, relative: float, steps: int) -> Descent:
    """Levenberg-Marquardt from the start, kept after every trial: where several steps lead."""
    stream, objective = problem.stream, problem.objective
    known = stream.recall("descent")
    state = None if known is None else _descent_from(known)
    trials = count(1 if state is None else 1 + state.trials)
    accepted = count(0 if state is None else len(state.rho))

    def prepare(A: Float) -> tuple[PlacedSlope, Solver]:
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
        checkpoint=lambda state: stream.checkpoint("descent", lambda: arrays_of(state)),
    )


def _descent_from(arrays: Mapping[str, npt.NDArray[Any]]) -> Descent:
    plain = {name: value.item() for name, value in arrays.items() if not value.ndim}
    return Descent(**{**arrays, **plain})
