"""Stage newton: one damped generalised Gauss-Newton step, its damping judged by the loss itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import blocks
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.core.settings import read_settings, setting
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.newton.checkpointed_solve import SKETCH_BYTES, lm_steps, losses, solve
from krepes_ooc.stages.newton.damping import (
    RELATIVE_GRID,
    DampingChoice,
    DampingSweep,
    check_fixed_damping,
    choose_damping,
    evaluate_sweep,
    stability,
)
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.problem import check_settings, open_newton_problem
from krepes_ooc.stages.newton.result import NewtonResult
from krepes_ooc.stages.newton.solvers import DIRECT_BYTES, direct_bytes
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

STABILITY_ROWS = 512
Float = npt.NDArray[np.float64]
Name = Literal["barlow-twins", "vicreg", "simclr", "byol", "spectral-contrastive"]


@dataclass(frozen=True)
class NewtonSettings:
    """Recipe key ``stages.newton``."""

    objective: Name = setting("barlow-twins", about="the SSL objective under audit")
    objective_settings: dict[str, Any] = setting(
        {}, about="its coefficients; default: as published"
    )
    damping: float | Literal["auto"] = setting(
        "auto", about="relative damping, or auto: the rule over the grid", above=0
    )
    damping_grid: tuple[float, ...] = setting(
        RELATIVE_GRID, about="relative dampings that are swept", above=0, digest_name="grid"
    )
    metric: Literal["euclidean", "rkhs"] = setting(
        "euclidean", about="norm that the damping limits: of coefficients, or of the function"
    )
    tolerance: float | Literal["auto"] = setting(
        "auto",
        about="relative residual; auto: 1e-8 in moment space, 1e-3 streamed",
        above=0,
        below=1,
    )
    max_iterations: int | Literal["auto"] = setting(
        "auto", about="iterations at most; auto: 2000 by moments, 100 streamed", minimum=1
    )
    solver: Literal["auto", "krylov"] = setting("auto", about="auto: exact where it fits")
    preconditioner: Literal["auto", "kronecker", "nystrom", "none"] = setting(
        "auto", about="approximate inverse of the damped curvature; auto: kronecker"
    )
    preconditioner_rank: int = setting(
        200, about="rank of the nystrom preconditioner", minimum=1, digest_name="rank"
    )
    lm_steps: int | Literal["auto"] = setting(
        "auto",
        about="further accepted steps; auto: 5 in moment space, else 0",
        minimum=0,
        digest_name="steps",
    )

    def objective_constants(self) -> Any:
        """The objective's own settings, complete."""
        kind = registry.settings_type(self.objective)
        return read_settings(kind, self.objective_settings, "stages.newton.objective_settings")

    @property
    def reached_tolerance(self) -> float:
        """Relative residual to reach."""
        if self.tolerance != "auto":
            return self.tolerance
        return 1e-8 if registry.uses_moments(self.objective) else 1e-3

    @property
    def iteration_limit(self) -> int:
        """Iterations at most; what small dampings of a streamed sweep do not reach is untrusted."""
        if self.max_iterations != "auto":
            return self.max_iterations
        return 2000 if registry.uses_moments(self.objective) else 100

    @property
    def direct_bytes(self) -> int:
        """Memory that the exact solver may use."""
        return DIRECT_BYTES if self.solver == "auto" else 0

    @property
    def lm_step_limit(self) -> int:
        """Accepted steps of the descent; BYOL collapses if it is iterated."""
        if self.lm_steps != "auto":
            return self.lm_steps
        return 5 if registry.uses_moments(self.objective) else 0

    @property
    def damping_values(self) -> Float:
        """Relative dampings of the sweep, ascending; a fixed damping is one of them."""
        fixed = set() if self.damping == "auto" else {self.damping}
        return np.array(sorted(set(self.damping_grid) | fixed))


@dataclass(frozen=True)
class NewtonInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    kernel: StoreReader
    moments: StoreReader
    spectrum: StoreReader


def run(inputs: NewtonInputs, context: StageContext) -> None:
    """Solve for every damping of the grid, choose one, go on if asked, seal."""
    settings: NewtonSettings = context.settings
    streamed = not registry.uses_moments(settings.objective)
    context.progress.begin("newton", settings.iteration_limit if streamed else 1, 0)
    problem = open_newton_problem(context)
    solver, solution = solve(problem, settings.damping_values)
    sweep = evaluate_sweep(
        losses(problem, solution),
        problem.at_start,
        problem.start,
        solution,
        settings.damping_values,
        problem.moments,
        problem.offset,
    )
    sweep = replace(sweep, stability=_stability(context, problem.coefficients(solution.step)))
    choice = _choose(settings, sweep, solution.advice)
    descent = None
    if settings.lm_step_limit:
        relative = float(sweep.damping_relative[choice.index])
        descent = lm_steps(problem, relative, settings.lm_step_limit)
    outcome = NewtonResult(problem, solver, solution, sweep, choice, descent)
    for line in outcome.lines():
        context.progress.note(line)
    arrays = outcome.arrays()
    m, h = arrays["step"].shape
    sizes = {
        "landmark": m,
        "component": h,
        "damping": len(sweep.damping),
        "iteration": len(arrays["residual"]),
    }
    spec = StoreSpec(load_contract("newton"), sizes, arrays=tuple(arrays))
    write_whole(context, spec, arrays, outcome.attributes())


