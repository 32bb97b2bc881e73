"""Stage influence: the landmarks that attract and repel every audited sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace

from krepes_ooc.core.landmark_rows import rows_of_each
from krepes_ooc.core.settings import setting
from krepes_ooc.engine.device import to_device
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f16, f32, f64
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.influence.ranking import (
    REPELLING_KEPT,
    InfluenceScorer,
    RankedLandmarks,
    ranking_score,
)
from krepes_ooc.stages.kernel.landmark_kernel import LandmarkKernel, open_landmark_kernel
from krepes_ooc.stages.kernel.normalisation import Mode
from krepes_ooc.stages.minimiser.solution import Solution, read_solution
from krepes_ooc.stages.moments.stored_moments import read_moments
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

ROWS = 1024
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class InfluenceSettings:
    """Recipe key ``stages.influence``."""

    measure: Literal["aligned", "is", "unique", "kernel"] = setting(
        "aligned", about="the score that ranks the landmarks; aligned is max(k, 0) cos(df_t, df_l)"
    )
    top: int = setting(10, about="landmarks kept for every sample", minimum=1)


@dataclass(frozen=True)
class InfluenceInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    audited: StoreReader
    kernel: StoreReader
    moments: StoreReader
    spectrum: StoreReader
    newton: StoreReader
    minimiser: StoreReader


def run(inputs: InfluenceInputs, context: StageContext) -> None:
    """Kernel rows, embedding and top landmarks of the audited samples, in short row ranges."""
    normalise: Mode = inputs.kernel.attributes["normalise"]
    landmark_kernel = open_landmark_kernel(inputs.features, inputs.landmarks, normalise, context)
    # The same scorer explains new samples later
    solution, displacement, scorer = _scorer(inputs, context)
    arrays = _ranked_rows(inputs, context, landmark_kernel, scorer)
    # With it a new sample is scored without the landmark kernel
    arrays["landmark_displacement"] = displacement
    # Copied, so that every later stage explains with the same coefficients.
    arrays["coefficients"], arrays["step"] = solution.coefficients, solution.step
    sizes = {
        "audited": len(arrays["kernel"]),
        "landmark": len(scorer.step),
        "component": scorer.step.shape[1],
        "rank": scorer.top,
        "repelled": arrays["repelling"].shape[1],
    }
    attributes = {
        "measure": context.settings.measure,
        "solution": solution.name,
        # Copied, so that explaining reads small stores only
        "trusted": bool(inputs.newton.attributes["trusted"]),
        "normalise": normalise,
        "scale": landmark_kernel.kernel_map.normalisation.scale,
    }
    write_whole(context, StoreSpec(load_contract("influence"), sizes), arrays, attributes)


def _ranked_rows(
    inputs: InfluenceInputs,
    context: StageContext,
    landmark_kernel: LandmarkKernel,
    scorer: InfluenceScorer,
) -> dict[str, npt.NDArray[Any]]:
    """Ranked landmarks of the audited samples, by array, and their kernel rows [audited, landmark].

    Row ranges have a fixed length, so that the bits do not depend on the workers.
    """
    device = context.device
    features = inputs.audited.array("features")
    self_kernel = inputs.audited.array("self_kernel")
    kernel_rows = np.empty((len(features), len(scorer.step)))
    starts = range(0, len(features), ROWS)
    context.progress.begin("influence", len(starts), 0)

    def task(start: int) -> RankedLandmarks:
        rows = slice(start, start + ROWS)
        on_device = to_device(device, scorer)
        stored = landmark_kernel.rows_on_device(features[rows], self_kernel[rows])
        xp = array_namespace(stored)
        # Scores in float64, though kernel rows are computed in float32
        kernel = xp.astype(stored, xp.float64)
        ranked = on_device.rank(kernel)
        kernel_rows[rows] = device.to_host(kernel)
        context.progress.advance(1)
        return RankedLandmarks(*(device.to_host(values) for values in ranked))

    parts = list(context.executor().map(task, starts))
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in RankedLandmarks._fields
    }
    for name in ("top_landmark", "repelling_landmark"):
        arrays[name] = arrays[name].astype(np.int64)
    return arrays | {"kernel": kernel_rows}


def _scorer(
    inputs: InfluenceInputs, context: StageContext
) -> tuple[Solution, Float, InfluenceScorer]:
    """The solution, K_mm dA [landmark, component], and the scorer of the recipe's measure."""
    solution = read_solution(inputs.newton, inputs.spectrum, inputs.minimiser)
    step = solution.step
    displacement = inputs.kernel.whole("landmark_kernel") @ step
    second = read_moments(inputs.moments).mean_uncentred()
    n_views = rows_of_each(inputs.landmarks.array("sample_id"))
    scorer = InfluenceScorer(
        step,
        solution.coefficients,
        inputs.spectrum.array("offset"),
        ranking_score(context.settings.measure, step, displacement, second, n_views),
        min(context.settings.top, len(step) // n_views),
        n_views,
    )
    return solution, displacement, scorer


def estimate_cost(sizes: AuditSizes, settings: InfluenceSettings) -> Cost:
    """Kernel rows of the audited samples, and the scores of every landmark on them."""
    n = sizes.n_audited
    m = sizes.n_landmarks
    h = sizes.n_components
    n_tasks = -(-n // ROWS)
    worker_memory = _worker_memory(sizes)
    disk = Quantity.of(
        Term("kernel rows", f64(n, m)),
        Term("embedding", f64(n, h)),
        Term("top landmarks, scores, contributions", f64(n, settings.top), 3),
        Term("repelling landmarks and contributions", f64(n, REPELLING_KEPT), 2),
    )
    return Cost(
        units=n_tasks,
        disk=disk,
        memory=_memory(sizes, worker_memory.bytes),
        worker_memory=worker_memory,
        parallel_tasks=n_tasks,
        flops=Quantity.of(Term("inner products of feature rows", 2.0 * n * m * sizes.n_features)),
        device_memory=Quantity.of(
            Term("landmark kernel", f64(m, m)),
            Term("landmark feature rows", f32(m, sizes.n_features)),
            Term("step and coefficients", f64(m, h), 2),
        ),
        device_task_memory=Quantity.of(Term("kernel, scores and order", f64(ROWS, m), 7)),
    )


def _memory(sizes: AuditSizes, worker_bytes: int) -> Quantity:
    """Bytes besides the workers': while they run, and while the stage opens its inputs.

    The landmarks and the moments are opened before the workers begin, so that what these take makes
    room for it.
    """
    n = sizes.n_audited
    m = sizes.n_landmarks
    pairs = sizes.n_views**2
    stored = Term("stored feature rows of audited samples", f16(n, sizes.n_features))
    return Quantity(
        {
            "passes": (
                stored,
                Term("kernel rows", f64(n, m)),
                Term("embeddings", f64(n, sizes.n_components), 2),
                Term("landmark feature rows", f32(m, sizes.n_features)),
                Term("landmark kernel", f64(m, m)),
            ),
            "opening": (
                stored,
                Term("landmark feature rows, float32 and float64", f32(m, sizes.n_features), 5),
                Term("second moments", f64(m, m), 3),
                Term("second moments in tiles, every pair of views", sizes.copied_square, pairs),
                Term("no worker yet", worker_bytes, -1),
            ),
        }
    )


def _worker_memory(sizes: AuditSizes) -> Quantity:
    """Bytes of a worker: it computes the kernel of its rows, then sorts the scores."""
    m = sizes.n_landmarks
    sub_rows = sizes.plan.sub_rows
    return Quantity(
        {
            "kernel rows": (
                Term("kernel rows", f32(ROWS, m)),
                Term("unscaled feature rows of one product", f64(sub_rows, sizes.n_features)),
                Term("kernel rows of one product", f32(sub_rows, m), 3),
            ),
            "scores": (Term("kernel, scores, their order, what sorting takes", f64(ROWS, m), 5),),
        }
    )


STAGE = Stage(
    name="influence",
    version=5,
    inputs=InfluenceInputs,
    store="influence",
    settings=InfluenceSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="landmarks that attract and repel every audited sample",
)
