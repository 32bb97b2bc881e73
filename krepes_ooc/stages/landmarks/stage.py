"""Stage landmarks: choose the samples that span the kernel subspace, then take their clean rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.sources.display import describe_columns, display_arrays
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.featurizer import (
    open_featurizer,
    unscale_rows,
)
from krepes_ooc.stages.landmarks.count_rule import candidate_counts, choose_count
from krepes_ooc.stages.landmarks.landmark_settings import LandmarksSettings, count_landmarks
from krepes_ooc.stages.landmarks.passes import SelectionPasses
from krepes_ooc.stages.landmarks.samplers import (
    KmeansParallel,
    KmeansPlusPlus,
    Leverage,
)
from krepes_ooc.stages.landmarks.sampling import uniform_order
from krepes_ooc.stages.landmarks.selection_cost import estimate_cost
from krepes_ooc.stages.landmarks.view_errors import view_errors
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

SAMPLERS: dict[str, type[KmeansParallel | KmeansPlusPlus | Leverage]] = {
    "kmeans-parallel": KmeansParallel,
    "kmeans++": KmeansPlusPlus,
    "leverage": Leverage,
}
_TOP_UP_STREAM = 301
Ids = npt.NDArray[np.int64]


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
