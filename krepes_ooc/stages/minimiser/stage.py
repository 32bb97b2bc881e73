"""Stage minimiser: coefficients at the damped minimum of a moment objective, by damping.

The paper takes one Newton step. Where the loss is known by its moments, its damped minimum costs no
pass over the kernel, and its embedding is far more like the network's; ``solution`` names the
coefficients that the later stages explain with.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.settings import read_settings, setting
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.cost import OPTIMIZE_BYTES, Cost, Quantity, Term, f16, f32, f64
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs
from krepes_ooc.stages.base.writing import partial_path, read_partial, write_partial, write_whole
from krepes_ooc.stages.kernel.landmark_kernel import read_landmark_kernel
from krepes_ooc.stages.minimiser.likeness import choose_damping, network_likeness
from krepes_ooc.stages.minimiser.minimise import minimise
from krepes_ooc.stages.minimiser.solution import (
    LM_STEPS,
    MINIMISER,
    SOLUTIONS,
    STEP,
    best_solution,
)
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.moments.stored_moments import read_moments
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.preconditioners import KroneckerPath
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

Float = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
RELATIVE_GRID = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
# Fit samples on which embeddings are compared.
MOST_FIT = 2000
PREFIX = "damping"


@dataclass(frozen=True)
class MinimiserSettings:
    """Recipe key ``stages.minimiser``."""

    damping_grid: tuple[float, ...] = setting(
        RELATIVE_GRID, about="relative dampings at which the loss is minimised", above=0
    )
    tolerance: float = setting(
        1e-3, about="gradient at the end relative to the start", above=0, below=1
    )
    max_evaluations: int = setting(
        300, about="evaluations of loss and gradient at most, for each damping", minimum=1
    )
    solution: Literal["auto", "step", "lm_steps", "minimiser"] = setting(
        "auto",
        about="coefficients that explain; auto: those whose embedding is most like the network's "
        "on the fit samples",
    )


@dataclass(frozen=True)
class MinimiserInputs(StageInputs):
    """Stores that the stage reads."""

    landmarks: StoreReader
    audited: StoreReader
    kernel: StoreReader
    moments: StoreReader
    spectrum: StoreReader
    newton: StoreReader


def run(inputs: MinimiserInputs, context: StageContext) -> None:
    """Minimise at every damping, compare embeddings with the network's, choose, seal.

    Raises:
        StageFailed: the recipe asks for coefficients that this objective does not have.
    """
    problem = MinimiserProblem(inputs, context)
    # Largest damping first: it is the nearest to the start.
    grid = tuple(sorted(set(context.settings.damping_grid), reverse=True))
    # SimCLR and BYOL stream the kernel: their loss is not known by moments.
    if not problem.can_minimise:
        grid = ()
    paths = [partial_path(context, PREFIX, index) for index in range(len(grid))]
    missing = [i for i, path in enumerate(paths) if read_partial(context, path) is None]
    context.progress.begin("minimiser", max(1, len(grid)), len(grid) - len(missing))
    # Shared before tasks begin, so that threads do not compute it twice.
    if missing:
        problem.prepare()

    def task(index: int) -> None:
        write_partial(context, paths[index], problem.minimum(grid[index]))
        context.progress.advance(1)

    context.executor().run(task, missing)
    found = [known for path in paths if (known := read_partial(context, path)) is not None]
    _seal(problem, grid, found)


@dataclass(frozen=True)
class MinimiserProblem:
    """The objective on the stored moments, its start, and the samples that choose.

    Args:
        inputs: of the stage.
        context: the stage.
    """

    inputs: MinimiserInputs
    context: StageContext

    @property
    def can_minimise(self) -> bool:
        """Whether the loss is known by its moments."""
        return registry.uses_moments(self.name)

    @property
    def name(self) -> str:
        """Name of the objective."""
        return str(self.inputs.newton.attributes["objective"])

    @cached_property
    def start(self) -> Float:
        """A0 [landmark, component]."""
        return self.inputs.spectrum.array("start")

    @cached_property
    def moments(self) -> Moments:
        """Moments of all samples."""
        return read_moments(self.inputs.moments)

    @cached_property
    def objective(self) -> Any:
        """The loss of the moments."""
        # The very objective that the step was taken with.
        stored = self.inputs.newton.attributes["objective_settings"]
        constants = read_settings(registry.settings_type(self.name), stored, "newton")
        return registry.create(
            self.name,
            constants,
            moments=self.moments,
            start=self.start,
            offset=self.inputs.spectrum.array("offset"),
        )

    @cached_property
    def at_start(self) -> Any:
        """Value, gradient and curvature at A0."""
        return self.objective.linearise(self.start)

    @cached_property
    def model(self) -> KroneckerPath:
        """Kronecker models of the curvature."""
        return KroneckerPath.build(self.at_start, self.moments)

    def prepare(self) -> None:
        """Compute what all dampings share, before tasks begin."""
        assert self.model
        assert self.fit_rows[0].size or not len(self.fit_rows[0])

    def minimum(self, relative: float) -> Arrays:
        """The minimiser at one relative damping, and its likeness to the network."""
        settings = self.context.settings
        # Damping in units of the mean diagonal of the curvature at the start.
        found = minimise(
            self.objective,
            self.start,
            relative * float(self.at_start.mean_diagonal),
            model=self.model,
            tolerance=settings.tolerance,
            max_evaluations=settings.max_evaluations,
            check=self.context.stop.check,
        )
        return {
            "coefficients": found.coefficients,
            "loss": np.array(found.loss),
            "gradient": np.array(found.gradient),
            "evaluations": np.array(found.evaluations),
            "converged": np.array(int(found.converged)),
            "likeness": np.array(self.likeness(found.coefficients)),
        }

    def likeness(self, coefficients: Float) -> float:
        """Likeness of K A to the network's embedding on the fit samples; 0 without them."""
        rows, network = self.fit_rows
        return network_likeness(rows @ coefficients, network) if len(rows) > 1 else 0.0

    @cached_property
    def fit_rows(self) -> tuple[Float, Float]:
        """Clean kernel rows [sample, landmark] and network embeddings [sample, output]."""
        audited, kernel = self.inputs.audited, self.inputs.kernel.attributes
        fit = np.flatnonzero(audited.array("role") == ROLES["fit"])[:MOST_FIT]
        # Rows are computed from stored features, as for a new sample.
        landmark_kernel = read_landmark_kernel(
            self.inputs.landmarks,
            kernel["normalise"],
            kernel["scale"],
            self.context.plan.sub_rows,
        )
        features = audited.array("features")[fit]
        rows = landmark_kernel.rows(features, audited.array("self_kernel")[fit])
        network = audited.array("network_embedding")[fit]
        return rows.astype(np.float64), network.astype(np.float64)


