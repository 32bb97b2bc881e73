"""Alignment gaps and group tables as lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.rendering.measured import ALIGNMENT_CONTROLS, Groups
from krepes_ooc.rendering.panels.groups import same_group_share

NAME = 24
MAX_LINES = 5
HEADS = {
    "gap": "gap",
    "stderr": "s.e.",
    **{name: ALIGNMENT_CONTROLS[name][0] for name in ("chance", "kernel_only", "input_gap")},
}


def alignment_lines(
    arrays: Mapping[str, npt.NDArray[np.float64]], attributes: Mapping[str, Any]
) -> list[str]:
    """The largest alignment gaps, and whether plain kernel says the same.

    Args:
        arrays: those of the store, each [column].
        attributes: those of the store.
    """
    # A source of images without labels has nothing to compare
    names = attributes["columns"]
    if not names:
        return ["alignment: the source has no columns and no labels to compare"]
    shown = [name for name in HEADS if name in arrays]
    # Largest gaps first, then columns whose gap is not defined
    known = np.array([name not in attributes["notes"] for name in names])
    ranked = np.flatnonzero(known)[np.argsort(-arrays["gap"][known], kind="stable")]
    order = np.concatenate([ranked[:MAX_LINES], np.flatnonzero(~known)[:MAX_LINES]])
    lines = [
        f"alignment of the top {attributes['top']} landmarks ({attributes['measure']}); "
        "gap: 0 = no more than any landmark, 1 = always",
        f"{'column':<{NAME}} " + " ".join(f"{HEADS[name]:>11}" for name in shown),
    ]
    for i in order.tolist():
        if not known[i]:
            lines.append(f"{_short(names[i]):<{NAME}} not defined: {attributes['notes'][names[i]]}")
            continue
        lines.append(
            f"{_short(names[i]):<{NAME}} " + " ".join(f"{arrays[name][i]:11.3f}" for name in shown)
        )
    # The terminal shows the largest gaps only
    if len(names) > len(order):
        left = len(names) - len(order)
        lines.append(f"and {left} columns with smaller gaps; the report has every control")
    return [*lines, _kernel_comparison(arrays, known)]


def group_lines(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line a group table: share of the top landmarks in the sample's own group."""
    lines = []
    for name, attributes in groups.items():
        table = Groups.from_attributes(attributes)
        share, chance = same_group_share(table)
        if not np.isfinite(share):
            lines.append(f"groups of {_short(name)}: {table.note or 'no sample is in any'}")
            continue
        lines.append(
            f"groups of {_short(name)}: {100 * share:.0f} % of the influence on a sample lies on "
            f"its own group, by chance {100 * chance:.0f} %; the report has the table"
        )
    return lines


def _kernel_comparison(
    arrays: Mapping[str, npt.NDArray[np.float64]], known: npt.NDArray[np.bool_]
) -> str:
    """Difference of the gaps to the control without the step."""
    away = np.abs(arrays["gap"] - arrays["kernel_only"])[known]
    if not away.size:
        return "no column could be measured"
    # Two standard errors of the paired difference
    beyond = int(np.sum(away > 2 * arrays["difference_stderr"][known]))
    return (
        f"plain kernel gives the same gaps within {away.max():.3f}; {beyond} of {away.size} "
        "differ by more than two standard errors"
    )


def _short(text: str, limit: int = NAME) -> str:
    """Text cut to a width, without control characters."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"
