"""The page of results: tables and figures out of the measured cells."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.objective_table import table, write
from benchmarks.paper_cells import CHOOSING, DATA, OBJECTIVES, SWEPT, VARIANTS
from benchmarks.paper_figures import draw

Found = dict[str, Any]
Take = Callable[[Found], float | None]


def figure(name: str, control: str | None = None) -> Take:
    """Takes a figure, or one of its controls."""

    def take(found: Found) -> float | None:
        held = found["figures"].get(name, {})
        return held.get("value") if control is None else held.get("controls", {}).get(control)

    return take


def cost(name: str, scale: float = 1.0) -> Take:
    """Takes a cost."""
    return lambda found: found["cost"][name] * scale


TAU, GAP, DROP = "kendall_tau", "accuracy_gap", "confidence_drop"
RIGHT, COVER = "precision_at_1", "coverage"
FIDELITY = {
    "network probe, %": figure(GAP, "network_accuracy"),
    "always most frequent, points": figure(GAP, "majority_class"),
    "gap, points": figure(GAP),
    "gap, start": figure(GAP, "start"),
    "tau": figure(TAU),
    "tau, start": figure(TAU, "start"),
    "tau, further steps": figure(TAU, "lm_steps"),
    "ridge ceiling": figure(TAU, "ridge_ceiling"),
    "noise ceiling": figure(TAU, "noise_ceiling"),
    "raw inputs": figure(TAU, "raw_inputs"),
}
INFLUENCE = {
    "drop, top 10": figure(DROP),
    "drop, random": figure(DROP, "random"),
    "ratio": figure("drop_ratio"),
    "drop by k alone": figure(DROP, "kernel_only"),
    "drop, exact refit": figure(DROP, "exact_refit"),
    "kappa": figure(COVER),
    "kappa, random": figure(COVER, "random"),
    "P@1, aligned": figure(RIGHT),
    "P@1, the paper's": figure(RIGHT, "paper"),
    "P@1, kernel": figure(RIGHT, "kernel"),
    "P@1, cosine": figure(RIGHT, "network_cosine"),
    "P@1, inputs": figure(RIGHT, "input_cosine"),
}
COST = {
    "damping": lambda found: found["damping"],
    "rho": lambda found: found["rho"],
    "kernel, s": cost("kernel"),
    "solve, s": cost("solve"),
    "pretraining, s": cost("pretrain"),
    "the rest, s": cost("other"),
    "CPU-seconds": cost("cpu"),
    "peak, MiB": cost("peak", 2**-20),
}
CHOICE = {
    "tau": figure(TAU),
    "gap, points": figure(GAP),
    "ratio": figure("drop_ratio"),
    "P@1, aligned": figure(RIGHT),
    "P@1, the paper's": figure(RIGHT, "paper"),
    "P@1, kernel": figure(RIGHT, "kernel"),
    "solve, s": cost("solve"),
}


def load(folder: Path) -> list[Found]:
    """All measured cells."""
    read = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")))
    return [{"frozen": False, **found} for found in read]


def spread(values: Iterable[float | None]) -> str:
    """Mean and standard deviation over seeds; a dash where nothing is defined."""
    known = [v for v in values if v is not None and np.isfinite(v)]
    if not known:
        return "-"
    centre = f"{mean(known):.3g}" if abs(mean(known)) < 1000 else f"{mean(known):,.0f}"
    return f"{centre} ± {stdev(known):.2g}" if len(known) > 1 else centre


def results(cells: list[Found], columns: dict[str, Take]) -> str:
    """One row for each set and objective, over its seeds."""
    lines = []
    for data, objective in _pairs(cells):
        rows = [c for c in cells if (c["data"], c["objective"]) == (data, objective)]
        lines.append([data, objective, *(spread(map(take, rows)) for take in columns.values())])
    return table(("data", "objective", *columns), lines)


def _pairs(cells: list[Found]) -> list[tuple[str, str]]:
    found = {(c["data"], c["objective"]) for c in cells}
    order = (list(DATA), list(OBJECTIVES))
    return sorted(found, key=lambda p: (order[0].index(p[0]), order[1].index(p[1])))


def sizes(cells: list[Found]) -> str:
    """What was audited."""
    rows: dict[str, Found] = {c["data"]: c for c in cells}
    seeds = {data: len({c["seed"] for c in cells if c["data"] == data}) for data in rows}
    lines = [
        [d, f"{c['samples']:,}", str(c["landmarks"]), str(c["components"]), str(seeds[d])]
        for d in DATA
        if (c := rows.get(d))
    ]
    return table(("data", "samples", "landmarks", "components", "seeds"), lines)


def choices(cells: list[Found]) -> str:
    """What each setting moves on the sets of the choice: means over objectives and seeds."""
    lines = []
    for data in CHOOSING:
        for variant in VARIANTS:
            rows = [c for c in cells if (c["data"], c["variant"]) == (data, variant)]
            if rows:
                # Paired with the default of the same network, so that networks cancel.
                taken = [_paired(rows, cells, take, variant) for take in CHOICE.values()]
                lines.append([data, variant, str(len(rows)), *taken])
    return table(("data", "setting", "audits", *CHOICE), lines)


def _paired(rows: list[Found], cells: list[Found], take: Take, variant: str) -> str:
    if variant == "default":
        return spread(map(take, rows))
    base = {_network(c): take(c) for c in cells if c["variant"] == "default"}
    moved = [
        value - against
        for c in rows
        if (value := take(c)) is not None and (against := base.get(_network(c))) is not None
    ]
    if not moved:
        return "-"
    error = f" ± {stdev(moved) / len(moved) ** 0.5:.2g}" if len(moved) > 1 else ""
    return f"{mean(moved):+.3g}{error}"


def _network(found: Found) -> tuple[str, str, int]:
    return found["data"], found["objective"], found["seed"]


def bias(cells: list[Found]) -> str:
    """Alignment gaps of Adult's columns by objective, each with the control without the step."""
    rows: dict[str, list[Found]] = defaultdict(list)
    for found in cells:
        if found["data"] == "adult":
            rows[found["objective"]].append(found)
    names = _by_gap([c for found in rows.values() for c in found])
    lines = []
    for name in names:
        held = [(c["alignment"].get(name) for c in rows[o]) for o in OBJECTIVES]
        cells_of = [[one for one in group if one] for group in held]
        lines.append([name, *(_gap(group) for group in cells_of)])
    return table(("column", *OBJECTIVES), lines)


