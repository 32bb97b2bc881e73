"""Figures of one finished audit, as a results file that the documents quote.

    krepes run digits
    python -m benchmarks.audit_figures krepes-workspace/digits --command "krepes run digits" \
        --out benchmarks/results/audit-digits.json
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import krepes_ooc

DECIMALS = 6


def main(argv: Sequence[str] | None = None) -> None:
    """Write the figures of a workspace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--command", required=True, help="that made the workspace")
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args(argv)
    figures = {"command": given.command, **collect(given.workspace)}
    given.out.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def collect(workspace: Path) -> dict[str, Any]:
    """Verdict, fidelity, alignment, groups, group influence and concepts of an audit.

    Args:
        workspace: folder of a finished audit.
    """
    report = json.loads((workspace / "report.json").read_text())
    verdict = report["reliability"]["verdict"]
    found = {
        "verdict": verdict["sentence"],
        "checks": {
            check["title"]: {"outcome": check["outcome"], **check["figures"]}
            for check in verdict["checks"]
        },
        "fidelity": {
            key: {name: value for name, value in figure.items() if name in KEPT}
            for key, figure in report["fidelity"]["figures"].items()
        },
        "alignment": _alignment(report["alignment"], workspace),
        "groups": {
            name: {key: groups[key] for key in GROUPS if key in groups}
            for name, groups in report["groups"].items()
            if isinstance(groups, Mapping) and "share" in groups
        },
        "group_influence": _group_influence(report.get("group_influence", {})),
        "concepts": _concepts(report.get("concepts", {})),
        "concept_figures": report.get("discovered", {}).get("figures", {}),
    }
    return _rounded(found)


# Parts of a fidelity figure, and arrays of a table of groups
KEPT = ("value", "interval", "controls")
GROUPS = ("categories", "samples", "landmarks", "share", "stderr", "chance")


def _alignment(panel: Mapping[str, Any], workspace: Path) -> dict[str, Any]:
    """Gap of every column with its controls; of random weights every draw."""
    keys = ("gap", "stderr", "chance", "kernel_only", "input_gap", "network_gap")
    columns = panel.get("columns", [])
    found = {
        name: {key: panel[key][i] for key in keys if key in panel} for i, name in enumerate(columns)
    }
    stores = krepes_ooc.Workspace(workspace)
    if "randomised" in stores:
        draws = stores["randomised"]
        for name, gaps in zip(draws.attrs["columns"], draws["gap"].values, strict=True):
            if name in found:
                # The first network is the audited one
                found[name]["random_weights"] = [float(gap) for gap in gaps[1:]]
    return found


def _group_influence(panel: Mapping[str, Any]) -> dict[str, Any]:
    """Mean effect of every group that has a name, and what is left of it beyond size."""
    parts = zip(
        *(panel.get(key, ()) for key in ("names", "partition", "count", "mean", "residual")),
        strict=True,
    )
    return {
        name: {"samples": count, "mean_effect": mean, "beyond_size": residual}
        for name, partition, count, mean, residual in parts
        if partition != "landmarks"
    }


def _concepts(panel: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy of every named concept with its controls."""
    controls = panel.get("controls", {})
    return {
        name: {"accuracy": panel["accuracy"][i]}
        | {key: values[i] for key, values in controls.items()}
        for i, name in enumerate(panel.get("names", ()))
    }


def _rounded(value: Any) -> Any:
    """Numbers with six decimals, which is more than the documents print."""
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return round(value, DECIMALS) if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    main()
