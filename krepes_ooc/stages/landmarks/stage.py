"""Stage landmarks: choose the samples that span the kernel subspace, then take their clean rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import UsageError
from krepes_ooc.sources.display import describe_columns, display_arrays
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f16, f32, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.featurizer import (
    batch_term,
    input_terms,
    open_featurizer,
    unscale_rows,
)
from krepes_ooc.stages.landmarks.count_rule import candidate_counts, choose_count
from krepes_ooc.stages.landmarks.passes import SelectionPasses
from krepes_ooc.stages.landmarks.samplers import (
    PILOT,
    POOL,
    ROUND,
    KmeansParallel,
    KmeansPlusPlus,
    Leverage,
)
from krepes_ooc.stages.landmarks.sampling import seeding_trials, uniform_order
from krepes_ooc.stages.landmarks.view_errors import CURVE_SAMPLES, view_errors
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.views.spec import CLEAN

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
        "auto",
        about="number of landmarks; auto: the smallest of 256, 512, 1024, ... whose Nystrom error "
        "over the views is at most 0.1, at most max(1000, sqrt(n)) and n / 2",
        minimum=1,
    )
    rounds: int = setting(5, about="passes of kmeans-parallel that draw candidates", minimum=1)
    oversampling: float = setting(0.5, about="candidates per round over landmarks", above=0)
    rows: Literal["clean", "views", "both"] = setting(
        "clean",
        about="rows of the landmarks: their clean samples, view 0 that they were chosen by, or "
        "both: every view, each with coefficients of its own",
        digest_omits="clean",
    )

    def row_views(self, n_views: int) -> tuple[int, ...]:
        """Views of a landmark's rows, CLEAN for the clean sample.

        Args:
            n_views: views of a sample.
        """
        return {"clean": (CLEAN,), "views": (0,), "both": tuple(range(n_views))}[self.rows]


def count_landmarks(settings: LandmarksSettings, n_samples: int) -> int:
    """Number of landmarks m; with ``auto`` the largest that the rule may choose.

    Args:
        settings: settings of the stage.
        n_samples: samples of the source.

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
    recipe: RecipeInputs = recipe_parts("source", "labels", "network", "views")


def run(inputs: LandmarksInputs, context: StageContext) -> None:
    """Choose landmarks over the features store, compute their rows, seal."""
    recipe = inputs.recipe
    chosen, curve = choose_landmarks(inputs, context)
    # Landmarks are ordered by sample id, whatever the order of the store and of the choice; with
    # rows of several views, all landmarks of one view before those of the next.
    order = np.argsort(chosen.sample_id, kind="stable")
    n_views = len(chosen.views)
    sample_id = np.tile(chosen.sample_id[order], n_views)
    layout = chosen.layout
    centre = inputs.features.array("centre")
    display = display_arrays(recipe.source, sample_id)
    stored = np.concatenate([rows[order] for rows in chosen.stored])
    arrays = {
        **display.arrays,
        "view": np.repeat(np.array(chosen.views, dtype=np.int64), len(order)),
        "weight": np.tile(chosen.weight[order], n_views),
        "self_kernel": np.asarray(inner_products.self_kernel(unscale_rows(stored, layout), layout)),
        "features": stored,
        "centre": centre,
    }
    sizes = {
        **display.sizes,
        "landmark": len(sample_id),
        "feature": layout.n_features,
        "moment": layout.n_moments,
    }
    spec = StoreSpec(
        load_contract("landmarks"),
        sizes,
        arrays=tuple(arrays),
        array_attributes=display.array_attributes,
    )
    # Layout, centre and probes are copied, so that new samples are explained from this store alone.
    attributes = {
        "sampler": context.settings.sampler,
        "layout": layout.to_attributes(),
        "centre_self": inner_products.centre_self(centre),
        "columns": describe_columns(recipe.source),
        "probes": inputs.features.attributes["probes"],
        "nystrom_curve": curve,
    }
    write_whole(context, spec, arrays, attributes)


