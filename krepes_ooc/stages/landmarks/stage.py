"""Stage landmarks: choose the samples that span the kernel subspace, then take their clean rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.settings import setting
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.errors import UsageError
from krepes_ooc.sources.display import describe_columns, display_arrays
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.inputs import CLEAN
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.featurizer import open_featurizer, unscale_rows
from krepes_ooc.stages.landmarks.samplers import (
    PILOT,
    POOL,
    ROUND,
    KmeansParallel,
    KmeansPlusPlus,
    Leverage,
)
from krepes_ooc.stages.landmarks.sampling import choose_uniform, seeding_trials
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

# Measured on digits and Adult: docs/results.md.
MIN_AUTO = 1000
SAMPLERS: dict[str, type[KmeansParallel | KmeansPlusPlus | Leverage]] = {
    "kmeans-parallel": KmeansParallel,
    "kmeans++": KmeansPlusPlus,
    "leverage": Leverage,
}
_TOP_UP_STREAM = 301
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LandmarksSettings:
    """Recipe key ``stages.landmarks``."""

    sampler: Literal["kmeans-parallel", "kmeans++", "leverage", "uniform"] = setting(
        "kmeans-parallel", about="how the landmarks are chosen"
    )
    count: int | Literal["auto"] = setting(
        "auto", about="number of landmarks; auto: max(1000, sqrt(n)), at most n / 2", minimum=1
    )
    rounds: int = setting(5, about="passes of kmeans-parallel that draw candidates", minimum=1)
    oversampling: float = setting(0.5, about="candidates per round over landmarks", above=0)


def count_landmarks(settings: LandmarksSettings, n_samples: int) -> int:
    """Number of landmarks m.

    Raises:
        UsageError: more landmarks than samples.
    """
    if settings.count == "auto":
        return min(max(1, n_samples // 2), max(MIN_AUTO, math.ceil(math.sqrt(n_samples))))
    if settings.count > n_samples:
        raise UsageError(
            f"{settings.count} landmarks of {n_samples} samples",
            where="stages.landmarks.count",
            expected=f"at most {n_samples}",
            advice="lower it, or take auto",
        )
    return settings.count


@dataclass(frozen=True)
class LandmarksInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    recipe: RecipeInputs = recipe_parts("source", "labels", "network")


def run(inputs: LandmarksInputs, context: StageContext) -> None:
    """Choose landmarks over the feature store, compute their clean rows, seal."""
    rows, weight = choose_landmarks(context)
    sample_id = _positions(context, rows)
    order = np.argsort(sample_id, kind="stable")
    sample_id, weight = sample_id[order], weight[order]
    featurizer = open_featurizer(context)
    stored, _, _ = featurizer.rows(sample_id, CLEAN)
    layout, centre = featurizer.layout, context.reader("features").array("centre")
    shown = display_arrays(context.recipe.source, sample_id)
    own = inner_products.self_kernel(unscale_rows(stored, layout), layout)
    arrays = {
        **shown.arrays,
        "view": np.full(len(sample_id), CLEAN, dtype=np.int64),
        "weight": weight,
        "self_kernel": np.asarray(own),
        "features": stored,
        "centre": centre,
    }
    sizes = {
        **shown.sizes,
        "landmark": len(sample_id),
        "feature": layout.n_features,
        "moment": layout.n_moments,
    }
    spec = StoreSpec(
        load_contract("landmarks"),
        sizes,
        arrays=tuple(arrays),
        array_attributes=shown.array_attributes,
    )
    attributes = {
        "sampler": context.settings.sampler,
        "layout": layout.to_attributes(),
        "centre_self": inner_products.centre_self(centre),
        "columns": describe_columns(context.recipe.source),
        "probes": context.reader("features").attributes["probes"],
    }
    write_whole(context, spec, arrays, attributes)


def choose_landmarks(context: StageContext) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Store rows of the landmarks, and how many samples each stands for."""
    n, settings = context.plan.n_samples, context.settings
    count = count_landmarks(settings, n)
    if settings.sampler == "uniform" or count == n:
        context.progress.begin("landmarks", 1, 0)
        rows = choose_uniform(n, count, context.recipe.seed)
        return rows, np.full(count, n / count)
    rows, weight = SAMPLERS[settings.sampler](context, count).choose()
    return _topped_up(rows, weight, count, n, context.recipe.seed)


