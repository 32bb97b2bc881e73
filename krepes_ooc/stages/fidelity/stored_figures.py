"""Figures and curves as the fidelity stage stored them."""

from __future__ import annotations

from krepes_ooc.core.figure_specs import CURVES, FIGURES
from krepes_ooc.core.figures import Curve, Figure, reading_order
from krepes_ooc.storage.store_reader import StoreReader


def read_fidelity(store: StoreReader) -> dict[str, Figure]:
    """All fidelity figures in reading order.

    Raises:
        FigureKeyError: a figure or a control is unknown or missing.
    """
    figures = store.attributes["figures"]
    return {
        key: Figure.from_attributes(key, figures[key]) for key in reading_order(figures, FIGURES)
    }


def read_curves(store: StoreReader) -> dict[str, Curve]:
    """All measured curves in reading order.

    Raises:
        FigureKeyError: a curve or a line is unknown.
    """
    curves = store.attributes["curves"]
    return {key: Curve.from_attributes(key, curves[key]) for key in reading_order(curves, CURVES)}
