"""Stage newton: one damped generalised Gauss-Newton step, its damping judged by the loss itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.algebra.curvature import Linearisation, Moments, Objective
from krepes_ooc.algebra.damping import RELATIVE_GRID, Choice, Sweep, choose, judge, stability
from krepes_ooc.algebra.objectives.barlow_twins import BarlowTwins, BarlowTwinsSettings
from krepes_ooc.algebra.solve import DIRECT_BYTES, DirectSolver, Solution, choose_solver
from krepes_ooc.engine.budget import Need
from krepes_ooc.errors import StageFailed
from krepes_ooc.settings import read_settings, setting, to_mapping
from krepes_ooc.stages.base import Cost, Stage, StageContext, write_whole
from krepes_ooc.stages.spectrum import read_moments
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.widen import to_float32

STABILITY_ROWS = 512
Float = npt.NDArray[np.float64]
OBJECTIVES: dict[str, tuple[type[Any], type[Any]]] = {
    "barlow-twins": (BarlowTwins, BarlowTwinsSettings),
}


@dataclass(frozen=True)
class NewtonSettings:
    """Recipe key ``stages.newton``."""

    objective: Literal["barlow-twins"] = setting("barlow-twins", about="the SSL objective under audit")
    objective_settings: dict[str, Any] = setting({}, about="its coefficients; default: as published")
    damping: float | Literal["auto"] = setting(
        "auto", about="relative damping, or auto: the rule over the grid", above=0
    )
    grid: tuple[float, ...] = setting(RELATIVE_GRID, about="relative dampings that are swept", above=0)
    tolerance: float = setting(1e-6, about="relative residual of the damped system", above=0, below=1)
    max_iterations: int = setting(5000, about="products at most, if the system is iterated", minimum=1)
    solver: Literal["auto", "cg"] = setting("auto", about="auto: exact where it fits, else cg")

    def coefficients(self) -> Any:
        """The objective's own settings, complete."""
        kind = OBJECTIVES[self.objective][1]
        return read_settings(kind, self.objective_settings, "stages.newton.objective_settings")


@dataclass(frozen=True)
class _Problem:
    """The Newton system at the start, and what is needed to judge a step."""

    objective: Objective
    at_start: Linearisation
    start: Float
    offset: Float
    moments: Moments


def run(context: StageContext) -> None:
    """Solve for every damping of the grid, choose one, seal step and sweep."""
    context.progress.begin("newton", 1, 0)
    settings: NewtonSettings = context.settings
    problem = _open(context)
    grid = np.array(sorted(set(settings.grid) | _fixed(settings)))
    solver_name, solution = _solve(settings, problem, grid)
    sweep = judge(
        problem.objective, problem.at_start, problem.start, solution, grid, problem.moments, problem.offset
    )
    sweep = replace(sweep, stability=_stability(context, solution.step))
    choice = _choose(settings, sweep)
    if not choice.trusted:
        context.progress.note(f"newton: the step is not trusted: {choice.why}")
    _seal(context, problem, solution, sweep, choice, solver_name)


def _entropies(start: Float, steps: Float) -> Float:
    """Spectral entropy of the coefficients at every damping."""
    from krepes_ooc.algebra.measures import spectral_entropy

    return np.array([spectral_entropy(start + steps[..., i]) for i in range(steps.shape[-1])])


def _open(context: StageContext) -> _Problem:
    moments, spectrum = read_moments(context), context.reader("spectrum")
    kind = OBJECTIVES[context.settings.objective][0]
    objective = kind(moments, context.settings.coefficients())
    start = spectrum.array("start")
    return _Problem(objective, objective.linearise(start), start, spectrum.array("offset"), moments)


def _fixed(settings: NewtonSettings) -> set[float]:
    return set() if settings.damping == "auto" else {settings.damping}


def _solve(settings: NewtonSettings, problem: _Problem, grid: Float) -> tuple[str, Solution]:
    at_start = problem.at_start
    if not at_start.mean_diagonal > 0:
        raise StageFailed(
            f"the curvature of {settings.objective} vanishes at the start",
            where="stages.newton",
            expected="embeddings that differ between samples",
            advice="the network may have collapsed: look at the kernel and the views",
        )
    solver = choose_solver(
        at_start,
        lambda: None,
        memory_bytes=0 if settings.solver == "cg" else DIRECT_BYTES,
        tolerance=settings.tolerance,
        max_iterations=settings.max_iterations,
    )
    name = "direct" if isinstance(solver, DirectSolver) else "cg"
    return name, solver.solve(grid * at_start.mean_diagonal)


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


def _seal(
    context: StageContext,
    problem: _Problem,
    solution: Solution,
    sweep: Sweep,
    choice: Choice,
    solver_name: str,
) -> None:
    at, settings = choice.index, context.settings
    step = np.ascontiguousarray(solution.step[..., at])
    history = solution.residual[:, at]
    arrays = {
        "step": step,
        "coefficients": problem.start + step,
        "residual": np.ascontiguousarray(history[np.isfinite(history)]),
        "damping": sweep.damping,
        "damping_relative": sweep.damping_relative,
        "loss": sweep.loss,
        "predicted": sweep.predicted,
        "rho": sweep.rho,
        "step_norm": sweep.step_norm / sweep.start_norm,
        "embedding_change": sweep.embedding_change,
        "stability": sweep.stability,
        "entropy": _entropies(problem.start, solution.step),
    }
    attributes = {
        "objective": settings.objective,
        "objective_settings": to_mapping(settings.coefficients()),
        "solver": solver_name,
        "damping": sweep.damping[at],
        "damping_relative": sweep.damping_relative[at],
        "metric": "euclidean",
        "tolerance": settings.tolerance,
        "loss_start": sweep.loss_start,
        "loss_step": sweep.loss[at],
        "predicted_decrease": sweep.predicted[at],
        "rho": sweep.rho[at],
        "iterations": 0 if solver_name == "direct" else int(solution.iterations[at]),
        "products": int(solution.iterations.sum()),
        "residual_norm": solution.relative_residual[at],
        "trusted": choice.trusted and bool(solution.converged[at]),
        "reason": choice.why,
    }
    sizes = {
        "landmark": step.shape[0],
        "component": step.shape[1],
        "damping": len(sweep.damping),
        "iteration": len(arrays["residual"]),
    }
    spec = StoreSpec(load_contract("newton"), sizes)
    write_whole(context, spec, arrays, attributes)


def predict(shape: AuditShape, settings: NewtonSettings) -> Cost:
    """Products and one eigendecomposition in moment space: no pass over the data."""
    m, h, views = shape.n_landmarks, shape.n_components, shape.n_views
    rows = h * h * views * (views - 1) // 2
    direct = 32 * rows * (rows + m)
    exact = direct <= DIRECT_BYTES and settings.solver == "auto"
    held = 8 * m * m * (views**2 + 2) + 8 * m * h * (8 * len(settings.grid) + 16)
    flops = 8.0 * h**3 * m + 9.0 * rows**3 if exact else 8.0 * m * h * h * settings.max_iterations
    return Cost(1, 16 * m * h, Need(held + (direct if exact else 0)), flops)


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
