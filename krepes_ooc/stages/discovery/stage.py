"""Stage discovery: concepts found without labels, and what every one of them is like.

Concepts are clusters of directions of the Nystrom map of kernel rows. They are fitted on the first
stored rows, whose number no source raises; one pass over all samples counts what they win.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.landmark_rows import mean_views
from krepes_ooc.core.settings import setting
from krepes_ooc.stages.base.cost import OPTIMIZE_BYTES, Cost, Quantity, Term, f32, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.discovery.column_differences import (
    ColumnCodes,
    column_differences,
    columns_of_levels,
)
from krepes_ooc.stages.discovery.concept_map import ConceptMap
from krepes_ooc.stages.discovery.concept_pass import ConceptPass, ConceptSums
from krepes_ooc.stages.discovery.fits import (
    FIT_ROWS,
    INPUT_VALUES,
    MAX_INPUTS,
    READ_ROWS,
    REFITS,
    STARTS,
    ConceptFits,
    DiscoveredConcepts,
)
from krepes_ooc.stages.discovery.spherical_kmeans import CHUNK, MAX_ROUNDS
from krepes_ooc.stages.discovery.stored_concepts import ROWS
from krepes_ooc.stages.landmarks.recorded_rows import rows_of_landmarks
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

TOP_LANDMARKS = 8
MOST_LEVELS = 50
# Stability below which a concept is marked.
STABLE = 0.8
Float = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class DiscoverySettings:
    """Recipe key ``stages.discovery``."""

    concepts: int = setting(
        20, about="concepts at most; never more than the usable rank", minimum=2, maximum=1000
    )


@dataclass(frozen=True)
class DiscoveryInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    kernel: StoreReader
    spectrum: StoreReader
    recipe: RecipeInputs = recipe_parts("source")


def run(inputs: DiscoveryInputs, context: StageContext) -> None:
    """Fit the concepts and their controls, count over all samples, seal."""
    context.progress.begin("discovery", count_units(context.plan.n_shards), 0)
    asked = context.settings.concepts
    fits = ConceptFits(context, inputs.recipe.seed, asked)
    found = fits.of_kernel(inputs.kernel, inputs.spectrum)
    m = inputs.kernel.info("values").shape[-1]
    if found is None:
        reason = "kernel rows of fewer than two samples differ in direction"
        context.progress.note(f"no concepts: {reason}")
        _seal(context, m, {}, _attributes(asked, reason=reason))
        return
    columns = _Columns.of_recipe(inputs.recipe)
    maps = (found.concepts, found.random)
    recipe = inputs.recipe if columns.names else None
    sums = ConceptPass(inputs.kernel, recipe, columns.codes, maps, context).run()
    arrays = _concept_arrays(found, sums)
    between = np.asarray(inputs.kernel.whole("landmark_kernel"))
    landmarks = _landmark_arrays(found.concepts, between, rows_of_landmarks(context))
    shape = inputs.recipe.source.input_shape
    positions = inputs.recipe.order.positions(0, min(FIT_ROWS, context.plan.n_samples))
    of_inputs = fits.of_inputs(inputs.recipe.encode, positions, int(np.prod(shape)))
    arrays |= landmarks | columns.arrays(sums) | _input_arrays(of_inputs)
    attributes = _attributes(asked, found, sums, columns)
    for line in _summary(arrays, attributes):
        context.progress.note(line)
    _seal(context, m, arrays, attributes)


@dataclass(frozen=True)
class _Columns:
    """Columns of the source that are compared."""

    names: list[str]
    codes: ColumnCodes
    compared: npt.NDArray[np.bool_]

    @classmethod
    def of_recipe(cls, recipe: RecipeInputs) -> _Columns:
        columns = recipe.source.columns
        kinds = ["numeric" if c.kind == "numeric" else "categorical" for c in columns]
        levels, compared = columns_of_levels(
            kinds, [len(c.categories) for c in columns], MOST_LEVELS
        )
        # Numbers are summed about their mean, so that squares do not cancel.
        shift = tuple(float(c.mean) if c.kind == "numeric" else 0.0 for c in columns)
        return cls([c.name for c in columns], ColumnCodes(levels, shift), compared)

    def arrays(self, sums: ConceptSums) -> Arrays:
        """Arrays of the store; none without columns."""
        if not self.names:
            return {}
        found = column_differences(sums.columns, self.codes)
        return {
            "column_difference": np.where(self.compared, found.difference, 0.0),
            "column_value": found.value,
            "column_overall": found.overall,
            "column_level": found.level,
        }


def _concept_arrays(found: DiscoveredConcepts, sums: ConceptSums) -> Arrays:
    return {
        "weights": found.concepts.weights,
        "const": found.concepts.const,
        "random_weights": found.random.weights,
        "random_const": found.random.const,
        "stability": found.stability,
        "stable": (found.stability >= STABLE).astype(np.int64),
        "count": sums.won[0, 0],
        "share": sums.share(),
        "view_agreement": sums.view_agreement(0),
    }


def _landmark_arrays(concepts: ConceptMap, landmark_kernel: Float, n_views: int) -> Arrays:
    """Activations of the landmarks, and the landmarks of the largest ones."""
    activation = concepts.activation(landmark_kernel)
    # Of a landmark with several rows the mean.
    by_landmark = mean_views(activation, n_views, axis=0)
    top = np.argsort(-by_landmark, axis=0, kind="stable")[:TOP_LANDMARKS].T
    return {
        "landmark_activation": activation,
        "landmark_concept": np.argmax(activation, axis=1).astype(np.int64),
        "top_landmark": np.ascontiguousarray(top).astype(np.int64),
        "top_activation": np.take_along_axis(by_landmark.T, top, axis=1),
    }


def _input_arrays(of_inputs: ConceptMap | None) -> Arrays:
    if of_inputs is None:
        return {}
    return {"input_weights": of_inputs.weights, "input_const": of_inputs.const}


def _attributes(
    asked: int,
    found: DiscoveredConcepts | None = None,
    sums: ConceptSums | None = None,
    columns: _Columns | None = None,
    reason: str = "",
) -> dict[str, Any]:
    known = found is not None and sums is not None
    count = len(found.stability) if found else 0
    return {
        "defined": known,
        "reason": reason,
        "asked": asked,
        "names": [f"concept {index}" for index in range(count)],
        "columns": columns.names if columns else [],
        "stable_above": STABLE,
        "rank": found.rank if found else 0,
        "fit_rows": found.n_rows if found else 0,
        "objective": list(found.objective) if found else [],
        "view_agreement": {
            "concepts": sums.overall_agreement(0) if sums else 0.0,
            "random": sums.overall_agreement(1) if sums else 0.0,
            "chance": sums.chance_agreement(0) if sums else 0.0,
        },
    }


def _seal(context: StageContext, m: int, arrays: Arrays, attributes: dict[str, Any]) -> None:
    """Write the store; without concepts its arrays are empty."""
    contract = load_contract("discovery")
    known = {name: len(values) for name, values in arrays.items() if name == "input_weights"}
    sizes = {
        "landmark": m,
        "concept": len(attributes["names"]),
        "rank": min(TOP_LANDMARKS, m),
        "column": len(attributes["columns"]),
        "input": known.get("input_weights", 0),
        "input_concept": arrays["input_const"].size if "input_const" in arrays else 0,
    }
    required = [name for name, array in contract.arrays.items() if not array.optional]
    spec = StoreSpec(contract, sizes, arrays=tuple({**dict.fromkeys(required), **arrays}))
    if not arrays:
        arrays = {name: np.zeros(spec.shape(name), spec.dtype(name)) for name in required}
    write_whole(context, spec, arrays, attributes)


def _summary(arrays: Arrays, attributes: dict[str, Any]) -> list[str]:
    """Lines for the terminal."""
    count, agreement = len(arrays["stability"]), attributes["view_agreement"]
    lines = [
        f"{count} concepts, {int(arrays['stable'].sum())} of them stable; both views show the same "
        f"one for {agreement['concepts']:.2f} of the samples, random directions "
        f"{agreement['random']:.2f}, chance {agreement['chance']:.2f}"
    ]
    if count < attributes["asked"]:
        lines.append(
            f"{attributes['asked']} concepts were asked for: the kernel has {attributes['rank']} "
            f"directions above its rounding, over {attributes['fit_rows']} samples"
        )
    return lines


def count_units(n_shards: int) -> int:
    """Fits and shards of the pass."""
    return STARTS + REFITS + 1 + n_shards


def estimate_cost(sizes: AuditSizes, settings: DiscoverySettings) -> Cost:
    """Fits on a bounded number of rows, and one pass over kernel and table."""
    n, m, views = sizes.plan.n_samples, sizes.n_landmarks, sizes.n_views
    k, q = min(settings.concepts, m), min(FIT_ROWS, n)
    inputs = min(INPUT_VALUES, q * MAX_INPUTS)
    fits = 2.0 * 2 * MAX_ROUNDS * k
    worker = Quantity.of(
        Term("kernel rows of a short range, float32 and float64", f64(min(ROWS, n), m), 1.5),
        Term("activations", f64(min(ROWS, n), k), 4),
        Term("winners of a block", f64(sizes.plan.block_rows, views), 4),
        Term("rows of the source", min(ROWS, n) * sizes.row_bytes, 2),
        Term("sums of columns by concept", f64(k, sizes.n_columns), 3),
    )
    return Cost(
        units=count_units(sizes.plan.n_shards),
        disk=Quantity.of(
            Term("weights and landmark activations", f64(m, k), 3),
            Term("control on inputs", f64(MAX_INPUTS, k)),
            Term("figures of the concepts", f64(k, 8 + 2 * TOP_LANDMARKS)),
        ),
        memory=_memory(m, k, q, inputs, worker),
        worker_memory=worker,
        parallel_tasks=sizes.plan.n_shards,
        flops=Quantity.of(
            Term("Nystrom map", 2.0 * q * m * m),
            Term("fits and refits", fits * q * m * (STARTS + REFITS / 2)),
            Term("fit on inputs", fits * inputs),
            Term("activations of all samples", 4.0 * n * views * m * k),
        ),
        scratch=Quantity.of(Term("centres of the fits", f64(k, m), STARTS + REFITS + 1)),
        bytes_read=Quantity.of(Term("kernel", float(n) * views * m * sizes.kernel_itemsize)),
    )


def _memory(m: int, k: int, q: int, inputs: int, worker: Quantity) -> Quantity:
    """Bytes of the process: m landmarks, k concepts, q fit rows, numbers in the fitted inputs."""
    mapped = Term("Nystrom map of the fit rows", f32(q, m))
    projection = Term("projection", f64(m, m))
    # Fits come before the pass over all samples: no worker holds anything yet.
    idle = Term("no worker yet", worker.bytes, -1)
    loaded = Term("scipy.optimize, for the matching", OPTIMIZE_BYTES)
    product = f64(READ_ROWS, m)
    return Quantity(
        {
            "eigenvectors": (Term("eigenvectors and their workspace", f64(m, m), 4), idle),
            "mapping": (
                mapped,
                projection,
                Term("rows of one product, and mapped", product, 2.5),
                idle,
            ),
            "fit": (
                mapped,
                Term("half of it", f32(q // 2, m)),
                Term("centres and their sums", f64(k, m), 4),
                Term("cosines and membership of a chunk", f32(CHUNK, k), 3),
                projection,
                loaded,
                idle,
            ),
            "inputs": (Term("inputs of the fit rows", f32(inputs)), loaded, idle),
            "pass": (loaded, projection),
        }
    )


STAGE = Stage(
    name="discovery",
    version=1,
    inputs=DiscoveryInputs,
    store="discovery",
    settings=DiscoverySettings,
    run=run,
    estimate_cost=estimate_cost,
    about="concepts found without labels",
    parallel="passes",
)