@dataclass(frozen=True)
class ChosenLandmarks:
    """Landmarks in the order of their choice.

    Args:
        sample_id: position in the source [landmark].
        views: of their rows, CLEAN for the clean samples.
        stored: their feature rows as stored [landmark, feature], of every such view.
        layout: of a row.
        weight: samples whose view 0 is nearest to that of the landmark [landmark].
    """

    sample_id: Ids
    views: tuple[int, ...]
    stored: tuple[npt.NDArray[np.float16], ...]
    layout: FeatureLayout
    weight: npt.NDArray[np.float64]


def choose_landmarks(
    inputs: LandmarksInputs, context: StageContext
) -> tuple[ChosenLandmarks, list[dict[str, float]]]:
    """The landmarks, and the Nystrom error by their number where the rule chose it.

    Args:
        inputs: features, source and network.
        context: the running stage.
    """
    settings = context.settings
    count = count_landmarks(settings, context.plan.n_samples)
    passes, rows = _sampled(inputs, context, count)
    views = settings.row_views(inputs.features.info("self_kernel").shape[0])
    featurizer = open_featurizer(inputs.features, inputs.recipe, context)
    sample_id = _positions(inputs.recipe, rows)
    stored = tuple(featurizer.rows(sample_id, view)[0] for view in views)
    curve: list[dict[str, float]] = []
    if settings.count == "auto":
        counts = candidate_counts(count)
        # The rows of a landmark together, so that the first landmarks have the first rows.
        together = np.stack(stored, axis=1).reshape(-1, featurizer.layout.n_features)
        landmarks = unscale_rows(together, featurizer.layout)
        n_rows = [len(views) * m for m in counts]
        errors = view_errors(inputs.features, inputs.recipe, context, landmarks, n_rows)
        curve = [
            {"landmarks": m, "error": float(error)} for m, error in zip(counts, errors, strict=True)
        ]
        count = choose_count(counts, errors)
        shown = ", ".join(f"{point['landmarks']}: {point['error']:.3f}" for point in curve)
        context.progress.note(f"{count} landmarks; Nystrom error by their number: {shown}")
    weight = passes.weights(rows[:count])
    context.progress.advance(1)
    kept = tuple(part[:count] for part in stored)
    return ChosenLandmarks(sample_id[:count], views, kept, featurizer.layout, weight), curve


def _sampled(
    inputs: LandmarksInputs, context: StageContext, count: int
) -> tuple[SelectionPasses, Ids]:
    """The passes, and the store rows that the sampler chose, in the order of their choice."""
    settings = context.settings
    seed = inputs.recipe.seed
    n_samples = context.plan.n_samples
    # A uniform choice, or one of all samples, needs no pass.
    if settings.sampler == "uniform" or count == n_samples:
        context.progress.begin("landmarks", 2, 0)
        rows = uniform_order(n_samples, count, seed)
        context.progress.advance(1)
        return SelectionPasses(inputs.features, context, seed, count), rows
    sampler = SAMPLERS[settings.sampler](inputs.features, context, seed, count)
    return sampler, _topped_up(sampler.choose(), count, n_samples, seed)


def _topped_up(rows: Ids, count: int, n_samples: int, seed: int) -> Ids:
    """Rows filled up with uniform ones where duplicates left too few."""
    if len(rows) >= count:
        return rows
    # count + len(rows) distinct rows hold at least ``count`` that are not chosen yet.
    keyed = int(counter_rng.bits(seed, _TOP_UP_STREAM))
    drawn = counter_rng.Bijection(n_samples, keyed)(np.arange(min(n_samples, count + len(rows))))
    extra = drawn[~np.isin(drawn, rows)][: count - len(rows)]
    return np.concatenate([rows, extra])


def _positions(recipe: RecipeInputs, rows: Ids) -> Ids:
    """Source positions [landmark] of store rows [landmark]."""
    order = recipe.order
    return np.array([order.positions(row, row + 1)[0] for row in rows.tolist()], dtype=np.int64)


