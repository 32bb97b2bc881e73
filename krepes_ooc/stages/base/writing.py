"""Writing of stores, block by block or whole, and the files of partial results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from krepes_ooc.core.blocks import Block, BlockPlan
from krepes_ooc.core.files import Files
from krepes_ooc.core.partial_files import read_arrays, write_arrays
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.storage.contracts import StoreSpec
from krepes_ooc.storage.journal import Unit
from krepes_ooc.storage.store_writer import StoreWriter

BlockValues = Iterable[tuple[str, int, npt.NDArray[Any]]]


def write_blocks(
    context: StageContext,
    writer: StoreWriter,
    compute: Callable[[Block], tuple[BlockValues, str]],
    plan: BlockPlan | None = None,
) -> Files:
    """Compute and write the blocks that are not yet on disk, one task each.

    Args:
        context: the stage.
        writer: writer of its store, already created.
        compute: values of one block as (array, view, rows), and the hash of the source rows.
        plan: block plan of the rows (default: the plan of the features).

    Returns:
        Files of all blocks, for the seal.
    """
    plan = plan or context.plan
    record = context.record
    # Blocks with a journal line are complete on disk; only the others of this shard are computed.
    done = {name: dict(unit.files) for name, unit in record.done().items()}
    mine = (
        block for shard in context.my_shards(range(plan.n_shards)) for block in plan.shard(shard)
    )
    missing = [block for block in mine if block_name(block) not in done]
    context.progress.begin(context.stage.name, plan.n_blocks, plan.n_blocks - len(missing))

    def task(block: Block) -> tuple[str, Files]:
        values, content = compute(block)
        return write_unit(context, writer, block, values, content)

    # Files of finished and of new blocks together are the manifest of the seal.
    done.update(context.executor().map(task, missing))
    context.stop_after_shard()
    return {key: value for files in done.values() for key, value in files.items()}


def write_unit(
    context: StageContext, writer: StoreWriter, block: Block, values: BlockValues, content: str
) -> tuple[str, Files]:
    """Write the chunks of one block, then its journal line; name and files of the block."""
    files: Files = {}
    # Chunks first: a journal line promises that every chunk of its block is durable.
    for name, view, rows in values:
        files |= writer.write_block(name, block, rows, view)
    name = block_name(block)
    context.record.journal.append(Unit(name, files, numerics=context.numerics, content=content))
    context.progress.advance(1, sum(size for size, _ in files.values()))
    return name, files


def block_name(block: Block) -> str:
    """Name of a block in the journal."""
    return f"block {block.index}"


def seal_blocks(
    context: StageContext,
    writer: StoreWriter,
    files: Files,
    arrays: Mapping[str, npt.NDArray[Any]],
    attributes: Mapping[str, Any],
) -> None:
    """Write the remaining arrays and the attributes, then seal.

    Args:
        context: the stage.
        writer: writer of its store.
        files: files of the blocks.
        arrays: arrays whose size does not grow with n, by name.
        attributes: attributes of the store.
    """
    for name, values in arrays.items():
        files |= writer.write_array(name, values)
    writer.set_attributes(attributes)
    context.seal(files | writer.metadata_files())
    # A cached reader may have seen the store before its last arrays.
    context.workspace.drop_reader(writer.spec.contract.store)


def write_whole(
    context: StageContext,
    spec: StoreSpec,
    arrays: Mapping[str, npt.NDArray[Any]],
    attributes: Mapping[str, Any],
) -> None:
    """Write a store whose size does not grow with n in one go, and seal it."""
    context.stop.check()
    # A whole store has no resumable units: what an interrupted run left is removed.
    context.record.reset()
    writer = context.workspace.writer(spec, context.digest)
    writer.create()
    seal_blocks(context, writer, {}, arrays, attributes)
    context.progress.advance(1)


def pending_shards(context: StageContext, prefix: str) -> list[int]:
    """Shards whose partial result is missing or damaged."""
    shards = context.my_shards(range(context.plan.n_shards))
    return [i for i in shards if read_partial(context, partial_path(context, prefix, i)) is None]


def write_partial(
    context: StageContext, path: Path, arrays: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Write a partial result of this stage, bound to its digest and to its name."""
    write_arrays(path, arrays, context.record.temp, _partial_key(context, path))


def read_partial(context: StageContext, path: Path) -> dict[str, Any] | None:
    """A partial result of this stage; None if it is missing, damaged or of another run or name."""
    return read_arrays(path, _partial_key(context, path))


def _partial_key(context: StageContext, path: Path) -> str:
    """Digest and name that a partial result is bound to; empty if an earlier version began it."""
    return f"{context.digest}/{path.name}" if context.binds_partials else ""


def partial_path(context: StageContext, prefix: str, shard: int) -> Path:
    """File of one shard's partial result; removed when the stage is sealed."""
    return context.record.partials / f"{prefix}-{shard:06d}.npz"
