"""Stage newton: one damped generalised Gauss-Newton step, its damping judged by the loss itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.algebra import objectives
from krepes_ooc.algebra.damping import RELATIVE_GRID, Choice, Sweep, choose, judge, stability
from krepes_ooc.algebra.descent import Descent, levenberg_marquardt
from krepes_ooc.algebra.preconditioners import Kronecker
from krepes_ooc.algebra.solve import DIRECT_BYTES, KrylovSolver, Solution
from krepes_ooc.engine.budget import Need
from krepes_ooc.settings import read_settings, setting, to_mapping
from krepes_ooc.stages.base import Cost, Stage, StageContext, write_whole
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.stages.solving import Problem, open_problem, solve
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.widen import to_float32

STABILITY_ROWS = 512
DESCENT_TOLERANCE = 1e-3
Float = npt.NDArray[np.float64]
Name = Literal["barlow-twins", "vicreg", "simclr", "byol", "spectral-contrastive"]


@dataclass(frozen=True)
class NewtonSettings:
    """Recipe key ``stages.newton``."""

    objective: Name = setting("barlow-twins", about="the SSL objective under audit")
    objective_settings: dict[str, Any] = setting({}, about="its coefficients; default: as published")
    damping: float | Literal["auto"] = setting(
        "auto", about="relative damping, or auto: the rule over the grid", above=0
    )
    grid: tuple[float, ...] = setting(RELATIVE_GRID, about="relative dampings that are swept", above=0)
    metric: Literal["euclidean", "rkhs"] = setting(
        "euclidean", about="norm that the damping limits: of coefficients, or of the function"
    )
    tolerance: float | Literal["auto"] = setting(
        "auto", about="relative residual; auto: 1e-8 in moment space, 1e-3 streamed", above=0, below=1
    )
    max_iterations: int = setting(2000, about="products at most, if the system is iterated", minimum=1)
    solver: Literal["auto", "krylov"] = setting("auto", about="auto: exact where it fits")
    preconditioner: Literal["auto", "kronecker", "nystrom", "none"] = setting(
        "auto", about="approximate inverse of the damped curvature; auto: nystrom for simclr"
    )
    rank: int = setting(200, about="rank of the nystrom preconditioner", minimum=1)
    steps: int | Literal["auto"] = setting(
        "auto", about="further accepted steps; auto: 5 in moment space, else 0", minimum=0
    )

    def coefficients(self) -> Any:
        """The objective's own settings, complete."""
        kind = objectives.settings_type(self.objective)
        return read_settings(kind, self.objective_settings, "stages.newton.objective_settings")

    @property
    def reached_tolerance(self) -> float:
        """Relative residual to reach."""
        if self.tolerance != "auto":
            return self.tolerance
        return 1e-8 if objectives.is_moment(self.objective) else 1e-3

    @property
    def direct_bytes(self) -> int:
        """Memory that the exact solver may use."""
        return DIRECT_BYTES if self.solver == "auto" else 0

    @property
    def further_steps(self) -> int:
        """Accepted steps of the descent; BYOL collapses if it is iterated."""
        if self.steps != "auto":
            return self.steps
        return 5 if objectives.is_moment(self.objective) else 0

    @property
    def swept(self) -> Float:
        """Relative dampings of the sweep, ascending; a fixed damping is one of them."""
        fixed = set() if self.damping == "auto" else {self.damping}
        return np.array(sorted(set(self.grid) | fixed))


@dataclass(frozen=True)
class _Outcome:
    """Everything that is sealed."""

    problem: Problem
    solver: str
    solution: Solution
    sweep: Sweep
    choice: Choice
    descent: Descent | None

    @property
    def step(self) -> Float:
        """The chosen step, in coefficients."""
        column = np.ascontiguousarray(self.solution.step[..., self.choice.index])
        return self.problem.coefficients(column)


