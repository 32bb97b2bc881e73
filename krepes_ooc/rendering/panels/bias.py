"""Findings about audited columns: whether the embedding groups samples by one, and its origin.

A column is found in the embedding if the interval of its alignment gap lies above what shuffling
the column gives. Its origin follows from the gap of the same samples ranked by the network's inputs
and from that of networks with random weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.measured import Alignment
from krepes_ooc.rendering.panels.finding import Finding

LABEL = "label"
# Columns with a sentence where the recipe names none
MOST_COLUMNS = 2
ORIGINS = {
    (True, True): "This exceeds both: the training adds to it.",
    (True, False): "Random weights reach as much, inputs do not: it comes from the architecture, "
    "not from the training.",
    (False, True): "The inputs give as much: it comes from the inputs, and the training keeps it.",
    (False, False): "Both reach as much: it comes from the inputs, not from the training.",
    (True, None): "This exceeds the inputs; random weights were not measured.",
    (False, None): "The inputs give as much: it comes from the inputs.",
    (
        None,
        True,
    ): "This exceeds random weights: the training adds to it; the inputs are too long to compare.",
    (None, False): "Random weights reach as much: it does not come from the training.",
    (None, None): "No control was measured.",
}


@dataclass(frozen=True)
class Bias:
    """Alignment gap of one column with what decides about it.

    Args:
        gap: alignment gap.
        low: lower end of its 95 % interval.
        high: upper end.
        chance: scatter of the gap if the column is shuffled.
        network: gap by the network's own embedding.
        inputs: gap by the network's inputs; None: not measured.
        random_most: most that random weights reach; None: not measured.
    """

    gap: float
    low: float
    high: float
    chance: float
    network: float | None
    inputs: float | None
    random_most: float | None

    @property
    def is_found(self) -> bool:
        """True if the interval lies above twice the scatter by chance."""
        return self.low > 2 * self.chance

    @property
    def origin(self) -> str:
        """Origin of the grouping, in a sentence."""
        above_inputs = None if self.inputs is None else self.low > self.inputs
        above_random = None if self.random_most is None else self.gap > self.random_most
        return ORIGINS[above_inputs, above_random]


def read_bias(alignment: Alignment, place: int) -> Bias | None:
    """The figures of one column; None where its gap is not defined."""
    gap = float(alignment.gap[place])
    error = 2 * float(alignment.stderr[place])
    if not (math.isfinite(gap) and math.isfinite(error)):
        return None

    def known(values: Any) -> float | None:
        value = math.nan if values is None else float(values[place])
        return value if math.isfinite(value) else None

    return Bias(
        gap,
        gap - error,
        gap + error,
        known(alignment.chance) or 0.0,
        known(alignment.network_gap),
        known(alignment.input_gap),
        known(alignment.random_most),
    )


def bias_findings(audit: AuditData) -> Iterator[Finding]:
    """One finding for every audited column, else for the columns of the largest gaps."""
    alignment = audit.alignment
    if alignment is None:
        return
    names = alignment.names or tuple(column.name for column in audit.columns)
    for name in _chosen(audit, alignment, names):
        place = names.index(name)
        found = read_bias(alignment, place)
        if found is None:
            reason = alignment.notes.get(name, "its gap is not defined")
            yield Finding(
                f"bias_{place}", "Bias", "{name:}: not decided, {reason:}.",
                words={"name": name, "reason": reason}, panel="alignment",
            )  # fmt: skip
            continue
        yield _finding(name, place, found)


def _chosen(audit: AuditData, alignment: Alignment, names: tuple[str, ...]) -> list[str]:
    """Audited columns, or those of the largest gaps; the label where there is nothing else."""
    audited = [name for name in audit.audited_columns if name in names]
    if audited:
        return audited
    order = np.argsort(-np.nan_to_num(alignment.gap, nan=-np.inf), kind="stable")
    known = [names[i] for i in order if np.isfinite(alignment.gap[i])]
    return [name for name in known if name != LABEL][:MOST_COLUMNS] or known[:1]


def _finding(name: str, place: int, found: Bias) -> Finding:
    figures = {
        "gap": found.gap,
        "low": found.low,
        "high": found.high,
        "chance": found.chance,
        "network": found.network,
        "inputs": found.inputs,
        "random_most": found.random_most,
    }
    verb = "is grouped by" if found.is_found else "is not grouped by"
    sentence = (
        f"The audit's embedding {verb} {{name:}}: alignment gap {{gap}} (95 % interval {{low}} to "
        "{high}, by chance ±{chance})"
    )
    if found.network is not None:
        sentence += "; the network's own embedding gives {network}"
    controls = []
    if found.inputs is not None:
        controls.append("inputs {inputs}")
    if found.random_most is not None:
        controls.append("random weights up to {random_most}")
    sentence += f"; controls: {', '.join(controls)}" if controls else ""
    sentence += f". {found.origin}" if found.is_found else "."
    title = "Class structure" if name == LABEL else "Bias"
    return Finding(f"bias_{place}", title, sentence, figures, {"name": name}, "alignment")
