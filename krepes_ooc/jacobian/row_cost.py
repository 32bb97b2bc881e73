"""Composition and measured cost of feature rows, in words for plan, log and report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy.typing as npt

from krepes_ooc.jacobian.feature_map import FeatureMap, FeatureSettings

MAX_LISTED = 5
_METHODS = {
    "layer": "layers",
    "attention": "attention layers",
    "recurrent": "recurrent layers",
    "computed": "weights that a module computes",
    "bare": "bare parameters",
    "vjp": "modules run again, all samples of a batch at once",
    "loop": "modules run again, one sample at a time (slow)",
}
_WHOLE_NETWORK = "the whole network run again, one sample at a time (last resort, slow)"
TIMED_SAMPLES = 16
# Repeated until the three fastest differ by this, at most so often and so long.
LARGEST_SPREAD = 0.1
MAX_REPEATS = 9
MAX_SECONDS = 3.0
LEAST_SECONDS = 0.02
# Relative error of a rate that was measured on few samples, at least.
LEAST_SPREAD = 0.1
# Relative error of a row's cost that is estimated from a plain pass.
ESTIMATE_SPREAD = 0.5
# CPU-seconds of the whole features stage over those of its rows, at most.
WHOLE_STAGE = 1.6
_SKETCHES = {"tensor": "TensorSketch", "fold": "folded gradients"}


@dataclass(frozen=True)
class RowCost:
    """Cost of a row, measured on calibration samples.

    Args:
        row: CPU-seconds of one row.
        plain: CPU-seconds of one sample in a plain forward and backward pass.
        n_samples: samples that were measured.
        spread: half the range of repeated measurements, relative to the cost of a row.
    """

    row: float
    plain: float
    n_samples: int
    spread: float = 0.0

    @property
    def words(self) -> str:
        """The cost in one line."""
        factor = _round_factor(self.row / self.plain)
        repeats = f", repeats within {200 * self.spread:.0f} %" if self.spread else ""
        return (
            f"{1e3 * self.row:.3g} ms of processor time a row, {factor} times "
            f"a plain forward and backward pass (measured on {self.n_samples} samples{repeats})"
        )

    def to_attributes(self) -> dict[str, Any]:
        """The cost as JSON."""
        return asdict(self)

    @classmethod
    def from_attributes(cls, known: Mapping[str, Any]) -> Self:
        """The cost from its JSON."""
        numbers = (float(known["row"]), float(known["plain"]), int(known["n_samples"]))
        return cls(*numbers, float(known.get("spread", 0.0)))

    def seconds(self, n_rows: int) -> tuple[float, float, float]:
        """CPU-seconds of so many rows: expected, least and most."""
        total = self.row * n_rows
        spread = max(self.spread, LEAST_SPREAD)
        # Reading, augmenting, rounding and writing come on top of the rows themselves.
        return total, total * (1 - spread), total * (1 + spread) * WHOLE_STAGE


def estimated_cost(pass_seconds: float, n_probes: int, n_samples: int) -> RowCost:
    """Cost of a row from a plain forward and backward pass, where rows are not measured.

    A forward pass is a third of it; every probe takes the other two, its sketch included.

    Args:
        pass_seconds: CPU-seconds of one sample in a plain pass.
        n_probes: output directions of a row.
        n_samples: samples that the pass was timed on.
    """
    row = pass_seconds * count_passes(n_probes)
    return RowCost(row, pass_seconds, n_samples, ESTIMATE_SPREAD)


def count_passes(n_probes: int) -> float:
    """Forward and backward passes that a row is estimated at."""
    return (1 + 2 * n_probes) / 3


def ways_by_class(network: Any, plan: Sequence[Mapping[str, Any]]) -> str:
    """Number of parameter arrays by the way to their gradients and the class of their layer.

    Args:
        network: the user's module.
        plan: rules as ``GradientRule.to_attributes`` gives them.
    """
    counts: dict[str, dict[str, int]] = {}
    for rule in plan:
        for name in rule["parameters"]:
            kind = type(network.get_submodule(name.rpartition(".")[0])).__name__
            by_class = counts.setdefault(_METHODS[rule["method"]], {})
            by_class[kind] = by_class.get(kind, 0) + 1
    return "; ".join(
        f"{method}: " + ", ".join(f"{kind} {count}" for kind, count in sorted(by_class.items()))
        for method, by_class in counts.items()
    )


def row_words(
    described: Mapping[str, Any], n_probes: int, n_features: int, settings: FeatureSettings
) -> dict[str, str]:
    """Composition of a row by name of the aspect: parameters, outputs, probes, form, gradients.

    Args:
        described: result of ``FeatureMap.describe``.
        n_probes: output directions.
        n_features: numbers in a row.
        settings: the recipe key ``features``.
    """
    parameters = described["parameters"]
    outputs = described["outputs"]
    globs = ", ".join(settings.parameters) or "all that were trainable"
    selected = "all" if not settings.outputs else _listed([str(index) for index in outputs])
    directions = f"{n_probes} direction{'s' if n_probes > 1 else ''} in output space"
    # Numbers of the recipe only where the recipe sets both.
    if "auto" not in (settings.probes, settings.deflated_probes):
        directions += f" ({settings.probes} random, {settings.deflated_probes} calibrated)"
    return {
        "parameters": f"{_count(parameters)} ({globs}): {_listed(parameters)}",
        "outputs": f"{len(outputs)} ({selected})",
        "probes": directions,
        "rows": f"{_describe_form(described)}, {n_features:,} numbers each",
        "gradients": "; ".join(_describe_methods(described["plan"])),
    }


def _describe_form(described: Mapping[str, Any]) -> str:
    if described["kind"] == "factors":
        return "exact layer factors"
    sketches: Sequence[Mapping[str, str]] = described["sketch"]
    counts = {name: sum(each["sketch"] == name for each in sketches) for name in _SKETCHES}
    parts = [f"{_SKETCHES[name]} of {count}" for name, count in counts.items() if count]
    return f"a sketch ({', '.join(parts)} parameter arrays)"


def _describe_methods(plan: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every method with its parameters: slow methods list names, others the number."""
    methods: dict[str, list[str]] = {}
    for rule in plan:
        # The root module in a loop is the last resort.
        whole = rule["method"] == "loop" and not rule["name"]
        method = _WHOLE_NETWORK if whole else _METHODS[rule["method"]]
        methods.setdefault(method, []).extend(rule["parameters"])
    slow = {_METHODS["vjp"], _METHODS["loop"], _WHOLE_NETWORK}
    return [
        f"{method}: {_listed(names) if method in slow else _count(names)}"
        for method, names in methods.items()
    ]


