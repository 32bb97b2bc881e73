"""What feature rows are made of and what they cost, in words for plan, log and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy.typing as npt

from krepes_ooc.jacobian.feature_map import FeatureMap, FeatureSettings

_SHOWN = 5
_WAYS = {
    "layer": "layers",
    "attention": "attention layers",
    "bare": "bare parameters",
    "vjp": "modules run again, all samples of a batch at once",
    "loop": "modules run again, one sample at a time (slow)",
}
_WHOLE = "the whole network run again, one sample at a time (last resort, slow)"
_SKETCHES = {"tensor": "TensorSketch", "fold": "folded gradients"}


@dataclass(frozen=True)
class RowCost:
    """What a row costs, measured on calibration samples.

    Args:
        row: CPU-seconds of one row.
        plain: CPU-seconds of one sample in a plain forward and backward pass.
        n_samples: samples that were measured.
    """

    row: float
    plain: float
    n_samples: int

    @property
    def words(self) -> str:
        """Both in one line."""
        factor = _rounded(self.row / self.plain)
        return (
            f"{1e3 * self.row:.3g} ms of processor time a row, {factor} times "
            f"a plain forward and backward pass (measured on {self.n_samples} samples)"
        )

    def to_attributes(self) -> dict[str, Any]:
        """The cost as JSON."""
        return asdict(self)

    @classmethod
    def from_attributes(cls, known: Mapping[str, Any]) -> Self:
        """The cost from its JSON."""
        return cls(float(known["row"]), float(known["plain"]), int(known["n_samples"]))


def row_words(
    described: Mapping[str, Any], n_probes: int, n_features: int, settings: FeatureSettings
) -> dict[str, str]:
    """Which parameters and outputs, by which probes, ways and sketches.

    Args:
        described: the map as ``FeatureMap.describe`` gave it.
        n_probes: output directions.
        n_features: numbers in a row.
        settings: what the recipe asks for.
    """
    parameters, outputs = described["parameters"], described["outputs"]
    globs = ", ".join(settings.parameters) or "all that were trainable"
    chosen = "all" if not settings.outputs else _listed([str(index) for index in outputs])
    directions = f"{n_probes} direction{'s' if n_probes > 1 else ''} in output space"
    if "auto" not in (settings.probes, settings.deflated_probes):
        directions += f" ({settings.probes} random, {settings.deflated_probes} calibrated)"
    return {
        "parameters": f"{_count(parameters)} ({globs}): {_listed(parameters)}",
        "outputs": f"{len(outputs)} ({chosen})",
        "probes": directions,
        "rows": f"{_form(described)}, {n_features:,} numbers each",
        "gradients": "; ".join(_ways(described["plan"])),
    }


def _form(described: Mapping[str, Any]) -> str:
    if described["kind"] == "factors":
        return "exact layer factors"
    slots: Sequence[Mapping[str, str]] = described["sketch"]
    counts = {name: sum(slot["sketch"] == name for slot in slots) for name in _SKETCHES}
    parts = [f"{_SKETCHES[name]} of {count}" for name, count in counts.items() if count]
    return f"a sketch ({', '.join(parts)} parameter arrays)"


def _ways(plan: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every way with its parameters: slow ones by name, others by number."""
    ways: dict[str, list[str]] = {}
    for unit in plan:
        whole = unit["method"] == "loop" and not unit["name"]
        way = _WHOLE if whole else _WAYS[unit["method"]]
        ways.setdefault(way, []).extend(unit["parameters"])
    slow = {_WAYS["vjp"], _WAYS["loop"], _WHOLE}
    return [
        f"{way}: {_listed(names) if way in slow else _count(names)}" for way, names in ways.items()
    ]


def _rounded(factor: float) -> str:
    return f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}"


def _count(names: Sequence[str]) -> str:
    count = len(set(names))
    return f"{count} array{'s' if count > 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


SAMPLES = 16


def measure_rows(feature_map: FeatureMap, inputs: npt.NDArray[Any]) -> RowCost:
    """CPU-seconds of rows and of plain passes of the same network on the same few samples.

    Args:
        feature_map: the map.
        inputs: calibration inputs [sample, ...]; the first few are used.
    """
    import torch

    few = inputs[:SAMPLES]
    network = feature_map.network.deep_copy()
    parameters = [network.inner.get_parameter(name) for name in feature_map.parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)

    def plain() -> None:
        total = network(torch.tensor(few)).sum()
        torch.autograd.grad(total, parameters, allow_unused=True)

    row, one = (_cpu_seconds(work) for work in (lambda: feature_map.rows(few), plain))
    return RowCost(row / len(few), one / len(few), len(few))


def _cpu_seconds(work: Callable[[], object]) -> float:
    """The second of two calls: the first one warms up."""
    work()
    begin = time.process_time()
    work()
    return max(time.process_time() - begin, 1e-6)
