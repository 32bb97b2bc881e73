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

from krepes_ooc.engine.device import eigh_on, to_device
from krepes_ooc.stages.newton.conjugate_gradient import (
    CGState,
    Operator,
    Preconditioner,
    Solution,
    conjugate_gradient,
)
from krepes_ooc.stages.newton.damping import absolute_damping
from krepes_ooc.stages.newton.levenberg_marquardt import LMResult, levenberg_marquardt
from krepes_ooc.stages.newton.preconditioners import (
    Kronecker,
    RandomizedNystrom,
    RotationDeflation,
    rotation_curvature,
)
from krepes_ooc.stages.newton.problem import (
    DeviceGradient,
    NewtonProblem,
    linearised,
    to_host_arrays,
)
from krepes_ooc.stages.newton.solvers import DirectSolver, Solver, choose_solver

Float = npt.NDArray[np.float64]
DESCENT_TOLERANCE = 1e-3
SINGLE_PRECISION = float(np.finfo(np.float32).eps)
SKETCH_BYTES = 2**25


def solve(problem: NewtonProblem, relative: Float) -> tuple[str, Solution]:
    """The step for every relative damping, and the name of the solver."""
    settings, at_start, numbers = problem.context.settings, problem.at_start, count()
    damping = absolute_damping(relative, at_start, problem.start)
    solver = choose_solver(
        at_start.on_device,
        lambda: preconditioner(problem, at_start, problem.start, "step-0"),
        memory_bytes=settings.direct_bytes,
        tolerance=settings.reached_tolerance,
        max_iterations=settings.iteration_limit,
        eigh=eigh_on(problem.context.device),
    )
    if isinstance(solver, DirectSolver):
        return "direct", _read_checkpoint(problem, numbers, lambda _: solver.solve(damping))
    chosen, tolerance = solver.preconditioner, solver.tolerance
    return "krylov", CheckpointedSolver(problem, at_start, chosen, tolerance, numbers).solve(
        damping
    )


def losses(problem: NewtonProblem, solution: Solution) -> Float:
    """The loss after the step of every damping [damping]; one pass for all if it is streamed."""
    reached = problem.start[..., None] + solution.step
    found = problem.stream.cached("losses", lambda: {"loss": problem.objective.values(reached)})
    return np.asarray(found["loss"])


@dataclass(frozen=True)
class CheckpointedSolver:
    """Conjugate gradients whose iterate and result are kept.

    Args:
        problem: whose stream does the keeping.
        here: the linearisation.
        preconditioner: of its system.
        tolerance: relative residual to reach.
        numbers: of the solves, which name what is kept; shared by all solvers of a descent.
    """

    problem: NewtonProblem
    here: DeviceGradient
    preconditioner: Preconditioner | None
    tolerance: float
    numbers: Iterator[int]

    def solve(self, damping: npt.ArrayLike) -> Solution:
        """The step for a damping, or one column for each of several dampings."""
        return _read_checkpoint(
            self.problem, self.numbers, lambda name: self._compute(name, damping)
        )

    def _compute(self, name: str, damping: npt.ArrayLike) -> Solution:
        context, stream = self.problem.context, self.problem.stream
        name, streamed = f"{name}-iterate", not self.problem.objective.on_device.uses_moments
        known, place = stream.load_checkpoint(name), self.problem.place

        def checkpoint(state: CGState) -> None:
            context.progress.advance(int(streamed))
            stream.checkpoint(name, lambda: to_host_arrays(state, place))

        return conjugate_gradient(
            self.here.on_device.product,
            -self.here.on_device.gradient,
            damping,
            preconditioner=self.preconditioner,
            tolerance=self.tolerance,
            max_iterations=context.settings.iteration_limit,
            state=None if known is None else to_device(place, CGState(**known)),
            checkpoint=checkpoint,
        )


def _read_checkpoint(
    problem: NewtonProblem, numbers: Iterator[int], compute: Callable[[str], Solution]
) -> Solution:
    """The solution of the next solve, computed under its name unless it was kept; on the host."""
    name = f"solve-{next(numbers)}"
    arrays = problem.stream.cached(name, lambda: to_host_arrays(compute(name), problem.place))
    found: dict[str, Any] = {**arrays, "advice": str(arrays["advice"])}
    return Solution(**found)


def preconditioner(
    problem: NewtonProblem, here: DeviceGradient, A: Float, name: str
) -> Preconditioner | None:
    """The preconditioner that the recipe names, at A; what it costs in passes is kept."""
    settings, stream, seed = problem.context.settings, problem.stream, problem.context.recipe.seed
    place, there = problem.place, here.on_device
    if settings.preconditioner == "none":
        return None
    if settings.preconditioner == "nystrom":
        product = column_chunks(there.product)
        precision = 2e-16 if problem.objective.on_device.uses_moments else SINGLE_PRECISION

        def sketch() -> dict[str, Float]:
            found = RandomizedNystrom.build(
                product, A.shape, settings.preconditioner_rank, seed, precision, there.gradient
            )
            return to_host_arrays(found, place)

        return to_device(place, RandomizedNystrom(**stream.cached(f"sketch-{name}", sketch)))
    model = Kronecker.build(there, problem.moments.on_device, eigh_on(problem.context.device))
    if not problem.objective.on_device.rotation_invariant:
        return model
    moved = place.to_device(A)

    def rotation() -> dict[str, Float]:
        return {
            "curvature": np.asarray(place.to_host(rotation_curvature(moved, there.product, seed)))
        }

    known = stream.cached(f"rotation-{name}", rotation)
    return RotationDeflation.build(model, moved, float(known["curvature"]))


def column_chunks(product: Operator) -> Operator:
    """A product with many columns, a bounded number of bytes of them in each pass."""

    def parts(V: Any) -> Any:
        columns = max(1, SKETCH_BYTES // (8 * V.shape[0] * V.shape[1]))
        cuts = [(cut, min(cut + columns, V.shape[2])) for cut in range(0, V.shape[2], columns)]
        found = [product(V[..., start:stop]) for start, stop in cuts]
        return array_namespace(V).concat(found, axis=-1)

    return parts


def lm_steps(problem: NewtonProblem, relative: float, steps: int) -> LMResult:
    """Levenberg-Marquardt from the start, kept after every trial: where several steps lead."""
    stream, objective = problem.stream, problem.objective
    known = stream.load_checkpoint("descent")
    state = None if known is None else _read_lm_result(known)
    trials = count(1 if state is None else 1 + state.trials)
    accepted = count(0 if state is None else len(state.rho))

    def prepare(A: Float) -> tuple[DeviceGradient, Solver]:
        name = f"step-{next(accepted)}"
        here = linearised(stream, objective, A, f"linearised-{name}")
        chosen = preconditioner(problem, here, A, name)
        return here, CheckpointedSolver(problem, here, chosen, DESCENT_TOLERANCE, trials)

    return levenberg_marquardt(
        objective,
        problem.start,
        prepare,
        steps=steps,
        damping_relative=relative,
        state=state,
        checkpoint=lambda state: stream.checkpoint("descent", lambda: to_host_arrays(state)),
    )


def _read_lm_result(arrays: Mapping[str, npt.NDArray[Any]]) -> LMResult:
    plain = {name: value.item() for name, value in arrays.items() if not value.ndim}
    return LMResult(**{**arrays, **plain})