def estimate_cost(sizes: AuditSizes, settings: LandmarksSettings) -> Cost:
    """A choice in passes over view 0, then the rows of the chosen through the network."""
    m = sizes.n_landmarks
    width = sizes.n_features
    choice = _CHOICES[settings.sampler](sizes, settings)
    worker = choice.worker_memory.bytes
    clean_rows = Term("clean rows: float16 and float32, batches and self kernels", f32(m, width), 5)
    # Phases: the passes of the choice, then the clean rows, when no worker computes any more.
    phases = dict(choice.memory.phases)
    batch = (*input_terms(sizes, m), *((batch_term(sizes),) if sizes.sample_bytes else ()))
    free = Term("memory of one worker", worker, -1)
    phases["clean rows"] = (clean_rows, *batch, free)
    if settings.count == "auto":
        rows = sizes.n_views * (CURVE_SAMPLES + sizes.plan.block_rows)
        phases["number of landmarks"] = (
            clean_rows,
            Term("landmark rows in float64", f64(m, width)),
            Term("kernel rows of the first samples, carried parts", f64(rows, m), 4),
            Term("kernel of the landmarks and its factor", f64(m, m), 4),
            free,
        )
    by_then_free = Term(clean_rows.label, clean_rows.size, -clean_rows.times)
    return replace(
        choice,
        disk=Quantity.of(
            Term("feature rows", f16(m, width)),
            Term("ids, weights, k(x, x) and display of a landmark", f64(m), 8),
            Term("centre", f64(sizes.n_moments)),
        ),
        memory=Quantity(phases),
        freed_early=choice.memory.plus(Term("memory of one worker", worker), by_then_free),
        device_memory=_device_memory(sizes, settings),
        device_task_memory=_device_task_memory(sizes, settings),
    )


def _device_memory(sizes: AuditSizes, settings: LandmarksSettings) -> Quantity:
    """Device memory of the kernel map to the landmarks or candidates."""
    return Quantity.of(
        Term("landmarks or candidates", f32(_n_columns(sizes, settings), sizes.n_selection)),
        Term("centre in both types", f64(sizes.n_moments), 2),
    )


def _device_task_memory(sizes: AuditSizes, settings: LandmarksSettings) -> Quantity:
    """Device memory of one product, or of the kernel among landmarks or candidates."""
    sub_rows = sizes.plan.sub_rows
    n_columns = _n_columns(sizes, settings)
    return Quantity.of(
        Term("rows of a product in float32", f32(sub_rows, sizes.n_selection), 2),
        Term("kernel values of a product", f32(sub_rows, n_columns), 4),
        Term("kernel among landmarks or candidates", f64(n_columns, n_columns), 4),
    )


def _n_columns(sizes: AuditSizes, settings: LandmarksSettings) -> int:
    """Landmarks, or the candidates that the rounds draw on average if these are more."""
    drawn = round(sizes.n_landmarks * settings.oversampling * settings.rounds)
    return max(sizes.n_landmarks, drawn)


def _uniform_cost(sizes: AuditSizes, settings: LandmarksSettings) -> Cost:
    """A uniform choice needs no pass but that of the weights."""
    return Cost(
        units=2,
        memory=Quantity.of(),
        worker_memory=Quantity.of(*_weights_memory(sizes)),
        parallel_tasks=sizes.plan.n_blocks,
        flops=Quantity.of(_weights_flops(sizes)),
    )


def _weights_memory(sizes: AuditSizes) -> tuple[Term, ...]:
    """Memory of a worker in the pass that counts the nearest samples of each landmark."""
    sub_rows = sizes.plan.sub_rows
    return (
        Term("rows of a product in float32", f32(sub_rows, sizes.n_selection), 2),
        Term("kernel values of a product", f32(sub_rows, sizes.n_landmarks), 3),
    )


def _weights_flops(sizes: AuditSizes) -> Term:
    """The same pass in operations."""
    products = 2.0 * sizes.plan.n_samples * sizes.n_selection * sizes.n_landmarks
    return Term("nearest landmark of every sample", products)


