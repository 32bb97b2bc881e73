"""Stage features: Jacobian rows of every view of every sample, written block by block.

With ``persist: never`` the rows are computed, summed into the centre and condensed, but not stored;
the store then holds k(x, x), the centre and the condensed rows of view 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.feature_layout import CONDENSED_WIDTH, FeatureLayout, sketch_layout
from krepes_ooc.core.files import Files
from krepes_ooc.core.settings import to_mapping
from krepes_ooc.engine.executor import tree_reduce
from krepes_ooc.errors import StageFailed
from krepes_ooc.jacobian.feature_map import FeatureMap
from krepes_ooc.stages.base.cost import ROW_PASSES, Cost, Quantity, Term, f16, f32, f64
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import (
    block_name,
    partial_path,
    read_partial,
    seal_blocks,
    write_partial,
    write_unit,
)
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.condensed import CountSketch
from krepes_ooc.stages.features.featurizer import (
    PART_ROWS,
    ComputedRowSource,
    FeaturesSettings,
    Featurizer,
    RowSource,
    StoredRowSource,
    computing_flops,
    computing_terms,
    keeps_features,
    on_host,
    row_chunks,
    self_kernel,
    unscale_rows,
)
from krepes_ooc.stages.features.resumed_rows import open_rows
from krepes_ooc.stages.features.row_cost_record import describe_rows, save_row_cost
from krepes_ooc.stages.features.unchanged_blocks import link_unchanged_blocks
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.store_writer import StoreWriter
from krepes_ooc.views.spec import CLEAN

Values = list[tuple[str, int, npt.NDArray[Any]]]
# Arrays of every features store, of one with feature rows, and of one without.
_ALWAYS = ("self_kernel", "sample_id", "centre")
_FULL = ("values",)
_CONDENSED = ("condensed", "condensed_self", "condensed_centre")


@dataclass(frozen=True)
class FeaturesInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    recipe: RecipeInputs = recipe_parts("source", "network", "views")


def run(inputs: FeaturesInputs, context: StageContext) -> None:
    """Compute and write the missing blocks, reduce the centre, seal."""
    recipe = inputs.recipe
    shared, layout = open_rows(recipe, context)
    _note_network_device(context)
    # Before the first block: the network gives the gradients that are expected.
    check = _check_gradients(recipe, context, shared)
    _record_row_cost(recipe, context, shared)
    writer = context.workspace.writer(_spec(recipe, context, layout), context.digest)
    writer.create()
    attributes = _attributes(recipe, context, shared, layout, check)
    # Attributes precede the first block, so that an interrupted run can be resumed from them.
    writer.set_attributes(attributes)
    featurizer = Featurizer(recipe, context, context.settings, shared, layout)
    # The centre is summed anew from all blocks: rows that are not stored would be computed for it.
    if keeps_features(context):
        link_unchanged_blocks(featurizer, attributes)
    shards = FeatureShards(recipe, context, featurizer, writer)
    files = shards.run()
    if recipe.encoding_facts:
        # A fact of the run, from which later stages may judge what the network was shown.
        context.seal_facts["encoding"] = recipe.encoding_facts
    seal_blocks(context, writer, files, shards.centres(), attributes)


def _attributes(
    recipe: RecipeInputs,
    context: StageContext,
    shared: FeatureMap,
    layout: FeatureLayout,
    check: dict[str, Any],
) -> dict[str, Any]:
    """Attributes of the store, with the outcome of the self-check."""
    described = shared.describe()
    return {
        "probes": described.pop("probes"),
        "layout": layout.to_attributes(),
        "network": described,
        "self_check": check,
        "block_plan": context.plan.to_attributes(),
        "views": recipe.views.describe(),
        "order": {"kind": recipe.source_spec.order, "seed": recipe.seed},
    }


def _check_gradients(
    recipe: RecipeInputs, context: StageContext, shared: FeatureMap
) -> dict[str, Any]:
    """Outcome of the self-check on two clean samples, as attributes."""
    from krepes_ooc.jacobian.self_check import self_check

    positions = recipe.order.positions(0, min(2, context.plan.n_samples))
    report = self_check(recipe.network, shared, recipe.encode(positions, CLEAN)[0])
    context.progress.note(f"self-check: {report.words}")
    # Attributes hold no times: a store has the same bytes in every run.
    return {key: value for key, value in to_mapping(report).items() if key != "seconds"}


def _record_row_cost(recipe: RecipeInputs, context: StageContext, shared: FeatureMap) -> None:
    """Measure the cost of a row, note it for the user and keep it for plan and report."""
    words, cost = describe_rows(shared, context.settings, recipe.calibration())
    assert context.sizes is not None
    save_row_cost(context.workspace, context.digest, cost, context.sizes)
    context.progress.note("; ".join(f"{key}: {text}" for key, text in words.items()))


def _note_network_device(context: StageContext) -> None:
    """Note that the network runs on the CPU although blocks are computed on a device."""
    from krepes_ooc.network.torch_device import available_device

    if available_device(context.device.torch) != context.device.torch:
        words = "this torch has no CUDA (pip install a build that has)"
        context.progress.note(f"the network runs on the CPU: {words}")


@dataclass(frozen=True)
class FeatureShards:
    """The shards of one run: a shard writes its missing blocks and sums all of its rows.

    Args:
        recipe: source, network and views.
        context: the running stage.
        featurizer: computes stored rows.
        writer: of the features store, already created.
    """

    recipe: RecipeInputs
    context: StageContext
    featurizer: Featurizer
    writer: StoreWriter

    @property
    def layout(self) -> FeatureLayout:
        """Layout of the stored rows."""
        return self.featurizer.layout

    @property
    def keeps_rows(self) -> bool:
        """Whether feature rows are stored."""
        return keeps_features(self.context)

    @property
    def views(self) -> range:
        """Indices of the views."""
        return range(self.recipe.view_spec.count)

    @cached_property
    def condenser(self) -> CountSketch:
        """The map to condensed rows."""
        return CountSketch(self.layout, self.recipe.seed)

    @cached_property
    def recompute_source(self) -> RowSource:
        """Rows of blocks that an earlier run wrote but did not add to the centre."""
        features: StoreReader = self.context.output()
        if self.keeps_rows:
            return StoredRowSource(features)
        return ComputedRowSource(self.featurizer, features)

    def run(self) -> Files:
        """Compute the missing blocks of all shards of this process.

        Returns:
            Files of all blocks, for the seal.
        """
        context = self.context
        plan = context.plan
        done = context.record.done()
        context.progress.begin("features", plan.n_blocks, len(done))
        files = {key: value for unit in done.values() for key, value in unit.files.items()}
        # A task is a shard, because the centre is summed shard by shard in a fixed order.
        shards = context.my_shards(range(plan.n_shards))
        for written in context.executor().map(partial(self._shard, done=set(done)), shards):
            files |= written
        context.stop_after_shard()
        return files

    def centres(self) -> dict[str, npt.NDArray[np.float64]]:
        """Mean feature moment over all views and samples; without stored rows the condensed too."""
        # A fixed tree over the shards gives the same bits for any number of workers.
        total = tree_reduce(self.context.plan.n_shards, self._shard_sum, np.add)
        mean = np.asarray(total / (self.context.plan.n_samples * len(self.views)))
        centre, condensed = np.split(mean, [self.layout.n_moments])
        return {"centre": centre} | ({} if self.keeps_rows else {"condensed_centre": condensed})

    def _shard_sum(self, index: int) -> npt.NDArray[np.float64]:
        """Moment sum of a finished shard, from its partial result.

        Raises:
            StageFailed: the partial result was damaged after it was written.
        """
        n_summed, total = self._partial_sum(index)
        if n_summed < len(self.context.plan.shard(index)):
            raise StageFailed(
                f"the partial centre of shard {index} is damaged",
                where="features",
                advice="run the same command again: it is computed anew",
            )
        return total

    def _partial_sum(self, index: int) -> tuple[int, npt.NDArray[np.float64]]:
        """Number of blocks of a shard that are summed already, and their moment sum."""
        part = read_partial(self.context, partial_path(self.context, "centre", index))
        if part is not None:
            return int(part["blocks"]), part["centre"]
        return 0, np.zeros(self.layout.n_moments + (0 if self.keeps_rows else CONDENSED_WIDTH))

    def _shard(self, index: int, done: set[str]) -> Files:
        """Write the missing blocks of one shard and sum the moments of all of its rows.

        Args:
            index: of the shard.
            done: names of the blocks on disk.

        Returns:
            The files written.
        """
        written: Files = {}
        blocks = self.context.plan.shard(index)
        n_summed, total = self._partial_sum(index)
        for position, block in enumerate(blocks):
            self.context.stop.check()
            rows: list[Any] = []
            if block_name(block) not in done:
                rows, files = self._block(block)
                written |= files
            if position < n_summed:
                continue
            # A block on disk whose moments are not summed yet: its rows are read or recomputed.
            rows = rows or [self.recompute_source.rows(block, view) for view in self.views]
            total = total + self._moment_sum(rows)
            # Rows that are not stored are expensive to sum again: their sum is saved every block.
            if not self.keeps_rows or position == len(blocks) - 1:
                part = {"centre": total, "blocks": np.array(position + 1)}
                path = partial_path(self.context, "centre", index)
                write_partial(self.context, path, part)
        return written

    def _block(self, block: Block) -> tuple[list[Any], Files]:
        """Compute and write one block.

        Returns:
            Its stored rows [sample, feature] for each view, on host or device, and its files.
        """
        device = self.context.device
        positions = self.recipe.order.positions(block.start, block.stop)
        values: Values = [("sample_id", 0, positions)]
        rows = []
        content = ""
        # Rows and k(x, x) of every view, from one featurizer pass each.
        for view in self.views:
            stored, content = self.featurizer.rows_on_device(positions, view)
            values.append(("self_kernel", view, self_kernel(stored, self.layout, device)))
            rows.append(stored)
        if self.keeps_rows:
            values += [
                ("values", view, on_host(stored, device)) for view, stored in enumerate(rows)
            ]
        else:
            # Landmarks are chosen on view 0, so only its condensed rows are stored.
            parts = row_chunks(on_host(rows[0], device))
            condensed = np.concatenate(
                [self.condenser.rows(unscale_rows(part, self.layout)) for part in parts]
            )
            k_xx = inner_products.self_kernel(condensed, sketch_layout(CONDENSED_WIDTH))
            values += [("condensed", 0, condensed), ("condensed_self", 0, np.asarray(k_xx))]
        return rows, write_unit(self.context, self.writer, block, values, content)[1]

    def _moment_sum(self, rows: Sequence[Any]) -> npt.NDArray[np.float64]:
        """Summed feature moment [moment] of stored rows, followed by that of condensed rows.

        Args:
            rows: stored rows [sample, feature] of every view.
        """
        total: Any = 0.0
        condensed = np.zeros(CONDENSED_WIDTH)
        device = self.context.device
        for part in (part for stored in rows for part in row_chunks(stored)):
            unscaled = unscale_rows(part, self.layout, device)
            total += inner_products.centre_sum(unscaled, self.layout)
            # The centre of condensed rows is only needed where landmarks are chosen by them.
            if not self.keeps_rows:
                short = self.condenser.rows(device.to_host(unscaled))
                condensed += short.sum(axis=0, dtype=np.float64)
        centre: npt.NDArray[np.float64] = device.to_host(total)
        return centre if self.keeps_rows else np.concatenate([centre, condensed])


def _spec(recipe: RecipeInputs, context: StageContext, layout: FeatureLayout) -> StoreSpec:
    """Sizes and arrays of the features store."""
    sizes = {
        "view": recipe.view_spec.count,
        "sample": context.plan.n_samples,
        "feature": layout.n_features,
        "moment": layout.n_moments,
        "condensed_feature": CONDENSED_WIDTH,
    }
    arrays = _ALWAYS + (_FULL if keeps_features(context) else _CONDENSED)
    contract = load_contract("features")
    return StoreSpec(contract, sizes, block_rows=context.plan.block_rows, arrays=arrays)


def estimate_cost(sizes: AuditSizes, settings: FeaturesSettings) -> Cost:
    """Three times the forward pass for each probe, and the arrays of the store."""
    plan = sizes.plan
    width = sizes.n_features
    views = sizes.n_views
    block = f16(plan.block_rows, width)
    moments = f64(sizes.n_moments)
    disk = [
        Term("centre", moments),
        Term("k(x, x) of every view", f64(sizes.stored_rows), views),
        Term("sample ids", f64(sizes.stored_rows)),
    ]
    scratch = []
    if sizes.keeps_features:
        disk.append(Term("feature rows of every view", f16(sizes.stored_rows, width), views))
    else:
        disk += [
            Term("condensed rows", f32(sizes.stored_rows, CONDENSED_WIDTH)),
            Term("k(x, x) of condensed rows", f64(sizes.stored_rows)),
            Term("centre of condensed rows", f64(CONDENSED_WIDTH)),
        ]
        # With stored rows the sums are small beside them, and not counted.
        scratch.append(Term("moment sums", f64(sizes.n_moments + CONDENSED_WIDTH), plan.n_shards))
    sums = Term("moment sums of shard, block and product", moments, 3)
    worker = Quantity.of(
        Term("stored rows of a block in every view", block, views),
        *computing_terms(sizes),
        sums,
    )
    return Cost(
        units=plan.n_blocks,
        disk=Quantity.of(*disk),
        memory=_fixed_memory(sizes, worker),
        worker_memory=worker,
        parallel_tasks=plan.n_shards,
        flops=Quantity.of(
            Term(ROW_PASSES, computing_flops(sizes)),
            Term("moment sums", 2.0 * sizes.n_moments * plan.n_samples * views),
        ),
        scratch=Quantity.of(*scratch),
        # Rows that torch computed on the device stay there until their moments are summed.
        device_task_memory=Quantity.of(
            Term(
                "stored rows of a block in every view, one of them being joined", block, views + 1
            ),
            Term("unscaled rows of a product", f32(PART_ROWS, width), 4),
            sums,
        ),
    )


def _fixed_memory(sizes: AuditSizes, worker: Quantity) -> Quantity:
    """Memory of the process: the network is opened before any worker computes."""
    phases: dict[str, tuple[Term, ...]] = {"rows": (Term("centre", f64(sizes.n_moments)),)}
    if sizes.opening_bytes:
        phases["opening"] = (
            Term("opening and self-check of the network, measured", sizes.opening_bytes),
            Term("memory of one worker", worker.bytes, -1),
        )
    return Quantity(phases)


STAGE = Stage(
    name="features",
    version=2,
    inputs=FeaturesInputs,
    store="features",
    settings=FeaturesSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="Jacobian rows of every view of every sample",
    parallel="shards",
)