def run(context: StageContext) -> None:
    """Solve for every damping of the grid, choose one, go on if asked, seal."""
    settings: NewtonSettings = context.settings
    streamed = not objectives.is_moment(settings.objective)
    context.progress.begin("newton", settings.max_iterations if streamed else 1, 0)
    problem = open_problem(context)
    solver, solution = solve(context, problem, settings.swept)
    sweep = judge(
        problem.objective,
        problem.at_start,
        problem.start,
        solution,
        settings.swept,
        problem.moments,
        problem.offset,
    )
    steps = problem.coefficients(solution.step)
    sweep = replace(sweep, stability=_stability(context, steps))
    choice = _choose(settings, sweep)
    descent = _descend(settings, problem, sweep.damping_relative[choice.index])
    outcome = _Outcome(problem, solver, solution, sweep, choice, descent)
    products = int(solution.iterations.sum())
    context.progress.note(
        f"{settings.objective}: {products} products over {len(sweep.damping)} dampings, "
        f"{problem.passes} passes; damping {sweep.damping_relative[choice.index]:g}, "
        f"rho {sweep.rho[choice.index]:.2f}: {choice.why}"
    )
    _seal(context, outcome)


def _stability(context: StageContext, steps: Float) -> Float:
    """Top-10 overlap of every damping with the next larger one, on kernel rows of the first block."""
    kernel, block = context.reader("kernel"), context.plan.block(0)
    rows = to_float32(kernel.block("values", block)[:STABILITY_ROWS]).astype(np.float64)
    count = steps.shape[-1]
    overlaps = [stability(rows, steps[..., i], steps[..., i + 1]) for i in range(count - 1)]
    return np.array([*overlaps, overlaps[-1] if overlaps else 1.0])


def _choose(settings: NewtonSettings, sweep: Sweep) -> Choice:
    if settings.damping == "auto":
        return choose(sweep)
    index = int(np.flatnonzero(sweep.damping_relative == settings.damping)[0])
    better = bool(sweep.admissible[index] and sweep.loss[index] < sweep.loss_start)
    why = "damping fixed by the recipe; the step " + (
        "lowers the loss" if better else "does not lower the loss, is too long, or was not solved"
    )
    return Choice(index, better, why)


def _descend(settings: NewtonSettings, problem: Problem, relative: float) -> Descent | None:
    """Levenberg-Marquardt from the start: where several accepted steps lead."""
    if not settings.further_steps:
        return None
    return levenberg_marquardt(
        problem.objective,
        problem.start,
        lambda here: KrylovSolver(
            here,
            Kronecker.build(here, problem.moments),
            DESCENT_TOLERANCE,
            settings.max_iterations,
        ),
        steps=settings.further_steps,
        damping_relative=float(relative),
    )


def _entropies(start: Float, steps: Float) -> Float:
    """Spectral entropy of the coefficients at every damping."""
    from krepes_ooc.algebra.measures import spectral_entropy

    return np.array([spectral_entropy(start + steps[..., i]) for i in range(steps.shape[-1])])


def _seal(context: StageContext, outcome: _Outcome) -> None:
    arrays = _arrays(context, outcome)
    m, h = outcome.step.shape
    sizes = {
        "landmark": m,
        "component": h,
        "damping": len(outcome.sweep.damping),
        "iteration": len(arrays["residual"]),
    }
    spec = StoreSpec(load_contract("newton"), sizes, arrays=tuple(arrays))
    write_whole(context, spec, arrays, _attributes(context.settings, outcome))