def _topped_up(
    rows: Ids, weight: npt.NDArray[np.float64], count: int, n: int, seed: int
) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Fill up with uniform rows of weight 0 where duplicates left too few candidates."""
    if len(rows) < count:
        keyed = int(counter_rng.bits(seed, _TOP_UP_STREAM))
        others = counter_rng.Bijection(n, keyed)(np.arange(min(n, count + len(rows))))
        extra = others[~np.isin(others, rows)][: count - len(rows)]
        rows, weight = np.concatenate([rows, extra]), np.append(weight, np.zeros(len(extra)))
    return rows, weight


def _positions(context: StageContext, rows: Ids) -> Ids:
    """Source positions of store rows."""
    order = context.recipe.order
    return np.array([order.positions(row, row + 1)[0] for row in rows.tolist()], dtype=np.int64)


def predict(shape: AuditSizes, settings: LandmarksSettings) -> Cost:
    """A choice in passes over view 0, then the clean rows of the chosen through the network."""
    m, width = shape.n_landmarks, shape.n_features
    chosen, closing = _choosing(shape, settings), 20 * m * width
    need = chosen.need
    first = need.fixed + need.per_worker
    # A map to the landmarks or candidates lies there, a short row range and their own kernel.
    many = max(m, round(m * settings.oversampling * settings.rounds))
    own = 4 * many * shape.n_selection + 16 * shape.n_moments
    device = MemoryNeed(
        own, shape.plan.sub_rows * (8 * shape.n_selection + 16 * many) + 32 * many**2
    )
    return plain_cost(
        chosen.units,
        m * (2 * width + 64) + 8 * shape.n_moments,
        replace(need, fixed=max(need.fixed, closing - need.per_worker)),
        chosen.flops.total,
        chosen.scratch.total,
        freed_early=max(0, first - closing),
        device=device,
    )


def _choosing(shape: AuditSizes, settings: LandmarksSettings) -> Cost:
    """Passes over view 0; a worker holds a short row range against all candidates."""
    n, m, width = shape.plan.n_samples, shape.n_landmarks, shape.n_selection
    sub_rows, tasks = shape.plan.sub_rows, shape.plan.n_blocks
    if settings.sampler == "uniform":
        return Cost()
    if settings.sampler == "kmeans++":
        pool = min(n, POOL * m)
        need = MemoryNeed(pool * (4 * width + 128), sub_rows * (8 * width + 12 * m), tasks)
        flops = 2.0 * m * seeding_trials(m) * pool * width + 2.0 * n * width * m
        return plain_cost(-(-m // ROUND) + 2, need=need, flops=flops, scratch=24 * pool)
    if settings.sampler == "leverage":
        pilot = min(n, PILOT * m)
        per_worker = sub_rows * (8 * width + 24 * pilot) + 16 * shape.plan.block_rows
        need = MemoryNeed(20 * pilot * width + 40 * pilot**2, per_worker, tasks)
        return plain_cost(3, need=need, flops=2.0 * n * pilot * (width + pilot))
    drawn = m * settings.oversampling * settings.rounds  # on average
    candidates = math.ceil(drawn + 4 * math.sqrt(drawn)) + 1
    per_worker = sub_rows * (8 * width + 12 * candidates)
    # After the passes, three kernels among the candidates in float64, while one is normalised.
    passing = 60 * n + 8 * candidates * width + 24 * shape.n_moments
    ending = 60 * n + 16 * candidates * width + 25 * candidates**2 + 24 * shape.n_moments
    need = MemoryNeed(max(passing, ending - per_worker), per_worker, tasks)
    flops = 2.0 * n * (width * candidates + shape.n_moments)
    scratch = (settings.rounds + 1) * (12 * n + 8 * candidates)
    return plain_cost(settings.rounds + 2, need=need, flops=flops, scratch=scratch)


STAGE = Stage(
    name="landmarks",
    version=3,
    inputs=LandmarksInputs,
    store="landmarks",
    settings=LandmarksSettings,
    run=run,
    estimate_cost=predict,
    about="the samples that span the kernel subspace",
    parallel="passes",
)