def _by_gap(cells: list[Found]) -> list[str]:
    gaps: dict[str, list[float]] = defaultdict(list)
    for found in cells:
        for name, one in found["alignment"].items():
            gaps[name].append(one["gap"])
    return sorted(gaps, key=lambda name: -mean(gaps[name]))


def _gap(group: Sequence[dict[str, float]]) -> str:
    if not group:
        return "-"
    alone = mean(one["kernel_only"] for one in group)
    return f"{spread(one['gap'] for one in group)} ({alone:.3g})"


def over(cells: list[Found], sets: Iterable[str]) -> str:
    """Tau and gap against the number of landmarks."""
    lines = []
    for data, objective in _pairs([c for c in cells if c["data"] in sets]):
        rows = [c for c in cells if (c["data"], c["objective"], c["seed"]) == (data, objective, 0)]
        for found in sorted(rows, key=lambda c: c["landmarks"]):
            taken = [spread([take(found)]) for take in CHOICE.values()]
            lines.append([data, objective, str(found["landmarks"]), *taken])
    return table(("data", "objective", "landmarks", *CHOICE), lines)


def entropy(cells: list[Found]) -> str:
    """Spectral entropy and probe accuracy at each fixed damping: MNIST, Barlow Twins."""
    chosen = [c for c in cells if (c["data"], c["objective"]) == ("mnist", "barlow-twins")]
    swept = [c for c in chosen if c["variant"] in {f"damping {value:g}" for value in SWEPT}]
    network = figure(GAP, "network_accuracy")
    lines = []
    for found in sorted(swept, key=lambda c: c["damping"]):
        gap, base = figure(GAP)(found), network(found)
        accuracy = None if gap is None or base is None else base + gap
        taken = [figure("spectral_entropy")(found), accuracy, figure(TAU)(found), found["rho"]]
        lines.append([f"{found['damping']:g}", *(spread([value]) for value in taken)])
    heads = ("relative damping", "spectral entropy", "probe accuracy, %", "tau", "rho")
    return table(heads, lines) if lines else "Not measured."


def write_page(folder: Path, page: Path) -> None:
    """Put the tables between the marker lines of the page, and the figures beside it."""
    cells = load(folder)
    frozen = [c for c in cells if c["frozen"]]
    chosen = [c for c in cells if not c["frozen"] and c["data"] in CHOOSING]
    plain = [c for c in frozen if c["variant"] == "default"]
    digits = [c for c in chosen if c["data"] == "digits" and c["variant"] == "default"]
    curves = [c for c in frozen if c["variant"] == "default" or c["variant"].startswith("m = ")]
    parts = {
        "choices": choices(chosen),
        "digits fidelity": results(digits, FIDELITY),
        "digits influence": results(digits, INFLUENCE),
        "sizes": sizes(plain),
        "fidelity": results(plain, FIDELITY),
        "influence": results(plain, INFLUENCE),
        "cost": results(plain, COST),
        "bias": bias(plain),
        "landmarks": over(curves, ("adult", "mnist")),
        "figures": draw(frozen, page.parent / "results"),
        "entropy": entropy(frozen),
    }
    for name, text in parts.items():
        write(page, text, name)
