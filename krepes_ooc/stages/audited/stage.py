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
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.errors import UsageError
from krepes_ooc.sources.display import describe_columns, display_arrays
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.inputs import CLEAN
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import BlockValues, seal_blocks, write_blocks
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.featurizer import open_featurizer, unscale_rows
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

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


def check_sample_ids(settings: AuditedSettings, n_samples: int, n_landmarks: int) -> None:
    """Refuse a choice that cannot be made.

    Raises:
        UsageError: a sample id outside the source, or nothing is left to explain.
    """
    wrong = [i for i in settings.sample_ids if i >= n_samples]
    if wrong:
        raise UsageError(
            f"no sample {wrong[0]}",
            where="stages.audited.sample_ids",
            expected=f"0 to {n_samples - 1}",
        )
    if not settings.sample_ids and n_landmarks >= n_samples:
        raise UsageError(
            f"all {n_samples} samples are landmarks, none is left to explain",
            where="stages.landmarks.count",
            expected=f"at most {n_samples - 1}",
            advice="choose fewer landmarks, or name stages.audited.sample_ids",
        )


def choose_audited(
    settings: AuditedSettings, n_samples: int, landmarks: Ids, seed: int
) -> tuple[Ids, Ids]:
    """Sample ids and their roles; drawn samples are never landmarks.

    Raises:
        UsageError: a sample id outside the source, or nothing is left to explain.
    """
    check_sample_ids(settings, n_samples, len(landmarks))
    named = np.unique(np.array(settings.sample_ids, dtype=np.int64))
    wanted = 0 if len(named) else min(settings.audit, max(1, n_samples // 4))
    keyed = int(counter_rng.bits(seed, _CHOICE_STREAM))
    drawn = counter_rng.Bijection(n_samples, keyed)(
        np.arange(min(n_samples, wanted + settings.fit + len(landmarks) + len(named)))
    )
    free = drawn[~np.isin(drawn, np.concatenate([landmarks, named]))]
    audit = np.sort(named if len(named) else free[:wanted])
    fit = np.sort(free[wanted : wanted + settings.fit])
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
    n, landmarks = context.plan.n_samples, context.reader("landmarks").array("sample_id")
    sample_id, role = choose_audited(context.settings, n, landmarks, context.recipe.seed)
    featurizer = open_featurizer(context)
    shown = display_arrays(context.recipe.source, sample_id)
    arrays = {**shown.arrays, "role": role}
    sizes = {
        **shown.sizes,
        "audited": len(sample_id),
        "feature": featurizer.layout.n_features,
        "output": len(featurizer.shared.outputs),
    }
    spec = StoreSpec(
        load_contract("audited"),
        sizes,
        block_rows=context.plan.block_rows,
        arrays=(*arrays, "features", "self_kernel", "network_embedding"),
        array_attributes=shown.array_attributes,
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

    plan = replace(context.plan, n_samples=len(sample_id))
    files = write_blocks(context, writer, compute, plan)
    attributes = {"roles": ROLES, "columns": describe_columns(context.recipe.source)}
    seal_blocks(context, writer, files, arrays, attributes)


def predict(shape: AuditSizes, settings: AuditedSettings) -> Cost:
    """Rows of the audited samples."""
    width, rows = shape.n_features, min(shape.plan.block_rows, shape.n_audited)
    blocks = -(-shape.n_audited // shape.plan.block_rows)
    disk = blocks * shape.plan.block_rows * (2 * width + 4 * shape.n_outputs + 8)
    per_worker = 14 * rows * width + 16 * shape.plan.forward_batch * width
    return plain_cost(
        blocks, disk, MemoryNeed(0, per_worker, blocks), 6.0 * shape.n_parameters * shape.n_audited
    )


STAGE = Stage(
    name="audited",
    version=1,
    inputs=AuditedInputs,
    store="audited",
    settings=AuditedSettings,
    run=run,
    estimate_cost=predict,
    about="samples that are explained, and those that fit probes",
    parallel="passes",
)
