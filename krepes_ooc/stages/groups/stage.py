"""Stage groups: the group of every sample in every partition, from one pass over the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block, BlockPlan
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.errors import UsageError
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f32, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, optional_store, recipe_parts
from krepes_ooc.stages.base.writing import BlockValues, seal_blocks, write_blocks
from krepes_ooc.stages.discovery.concept_map import ConceptMap
from krepes_ooc.stages.discovery.stored_concepts import block_winners, read_concept_map
from krepes_ooc.stages.groups.declared import (
    GroupsSettings,
    Partition,
    columns_left_out,
    declare_partitions,
    left_out_line,
)
from krepes_ooc.stages.groups.partitions import NONE, cluster_landmarks, nearest_landmark
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

Codes = npt.NDArray[np.int64]
ROWS = 1024


@dataclass(frozen=True)
class GroupsInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    kernel: StoreReader
    discovery: StoreReader | None = optional_store("concepts")
    recipe: RecipeInputs = recipe_parts("source", "labels")


def run(inputs: GroupsInputs, context: StageContext) -> None:
    """Code every sample block by block, count the groups, seal.

    Raises:
        UsageError: a declared group has no sample, or the declaration cannot be read.
    """
    views, _, m = inputs.kernel.info("values").shape
    source = inputs.recipe.source
    concepts = None if inputs.discovery is None else read_concept_map(inputs.discovery)
    n_concepts = 0 if concepts is None else len(concepts.const)
    partitions = declare_partitions(
        context.settings, source, inputs.recipe.base, m, n_concepts, inputs.recipe.seed
    )
    if note := left_out_line(columns_left_out(context.settings, source)):
        context.progress.note(note)
    clusters = _landmark_clusters(inputs, partitions)
    by_kernel = _codes_by_kernel(inputs, clusters, concepts, views)
    group_of = [(p, c) for p, part in enumerate(partitions) for c in range(len(part.groups))]
    sizes = {
        "sample": context.plan.n_samples,
        "partition": len(partitions),
        "group": len(group_of),
        "landmark": m,
    }
    spec = StoreSpec(load_contract("groups"), sizes, block_rows=context.plan.block_rows)
    writer = context.workspace.writer(spec, context.digest)
    writer.create()
    files = write_blocks(context, writer, _coder(inputs, partitions, by_kernel))
    count = _counts(context.output(), context.plan, partitions)
    _refuse_empty(partitions, count)
    arrays = {
        "landmark_cluster": clusters,
        "partition": np.array([p for p, _ in group_of], dtype=np.int64),
        "code": np.array([c for _, c in group_of], dtype=np.int64),
        "count": count,
    }
    attributes = _attributes(partitions)
    seal_blocks(context, writer, files, arrays, attributes)


def _attributes(partitions: Sequence[Partition]) -> dict[str, Any]:
    """Names of the groups and of their partitions."""
    return {
        "names": [name for part in partitions for name in part.groups],
        "partitions": [{"kind": part.kind, "name": part.name} for part in partitions],
    }


def _coder(
    inputs: GroupsInputs,
    partitions: Sequence[Partition],
    by_kernel: Mapping[str, Callable[[Block], Codes]],
) -> Callable[[Block], tuple[BlockValues, str]]:
    """Task that codes the samples of a block in every partition."""
    source = inputs.recipe.source
    needs_rows = any(part.kind in ("column", "range") for part in partitions)

    def compute(block: Block) -> tuple[BlockValues, str]:
        positions = inputs.recipe.order.positions(block.start, block.stop)
        rows = source.read(positions) if needs_rows else None
        labels = source.labels(positions)
        # Clusters and concepts are coded from the kernel, all others from the sample itself.
        level = np.empty((block.rows, len(partitions)), dtype=np.int64)
        for index, part in enumerate(partitions):
            from_kernel = by_kernel.get(part.kind)
            level[:, index] = (
                from_kernel(block) if from_kernel else part.codes(positions, rows, labels)
            )

        def values() -> Iterator[tuple[str, int, npt.NDArray[Any]]]:
            yield "level", 0, level
            yield "sample_id", 0, positions

        return values(), ""

    return compute


def _codes_by_kernel(
    inputs: GroupsInputs, clusters: Codes, concepts: ConceptMap | None, views: int
) -> dict[str, Callable[[Block], Codes]]:
    """Codes of a block's samples in the partitions that the kernel defines, by kind."""

    def of_clusters(block: Block) -> Codes:
        return clusters[_nearest(inputs.kernel, block, views)]

    def of_concepts(block: Block) -> Codes:
        assert concepts is not None
        return block_winners(concepts, inputs.kernel, block, view=0)

    return {"landmarks": of_clusters, "concepts": of_concepts}


