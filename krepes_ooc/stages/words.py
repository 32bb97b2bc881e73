"""What the audit found as plain lines of text, for the terminal and for logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

NAME = 24
MAX_LINES = 20


def alignment_lines(
    arrays: Mapping[str, npt.NDArray[np.float64]], attributes: Mapping[str, Any]
) -> list[str]:
    """The alignment table, largest gap first, and whether the kernel alone says the same.

    Args:
        arrays: those of the store, each [column].
        attributes: those of the store.
    """
    names = attributes["columns"]
    if not names:
        return ["alignment: the source has no columns and no labels, so there is nothing to compare"]
    gap = arrays["gap"]
    order = np.argsort(-np.nan_to_num(gap, nan=-np.inf), kind="stable")[:MAX_LINES]
    lines = [
        f"alignment of the top {attributes['top']} landmarks ({attributes['measure']}); "
        "gap: 0 = no more than any landmark, 1 = always",
        f"{'column':<{NAME}} {'gap':>7} {'s.e.':>6} {'chance':>7} {'kernel only':>12} {'repelling':>10}",
    ]
    for i in order.tolist():
        if not math.isfinite(gap[i]):
            lines.append(f"{_short(names[i]):<{NAME}} not defined: {attributes['notes'][names[i]]}")
            continue
        lines.append(
            f"{_short(names[i]):<{NAME}} {gap[i]:7.3f} {arrays['stderr'][i]:6.3f} "
            f"{arrays['chance'][i]:7.3f} {arrays['kernel_only'][i]:12.3f} {arrays['repelling'][i]:10.3f}"
        )
    if len(names) > len(order):
        lines.append(f"and {len(names) - len(order)} columns with smaller gaps")
    return [*lines, _same(arrays)]


def group_lines(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every group table: where the top landmarks of each group's samples come from."""
    lines = []
    for name, table in groups.items():
        if "share" not in table:
            lines.append(f"groups of {name}: {table['note']}")
            continue
        present = [g for g, count in enumerate(table["samples"]) if count]
        targets = [g for g in range(len(table["samples"])) if g in present or table["landmarks"][g]]
        heads = [_short(table["categories"][g], 12) for g in targets]
        lines.append(
            f"groups of {name}: share of landmark mass, in percent (kernel only in brackets)"
        )
        lines.append(f"{'samples of':<{NAME}} " + " ".join(f"{head:>13}" for head in heads))
        for g in present:
            cells = [
                _cell(table["share"][g][target], table["kernel_only"][g][target])
                for target in targets
            ]
            title = f"{_short(table['categories'][g], NAME - 8)} ({table['samples'][g]})"
            lines.append(f"{title:<{NAME}} " + " ".join(f"{cell:>13}" for cell in cells))
        chance = [f"{100 * table['chance'][target]:.0f}" for target in targets]
        lines.append(f"{'by chance':<{NAME}} " + " ".join(f"{cell:>13}" for cell in chance))
        if table["note"]:
            lines.append(table["note"])
    return lines


def _same(arrays: Mapping[str, npt.NDArray[np.float64]]) -> str:
    """Whether the control without the step tells the same."""
    known = np.isfinite(arrays["gap"])
    away = np.abs(arrays["gap"] - arrays["kernel_only"])[known]
    if not away.size:
        return "no column could be measured"
    beyond = int(np.sum(away > 2 * arrays["difference_stderr"][known]))
    return (
        f"the kernel alone gives the same gaps within {away.max():.3f}; {beyond} of {away.size} "
        "differ by more than two standard errors"
    )


def _cell(share: float | None, control: float | None) -> str:
    if share is None or control is None:
        return "-"
    return f"{100 * share:.0f} ({100 * control:.0f})"


def _short(text: str, limit: int = NAME) -> str:
    """Text cut to a width, without control characters."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"