def _seal(problem: MinimiserProblem, grid: tuple[float, ...], found: list[Arrays]) -> None:
    """Choose the damping, then the solution; write.

    Raises:
        StageFailed: the recipe asks for coefficients that this objective does not have.
    """
    context, newton = problem.context, problem.inputs.newton
    # Every solution is judged on the same fit samples.
    likeness = {"start": problem.likeness(problem.start)}
    likeness[STEP] = problem.likeness(newton.array("coefficients"))
    if newton.has("coefficients_lm"):
        likeness[LM_STEPS] = problem.likeness(newton.array("coefficients_lm"))
    arrays: Arrays = {}
    facts: dict[str, Any] = {"defined": bool(found), "damping_relative": None}
    if found:
        values = [float(known["likeness"]) for known in found]
        at = choose_damping(values, grid)
        likeness[MINIMISER] = values[at]
        arrays = {key: np.array([known[key] for known in found]) for key in _BY_DAMPING}
        arrays |= {
            "damping_relative": np.array(grid),
            "coefficients_minimiser": found[at]["coefficients"],
        }
        facts["damping_relative"] = grid[at]
    solution = _solution(context.settings.solution, likeness)
    for line in _lines(likeness, solution, facts["damping_relative"]):
        context.progress.note(line)
    m, h = problem.start.shape
    sizes = {"landmark": m, "component": h, "damping": len(grid)}
    spec = StoreSpec(load_contract("minimiser"), sizes, arrays=tuple(arrays))
    write_whole(context, spec, arrays, {**facts, "solution": solution, "likeness": likeness})


_BY_DAMPING = ("loss", "gradient", "evaluations", "converged", "likeness")


def _solution(asked: str, likeness: dict[str, float]) -> str:
    """The recipe's solution, or the one of the largest likeness.

    Raises:
        StageFailed: there are no such coefficients.
    """
    known = {name: value for name, value in likeness.items() if name in SOLUTIONS}
    if asked == "auto":
        return best_solution(known.items())
    if asked not in known:
        raise StageFailed(
            f"there are no coefficients {asked!r} for this objective",
            where="stages.minimiser.solution",
            expected=f"auto or one of {', '.join(known)}",
        )
    return asked


def _lines(likeness: dict[str, float], solution: str, damping: float | None) -> list[str]:
    values = ", ".join(f"{name} {value:.3f}" for name, value in likeness.items())
    lines = [f"likeness to the network's embedding on fit samples: {values}"]
    if damping is not None:
        lines.append(f"damped minimiser at relative damping {damping:g}")
    lines.append(f"explanations use the {SOLUTIONS[solution]}")
    return lines


def estimate_cost(sizes: AuditSizes, settings: MinimiserSettings) -> Cost:
    """Products of moments for every evaluation, one task a damping."""
    m, h, views = sizes.n_landmarks, sizes.n_components, sizes.n_views
    dampings, pairs = len(settings.damping_grid), views * (views + 1) // 2
    fit = min(MOST_FIT, max(0, sizes.n_audited - sizes.n_explained))
    rows = Term("kernel rows of fit samples", f64(fit, m))
    curvature = Term("moments, and the curvature at the start", f64(m, m), views**2 + 1)
    stored = Term("stored feature rows of audited samples", f16(sizes.n_audited, sizes.n_features))
    landmarks = Term("landmark feature rows", f32(m, sizes.n_features), 2)
    loaded = Term("scipy.optimize", OPTIMIZE_BYTES)
    return Cost(
        units=dampings,
        disk=Quantity.of(Term("coefficients", f64(m, h)), Term("attributes", 2**13)),
        memory=Quantity(
            {
                "opening": (landmarks, stored, rows),
                "solving": (rows, curvature, loaded, Term("coefficients", f64(m, h), dampings + 3)),
            }
        ),
        worker_memory=Quantity.of(
            Term("products of moments", f64(m, m)),
            # L-BFGS keeps 30 pairs of changes.
            Term("iterates, steps and changes", f64(m, h), 90),
            Term("embedding of fit samples", f64(fit, h), 4),
        ),
        parallel_tasks=dampings,
        flops=Quantity.of(
            Term("products of moments", 2.0 * m * m * h * (pairs + 3), dampings * 150),
            Term("kernel rows", 2.0 * fit * m * sizes.n_features),
        ),
        scratch=Quantity.of(Term("coefficients", f64(m, h), dampings)),
        float64=True,
    )


STAGE = Stage(
    name="minimiser",
    version=2,
    inputs=MinimiserInputs,
    store="minimiser",
    settings=MinimiserSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="damped minimum of the objective, and the coefficients that explain",
)
