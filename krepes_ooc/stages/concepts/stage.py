"""Stage concepts: directions of named concepts, whether they are recognised, influence along them.

The samples of the sets go through the network here, not in stage audited, so that one more concept
makes nothing stale but this stage and the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.settings import setting
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.cost import Cost, plain_cost
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
from krepes_ooc.stages.features.featurizer import open_featurizer, unscale_rows
from krepes_ooc.stages.fidelity.rows import flat_inputs
from krepes_ooc.stages.kernel.landmark_kernel import open_landmark_kernel
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.views.spec import CLEAN

WHERE = "stages.concepts.sets"
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
        read_sets(self.sets, WHERE)


@dataclass(frozen=True)
class _ConceptRows:
    """Embeddings of some samples: after the step, at the start, the network's, and its inputs."""

    step: Float
    start: Float
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
    newton: StoreReader
    influence: StoreReader
    recipe: RecipeInputs = recipe_parts("source", "labels", "network")


def run(inputs: ConceptsInputs, context: StageContext) -> None:
    """Find the samples of every set, fit one direction a concept, score, seal."""
    settings: ConceptsSettings = context.settings
    concepts = read_sets(settings.sets, WHERE)
    context.progress.begin("concepts", len(concepts) + 1, 0)
    chosen = choose_concept_samples(
        context.recipe.source, concepts, settings.samples, context.recipe.seed
    )
    found: list[dict[str, Float]] = []
    for i, sets in enumerate(chosen):
        path = context.record.partials / f"concept-{i:04d}.npz"
        known = read_partial(context, path)
        if known is None:
            context.stop.check()
            known = _fit(context, *sets)
            write_partial(context, path, known)
        found.append(known)
        context.progress.advance(1)
    words = {
        concept.name: _summary_lines(one) for concept, one in zip(concepts, found, strict=True)
    }
    for name, text in words.items():
        context.progress.note(f"concept {name}: {text}")
    members = {
        concept.name: {"positive": pair[0].tolist(), "negative": pair[1].tolist()}
        for concept, pair in zip(concepts, chosen, strict=True)
    }
    _seal(context, found, {"names": [c.name for c in concepts], "sets": members, "words": words})


def _fit(context: StageContext, positive: Ids, negative: Ids) -> dict[str, Float]:
    """Direction, accuracy and controls of one concept."""
    ids = np.concatenate([positive, negative])
    is_positive = np.arange(len(ids)) < len(positive)
    rows, seed = _rows(context, ids), context.recipe.seed
    inputs = 0.0
    if rows.inputs is not None:
        inputs = held_out_accuracy(rows.inputs, is_positive, ids, seed)
    cav = concept_vector(rows.step, is_positive, ids, seed, context.settings.draws)
    return {
        "vector": cav.vector if cav.trusted else np.zeros_like(cav.vector),
        "trusted": np.array(int(cav.trusted)),
        "accuracy": np.array(cav.accuracy),
        "chance": np.array(cav.random.mean()),
        "chance_high": np.array(cav.random.max()),
        "p_value": np.array(cav.p_value),
        "accuracy_start": np.array(held_out_accuracy(rows.start, is_positive, ids, seed)),
        "accuracy_network": np.array(held_out_accuracy(rows.network, is_positive, ids, seed)),
        "accuracy_inputs": np.array(inputs),
    }


def _rows(context: StageContext, ids: Ids) -> _ConceptRows:
    """Embeddings of samples of the source, computed in short row ranges."""
    featurizer, spectrum = (
        open_featurizer(context.reader("features"), context.recipe, context),
        context.reader("spectrum"),
    )
    normalise = context.reader("kernel").attributes["normalise"]
    mapped = open_landmark_kernel(
        context.reader("features"), context.reader("landmarks"), normalise, context
    )
    kernels, outputs = [], []
    for start in range(0, len(ids), context.plan.sub_rows):
        part = ids[start : start + context.plan.sub_rows]
        stored, embedding, _ = featurizer.rows(part, CLEAN)
        own = inner_products.self_kernel(unscale_rows(stored, featurizer.layout), featurizer.layout)
        kernels.append(mapped.rows(stored, np.asarray(own)).astype(np.float64))
        outputs.append(embedding.astype(np.float64))
    kernel, offset = np.concatenate(kernels), spectrum.array("offset")
    coefficients = context.reader("newton").array("coefficients")
    return _ConceptRows(
        kernel @ coefficients + offset,
        kernel @ spectrum.array("start") + offset,
        np.concatenate(outputs),
        flat_inputs(context, ids),
    )


def _summary_lines(found: dict[str, Float]) -> str:
    value = {name: f"{float(found[name]):.2f}" for name in FIGURES}
    told = f", its inputs {value['accuracy_inputs']}" if found["accuracy_inputs"] else ""
    control = (
        f"held-out accuracy {value['accuracy']}, random concepts {value['chance']} (at most "
        f"{value['chance_high']}), at the start {value['accuracy_start']}, the network itself "
        f"{value['accuracy_network']}{told}"
    )
    if found["trusted"]:
        return control
    return control + "; not recognised better than by chance, so nothing is scored"


def _seal(context: StageContext, found: list[dict[str, Float]], attributes: dict[str, Any]) -> None:
    influence, step = context.reader("influence"), context.reader("newton").array("step")
    kernel = influence.whole("kernel")
    explained = context.reader("audited").array("role") == ROLES["audit"]
    vectors = np.array([one["vector"] for one in found]).reshape(len(found), step.shape[1])
    arrays = {
        "vector": vectors,
        "trusted": np.array([int(one["trusted"]) for one in found], dtype=np.int64),
        "score": sample_scores(kernel, step, vectors),
        "landmark_score": landmark_scores(kernel[explained], step, vectors),
        **{name: np.array([float(one[name]) for one in found]) for name in FIGURES},
    }
    sizes = {
        "concept": len(found),
        "component": step.shape[1],
        "audited": len(kernel),
        "landmark": len(step),
    }
    write_whole(context, StoreSpec(load_contract("concepts"), sizes), arrays, attributes)


def predict(shape: AuditSizes, settings: ConceptsSettings) -> Cost:
    """Rows of the sets through the network, and small classifiers."""
    count, m, width = len(settings.sets), shape.n_landmarks, shape.n_features
    samples = 2 * settings.samples
    rows = min(samples, shape.plan.sub_rows)
    need = 8 * shape.n_explained * m
    need += (10 * rows * width + 20 * m * width + 8 * samples * m) if count else 0
    disk = 8 * count * (shape.n_audited + m + shape.n_components)
    flops = 6.0 * shape.n_parameters * samples * count
    return plain_cost(count + 1, disk, MemoryNeed(need), flops, skipped=not count)


STAGE = Stage(
    name="concepts",
    version=1,
    inputs=ConceptsInputs,
    store="concepts",
    settings=ConceptsSettings,
    run=run,
    estimate_cost=predict,
    about="directions of named concepts and influence along them",
    uses_sklearn=True,
)
