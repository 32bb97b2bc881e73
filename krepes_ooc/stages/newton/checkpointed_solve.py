"""Checkpointed solves of the Newton system: a kill costs a pass or half a minute at most.

Results that cost passes over the kernel are written after each pass, iterates in memory from time
to time; both are written, and the run stops, when a stop is requested. Iterates are on the device
of the products; checkpoints and solutions are on the host.
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
LM_TOLERANCE = 1e-3
# Name on the disk of the state of the Levenberg-Marquardt steps.
LM_CHECKPOINT = "descent"
FLOAT32_PRECISION = float(np.finfo(np.float32).eps)
FLOAT64_PRECISION = 2e-16
SKETCH_BYTES = 2**25


def solve(problem: NewtonProblem, relative: Float) -> tuple[str, Solution]:
    """The step for every relative damping, and the name of the solver.

    Args:
        problem: the Newton problem.
        relative: dampings in units of the mean diagonal [damping].
    """
    settings = problem.context.settings
    at_start = problem.at_start
    numbers = count()
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
        return "direct", _cached_solution(problem, numbers, lambda _: solver.solve(damping))
    # The Krylov solver again, with checkpoints of its iterate.
    krylov = CheckpointedSolver(problem, at_start, solver.preconditioner, solver.tolerance, numbers)
    return "krylov", krylov.solve(damping)


def losses(problem: NewtonProblem, solution: Solution) -> Float:
    """L(A0 + dA) of every damping [damping]; one pass for all if the objective is streamed."""
    after_step = problem.start[..., None] + solution.step
    arrays = problem.stream.cached("losses", lambda: {"loss": problem.objective.values(after_step)})
    return np.asarray(arrays["loss"])


@dataclass(frozen=True)
class CheckpointedSolver:
    """Conjugate gradients with checkpoints of the iterate and of the result.

    Args:
        problem: the Newton problem; its stream writes the checkpoints.
        linearisation: the linearisation whose system is solved.
        preconditioner: of its system.
        tolerance: relative residual to reach.
        numbers: of the solves, which name the checkpoints; shared by all solvers of a run.
    """

    problem: NewtonProblem
    linearisation: DeviceGradient
    preconditioner: Preconditioner | None
    tolerance: float
    numbers: Iterator[int]

    def solve(self, damping: npt.ArrayLike) -> Solution:
        """The step for a damping, or one column for each of several dampings."""
        return _cached_solution(
            self.problem, self.numbers, lambda name: self._compute(name, damping)
        )

    def _compute(self, name: str, damping: npt.ArrayLike) -> Solution:
        context = self.problem.context
        stream = self.problem.stream
        device = self.problem.device
        streamed = not self.problem.objective.on_device.uses_moments
        # The iterate of an interrupted solve, if there is one.
        iterate_name = f"{name}-iterate"
        arrays = stream.load_checkpoint(iterate_name)
        state = None if arrays is None else to_device(device, CGState(**arrays))

        def checkpoint(state: CGState) -> None:
            context.progress.advance(int(streamed))
            stream.checkpoint(iterate_name, lambda: to_host_arrays(state, device))

        # (H + damping I) dA = -G.
        return conjugate_gradient(
            self.linearisation.on_device.product,
            -self.linearisation.on_device.gradient,
            damping,
            preconditioner=self.preconditioner,
            tolerance=self.tolerance,
            max_iterations=context.settings.iteration_limit,
            state=state,
            checkpoint=checkpoint,
        )


def _cached_solution(
    problem: NewtonProblem, numbers: Iterator[int], compute: Callable[[str], Solution]
) -> Solution:
    """The solution of the next solve on the host, from its checkpoint or computed by its name."""
    name = f"solve-{next(numbers)}"
    arrays = problem.stream.cached(name, lambda: to_host_arrays(compute(name), problem.device))
    fields: dict[str, Any] = {**arrays, "advice": str(arrays["advice"])}
    return Solution(**fields)


def preconditioner(
    problem: NewtonProblem, linearisation: DeviceGradient, A: Float, name: str
) -> Preconditioner | None:
    """The preconditioner of the recipe, for the curvature at A.

    Args:
        problem: the Newton problem.
        linearisation: the linearisation at A.
        A: coefficients or coordinates [landmark or direction, component].
        name: of the checkpoint of products that cost passes.
    """
    settings = problem.context.settings
    if settings.preconditioner == "none":
        return None
    if settings.preconditioner == "nystrom":
        return _nystrom_preconditioner(problem, linearisation, A, name)
    device = problem.device
    on_device = linearisation.on_device
    eigh = eigh_on(problem.context.device)
    model = Kronecker.build(on_device, problem.moments.on_device, eigh)
    if not problem.objective.on_device.rotation_invariant:
        return model
    # Rotations A W have no curvature in the loss; the offset leaves some, measured by one product.
    A_device = device.to_device(A)

    def rotation() -> dict[str, Float]:
        curvature = rotation_curvature(A_device, on_device.product, problem.seed)
        return {"curvature": np.asarray(device.to_host(curvature))}

    arrays = problem.stream.cached(f"rotation-{name}", rotation)
    return RotationDeflation.build(model, A_device, float(arrays["curvature"]))


def _nystrom_preconditioner(
    problem: NewtonProblem, linearisation: DeviceGradient, A: Float, name: str
) -> Preconditioner:
    """The randomised Nystrom preconditioner, its sketch checkpointed."""
    device = problem.device
    on_device = linearisation.on_device
    product = column_chunks(on_device.product)
    uses_moments = problem.objective.on_device.uses_moments
    precision = FLOAT64_PRECISION if uses_moments else FLOAT32_PRECISION
    rank = problem.context.settings.sketch_columns(A.size)

    def sketch() -> dict[str, Float]:
        built = RandomizedNystrom.build(
            product, A.shape, rank, problem.seed, precision, on_device.gradient
        )
        return to_host_arrays(built, device)

    arrays = problem.stream.cached(f"sketch-{name}", sketch)
    return to_device(device, RandomizedNystrom(**arrays))


def column_chunks(product: Operator) -> Operator:
    """A product that passes over its columns a bounded number of bytes at a time."""

    def parts(V: Any) -> Any:
        columns = max(1, SKETCH_BYTES // (8 * V.shape[0] * V.shape[1]))
        cuts = [(cut, min(cut + columns, V.shape[2])) for cut in range(0, V.shape[2], columns)]
        products = [product(V[..., start:stop]) for start, stop in cuts]
        return array_namespace(V).concat(products, axis=-1)

    return parts


def lm_steps(problem: NewtonProblem, relative: float, steps: int) -> LMResult:
    """Levenberg-Marquardt steps from the start, checkpointed after every trial.

    Args:
        problem: the Newton problem.
        relative: first damping in units of the mean diagonal.
        steps: accepted steps at most.
    """
    stream = problem.stream
    objective = problem.objective
    arrays = stream.load_checkpoint(LM_CHECKPOINT)
    state = None if arrays is None else _lm_result(arrays)
    # Checkpoints are numbered: solves by trial, linearisations by accepted step. Solve 0 is the
    # sweep, so trials start at 1; a resumed run counts on.
    trials = count(1 if state is None else 1 + state.trials)
    accepted = count(0 if state is None else len(state.rho))

    def prepare(A: Float) -> tuple[DeviceGradient, Solver]:
        name = f"step-{next(accepted)}"
        linearisation = linearised(stream, objective, A, f"linearised-{name}")
        inverse = preconditioner(problem, linearisation, A, name)
        return linearisation, CheckpointedSolver(
            problem, linearisation, inverse, LM_TOLERANCE, trials
        )

    return levenberg_marquardt(
        objective,
        problem.start,
        prepare,
        steps=steps,
        damping_relative=relative,
        state=state,
        checkpoint=lambda state: stream.checkpoint(LM_CHECKPOINT, lambda: to_host_arrays(state)),
    )


def _lm_result(arrays: Mapping[str, npt.NDArray[Any]]) -> LMResult:
    """The state of a checkpoint: arrays without dimension are numbers and text."""
    plain = {name: value.item() for name, value in arrays.items() if not value.ndim}
    return LMResult(**{**arrays, **plain})