def _round_factor(factor: float) -> str:
    return f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}"


def _count(names: Sequence[str]) -> str:
    count = len(set(names))
    return f"{count} array{'s' if count > 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")


def measure_rows(feature_map: FeatureMap, inputs: npt.NDArray[Any]) -> RowCost:
    """CPU-seconds of rows and of plain passes of the same network on the same few samples.

    Args:
        feature_map: the map.
        inputs: calibration inputs [sample, ...]; the first few are used, fewer if they are large.
    """
    import torch

    from krepes_ooc.jacobian.opening import sample_size

    batch = sample_size(feature_map.network, inputs).batch
    few = inputs[: min(TIMED_SAMPLES, batch)]
    # Leaves of its own on the same weights, which require gradients.
    network = feature_map.network.differentiable_copy(feature_map.parameters)
    parameters = [network.inner.get_parameter(name) for name in feature_map.parameters]

    def plain() -> None:
        # The cheapest comparable work: one forward pass, one backward pass to all parameters.
        total = network(torch.tensor(few)).sum()
        torch.autograd.grad(total, parameters, allow_unused=True)

    row, spread = _cpu_seconds(lambda: feature_map.rows(few))
    one, _ = _cpu_seconds(plain)
    return RowCost(row / len(few), one / len(few), len(few), spread)


def _cpu_seconds(work: Callable[[], object]) -> tuple[float, float]:
    """CPU-seconds of a call, and half the range of the three fastest relative to it.

    Repeated until these three agree, or the time is up.
    """
    # The first call warms up caches and lazy initialisation.
    started = time.process_time()
    work()
    first = time.process_time() - started
    # Beside a call this long, what the first one loads is nothing.
    if first > MAX_SECONDS:
        return first, 0.0
    # Short calls are timed several at a time: the clock is coarse.
    calls = max(1, math.ceil(LEAST_SECONDS / max(first, 1e-6)))
    seconds: list[float] = []
    fastest: list[float] = [first]
    spread = 0.0
    while len(seconds) < MAX_REPEATS:
        begin = time.process_time()
        for _ in range(calls):
            work()
        seconds.append(max(time.process_time() - begin, 1e-6) / calls)
        fastest = sorted(seconds)[:3]
        spread = (fastest[-1] - fastest[0]) / (2 * fastest[0])
        enough = len(fastest) == 3 and spread <= LARGEST_SPREAD / 2
        if enough or time.process_time() - started > MAX_SECONDS:
            break
    return fastest[len(fastest) // 2], spread
