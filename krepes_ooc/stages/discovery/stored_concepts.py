"""Discovered concepts as the sealed store holds them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block, BlockPlan
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.stages.discovery.concept_map import ConceptMap
from krepes_ooc.storage.store_reader import StoreReader

# Rows of one product: a constant, so that no budget changes a bit.
ROWS = 1024


def read_concept_map(discovery: StoreReader, prefix: str = "") -> ConceptMap:
    """Activation of the concepts, or of one of their controls.

    Args:
        discovery: the store ``discovery``.
        prefix: of the arrays: ``random_`` or ``input_`` for a control.
    """
    return ConceptMap(
        discovery.array(f"{prefix}weights"),
        discovery.array(f"{prefix}const"),
    )


def block_winners(
    concepts: ConceptMap, kernel: StoreReader, block: Block, view: int
) -> npt.NDArray[np.int64]:
    """Concept that every sample of a block shows in a view [sample], a short row range at a time.

    Args:
        concepts: the map.
        kernel: the store ``kernel``.
        block: of its rows.
        view: of its views.
    """
    stored = kernel.block("values", block, view)
    starts = range(0, block.rows, ROWS)
    return np.concatenate([concepts.winners(to_float32(stored[i : i + ROWS])) for i in starts])


def top_samples(
    concepts: ConceptMap, kernel: StoreReader, concept: int, count: int, rows: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Source positions of samples that show a concept most, and of the first that show another.

    Args:
        concepts: the map.
        kernel: the store ``kernel``; view 0 is looked at.
        concept: number of the concept.
        count: samples of either kind at most.
        rows: stored rows that are looked at, the first ones; they are a random part.

    Returns:
        Both ascending.
    """
    plan = BlockPlan.from_attributes(kernel.attributes["block_plan"])
    shown: list[npt.NDArray[np.int64]] = []
    others: list[npt.NDArray[np.int64]] = []
    activation: list[npt.NDArray[np.float64]] = []
    for block in plan.blocks():
        if block.start >= rows:
            break
        ids = kernel.block("sample_id", block)[: rows - block.start]
        stored = kernel.block("values", block, 0)
        for start in range(0, len(ids), ROWS):
            found = concepts.activation(to_float32(stored[start : min(start + ROWS, len(ids))]))
            mine = np.argmax(found, axis=1) == concept
            part = np.array(ids[start : start + ROWS])
            shown.append(part[mine])
            others.append(part[~mine])
            activation.append(found[mine, concept])
    order = np.argsort(-np.concatenate(activation), kind="stable")[:count]
    return np.sort(np.concatenate(shown)[order]), np.sort(np.concatenate(others)[:count])
