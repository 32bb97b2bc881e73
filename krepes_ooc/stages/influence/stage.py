"""Stage influence: the landmarks that attract and repel every audited sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace

from krepes_ooc.core.settings import setting
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.engine.device import to_device
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.influence.scores import (
    contribution,
    embedding,
    positive_only,
    repelling,
    scorer,
    top_k,
)
from krepes_ooc.stages.kernel.landmark_kernel import open_landmark_kernel
from krepes_ooc.stages.kernel.normalisation import Mode
from krepes_ooc.stages.kernel.stage import Float
from krepes_ooc.stages.moments.stored_moments import read_moments
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

ROWS = 1024
# Landmarks that push most are kept besides the ranked ones, which seldom hold any of them.
REPELLING_KEPT = 3
# What is found for every audited sample beside its kernel row, in the order of a task's results.
ARRAYS = (
    *("embedding", "top_landmark", "score", "contribution"),
    *("repelling_landmark", "repelling"),
)


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


def run(inputs: InfluenceInputs, context: StageContext) -> None:
    """Kernel rows, embedding and top landmarks of the audited samples, in short row ranges."""
    audited, newton = context.reader("audited"), context.reader("newton")
    kernel_store, spectrum = context.reader("kernel"), context.reader("spectrum")
    normalise: Mode = kernel_store.attributes["normalise"]
    landmark_kernel = kernel_store.whole("landmark_kernel")
    step, coefficients = newton.array("step"), newton.array("coefficients")
    offset = spectrum.array("offset")
    own_map = open_landmark_kernel(inputs.features, inputs.landmarks, normalise, context)
    features, own = audited.array("features"), audited.array("self_kernel")
    second = read_moments(context.reader("moments")).mean_uncentred()
    score = ranking_score(context.settings.measure, step, landmark_kernel, second)
    top = min(context.settings.top, len(step))
    starts, kernel_rows = range(0, len(features), ROWS), np.empty((len(features), len(step)))
    context.progress.begin("influence", len(starts), 0)
    device = context.device

    look = InfluenceScorer(step, coefficients, offset, score, top)

    def task(start: int) -> tuple[Float, ...]:
        rows = slice(start, start + ROWS)
        there = to_device(device, look)
        kernel, *found = there.at(own_map.rows_on_device(features[rows], own[rows]))
        kernel_rows[rows] = device.to_host(kernel)
        context.progress.advance(1)
        return tuple(device.to_host(values) for values in found)

    parts = list(context.executor().map(task, starts))
    arrays = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(ARRAYS)}
    arrays["kernel"] = kernel_rows
    for name in ("top_landmark", "repelling_landmark"):
        arrays[name] = arrays[name].astype(np.int64)
    arrays["landmark_displacement"] = landmark_kernel @ step
    sizes = {
        "audited": len(features),
        "landmark": len(step),
        "component": step.shape[1],
        "rank": top,
        "repelled": arrays["repelling"].shape[1],
    }
    spec = StoreSpec(load_contract("influence"), sizes)
    attributes = {
        "measure": context.settings.measure,
        "trusted": bool(newton.attributes["trusted"]),
        "normalise": normalise,
        "scale": own_map.kernel_map.normalisation.scale,
    }
    write_whole(context, spec, arrays, attributes)


@dataclass(frozen=True)
class InfluenceScorer:
    """What is asked of the kernel rows of audited samples.

    Args:
        step: dA [landmark, component].
        coefficients: A [landmark, component].
        offset: gamma [component].
        score: from a kernel block to the scores that rank its landmarks.
        top: landmarks kept for every sample.
    """

    step: Any
    coefficients: Any
    offset: Any
    score: Callable[[Any], Any]
    top: int

    def at(self, rows: Any) -> tuple[Any, ...]:
        """The rows in float64, then ``ARRAYS`` in their order, all where the rows are."""
        xp = array_namespace(rows)
        kernel = xp.astype(rows, xp.float64)
        f = embedding(kernel, self.coefficients, self.offset)
        landmark, value = top_k(self.score(kernel), self.top)
        pulls = contribution(kernel, self.step, f)
        signed = xp.take_along_axis(pulls, landmark, axis=1)
        return kernel, f, landmark, value, signed, *repelling(pulls, REPELLING_KEPT)


def ranking_score(
    measure: str, step: Float, landmark_kernel: Float, second: Float
) -> Callable[[Float], Float]:
    """The scores that rank landmarks for people, from a kernel block [audited, landmark].

    They are those of ``scorer``, but ``aligned`` is max(k, 0) cos(df_t, df_l): a landmark that is
    less like the sample than the average is no example of it, even where both moved the same way.
    Measured against |k cos| on one network each, as the share of top-1 / top-10 landmarks that have
    the sample's label: digits .937 / .768 against .937 / .765; Adult .799 / .781, .797 / .778.
    """
    score = scorer(measure, step, landmark_kernel, second)
    if measure != "aligned":
        return score
    return partial(positive_only, score)


def predict(shape: AuditSizes, settings: InfluenceSettings) -> Cost:
    """Kernel rows of the audited samples.

    A worker holds the kernel of its rows, the scores, and their order with what sorting takes;
    before the passes the landmarks are there in float32 and float64, and the moments three times.
    """
    n, m, width = shape.n_audited, shape.n_landmarks, shape.n_features
    per_worker = max(ROWS * 40 * m, ROWS * 4 * m + shape.plan.sub_rows * (8 * width + 12 * m))
    passing = n * (2 * width + 8 * m + 16 * shape.n_components) + 4 * m * width + 8 * m * m
    opening = 2 * n * width + 20 * m * width + 24 * m * m
    fixed = max(passing, opening - per_worker)
    disk = n * 8 * (m + shape.n_components + 3 * settings.top + 2 * REPELLING_KEPT)
    need = MemoryNeed(fixed, per_worker, -(-n // ROWS))
    device = MemoryNeed(8 * m * m + 4 * m * (width + 4 * shape.n_components), ROWS * 56 * m)
    return plain_cost(-(-n // ROWS), disk, need, 2.0 * n * m * width, device=device)


STAGE = Stage(
    name="influence",
    version=4,
    inputs=InfluenceInputs,
    store="influence",
    settings=InfluenceSettings,
    run=run,
    estimate_cost=predict,
    about="landmarks that attract and repel every audited sample",
)
