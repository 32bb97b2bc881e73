"""Stage newton: one damped generalised Gauss-Newton step, its damping chosen by the actual loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import blocks
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.core.settings import read_settings, setting
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f32, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.newton.checkpointed_solve import SKETCH_BYTES, lm_steps, losses, solve
from krepes_ooc.stages.newton.damping import (
    RELATIVE_GRID,
    DampingChoice,
    DampingSweep,
    check_fixed_damping,
    choose_damping,
    evaluate_sweep,
    top_landmark_overlap,
)
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.problem import check_settings, open_newton_problem
from krepes_ooc.stages.newton.result import NewtonResult
from krepes_ooc.stages.newton.solvers import DIRECT_BYTES, direct_bytes
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

# Kernel rows on which the top landmarks of neighbouring dampings are compared.
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
        """The constants of the loss, complete: published values where none is set."""
        # Settings of another objective are unknown keys: refused, not ignored.
        kind = registry.settings_type(self.objective)
        return read_settings(kind, self.objective_settings, "stages.newton.objective_settings")

    @property
    def reached_tolerance(self) -> float:
        """Relative residual to reach."""
        if self.tolerance != "auto":
            return self.tolerance
        # Products of streamed float32 blocks carry errors of 1e-6; a pass is expensive.
        return 1e-8 if registry.uses_moments(self.objective) else 1e-3

    @property
    def iteration_limit(self) -> int:
        """Iterations at most; a small damping of a streamed sweep may not converge within them."""
        if self.max_iterations != "auto":
            return self.max_iterations
        return 2000 if registry.uses_moments(self.objective) else 100

    @property
    def direct_bytes(self) -> int:
        """Bytes that the exact solver may use; 0: it is not used."""
        return DIRECT_BYTES if self.solver == "auto" else 0

    @property
    def lm_step_limit(self) -> int:
        """Accepted Levenberg-Marquardt steps at most; BYOL collapses if it is iterated."""
        if self.lm_steps != "auto":
            return self.lm_steps
        return 5 if registry.uses_moments(self.objective) else 0

    @property
    def damping_values(self) -> Float:
        """Relative dampings of the sweep, ascending; a fixed damping is one of them."""
        fixed = set() if self.damping == "auto" else {self.damping}
        return np.array(sorted(set(self.damping_grid) | fixed))

    def sketch_columns(self, unknowns: int) -> int:
        """Columns of the Nystrom sketch for m h unknowns; 0 for another preconditioner."""
        return min(self.preconditioner_rank, unknowns) if self.preconditioner == "nystrom" else 0


@dataclass(frozen=True)
class NewtonInputs(StageInputs):
    """Stores that the stage reads, and the seed of the recipe."""

    features: StoreReader
    landmarks: StoreReader
    kernel: StoreReader
    moments: StoreReader
    spectrum: StoreReader
    recipe: RecipeInputs = recipe_parts()


def run(inputs: NewtonInputs, context: StageContext) -> None:
    """Solve for every damping of the grid, choose one, iterate if set so, seal."""
    settings: NewtonSettings = context.settings
    streamed = not registry.uses_moments(settings.objective)
    context.progress.begin("newton", settings.iteration_limit if streamed else 1, 0)
    problem = open_newton_problem(inputs, context)
    # dA = -(H + damping I)^(-1) G for every damping, then L(A0 + dA).
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
    steps = problem.coefficients(solution.step)
    sweep = replace(sweep, stability=_stability(inputs.kernel, context, steps))
    choice = _choose(settings, sweep, solution.advice)
    # Levenberg-Marquardt from the same start, its first damping the chosen one.
    lm_result = None
    if settings.lm_step_limit:
        relative = float(sweep.damping_relative[choice.index])
        lm_result = lm_steps(problem, relative, settings.lm_step_limit)
    result = NewtonResult(problem, solver, solution, sweep, choice, lm_result)
    for line in result.lines():
        context.progress.note(line)
    # The store declares the optional arrays (Levenberg-Marquardt, predictor) that exist.
    arrays = result.arrays()
    m, h = arrays["step"].shape
    sizes = {
        "landmark": m,
        "component": h,
        "damping": len(sweep.damping),
        "iteration": len(arrays["residual"]),
    }
    spec = StoreSpec(load_contract("newton"), sizes, arrays=tuple(arrays))
    write_whole(context, spec, arrays, result.attributes())


def _stability(kernel: StoreReader, context: StageContext, steps: Float) -> Float:
    """Top-10 overlap of every damping with the next larger one [damping].

    Args:
        kernel: reader of the kernel; rows of the first block are compared.
        context: the stage.
        steps: dA of every damping [landmark, component, damping], dampings ascending.
    """
    block = context.plan.block(0)
    rows = to_float32(kernel.block("values", block)[:STABILITY_ROWS]).astype(np.float64)
    pairs = range(steps.shape[-1] - 1)
    overlaps = [top_landmark_overlap(rows, steps[..., i], steps[..., i + 1]) for i in pairs]
    # The largest damping has no neighbour: it repeats the last overlap; one damping alone: 1.
    return np.array([*overlaps, overlaps[-1] if overlaps else 1.0])


def _choose(settings: NewtonSettings, sweep: DampingSweep, advice: str) -> DampingChoice:
    """The damping by the rule, or the fixed one; an unsolved step carries the solver's advice."""
    if settings.damping == "auto":
        choice = choose_damping(sweep)
    else:
        choice = check_fixed_damping(
            sweep, int(np.flatnonzero(sweep.damping_relative == settings.damping)[0])
        )
    # The advice concerns all columns of the solve; it helps only if the chosen one is unsolved.
    if sweep.solved[choice.index] or not advice:
        return choice
    return replace(choice, reason=f"{choice.reason}; {advice}")