def _arrays(context: StageContext, outcome: _Outcome) -> dict[str, Float]:
    sweep, step = outcome.sweep, outcome.step
    start = context.reader("spectrum").array("start")
    history = outcome.solution.residual[:, outcome.choice.index]
    arrays = {
        "step": step,
        "coefficients": start + step,
        "residual": np.ascontiguousarray(history[np.isfinite(history)]),
        "damping": sweep.damping,
        "damping_relative": sweep.damping_relative,
        "loss": sweep.loss,
        "predicted": sweep.predicted,
        "rho": sweep.rho,
        "step_norm": sweep.step_norm / sweep.start_norm,
        "embedding_change": sweep.embedding_change,
        "stability": sweep.stability,
        "entropy": _entropies(start, outcome.problem.coefficients(outcome.solution.step)),
    }
    if outcome.descent is not None:
        arrays["converged"] = outcome.problem.coefficients(outcome.descent.coefficients)
    predictor = getattr(outcome.problem.objective, "predictor", None)
    if predictor is not None:
        arrays |= {"predictor_weight": predictor.weight, "predictor_bias": predictor.bias}
    return arrays


def _attributes(settings: NewtonSettings, outcome: _Outcome) -> dict[str, Any]:
    sweep, solution, at = outcome.sweep, outcome.solution, outcome.choice.index
    return {
        "objective": settings.objective,
        "objective_settings": to_mapping(settings.coefficients()),
        "solver": outcome.solver,
        "damping": sweep.damping[at],
        "damping_relative": sweep.damping_relative[at],
        "metric": settings.metric,
        "tolerance": settings.reached_tolerance,
        "loss_start": sweep.loss_start,
        "loss_step": sweep.loss[at],
        "predicted_decrease": sweep.predicted[at],
        "rho": sweep.rho[at],
        "iterations": 0 if outcome.solver == "direct" else int(solution.iterations[at]),
        "products": int(solution.iterations.sum()),
        "residual_norm": solution.relative_residual[at],
        "trusted": outcome.choice.trusted and bool(solution.converged[at]),
        "reason": outcome.choice.why,
        "diagnostics": _diagnostics(outcome),
    }


def _diagnostics(outcome: _Outcome) -> dict[str, Any]:
    """What else says how the step went."""
    problem, at = outcome.problem, outcome.choice.index
    step = outcome.solution.step[..., at]
    size = np.linalg.norm(step) * np.linalg.norm(problem.at_start.gradient)
    found: dict[str, Any] = {
        "cosine_to_descent": -float(np.sum(step * problem.at_start.gradient)) / max(size, 1e-300),
        "passes": problem.passes,
        "advice": outcome.solution.advice,
    }
    if hasattr(problem.at_start, "active_hinge"):
        found["active_hinge"] = float(problem.at_start.active_hinge)
    if outcome.descent is not None:
        descent = outcome.descent
        found["descent"] = {
            "loss": descent.loss,
            "damping_relative": descent.damping_relative,
            "rho": descent.rho,
            "trials": descent.trials,
            "why": descent.why,
        }
    return found


def predict(shape: AuditShape, settings: NewtonSettings) -> Cost:
    """Products and one eigendecomposition in moment space, or passes over the kernel."""
    m, h, views, columns = shape.n_landmarks, shape.n_components, shape.n_views, len(settings.swept)
    rows = h * h * views * (views - 1) // 2
    held = 8 * m * m * (views**2 + 4) + 8 * m * h * (8 * columns + 16)
    if not objectives.is_moment(settings.objective):
        block = shape.plan.block_rows * m * (4 * views + shape.kernel_itemsize)
        working = 64 * shape.plan.sub_rows * h * columns * views + 16 * m * h * columns
        flops = 8.0 * shape.plan.n_samples * m * h * views * columns * 20
        return Cost(20, 24 * m * h * columns, Need(held, block + working), flops)
    direct = 32 * rows * (rows + m)
    exact = direct <= settings.direct_bytes and settings.objective == "barlow-twins"
    flops = 8.0 * h**3 * m + 9.0 * rows**3 if exact else 2.0 * m * m * h * columns * 50
    return Cost(1, 24 * m * h, Need(held + (direct if exact else 0)), flops)


STAGE = Stage(
    name="newton",
    version=1,
    reads=("kernel", "moments", "spectrum"),
    store="newton",
    settings=NewtonSettings,
    run=run,
    predict=predict,
    about="one damped Gauss-Newton step for the SSL objective",
)