def _landmark_clusters(inputs: GroupsInputs, partitions: Sequence[Partition]) -> Codes:
    """Cluster of every landmark, by the landmark kernel; -1 where they are not clustered."""
    asked = [len(part.groups) for part in partitions if part.kind == "landmarks"]
    kernel = np.asarray(inputs.kernel.whole("landmark_kernel"))
    if not asked:
        return np.full(len(kernel), NONE, dtype=np.int64)
    return cluster_landmarks(kernel, asked[0], inputs.recipe.seed)


def _nearest(kernel: StoreReader, block: Block, views: int) -> Codes:
    """Nearest landmark of every row of a block, a short range of rows at a time."""
    stored = [kernel.block("values", block, view) for view in range(views)]
    cuts = [slice(start, start + ROWS) for start in range(0, block.rows, ROWS)]
    return np.concatenate([nearest_landmark([to_float32(K[cut]) for K in stored]) for cut in cuts])


def _counts(reader: StoreReader, plan: BlockPlan, partitions: Sequence[Partition]) -> Codes:
    """Samples of every group [group]."""
    counts = [np.zeros(len(part.groups), dtype=np.int64) for part in partitions]
    for block in plan.blocks():
        level = reader.block("level", block)
        for index, count in enumerate(counts):
            codes = level[:, index]
            count += np.bincount(codes[codes >= 0], minlength=len(count))
    return np.concatenate(counts)


def _refuse_empty(partitions: Sequence[Partition], count: Codes) -> None:
    """Refuse a named range without samples; levels that no sample shows stay, with count 0."""
    kinds = [(part.kind, name) for part in partitions for name in part.groups]
    for (kind, name), samples in zip(kinds, count, strict=True):
        if kind == "range" and not samples:
            raise UsageError(
                f"no sample has {name}",
                where="stages.groups.ranges",
                expected="edges inside the values of the column",
            )


def estimate_cost(sizes: AuditSizes, settings: GroupsSettings) -> Cost:
    """One pass over source and kernel; landmarks are clustered first."""
    m, rows, views = sizes.n_landmarks, sizes.plan.block_rows, sizes.n_views
    codes = max(1, sizes.n_partitions)
    worker = Quantity.of(
        Term("kernel rows of a short range", f32(min(rows, ROWS), m), views + 2),
        Term("codes and positions of a block", f64(rows, codes + 3), 2),
        Term("rows of the source, and one column of them", rows * sizes.row_bytes, 2),
    )
    return Cost(
        units=sizes.plan.n_blocks,
        disk=Quantity.of(Term("codes and positions", f64(sizes.stored_rows, codes + 1))),
        memory=Quantity.of(Term("landmark kernel and its products", f64(m, m), 2)),
        worker_memory=worker,
        parallel_tasks=sizes.plan.n_blocks,
        flops=Quantity.of(Term("sums and comparisons", float(sizes.plan.n_samples) * m * views)),
    )


STAGE = Stage(
    name="groups",
    version=1,
    inputs=GroupsInputs,
    store="groups",
    settings=GroupsSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="which samples belong to which group",
    parallel="passes",
)