def _stability(context: StageContext, steps: Float) -> Float:
    """Top-10 overlap of every damping with the next larger one, on rows of the first block."""
    kernel, block = context.reader("kernel"), context.plan.block(0)
    rows = to_float32(kernel.block("values", block)[:STABILITY_ROWS]).astype(np.float64)
    count = steps.shape[-1]
    overlaps = [stability(rows, steps[..., i], steps[..., i + 1]) for i in range(count - 1)]
    return np.array([*overlaps, overlaps[-1] if overlaps else 1.0])


def _choose(settings: NewtonSettings, sweep: DampingSweep, advice: str) -> DampingChoice:
    if settings.damping == "auto":
        choice = choose_damping(sweep)
    else:
        choice = check_fixed_damping(
            sweep, int(np.flatnonzero(sweep.damping_relative == settings.damping)[0])
        )
    if sweep.solved[choice.index] or not advice:
        return choice
    return replace(choice, reason=f"{choice.reason}; {advice}")


def predict(shape: AuditSizes, settings: NewtonSettings) -> Cost:
    """Products and one eigendecomposition in moment space, or passes over the kernel.

    A second moment is decomposed with what LAPACK takes, its eigenvectors stay; iterates are held
    for every damping. The exact solver is done with before that, but for its eigenvectors.
    """
    check_settings(settings, shape.n_views, shape.n_components, shape.plan.block_rows)
    m, h, views, columns = (
        shape.n_landmarks,
        shape.n_components,
        shape.n_views,
        len(settings.damping_values),
    )
    sketch = min(settings.preconditioner_rank, m * h) if settings.preconditioner == "nystrom" else 0
    iterate = 8 * m * h
    disk = iterate * (8 * columns + sketch + 4)
    whole = 8 * m * m * views**2 if m > blocks.TILE else 0  # a single tile is mapped
    if not registry.uses_moments(settings.objective):
        columns = max(columns, min(sketch, SKETCH_BYTES // iterate))
        per_worker = _streaming_bytes(shape, settings, columns)
        # Sums of shards on their way through the tree, beside the iterates.
        passing = 8 * m * m + iterate * (14 * columns + 5 * sketch + 16)
        between = 40 * m * m + iterate * (12 * columns + 5 * sketch + 16)
        held = whole + max(passing, between - per_worker)
        flops = 8.0 * shape.plan.n_samples * m * h * views * columns * 20
        need = MemoryNeed(held, per_worker, shape.plan.n_shards)
        return plain_cost(20, disk, need, flops, device=MemoryNeed(0, max(per_worker, 32 * m * m)))
    rows = h * h * views * (views - 1) // 2
    direct = direct_bytes(rows, m)
    if settings.objective == "barlow-twins" and direct <= settings.direct_bytes:
        held = max(direct, max(8 * rows * rows, 40 * m * m) + iterate * (8 * columns + 16))
        flops = 8.0 * h**3 * m + 9.0 * rows**3
    else:
        held = 40 * m * m + iterate * (12 * columns + 5 * sketch + 16)
        flops = 2.0 * m * m * h * columns * 50
    device = MemoryNeed(_device_moment_bytes(shape, settings), held)
    return plain_cost(1, disk, MemoryNeed(whole + held), flops, float64=True, device=device)


def _device_moment_bytes(shape: AuditSizes, settings: NewtonSettings) -> int:
    """What a device holds besides what is solved on it: moments, and differences of views.

    Moments that are brought into another basis lie there three times: as they came, halfway, done.
    """
    m, views = shape.n_landmarks, shape.n_views
    copies = 3 if settings.metric == "rkhs" else 1
    differences = views * (views - 1) // 2 if settings.objective == "vicreg" else 0
    return 8 * m * m * (copies * views**2 + differences)


def _streaming_bytes(shape: AuditSizes, settings: NewtonSettings, columns: int) -> int:
    """What a worker holds: one block, and what one batch or sub-block of it becomes.

    A product holds directions, their copies, the sums of a sub-block, a block and a shard, and
    three matrices between 2 batch points; a linearisation a dozen of these, and sums of one column.
    """
    m, h, views = shape.n_landmarks, shape.n_components, shape.n_views
    block = shape.plan.block_rows * m * (4 * views + shape.kernel_itemsize)
    batch = getattr(settings.objective_constants(), "batch", 0)
    rows, between = batch or shape.plan.sub_rows, 8 * (2 * batch) ** 2
    embedded = 4 * rows * h * views * (3 * columns + 8)
    product = 64 * m * h * columns + embedded + 3 * between
    return block + max(product, 64 * m * h + 12 * between)


STAGE = Stage(
    name="newton",
    version=2,
    inputs=NewtonInputs,
    store="newton",
    settings=NewtonSettings,
    run=run,
    estimate_cost=predict,
    about="one damped Gauss-Newton step for the SSL objective",
    parallel="passes",
)
