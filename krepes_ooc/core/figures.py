"""Fidelity figures: a value under its key, beside controls under theirs, with labels for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import figure_specs
from krepes_ooc.core.figure_specs import CurveSpec, FigureSpec
from krepes_ooc.errors import KrepesError

Interval = tuple[float, float]


class FigureKeyError(KrepesError, KeyError):
    """A figure or one of its controls is missing, or has an unknown key."""


@dataclass(frozen=True)
class Control:
    """A measured value.

    Args:
        key: field word; code, stores and ``report.json`` know nothing else.
        label: for people.
        value: what was measured; NaN: not defined here.
        interval: low and high of a 95 % interval; an open end is infinite.
    """

    key: str
    label: str
    value: float
    interval: Interval | None = None

    @property
    def is_defined(self) -> bool:
        """True if there is a value."""
        return math.isfinite(self.value)


@dataclass(frozen=True)
class Figure(Control):
    """A fidelity figure beside the controls that it must be read with.

    Args:
        controls: by key, in reading order; none where the figure is not defined.
        reason: why the figure is not defined.
        unconverged: spaces whose probe was stopped before it converged.
        paired: differences of figure and controls over the same audit samples, by key.
    """

    controls: Mapping[str, Control] = field(default_factory=dict)
    reason: str = ""
    unconverged: tuple[str, ...] = ()
    paired: Mapping[str, Control] = field(default_factory=dict)

    @property
    def at_ceiling(self) -> bool | None:
        """True if the figure reaches its noise ceiling; None: it has none."""
        ceiling = self.controls.get(figure_spec(self.key).ceiling)
        if ceiling is None or not (ceiling.is_defined and self.is_defined):
            return None
        return self.value >= ceiling.value

    def control(self, key: str) -> Control:
        """One control.

        Raises:
            FigureKeyError: there is none under this key.
        """
        if key not in self.controls:
            known = ", ".join(self.controls)
            raise FigureKeyError(
                f"no control {key!r}",
                where=f"figure {self.key}",
                expected=f"one of {known}" if known else f"none: {self.reason}",
            )
        return self.controls[key]

    def find_control(self, key: str) -> Control | None:
        """One control that is optional, if this audit has it.

        Raises:
            FigureKeyError: there is no such control, or it is not optional and missing.
        """
        if key not in self.controls and key in figure_spec(self.key).optional:
            return None
        return self.control(key)

    @property
    def values(self) -> dict[str, float]:
        """Value of every control by its key."""
        return {key: control.value for key, control in self.controls.items()}

    @property
    def note(self) -> str:
        """Definition and how to read it; of what is not defined, the reason."""
        if not self.is_defined:
            return self.reason
        note = figure_spec(self.key).note
        if not self.unconverged:
            return note
        labels = ", ".join(figure_specs.SPACES[key] for key in self.unconverged)
        return f"{note} Stopped before they converged: {labels}."

    def to_attributes(self) -> dict[str, Any]:
        """The figure as JSON: keys and values, no label."""
        return {
            "value": _null_if_nan(self.value),
            "interval": _ends(self.interval),
            "controls": {key: _null_if_nan(value) for key, value in self.values.items()},
            "reason": self.reason,
            "unconverged": list(self.unconverged),
            "at_ceiling": self.at_ceiling,
            "paired": {
                key: {"value": _null_if_nan(pair.value), "interval": _ends(pair.interval)}
                for key, pair in self.paired.items()
            },
        }

    @classmethod
    def from_attributes(cls, key: str, attributes: Mapping[str, Any]) -> Figure:
        """A figure as a store keeps it.

        Raises:
            FigureKeyError: an unknown key, or one that is missing.
        """
        if attributes["value"] is None:
            return undefined_figure(key, str(attributes["reason"]))
        # Stores of earlier versions have no paired differences
        paired = {
            name: (_nan_if_null(pair["value"]), _interval(pair["interval"]))
            for name, pair in attributes.get("paired", {}).items()
        }
        return figure(
            key,
            attributes["value"],
            attributes["controls"],
            _interval(attributes["interval"]),
            attributes["unconverged"],
            paired,
        )


@dataclass(frozen=True, eq=False)
class Curve:
    """A measured curve, such as fidelity over the number of components.

    Args:
        key: of ``CURVES``.
        x: [point], ascending.
        lines: key -> [point], in reading order.
    """

    key: str
    x: npt.NDArray[Any]
    lines: Mapping[str, npt.NDArray[Any]]

    @property
    def spec(self) -> CurveSpec:
        """Labels for people."""
        return curve_spec(self.key)

    @property
    def labelled_lines(self) -> dict[str, npt.NDArray[Any]]:
        """The lines by their labels."""
        labels = self.spec.lines
        return {labels[key]: line for key, line in self.lines.items()}

    @property
    def note(self) -> str:
        """Explanation for people."""
        # Only an objective that streams the kernel leaves a sweep over h without its steps.
        is_streamed = set(self.lines) == {figure_specs.START}
        return self.spec.note + (figure_specs.STREAMED if is_streamed else "")

    def to_attributes(self) -> dict[str, Any]:
        """The curve as JSON: keys and values, no label."""
        return {
            "x": [float(value) for value in self.x],
            "lines": {key: [float(value) for value in line] for key, line in self.lines.items()},
        }

    @classmethod
    def from_attributes(cls, key: str, attributes: Mapping[str, Any]) -> Curve:
        """A curve as a store keeps it.

        Raises:
            FigureKeyError: an unknown key.
        """
        return curve(key, attributes["x"], attributes["lines"])


def figure(
    key: str,
    value: float,
    controls: Mapping[str, float | None],
    interval: Interval | None = None,
    unconverged: Iterable[str] = (),
    paired: Mapping[str, tuple[float, Interval | None]] | None = None,
) -> Figure:
    """A defined figure with its controls in reading order.

    Args:
        key: of ``FIGURES``.
        value: what was measured.
        controls: value of every control by its key; None or NaN: not defined here.
        interval: low and high of a 95 % interval.
        unconverged: spaces whose probe was stopped before it converged.
        paired: value and interval of every paired difference by its key; any may be missing.

    Raises:
        FigureKeyError: an unknown key, or a control that is missing.
    """
    spec = figure_spec(key)
    _check_keys(f"figure {key}", controls, spec.controls, spec.optional)
    pairs = {} if paired is None else paired
    _check_keys(f"paired differences of figure {key}", pairs, spec.paired, frozenset(spec.paired))
    differences = {
        name: Control(name, paired_label(spec, name), *pairs[name])
        for name in spec.paired
        if name in pairs
    }
    known = {
        name: Control(name, label, _nan_if_null(controls[name]))
        for name, label in spec.controls.items()
        if name in controls
    }
    stopped = tuple(unconverged)
    return Figure(key, spec.label, float(value), interval, known, "", stopped, differences)


def paired_label(spec: FigureSpec, key: str) -> str:
    """A paired difference for people: what is subtracted from what."""
    labels = {figure_specs.VALUE: "the figure", **spec.controls}
    first, second = spec.paired[key]
    return f"{labels[first]} minus {labels[second]}, paired"


def undefined_figure(key: str, reason: str) -> Figure:
    """A figure that the data do not define."""
    return Figure(key, figure_spec(key).label, math.nan, reason=reason)


def curve(key: str, x: Any, lines: Mapping[str, Any]) -> Curve:
    """A curve with its lines in reading order.

    Args:
        key: of ``CURVES``.
        x: [point], ascending.
        lines: key -> [point]; a line may be missing.

    Raises:
        FigureKeyError: an unknown key.
    """
    labels = curve_spec(key).lines
    _check_keys(f"curve {key}", lines, labels, frozenset(labels))
    known = {name: np.asarray(lines[name], dtype=np.float64) for name in labels if name in lines}
    return Curve(key, np.asarray(x, dtype=np.float64), known)


def check_figure(found: Figure) -> None:
    """Check the keys of a figure that is defined.

    Raises:
        FigureKeyError: an unknown key, or a control that is missing.
    """
    spec = figure_spec(found.key)
    if found.is_defined:
        _check_keys(f"figure {found.key}", found.controls, spec.controls, spec.optional)


def reading_order(keys: Iterable[str], specs: Mapping[str, Any]) -> list[str]:
    """Keys in the order of a table; stores give them back alphabetically.

    Raises:
        FigureKeyError: an unknown key.
    """
    given = list(keys)
    for key in given:
        if key not in specs:
            raise FigureKeyError(f"unknown key {key!r}", expected="one of " + ", ".join(specs))
    return [key for key in specs if key in given]


def figure_spec(key: str) -> FigureSpec:
    """Labels and controls of a figure.

    Raises:
        FigureKeyError: there is none under this key.
    """
    reading_order([key], figure_specs.FIGURES)
    return figure_specs.FIGURES[key]


def curve_spec(key: str) -> CurveSpec:
    """Labels of a curve.

    Raises:
        FigureKeyError: there is none under this key.
    """
    reading_order([key], figure_specs.CURVES)
    return figure_specs.CURVES[key]


def _check_keys(
    where: str, given: Iterable[str], known: Iterable[str], optional: frozenset[str]
) -> None:
    names = set(given)
    if unknown := sorted(names - set(known)):
        expected = "one of " + ", ".join(known)
        raise FigureKeyError(f"unknown key {unknown[0]!r}", where=where, expected=expected)
    if missing := sorted(set(known) - optional - names):
        raise FigureKeyError(f"key {missing[0]!r} is missing", where=where)


def _nan_if_null(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _interval(low_high: Sequence[float | None] | None) -> Interval | None:
    """An interval as a store keeps it; an open end is null there."""
    if low_high is None:
        return None
    low, high = low_high
    return (
        -math.inf if low is None else float(low),
        math.inf if high is None else float(high),
    )


def _ends(interval: Interval | None) -> list[float | None] | None:
    """An interval as JSON: an open end is infinite, which JSON does not have."""
    return None if interval is None else [_null_if_nan(end) for end in interval]


def _null_if_nan(value: float) -> float | None:
    return value if math.isfinite(value) else None
