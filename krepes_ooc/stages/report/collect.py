"""What the last stages measured, as the report takes it: figures, gaps, group tables, concepts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from krepes_ooc import rendering
from krepes_ooc.stages.alignment.stage import ARRAYS
from krepes_ooc.storage.store_reader import StoreReader

FIGURES = (
    "ridge_ceiling",
    "kendall_tau",
    "accuracy_gap",
    "cka",
    "precision_at_1",
    "confidence_drop",
    "drop_ratio",
    "coverage",
    "nystrom_error",
    "spectral_entropy",
    "stability",
)
CURVES = (
    "tau_over_components",
    "gap_over_components",
    "ceiling_over_components",
    "nystrom_error_over_landmarks",
    "effective_dimension_over_landmarks",
    "spectral_entropy",
)
GAPS = (*ARRAYS, "by_inputs")
RECOGNISED = {
    "chance": "random concepts",
    "chance_high": "random, at most",
    "p_value": "p",
    "accuracy_start": "at the start",
    "accuracy_network": "network",
    "accuracy_inputs": "inputs",
}


def read_fidelity(store: StoreReader) -> dict[str, rendering.Figure]:
    """All fidelity figures, those first that people read first."""
    kept = store.attributes["figures"]
    return {name: _figure(kept[name]) for name in _ordered(kept, FIGURES)}


def _figure(kept: Mapping[str, Any]) -> rendering.Figure:
    return rendering.Figure(
        value=_value(kept["value"]),
        controls={name: _value(kept["controls"][name]) for name in kept["order"]},
        interval=tuple(kept["interval"]) if kept["interval"] else None,
        words=kept["words"],
        note=kept["note"],
    )


def read_curves(store: StoreReader) -> dict[str, rendering.Curve]:
    """All measured curves, those first that people read first."""
    curves, plain = store.attributes["curves"], ("words", "x_words", "y_words", "log_x", "note")
    return {
        name: rendering.Curve(
            **{key: curves[name][key] for key in plain},
            x=np.array(curves[name]["x"]),
            lines={line: np.array(curves[name]["lines"][line]) for line in curves[name]["order"]},
        )
        for name in _ordered(curves, CURVES)
    }


def _ordered(found: Mapping[str, Any], first: tuple[str, ...]) -> list[str]:
    """Attributes come back in alphabetical order; people read in another."""
    known = [name for name in first if name in found]
    return known + [name for name in found if name not in known]


def read_alignment(store: StoreReader) -> rendering.Alignment | None:
    """The gaps of the table's columns, and of the label, which comes last."""
    facts = store.attributes
    if not facts["columns"]:
        return None
    defined = store.array("defined") == 1
    arrays = {
        name: np.where(defined, store.array(name), np.nan) for name in GAPS if store.has(name)
    }
    return rendering.Alignment(**arrays, names=tuple(facts["columns"]), notes=facts["notes"])


def read_groups(store: StoreReader) -> dict[str, rendering.Groups]:
    """All group tables; one that is not defined keeps its note alone."""
    tables = store.attributes["groups"]
    return {name: rendering.Groups.from_attributes(table) for name, table in tables.items()}


def read_concepts(store: StoreReader, rows: Any) -> rendering.Concepts | None:
    """The concepts with scores of some audited rows; None if none was named."""
    names = tuple(store.attributes["names"])
    if not names:
        return None
    trusted = store.array("trusted") == 1
    controls = {words: store.array(name) for name, words in RECOGNISED.items()}
    if not controls[RECOGNISED["accuracy_inputs"]].any():  # 0: the inputs are too long
        del controls[RECOGNISED["accuracy_inputs"]]
    scores = np.where(trusted, store.array("score")[rows], np.nan)
    return rendering.Concepts(
        names, store.array("accuracy"), scores, trusted, controls, store.array("landmark_score")
    )


def _value(value: float | None) -> float:
    """A figure for the report: what was not measured is NaN there, and shown in words."""
    return float("nan") if value is None else float(value)
