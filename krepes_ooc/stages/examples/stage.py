"""Stage examples: samples as convex sums of landmarks, what concepts they show, which are odd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.kernel_values import FAR
from krepes_ooc.core.landmark_rows import mean_views, rows_of_each, strongest_view
from krepes_ooc.core.settings import setting
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.cost import ROW_PASSES, Cost, Quantity, Term, f32, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.discovery.stored_concepts import read_concept_map
from krepes_ooc.stages.examples.concept_figures import best_class_precision, winner_r_squared
from krepes_ooc.stages.examples.convex_weights import (
    NONE,
    convex_weights,
    nearest_landmarks,
    random_landmarks,
    relative_residual,
    share_explained,
    weighted_sum,
    weights_over_all,
    without_own,
)
from krepes_ooc.stages.examples.duplicate_tables import COMPARED_INPUTS, duplicate_tables
from krepes_ooc.stages.examples.near_duplicates import NEIGHBOURS, ROWS
from krepes_ooc.stages.examples.odd_samples import closeness, mixing
from krepes_ooc.stages.features.featurizer import batch_term, input_terms
from krepes_ooc.stages.fidelity.rows import flat_inputs, landmark_embedding
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

COUNT = 10
# Samples whose weights over all landmarks are the bound that ten landmarks are compared with.
BOUND_SAMPLES = 100
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ExamplesSettings:
    """Recipe key ``stages.examples``."""

    table: int = setting(100, about="samples and pairs in each table of odd samples", minimum=1)


@dataclass(frozen=True)
class ExamplesInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    audited: StoreReader
    kernel: StoreReader
    discovery: StoreReader
    influence: StoreReader
    recipe: RecipeInputs = recipe_parts("source", "network")


@dataclass(frozen=True)
class _Samples:
    """Audited samples and landmarks in the network's embedding.

    Args:
        sample_id: of the audited samples [audited].
        role: [audited].
        network: their embedding [audited, output].
        own: landmark that is the sample itself, or -1 [audited].
        landmarks: embedding of the landmarks [landmark, output].
        n_views: rows of a landmark.
    """

    sample_id: Index
    role: Index
    network: Float
    own: Index
    landmarks: Float
    n_views: int

    @property
    def explained(self) -> Index:
        """Audited samples that are explained."""
        return np.flatnonzero(self.role == ROLES["audit"])


def run(inputs: ExamplesInputs, context: StageContext) -> None:
    """Refit weights, show concepts, rank odd samples, seal."""
    context.progress.begin("examples", 1, 0)
    samples = _samples(inputs, context)
    arrays, refitted = _weights(inputs, samples)
    shown, concept_figures = _concepts(inputs, samples)
    context.stop.check()
    arrays |= shown | _odd(inputs, samples, context.settings.table)
    duplicates, compared_by = duplicate_tables(
        inputs.recipe, samples.sample_id, samples.network, context.settings.table
    )
    arrays |= duplicates
    context.stop.check()
    arrays |= _mixed(inputs, arrays, context.settings.table)
    # Mixing is measured by labels only where every landmark has one.
    labelled = bool((inputs.landmarks.array("label") >= 0).all())
    attributes = {
        "r_squared": refitted,
        "bound_samples": min(BOUND_SAMPLES, len(samples.explained)),
        "mixed_by": "label" if labelled else "concept",
        "copies_by": compared_by,
        **concept_figures,
    }
    for line in summary_lines(attributes):
        context.progress.note(line)
    # Lengths of the dims, each by an array that has it.
    lengths = {
        "audited": arrays["closeness"],
        "explained": arrays["residual"],
        "landmark": arrays["landmark_closeness"],
        "novel": arrays["novel_audited"],
        "pair": arrays["pair_distance"],
        "copy": arrays["copy_distance"],
        "mixed": arrays["mixed_audited"],
        "lonely": arrays["lonely_landmark"],
    }
    sizes = {name: len(values) for name, values in lengths.items()}
    sizes |= {
        "output": samples.landmarks.shape[1],
        "rank": arrays["weight"].shape[1],
        "concept": arrays["activation"].shape[1],
    }
    write_whole(context, StoreSpec(load_contract("examples"), sizes), arrays, attributes)


def _samples(inputs: ExamplesInputs, context: StageContext) -> _Samples:
    audited = inputs.audited
    sample_id = audited.array("sample_id")
    landmark_id = inputs.landmarks.array("sample_id")
    # The first of equal landmarks stands for the sample.
    position = {int(sample): index for index, sample in reversed(list(enumerate(landmark_id)))}
    own = np.array([position.get(int(sample), NONE) for sample in sample_id], dtype=np.int64)
    n_views = rows_of_each(landmark_id)
    n_landmarks = len(landmark_id) // n_views
    return _Samples(
        sample_id,
        audited.array("role"),
        audited.array("network_embedding").astype(np.float64),
        own,
        landmark_embedding(inputs.features, inputs.recipe, landmark_id[:n_landmarks], context),
        n_views,
    )


def _weights(inputs: ExamplesInputs, samples: _Samples) -> tuple[Arrays, dict[str, float]]:
    """Convex weights of the explained samples, and R^2 beside those of other landmarks."""
    explained = samples.explained
    target, own, landmarks = samples.network[explained], samples.own[explained], samples.landmarks
    kernel = strongest_view(inputs.influence.whole("kernel")[explained], samples.n_views)
    # One more than are shown, because a sample must not explain itself.
    count = min(COUNT, kernel.shape[1]) + 1
    rankings = {
        "kernel": np.argsort(-kernel, axis=1, kind="stable")[:, :count].astype(np.int64),
        "nearest": nearest_landmarks(target, landmarks, count),
        "random": random_landmarks(len(target), len(landmarks), count, inputs.recipe.seed),
        "ranking": inputs.influence.array("top_landmark")[explained][:, :count],
    }
    # Every ranking loses the sample itself, so that all have the same number.
    chosen = {name: without_own(ranked, own, count - 1) for name, ranked in rankings.items()}
    weights = {name: convex_weights(target, landmarks, each) for name, each in chosen.items()}
    sums = {name: weighted_sum(weights[name], landmarks, chosen[name]) for name in chosen}
    r_squared = {name: share_explained(target, each) for name, each in sums.items()}
    # The bound: all landmarks at once, for the first samples.
    few = slice(0, BOUND_SAMPLES)
    bound = weights_over_all(target[few], landmarks) @ landmarks
    r_squared["ranking_of_bound_samples"] = share_explained(target[few], sums["ranking"][few])
    r_squared["all_landmarks"] = share_explained(target[few], bound)
    arrays: Arrays = {
        "sample_id": samples.sample_id[explained],
        "top_landmark": chosen["ranking"],
        "weight": weights["ranking"],
        "residual": relative_residual(target, sums["ranking"]),
        "own_landmark": samples.own,
        "landmark_embedding": np.tile(landmarks.astype(np.float32), (samples.n_views, 1)),
    }
    return arrays, r_squared


def _concepts(inputs: ExamplesInputs, samples: _Samples) -> tuple[Arrays, dict[str, Any]]:
    """Activations of the audited samples, and figures of the concepts beside their controls."""
    kernel, label = inputs.influence.whole("kernel"), inputs.audited.array("label")
    maps = {"concepts": "", "random": "random_"}
    precision: dict[str, float | None] = {}
    r_squared: dict[str, float | None] = {}
    # Without concepts: arrays of no columns, no figures.
    if not inputs.discovery.attributes["defined"]:
        none = {"average_precision": precision, "embedding_r_squared": r_squared}
        empty = np.zeros((len(label), 0))
        return {"activation": empty, "concept": np.full(len(label), NONE, dtype=np.int64)}, none
    activations = {
        name: read_concept_map(inputs.discovery, prefix).activation(kernel)
        for name, prefix in maps.items()
    }
    # Weights on inputs are there only where inputs are few.
    rows = None
    if inputs.discovery.has("input_weights"):
        rows = flat_inputs(inputs.recipe, samples.sample_id)
    if rows is not None:
        activations["inputs"] = read_concept_map(inputs.discovery, "input_").activation(rows)
    fit, audit = (samples.role == ROLES[role] for role in ("fit", "audit"))
    # Means of the embedding by winner are fitted on fit samples and judged on audit samples.
    for name, activation in activations.items():
        winners = np.argmax(activation, axis=1)
        precision[name] = best_class_precision(activation, label)
        r_squared[name] = winner_r_squared(
            winners[fit], samples.network[fit], winners[audit], samples.network[audit]
        )
    activation = activations["concepts"]
    # A sample that no landmark is near shows no concept: its activation is a constant.
    near = np.abs(kernel).max(axis=1) >= FAR
    shown = np.where(near, np.argmax(activation, axis=1), NONE).astype(np.int64)
    arrays = {"activation": activation, "concept": shown}
    return arrays, {"average_precision": precision, "embedding_r_squared": r_squared}


def _odd(inputs: ExamplesInputs, samples: _Samples, table: int) -> Arrays:
    """Novel samples, and landmarks without others near them."""
    # Closeness counts no landmark that is the sample itself.
    n_views = samples.n_views
    near = closeness(mean_views(inputs.influence.whole("kernel"), n_views), samples.own)
    novel = np.argsort(near, kind="stable")[:table].astype(np.int64)
    by_row = np.asarray(inputs.kernel.whole("landmark_kernel"))
    landmark_kernel = mean_views(mean_views(by_row, n_views), n_views, axis=0)
    landmark_near = closeness(landmark_kernel, np.arange(len(landmark_kernel)))
    lonely = np.argsort(landmark_near, kind="stable")[:table].astype(np.int64)
    return {
        "closeness": near,
        "novel_audited": novel,
        "novel_id": samples.sample_id[novel],
        "novel_closeness": near[novel],
        "landmark_closeness": np.tile(landmark_near, n_views),
        "lonely_landmark": lonely,
        "lonely_id": inputs.landmarks.array("sample_id")[lonely],
        "lonely_closeness": landmark_near[lonely],
    }


def _mixed(inputs: ExamplesInputs, arrays: Arrays, table: int) -> Arrays:
    """Samples whose weights lie in several classes of landmarks, or in several concepts."""
    groups = inputs.landmarks.array("label")
    if not (groups >= 0).all():
        known = bool(inputs.discovery.attributes["defined"])
        groups = inputs.discovery.array("landmark_concept") if known else np.full_like(groups, NONE)
    chosen = arrays["top_landmark"]
    # Places beyond the last landmark belong to no group.
    group = np.where(chosen >= 0, groups[np.maximum(chosen, 0)], NONE)
    found = mixing(arrays["weight"], group)
    order = np.argsort(-found, kind="stable")[:table]
    explained = np.flatnonzero(inputs.audited.array("role") == ROLES["audit"])
    return {
        "mixing": found,
        "mixed_audited": explained[order].astype(np.int64),
        "mixed_id": arrays["sample_id"][order],
        "mixed_share": found[order],
    }


def summary_lines(attributes: dict[str, Any]) -> list[str]:
    """Lines for the terminal.

    Args:
        attributes: of the store.
    """
    found = attributes["r_squared"]
    lines = [
        f"convex weights on {COUNT} landmarks reproduce {found['ranking']:.3f} of the network's "
        f"embedding; by kernel {found['kernel']:.3f}, nearest {found['nearest']:.3f}, random "
        f"{found['random']:.3f}, all landmarks {found['all_landmarks']:.3f}"
    ]
    for key, words in (
        ("embedding_r_squared", "share of the network's embedding that the concept alone gives"),
        ("average_precision", "average precision of the best-matching class"),
    ):
        known = {name: v for name, v in attributes[key].items() if v is not None}
        if known:
            each = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
            lines.append(f"{words}: {each}")
    return lines


def estimate_cost(sizes: AuditSizes, settings: ExamplesSettings) -> Cost:
    """Kernel rows and embeddings of the audited samples, small quadratic programs, distances."""
    n, explained = sizes.n_audited, sizes.n_explained
    m, outputs = sizes.n_landmarks, sizes.n_outputs
    rows = min(n, ROWS)
    loading = min(m, sizes.plan.sub_rows)
    embeddings = Term("embeddings of audited samples and landmarks", f64(n + m, outputs), 3)
    return Cost(
        disk=Quantity.of(
            Term("landmark embedding", f32(m, outputs)),
            Term("activations", f64(n, 20)),
            Term("weights and tables", f64(explained, 4 * COUNT) + f64(settings.table, 17)),
            Term("closeness and nearest samples", f64(n, 4) + f64(m, 2)),
        ),
        memory=Quantity(
            {
                "network": (
                    embeddings,
                    Term("feature rows of one product", float(loading) * sizes.n_features, 10),
                    batch_term(sizes),
                    *input_terms(sizes, loading),
                ),
                "weights": (
                    embeddings,
                    Term("kernel rows, distances and their order", f64(explained, m), 4),
                    Term("differences and systems", f64(explained, COUNT, outputs + COUNT), 3),
                ),
                "odd": (
                    embeddings,
                    Term("distances of a row range", f64(rows, n), 3),
                    Term("neighbours and their ratios", f64(n, NEIGHBOURS), 12),
                    Term("compared inputs", f32(n, COMPARED_INPUTS)),
                ),
            }
        ),
        flops=Quantity.of(
            Term(ROW_PASSES, sizes.row_operations * m / 3),
            Term("distances", 2.0 * n * n * outputs),
            Term("distances of shifted inputs", 100.0 * n * NEIGHBOURS * COMPARED_INPUTS),
            Term("quadratic programs", 4.0 * 20 * explained * COUNT**3),
        ),
        float64=True,
    )


STAGE = Stage(
    name="examples",
    version=2,
    inputs=ExamplesInputs,
    store="examples",
    settings=ExamplesSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="samples as convex sums of landmarks, and odd samples",
)
