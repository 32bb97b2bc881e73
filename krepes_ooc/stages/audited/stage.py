"""Stage audited: the samples that are explained, and those that fit probes and ceilings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.blocks import Block
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import UsageError
from krepes_ooc.sources.base import Source, check_samples, sample_positions
from krepes_ooc.sources.display import describe_columns, display_arrays
from krepes_ooc.stages.base.cost import ROW_PASSES, Cost, Quantity, Term, f16, f32, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import BlockValues, seal_blocks, write_blocks
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.featurizer import (
    batch_term,
    input_terms,
    open_featurizer,
    unscale_rows,
)
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.views.spec import CLEAN

ROLES = {"audit": 0, "fit": 1, "concept": 2}
_CHOICE_STREAM = 311
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AuditedSettings:
    """Recipe key ``stages.audited``."""

    audit: int = setting(
        1000, about="samples that are explained, at most a quarter of all", minimum=1
    )
    fit: int = setting(10_000, about="further samples that fit probes and ceilings", minimum=0)
    sample_ids: tuple[int, ...] = setting(
        (), about="samples to explain instead of a draw", minimum=0
    )


def check_sample_ids(settings: AuditedSettings, source: Source, n_landmarks: int) -> None:
    """Raise if no audited samples can be chosen.

    Args:
        settings: settings of the stage.
        source: of the samples.
        n_landmarks: landmarks m.

    Raises:
        UsageError: a sample id outside the source, or nothing is left to explain.
    """
    check_samples(source, settings.sample_ids, "stages.audited.sample_ids")
    n_samples = source.n_samples
    if not settings.sample_ids and n_landmarks >= n_samples:
        raise UsageError(
            f"all {n_samples} samples are landmarks, none is left to explain",
            where="stages.landmarks.count",
            expected=f"at most {n_samples - 1}",
            advice="choose fewer landmarks, or name stages.audited.sample_ids",
        )


def choose_audited(
    settings: AuditedSettings, source: Source, landmarks: Ids, seed: int
) -> tuple[Ids, Ids]:
    """Sample ids [audited] and their roles [audited]; drawn samples are never landmarks.

    Args:
        settings: settings of the stage.
        source: of the samples.
        landmarks: sample ids of the landmarks [landmark].
        seed: seed of the recipe.

    Raises:
        UsageError: a sample id outside the source, or nothing is left to explain.
    """
    check_sample_ids(settings, source, len(landmarks))
    n_samples = source.n_samples
    named = np.unique(np.array(settings.sample_ids, dtype=np.int64))
    n_audit = 0 if len(named) else min(settings.audit, max(1, n_samples // 4))
    # A keyed permutation of the samples, as far as enough remain without landmarks and named ones.
    keyed = int(counter_rng.bits(seed, _CHOICE_STREAM))
    indices = counter_rng.Bijection(n_samples, keyed)(
        np.arange(min(n_samples, n_audit + settings.fit + len(landmarks) + len(named)))
    )
    drawn = sample_positions(source, indices)
    free = drawn[~np.isin(drawn, np.concatenate([landmarks, named]))]
    # Its first samples are explained, the next ones fit probes: the two sets never overlap.
    audit = np.sort(named if len(named) else free[:n_audit])
    fit = np.sort(free[n_audit : n_audit + settings.fit])
    roles = [ROLES["audit"]] * len(audit) + [ROLES["fit"]] * len(fit)
    return np.concatenate([audit, fit]), np.array(roles, dtype=np.int64)


@dataclass(frozen=True)
class AuditedInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    recipe: RecipeInputs = recipe_parts("source", "labels", "network")


def run(inputs: AuditedInputs, context: StageContext) -> None:
    """Compute clean feature rows and network embeddings of the audited samples, seal."""
    recipe = inputs.recipe
    sample_id, role = choose_audited(
        context.settings,
        recipe.source,
        inputs.landmarks.array("sample_id"),
        recipe.seed,
    )
    featurizer = open_featurizer(inputs.features, recipe, context)
    # Raw values, images, labels and names of the samples, for report and late stages.
    display = display_arrays(recipe.source, sample_id)
    arrays = {**display.arrays, "role": role}
    sizes = {
        **display.sizes,
        "audited": len(sample_id),
        "feature": featurizer.layout.n_features,
        "output": len(featurizer.shared.outputs),
    }
    spec = StoreSpec(
        load_contract("audited"),
        sizes,
        block_rows=context.plan.block_rows,
        arrays=(*arrays, "features", "self_kernel", "network_embedding"),
        array_attributes=display.array_attributes,
    )
    writer = context.workspace.writer(spec, context.digest)
    writer.create()

    def compute(block: Block) -> tuple[BlockValues, str]:
        positions = sample_id[block.start : block.stop]
        stored, embedding, content = featurizer.rows(positions, CLEAN)

        def values() -> Iterator[tuple[str, int, npt.NDArray[Any]]]:
            rows = unscale_rows(stored, featurizer.layout)
            yield "features", 0, stored
            yield "self_kernel", 0, np.asarray(inner_products.self_kernel(rows, featurizer.layout))
            yield "network_embedding", 0, embedding

        return values(), content

    # The audited samples in blocks of the plan's length: resumable like the n-sized stores.
    plan = replace(context.plan, n_samples=len(sample_id))
    files = write_blocks(context, writer, compute, plan)
    attributes = {"roles": ROLES, "columns": describe_columns(recipe.source)}
    seal_blocks(context, writer, files, arrays, attributes)


def estimate_cost(sizes: AuditSizes, settings: AuditedSettings) -> Cost:
    """Clean rows of the audited samples."""
    width = sizes.n_features
    block_rows = sizes.plan.block_rows
    n_blocks = -(-sizes.n_audited // block_rows)
    stored_rows = n_blocks * block_rows
    # A short block is computed at its own length and stored at full length.
    rows = min(block_rows, sizes.n_audited)
    return Cost(
        units=n_blocks,
        disk=Quantity.of(
            Term("feature rows", f16(stored_rows, width)),
            Term("network embedding", f32(stored_rows, sizes.n_outputs)),
            Term("k(x, x)", f64(stored_rows)),
        ),
        worker_memory=Quantity.of(
            Term("feature rows of a block in float16, in batches and joined", f16(rows, width), 3),
            Term("unscaled feature rows of a block and their squares", f32(rows, width), 2),
            *input_terms(sizes, rows),
            batch_term(sizes),
        ),
        parallel_tasks=n_blocks,
        flops=Quantity.of(Term(ROW_PASSES, sizes.row_operations * sizes.n_audited)),
    )


STAGE = Stage(
    name="audited",
    version=1,
    inputs=AuditedInputs,
    store="audited",
    settings=AuditedSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="samples that are explained, and those that fit probes",
    parallel="passes",
)
