"""Results of the last stages for the report: gaps, group tables, concepts."""

from __future__ import annotations

from typing import Any

import numpy as np

from krepes_ooc import rendering
from krepes_ooc.rendering.measured import CONCEPT_CONTROLS
from krepes_ooc.stages.alignment.stage import ARRAYS, INPUT_GAP
from krepes_ooc.storage.store_reader import StoreReader

GAPS = (*ARRAYS, INPUT_GAP)


def read_alignment(store: StoreReader) -> rendering.Alignment | None:
    """The gaps of the table's columns, and of the label, which comes last."""
    attributes = store.attributes
    if not attributes["columns"]:
        return None
    is_defined = store.array("defined") == 1
    # 0 in the store stands for a gap that is not defined
    arrays = {
        name: np.where(is_defined, store.array(name), np.nan) for name in GAPS if store.has(name)
    }
    return rendering.Alignment(
        **arrays, names=tuple(attributes["columns"]), notes=attributes["notes"]
    )


def read_groups(store: StoreReader) -> dict[str, rendering.Groups]:
    """All group tables; one that is not defined has its note alone."""
    tables = store.attributes["groups"]
    return {name: rendering.Groups.from_attributes(table) for name, table in tables.items()}


def read_concepts(store: StoreReader, rows: Any) -> rendering.Concepts | None:
    """The concepts with scores of some audited rows; None if none was named.

    Args:
        store: of the stage concepts.
        rows: index of the audited samples to show.
    """
    names = tuple(store.attributes["names"])
    if not names:
        return None
    is_trusted = store.array("trusted") == 1
    controls = {key: store.array(key) for key in CONCEPT_CONTROLS}
    # 0: the inputs are too long for a classifier
    if not controls["accuracy_inputs"].any():
        del controls["accuracy_inputs"]
    scores = np.where(is_trusted, store.array("score")[rows], np.nan)
    return rendering.Concepts(
        names,
        store.array("accuracy"),
        scores,
        is_trusted,
        controls,
        store.array("landmark_score"),
    )
