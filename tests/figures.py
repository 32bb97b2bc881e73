"""Figures with all controls that are not optional, for tests."""

from __future__ import annotations

from krepes_ooc.core.figures import Figure, figure, figure_spec


def complete(
    key: str, value: float, interval: tuple[float, float] | None = None, **controls: float
) -> Figure:
    """A figure whose controls are undefined unless given."""
    spec = figure_spec(key)
    needed = dict.fromkeys(name for name in spec.controls if name not in spec.optional)
    return figure(key, value, {**needed, **controls}, interval)