def _kmeans_plus_plus_cost(sizes: AuditSizes, settings: LandmarksSettings) -> Cost:
    """Greedy k-means++ on a pool, then a pass for the weights."""
    n_samples = sizes.plan.n_samples
    m = sizes.n_landmarks
    width = sizes.n_selection
    # The pool stays in memory: every landmark needs kernel values to all of its samples.
    pool = min(n_samples, POOL * m)
    return Cost(
        units=-(-m // ROUND) + 1,
        memory=Quantity.of(
            Term("rows of the pool", f32(pool, width)),
            Term("distances, draws and kernel rows of the pool", f64(pool), 16),
        ),
        worker_memory=Quantity.of(*_weights_memory(sizes)),
        parallel_tasks=sizes.plan.n_blocks,
        flops=Quantity.of(
            Term("seeding", 2.0 * m * seeding_trials(m) * pool * width), _weights_flops(sizes)
        ),
        scratch=Quantity.of(Term("chosen, distances and owners", f64(pool), 3)),
    )


def _leverage_cost(sizes: AuditSizes, settings: LandmarksSettings) -> Cost:
    """A pilot kernel, a pass for the scores and one for the weights."""
    n_samples = sizes.plan.n_samples
    width = sizes.n_selection
    sub_rows = sizes.plan.sub_rows
    # The pilot kernel is factorised whole; a worker projects short row ranges on it.
    pilot = min(n_samples, PILOT * sizes.n_landmarks)
    return Cost(
        units=2,
        memory=Quantity.of(
            Term("rows of the pilot samples in float32 and float64", f32(pilot, width), 5),
            Term("pilot kernel, its factor and whitening", f64(pilot, pilot), 5),
        ),
        worker_memory=Quantity.of(
            Term("rows of a product in float32", f32(sub_rows, width), 2),
            Term("kernel values of a product, whitened", f64(sub_rows, pilot), 3),
            Term("scores and keys of a block", f64(sizes.plan.block_rows), 2),
        ),
        parallel_tasks=sizes.plan.n_blocks,
        flops=Quantity.of(
            Term("scores", 2.0 * n_samples * pilot * (width + pilot)), _weights_flops(sizes)
        ),
    )


def _kmeans_parallel_cost(sizes: AuditSizes, settings: LandmarksSettings) -> Cost:
    """Rounds of k-means||, then weighted k-means++ among the candidates."""
    n_samples = sizes.plan.n_samples
    width = sizes.n_selection
    sub_rows = sizes.plan.sub_rows
    # The number of candidates is random: four standard deviations above its mean.
    drawn = sizes.n_landmarks * settings.oversampling * settings.rounds
    candidates = math.ceil(drawn + 4 * math.sqrt(drawn)) + 1
    worker = (
        Term("rows of a product in float32", f32(sub_rows, width), 2),
        Term("kernel values of a product", f32(sub_rows, max(candidates, sizes.n_landmarks)), 3),
    )
    state = Term("distance and owner of every sample, their copies and order", 60 * n_samples)
    centre = Term("centre in both types", f64(sizes.n_moments), 3)
    rows = f32(candidates, width)
    return Cost(
        units=settings.rounds + 3,
        memory=Quantity(
            {
                "rounds": (state, Term("rows of the candidates", rows, 2), centre),
                # While one is normalised there are three kernels of the candidates in float64.
                "reduction": (
                    state,
                    Term("rows of the candidates in float32 and float64", rows, 4),
                    Term("kernels of the candidates and a mask", 25 * candidates**2),
                    centre,
                    Term("memory of one worker", Quantity.of(*worker).bytes, -1),
                ),
            }
        ),
        worker_memory=Quantity.of(*worker),
        parallel_tasks=sizes.plan.n_blocks,
        flops=Quantity.of(
            Term("distances and centre", 2.0 * n_samples * (width * candidates + sizes.n_moments)),
            _weights_flops(sizes),
        ),
        scratch=Quantity.of(
            Term(
                "distance, owner and candidates of a round",
                12 * n_samples + f64(candidates),
                settings.rounds + 1,
            )
        ),
    )


_CHOICES: dict[str, Callable[[AuditSizes, LandmarksSettings], Cost]] = {
    "kmeans-parallel": _kmeans_parallel_cost,
    "kmeans++": _kmeans_plus_plus_cost,
    "leverage": _leverage_cost,
    "uniform": _uniform_cost,
}


STAGE = Stage(
    name="landmarks",
    version=4,
    inputs=LandmarksInputs,
    store="landmarks",
    settings=LandmarksSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="the samples that span the kernel subspace",
    parallel="passes",
)