def estimate_cost(sizes: AuditSizes, settings: NewtonSettings) -> Cost:
    """Products and one eigendecomposition in moment space, or passes over the kernel.

    Raises:
        UsageError: as ``check_settings``.
    """
    check_settings(settings, sizes.n_views, sizes.n_components, sizes.plan.block_rows)
    m = sizes.n_landmarks
    columns = len(settings.damping_values)
    sketch = settings.sketch_columns(m * sizes.n_components)
    iterate = f64(m, sizes.n_components)
    disk = Quantity.of(
        Term("steps and checkpointed iterates", iterate, 8 * columns),
        Term("Nystrom sketch", iterate, sketch),
        Term("step, coefficients, gradient", iterate, 4),
    )
    # A single tile of the moments is mapped, several are copied.
    copied = f64(m, m) * sizes.n_views**2 if m > blocks.TILE else 0
    moments = Term("second moments C of several tiles", copied)
    if registry.uses_moments(settings.objective):
        return _moment_cost(sizes, settings, disk, moments)
    return _streamed_cost(sizes, settings, disk, moments)


def _moment_cost(
    sizes: AuditSizes, settings: NewtonSettings, disk: Quantity, moments: Term
) -> Cost:
    """Cost of a moment objective: exact solver or conjugate gradients, no pass over the kernel."""
    m = sizes.n_landmarks
    h = sizes.n_components
    views = sizes.n_views
    columns = len(settings.damping_values)
    iterate = f64(m, h)
    # Rows of J for Barlow Twins: h^2 for each pair of views.
    rows = h * h * views * (views - 1) // 2
    exact_bytes = direct_bytes(rows, m)
    if settings.objective == "barlow-twins" and exact_bytes <= settings.direct_bytes:
        # The exact solver is freed but for its eigenvectors before the rest.
        steps = Term("steps and images of every damping", iterate, 8 * columns + 16)
        solving: dict[str, tuple[Term, ...]] = {
            "exact solver": (Term("exact solver at its peak", exact_bytes),),
            "sweep": (Term("eigenvectors of J J^T", f64(rows, rows)), steps),
            "Levenberg-Marquardt": (
                Term("eigendecomposition of a second moment", f64(m, m), 7),
                steps,
            ),
        }
        flops = Quantity.of(
            Term("J J^T", 8.0 * h**3 * m),
            Term("eigendecomposition of J J^T", 9.0 * rows**3),
        )
    else:
        sketch = settings.sketch_columns(m * h)
        solving = {
            "conjugate gradients": (
                Term("eigendecomposition of a second moment", f64(m, m), 7),
                Term("iterates of every damping", iterate, 12 * columns),
                Term("Nystrom sketch and its factors", iterate, 5 * sketch),
                Term("gradient and linearisation", iterate, 16),
            )
        }
        products = Term("50 products for every damping", 2.0 * m * m * h * columns * 50)
        flops = Quantity.of(products)
    memory = {name: (moments, *terms) for name, terms in solving.items()}
    return Cost(
        disk=disk,
        memory=Quantity(memory),
        flops=flops,
        float64=True,
        device_memory=Quantity.of(*_device_moments(sizes, settings)),
        device_task_memory=Quantity(solving),
    )


