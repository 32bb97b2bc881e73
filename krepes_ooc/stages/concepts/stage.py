"""Stage concepts: concept vectors of named sample sets, their accuracy, influence along them.

The samples of the sets go through the network here, not in stage audited, so that one more concept
makes nothing stale but this stage and the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.settings import setting
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.cost import ROW_PASSES, Cost, Quantity, Term, f32, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import read_partial, write_partial, write_whole
from krepes_ooc.stages.concepts.cav import (
    concept_vector,
    held_out_accuracy,
    landmark_scores,
    sample_scores,
)
from krepes_ooc.stages.concepts.concept_sets import choose_concept_samples, read_sets
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.featurizer import (
    computing_terms,
    open_featurizer,
    unscale_rows,
)
from krepes_ooc.stages.fidelity.rows import flat_inputs
from krepes_ooc.stages.kernel.landmark_kernel import open_landmark_kernel
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.views.spec import CLEAN

WHERE = "stages.concepts.sets"
# Accuracy and its controls, arrays of the store
FIGURES = (
    "accuracy",
    "chance",
    "chance_high",
    "p_value",
    "accuracy_start",
    "accuracy_network",
    "accuracy_inputs",
)
Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ConceptsSettings:
    """Recipe key ``stages.concepts``."""

    sets: dict[str, Any] = setting({}, about="name to positive and negative sample sets")
    samples: int = setting(200, about="samples of either set at most", minimum=10)
    draws: int = setting(99, about="random concepts of the control", minimum=19)

    def __post_init__(self) -> None:
        """Refuse sets that cannot be read before anything is computed."""
        # The network may take hours; a recipe that cannot be read is refused before
        read_sets(self.sets, WHERE)


@dataclass(frozen=True)
class _ConceptRows:
    """Embeddings and inputs of samples of the sets.

    Args:
        embedding: after the step [sample, component].
        embedding_start: at the start [sample, component].
        network: the network's embedding [sample, output].
        inputs: the network's input, flat [sample, input]; None if it is very long.
    """

    embedding: Float
    embedding_start: Float
    network: Float
    inputs: Float | None


@dataclass(frozen=True)
class ConceptsInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    audited: StoreReader
    kernel: StoreReader
    spectrum: StoreReader
    influence: StoreReader
    recipe: RecipeInputs = recipe_parts("source", "labels", "network")


def run(inputs: ConceptsInputs, context: StageContext) -> None:
    """Choose the samples of every set, fit one direction a concept, score, seal."""
    settings: ConceptsSettings = context.settings
    concepts = read_sets(settings.sets, WHERE)
    context.progress.begin("concepts", len(concepts) + 1, 0)
    chosen = choose_concept_samples(
        inputs.recipe.source, concepts, settings.samples, inputs.recipe.seed
    )
    results: list[dict[str, Float]] = []
    for i, sets in enumerate(chosen):
        # One partial result a concept: a stopped stage goes on with the next one
        path = context.record.partials / f"concept-{i:04d}.npz"
        result = read_partial(context, path)
        if result is None:
            context.stop.check()
            result = _fit(inputs, context, *sets)
            write_partial(context, path, result)
        results.append(result)
        context.progress.advance(1)
    words = {
        concept.name: _summary(result) for concept, result in zip(concepts, results, strict=True)
    }
    for name, text in words.items():
        context.progress.note(f"concept {name}: {text}")
    members = {
        concept.name: {"positive": pair[0].tolist(), "negative": pair[1].tolist()}
        for concept, pair in zip(concepts, chosen, strict=True)
    }
    attributes = {"names": [c.name for c in concepts], "sets": members, "words": words}
    _seal(inputs, context, results, attributes)


def _fit(
    inputs: ConceptsInputs, context: StageContext, positive: Ids, negative: Ids
) -> dict[str, Float]:
    """Direction, accuracy and controls of one concept."""
    ids = np.concatenate([positive, negative])
    # Positive samples first, in the order of the ids
    is_positive = np.arange(len(ids)) < len(positive)
    rows = _concept_rows(inputs, context, ids)
    seed = inputs.recipe.seed

    def accuracy(values: Float) -> Float:
        return np.array(held_out_accuracy(values, is_positive, ids, seed))

    cav = concept_vector(rows.embedding, is_positive, ids, seed, context.settings.draws)
    return {
        # Nothing is scored along a direction that is no better than chance
        "vector": cav.vector if cav.trusted else np.zeros_like(cav.vector),
        "trusted": np.array(int(cav.trusted)),
        "accuracy": np.array(cav.accuracy),
        "chance": np.array(cav.random.mean()),
        "chance_high": np.array(cav.random.max()),
        "p_value": np.array(cav.p_value),
        "accuracy_start": accuracy(rows.embedding_start),
        "accuracy_network": accuracy(rows.network),
        "accuracy_inputs": np.array(0.0) if rows.inputs is None else accuracy(rows.inputs),
    }


def _concept_rows(inputs: ConceptsInputs, context: StageContext, ids: Ids) -> _ConceptRows:
    """Embeddings of samples of the source, computed in short row ranges."""
    featurizer = open_featurizer(inputs.features, inputs.recipe, context)
    landmark_kernel = open_landmark_kernel(
        inputs.features, inputs.landmarks, inputs.kernel.attributes["normalise"], context
    )
    kernels = []
    outputs = []
    for start in range(0, len(ids), context.plan.sub_rows):
        part = ids[start : start + context.plan.sub_rows]
        stored, network, _ = featurizer.rows(part, CLEAN)
        unscaled = unscale_rows(stored, featurizer.layout)
        self_kernel = np.asarray(inner_products.self_kernel(unscaled, featurizer.layout))
        kernels.append(landmark_kernel.rows(stored, self_kernel).astype(np.float64))
        outputs.append(network.astype(np.float64))
    # f = K A + gamma, after the step and at the start
    kernel = np.concatenate(kernels)
    offset = inputs.spectrum.array("offset")
    return _ConceptRows(
        kernel @ inputs.influence.array("coefficients") + offset,
        kernel @ inputs.spectrum.array("start") + offset,
        np.concatenate(outputs),
        flat_inputs(inputs.recipe, ids),
    )


def _summary(result: dict[str, Float]) -> str:
    """Accuracy of one concept beside its controls, for the terminal."""
    # 0 stands for inputs that are too long
    value = {name: f"{float(result[name]):.2f}" for name in FIGURES}
    inputs = f", its inputs {value['accuracy_inputs']}" if result["accuracy_inputs"] else ""
    control = (
        f"held-out accuracy {value['accuracy']}, random concepts {value['chance']} (at most "
        f"{value['chance_high']}), at the start {value['accuracy_start']}, the network itself "
        f"{value['accuracy_network']}{inputs}"
    )
    if result["trusted"]:
        return control
    return control + "; not recognised better than by chance, so nothing is scored"


def _seal(
    inputs: ConceptsInputs,
    context: StageContext,
    results: list[dict[str, Float]],
    attributes: dict[str, Any],
) -> None:
    """Score samples and landmarks along every concept, and seal."""
    kernel = inputs.influence.whole("kernel")
    step = inputs.influence.array("step")
    is_audit = inputs.audited.array("role") == ROLES["audit"]
    vectors = np.array([result["vector"] for result in results])
    # Without concepts the array still has its components
    vectors = vectors.reshape(len(results), step.shape[1])
    arrays = {
        "vector": vectors,
        "trusted": np.array([int(result["trusted"]) for result in results], dtype=np.int64),
        "score": sample_scores(kernel, step, vectors),
        "landmark_score": landmark_scores(kernel[is_audit], step, vectors),
        **{name: np.array([float(result[name]) for result in results]) for name in FIGURES},
    }
    sizes = {
        "concept": len(results),
        "component": step.shape[1],
        "audited": len(kernel),
        "landmark": len(step),
    }
    write_whole(context, StoreSpec(load_contract("concepts"), sizes), arrays, attributes)


def estimate_cost(sizes: AuditSizes, settings: ConceptsSettings) -> Cost:
    """Rows of the sets through the network, and small classifiers."""
    n_concepts = len(settings.sets)
    m = sizes.n_landmarks
    n_samples = 2 * settings.samples
    memory = [Term("kernel rows of the explained samples", f64(sizes.n_explained, m))]
    # Without concepts the network is never loaded
    if n_concepts:
        rows = min(n_samples, sizes.plan.sub_rows)
        memory += [
            Term("feature rows of one product, stored and float64", rows * sizes.n_features, 10),
            *computing_terms(sizes, rows),
            Term("landmark feature rows, float32 and float64", f32(m, sizes.n_features), 5),
            Term("kernel rows of one concept", f64(n_samples, m)),
        ]
    disk = Quantity.of(
        Term("scores of audited samples", f64(n_concepts, sizes.n_audited)),
        Term("scores of landmarks", f64(n_concepts, m)),
        Term("concept vectors", f64(n_concepts, sizes.n_components)),
    )
    return Cost(
        units=n_concepts + 1,
        disk=disk,
        memory=Quantity.of(*memory),
        flops=Quantity.of(Term(ROW_PASSES, sizes.row_operations * n_samples * n_concepts)),
        skipped=not n_concepts,
    )


STAGE = Stage(
    name="concepts",
    version=1,
    inputs=ConceptsInputs,
    store="concepts",
    settings=ConceptsSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="directions of named concepts and influence along them",
    uses_sklearn=True,
)
