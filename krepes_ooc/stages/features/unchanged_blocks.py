"""Blocks of an earlier features store whose files are the same: linked instead of computed.

A block is taken over only if all that its bits depend on is recorded and equal: the fingerprint of
the stage but for the source, the source but for its files, probes, scales and layout of the rows as
they are measured now, the libraries and processor, and name and sha256 of every file of the block.
What no digest covers, such as code that the factory imports, shows in one batch of the first such
block, which is computed again and compared bit by bit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.files import disk_errors, remove_leftover, to_json
from krepes_ooc.errors import KrepesError
from krepes_ooc.sources.file_digests import read_file_digests
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.base.writing import block_name
from krepes_ooc.stages.features.featurizer import Featurizer, on_host
from krepes_ooc.storage.journal import Unit
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.store_reader import StoreReader

# Attributes that may differ: the outcome of the self-check on two samples, and the writer's stamp.
_FREE_ATTRIBUTES = {"self_check", "krepes"}


def link_unchanged_blocks(featurizer: Featurizer, attributes: Mapping[str, Any]) -> int:
    """Link the chunks of unchanged blocks from the archived store, and journal them.

    Args:
        featurizer: of the running stage, whose store is created and keeps its rows.
        attributes: of the new store, as they are measured now.

    Returns:
        Number of blocks that are linked.

    Raises:
        StageFailed: the disk is full.
    """
    context = featurizer.context
    record = context.record
    previous = record.archived()
    changed = _changed_positions(context, previous, attributes)
    if changed is None:
        return 0
    done = record.done()
    archived = previous.done()
    order = featurizer.recipe.order
    unchanged = [
        (block, archived[name])
        for shard in context.my_shards(range(context.plan.n_shards))
        for block in context.plan.shard(shard)
        if (name := block_name(block)) in archived
        and name not in done
        and archived[name].numerics == context.numerics
        and not changed[order.positions(block.start, block.stop)].any()
    ]
    if not unchanged:
        return 0
    if not is_reproduced(featurizer, previous, unchanged[0][0]):
        words = "gives other rows than in the earlier run: all blocks are computed again"
        context.progress.note(f"the network {words}")
        return 0
    for _, unit in unchanged:
        context.stop.check()
        _link(unit, previous, record)
    words = "blocks of the earlier run stay, because their files are the same"
    context.progress.note(f"{len(unchanged)} of {context.plan.n_blocks} {words}")
    return len(unchanged)


def is_reproduced(featurizer: Featurizer, record: StageRecord, block: Block) -> bool:
    """Whether the first batch of a block, computed now, has the bits of the rows on disk.

    Args:
        featurizer: computes the rows.
        record: of the stage that wrote the block, with feature rows in its store.
        block: on record there; one whose chunk is damaged is not reproduced.
    """
    assert record.store is not None
    stop = min(block.stop, block.start + featurizer.batch)
    positions = featurizer.recipe.order.positions(block.start, stop)
    rows = on_host(featurizer.rows_on_device(positions, 0)[0], featurizer.context.device)
    try:
        stored = StoreReader(record.store, record=record).block("values", block, 0)
    except KrepesError:
        return False
    return np.asarray(stored)[: len(rows)].tobytes() == rows.tobytes()


def _changed_positions(
    context: StageContext, previous: StageRecord, attributes: Mapping[str, Any]
) -> npt.NDArray[np.bool_] | None:
    """Positions [position] whose file differs; None if no block of the archive can be used."""
    try:
        stored = previous.begun()
    except KrepesError:
        return None
    if stored is None or previous.store is None:
        return None
    # All but the source: versions, seed, settings, network, views, block plan.
    now = dict(context.fingerprint)
    then = {key: stored.get(key) for key in now}
    sources = [_take_source(then), _take_source(now)]
    if to_json(then) != to_json(now):
        return None
    # Scales and probes are measured on samples: those of a changed sample may differ.
    with contextlib.suppress(KrepesError):
        archived = StoreReader(previous.store, record=previous).attributes
        if _compared(archived) == _compared(attributes):
            cache = context.record.private / "cache"
            old, new = (read_file_digests(cache, digest) for digest in sources)
            return None if old is None or new is None else new.changed(old)
    return None


def _take_source(fingerprint: dict[str, Any]) -> object:
    """Digest of the source, which is removed from the fingerprint."""
    inputs = dict(fingerprint.get("inputs") or {})
    digest = inputs.pop("source", None)
    fingerprint["inputs"] = inputs
    return digest


def _compared(attributes: Mapping[str, Any]) -> str:
    return to_json({k: value for k, value in attributes.items() if k not in _FREE_ATTRIBUTES})


def _link(unit: Unit, previous: StageRecord, record: StageRecord) -> None:
    """Link or copy the chunks of one block, then write its journal line."""
    for key, (size, _) in unit.files.items():
        source = previous.base / key
        target = record.base / key
        with disk_errors(target, size):
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(source, target, record.temp)
    record.journal.append(Unit(unit.name, unit.files, numerics=unit.numerics, content=unit.content))


def _replace(source: Path, target: Path, temp: Path) -> None:
    """Make ``target`` the same file as ``source``, by one rename.

    Chunks are never written in place, so two names of one file are safe.
    """
    unfinished = temp / f"{uuid.uuid4().hex}.chunk"
    try:
        try:
            os.link(source, unfinished)
        except OSError:
            # File systems without hard links.
            shutil.copyfile(source, unfinished)
        unfinished.replace(target)
    finally:
        remove_leftover(unfinished)