def _device_moments(sizes: AuditSizes, settings: NewtonSettings) -> tuple[Term, ...]:
    """Moments on a device; in the RKHS metric also halfway and done with the change of basis."""
    matrix = f64(sizes.n_landmarks, sizes.n_landmarks)
    views = sizes.n_views
    copies = 3 if settings.metric == "rkhs" else 1
    differences = views * (views - 1) // 2 if settings.objective == "vicreg" else 0
    return (
        Term("second moments C", matrix, copies * views**2),
        Term("differences D of pairs of views", matrix, differences),
    )


def _streamed_cost(
    sizes: AuditSizes, settings: NewtonSettings, disk: Quantity, moments: Term
) -> Cost:
    """Cost of a streamed objective: about 20 passes over the kernel."""
    plan = sizes.plan
    m = sizes.n_landmarks
    h = sizes.n_components
    iterate = f64(m, h)
    sketch = settings.sketch_columns(m * h)
    # A pass has a column for every damping, or for as many columns of the sketch as fit.
    columns = max(len(settings.damping_values), min(sketch, SKETCH_BYTES // iterate))
    worker = _worker_memory(sizes, settings, columns)
    factors = Term("Nystrom sketch and its factors", iterate, 5 * sketch)
    linearisation = Term("gradient and linearisation", iterate, 16)
    # Sums of shards on their way through the tree, beside the iterates.
    passing = (
        moments,
        Term("second moment S", f64(m, m)),
        Term("iterates, and sums of shards in the tree", iterate, 14 * columns),
        factors,
        linearisation,
    )
    # Workers are idle between passes: their memory makes room for the eigendecomposition.
    between = (
        moments,
        Term("eigendecomposition of a second moment", f64(m, m), 7),
        Term("iterates of every column", iterate, 12 * columns),
        factors,
        linearisation,
        Term("worker memory, free by then", worker.bytes, -1),
    )
    flops = 8.0 * plan.n_samples * m * h * sizes.n_views * columns * 20
    decomposition = (Term("eigendecomposition of a second moment", f64(m, m), 4),)
    return Cost(
        units=20,
        disk=disk,
        memory=Quantity({"during a pass": passing, "between passes": between}),
        worker_memory=worker,
        parallel_tasks=plan.n_shards,
        flops=Quantity.of(Term("20 passes over the kernel", flops)),
        device_task_memory=Quantity({**worker.phases, "eigendecomposition": decomposition}),
    )


def _worker_memory(sizes: AuditSizes, settings: NewtonSettings, columns: int) -> Quantity:
    """Bytes of a worker: one block, and the intermediates of one batch or sub-block of it."""
    m = sizes.n_landmarks
    h = sizes.n_components
    views = sizes.n_views
    block_rows = sizes.plan.block_rows
    # SimCLR compares the 2B points of a batch; BYOL takes sub-blocks of independent rows.
    batch = getattr(settings.objective_constants(), "batch", 0)
    rows = batch or sizes.plan.sub_rows
    between = f64(2 * batch, 2 * batch)
    block = (
        Term("kernel rows of a block", f32(block_rows, m), views),
        Term("one view of it as stored", sizes.kernel_itemsize * block_rows * m),
    )
    product = (
        Term("directions, copies, sums of sub-block, block and shard", f64(m, h), 8 * columns),
        Term("changes of embeddings", f32(rows, h, views), 3 * columns),
        Term("embeddings and their derivatives", f32(rows, h, views), 8),
        Term("matrices between the points of a batch", between, 3),
    )
    # A linearisation has sums of one column, and a dozen matrices in the trace of H.
    linearisation = (
        Term("sums of one column", f64(m, h), 8),
        Term("matrices between the points of a batch", between, 12),
    )
    return Quantity({"product": (*block, *product), "linearisation": (*block, *linearisation)})


STAGE = Stage(
    name="newton",
    version=2,
    inputs=NewtonInputs,
    store="newton",
    settings=NewtonSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="one damped Gauss-Newton step for the SSL objective",
    parallel="passes",
)
