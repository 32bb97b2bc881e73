"""Sentences with figures: ``{name}`` is a number, ``{name%}`` a percentage, ``{name:}`` a text.

``{name*}`` is a difference of shares in percentage points, without the unit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from krepes_ooc.rendering.drawing.markup import MINUS, Child, Markup, join, number, user_text

# Decimals of a small percentage
MOST_DECIMALS = 2
_PLACE = re.compile(r"\{(\w+)([%:*]?)\}")


def fill(
    sentence: str, figures: Mapping[str, Any], words: Mapping[str, str] | None = None
) -> Markup:
    """A sentence with every figure as a number of the page.

    Args:
        sentence: our own words, with places for figures and texts.
        figures: values by name; None or NaN: not measured.
        words: texts by name, such as names of classes.
    """
    parts: list[Child] = []
    at = 0
    for found in _PLACE.finditer(sentence):
        name, kind = found.groups()
        parts.append(sentence[at : found.start()])
        if kind == ":":
            parts.append(user_text((words or {})[name], 60))
        else:
            value = figures[name]
            plain = float("nan") if value is None else value
            parts.append(_number(plain, kind))
        at = found.end()
    return join(parts, sentence[at:])


def _number(value: Any, kind: str) -> Markup:
    if kind == "%":
        return percent(value)
    return points(value) if kind == "*" else number(value)


def points(value: float) -> Markup:
    """A difference of two shares in percentage points without a unit; NaN is said in words.

    One decimal, or two if the first would be 0.
    """
    if not np.isfinite(value):
        return number(float(value))
    size = f"{abs(100 * value):.1f}"
    if value and not float(size):
        size = f"{abs(100 * value):.{MOST_DECIMALS}f}"
    sign = MINUS if value < 0 and float(size) else ""
    return number(float(value), words=f"{sign}{size}")


def percent(value: float, *, digits: int = 0) -> Markup:
    """A share as a percentage; one that is not 0 is not printed as 0 down to a hundredth.

    Args:
        value: between 0 and 1; NaN is said in words.
        digits: decimals that are printed.
    """
    if not np.isfinite(value):
        return number(float(value))
    tried = [f"{100 * value:.{places}f}" for places in range(digits, MOST_DECIMALS + 1)]
    # Below half a percent as many decimals as show a digit that is not 0
    shown = next((words for words in tried if float(words)), f"{100 * value:.{digits}f}")
    return number(float(value), words=f"{shown} %")
