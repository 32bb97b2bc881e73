"""Cost of a feature row over a plain forward and backward pass, both in turn in one process.

    python -m benchmarks.row_over_plain
    python -m benchmarks.row_over_plain --only lstm,gru
    python -m benchmarks.row_over_plain --table

One probe, 4,096 columns, random weights, one thread. ViTs have the width, heads and 197 tokens of
ViT-B/16 in four of its twelve blocks: all blocks cost the same. Each turn times a row and then a
plain pass, by processor time; the ratio is that of the fastest turns, beside the range of all
turns. Needs timm and transformers for their networks; what is measured goes to
``benchmarks/results/row-over-plain.json`` after each network.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.zoo import ways
from benchmarks.zoo_networks import Mean, declare_operators
from krepes_ooc.jacobian.feature_map import FeatureMap, FeatureSettings, open_features
from krepes_ooc.jacobian.gradients import recurrent

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks/results/row-over-plain.json"
SETTINGS = FeatureSettings(kind="sketch", probes=1, deflated_probes=0, sketch=4096)
DEPTH, N_WORDS, N_STEPS = 4, 1000, 32
# Largest ratio that is aimed at.
AIMS = {"timm ViT-B/16": 1.5, "transformers ViT-B/16": 1.5, "timm ResNet-50": 1.25}


class Recurrent(nn.Module):
    """Words, two recurrent layers of torch, and a head on the last step."""

    def __init__(self, kind: str, width: int = 256) -> None:
        super().__init__()
        self.table = nn.Embedding(N_WORDS, width)
        self.cells = getattr(nn, kind)(width, width, 2, batch_first=True)
        self.head = nn.Linear(width, 64)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Outputs [sample, output]."""
        outputs: torch.Tensor = self.head(self.cells(self.table(tokens))[0][:, -1])
        return outputs


def timm_network(name: str, **arguments: Any) -> nn.Module:
    """A network of timm with random weights."""
    declare_operators()
    built: nn.Module = importlib.import_module("timm").create_model(
        name, num_classes=0, **arguments
    )
    return built


def transformers_vit() -> nn.Module:
    """ViT-B/16 of transformers in fewer blocks, mean over tokens."""
    declare_operators()
    library = importlib.import_module("transformers")
    return Mean(library.ViTModel(library.ViTConfig(num_hidden_layers=DEPTH)))


# Network, samples of a batch, and whether these are words.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, bool]] = {
    "timm ViT-B/16": (lambda: timm_network("vit_base_patch16_224", depth=DEPTH), 4, False),
    "transformers ViT-B/16": (transformers_vit, 4, False),
    "timm ResNet-50": (lambda: timm_network("resnet50"), 4, False),
    "timm BiT ResNet-50": (lambda: timm_network("resnetv2_50x1_bit"), 4, False),
    "LSTM": (lambda: Recurrent("LSTM"), 16, True),
    "GRU": (lambda: Recurrent("GRU"), 16, True),
}


def main() -> None:
    """Measure the networks that are asked for, write after each, print the table."""
    asked = _parser().parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = json.loads(asked.out.read_text()) if asked.out.is_file() else {}
    only = [part for part in asked.only.lower().split(",") if part]
    for name in () if asked.table else NETWORKS:
        if only and not any(part in name.lower() for part in only):
            continue
        found[name] = measure(name, asked.turns)
        print(name, json.dumps(found[name]), flush=True)
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def measure(name: str, n_turns: int) -> dict[str, Any]:
    """Processor seconds of a row and of a plain pass of one sample, and their ratio."""
    build, n_samples, has_words = NETWORKS[name]
    torch.manual_seed(0)
    module = build().eval()
    draw = np.random.default_rng(0)
    inputs: Any = draw.integers(0, N_WORDS, (n_samples, N_STEPS))
    if not has_words:
        inputs = draw.normal(size=(n_samples, 3, 224, 224)).astype(np.float32)
    begun = time.process_time()
    opened = open_features(module, SETTINGS, inputs)
    opening = time.process_time() - begun
    works = {"row": lambda: opened.rows(inputs), "plain": plain_pass(opened, inputs)}
    if has_words:
        again = run_again(module, inputs)
        works["run again"] = lambda: again.rows(inputs)
    turns: list[dict[str, float]] = []
    for turn in range(n_turns + 1):
        seconds = {key: _processor_seconds(work) / n_samples for key, work in works.items()}
        # The first turn fills caches.
        turns += [seconds] if turn else []
    fastest = {key: min(seconds[key] for seconds in turns) for key in works}
    ratios = sorted(seconds["row"] / seconds["plain"] for seconds in turns)
    return {
        "ways": ways(opened),
        "samples": n_samples,
        "turns": n_turns,
        "seconds": fastest,
        "ratio": fastest["row"] / fastest["plain"],
        "ratio_range": [ratios[0], ratios[-1]],
        "opening_cpu_seconds": round(opening, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def plain_pass(opened: FeatureMap, inputs: Any) -> Callable[[], object]:
    """One forward pass and one backward pass to all parameters of a batch."""
    network = opened.network.differentiable_copy(opened.parameters)
    parameters = [network.inner.get_parameter(name) for name in opened.parameters]
    return lambda: torch.autograd.grad(
        network(torch.tensor(inputs)).sum(), parameters, allow_unused=True
    )


def run_again(module: nn.Module, inputs: Any) -> FeatureMap:
    """The map without the way of recurrent layers: they are run again for every probe."""
    can_record = recurrent.can_record
    recurrent.can_record = lambda layer: False
    try:
        return open_features(module, SETTINGS, inputs)
    finally:
        recurrent.can_record = can_record


def _processor_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def table(found: dict[str, dict[str, Any]]) -> str:
    """Figures as a Markdown table."""
    lines = ["| network | ways | plain pass, ms | row, ms | row over plain | all turns | aim |"]
    lines.append("|---" * 7 + "|")
    for name, one in found.items():
        listed = ", ".join(f"{way} {count}" for way, count in one["ways"].items())
        low, high = one["ratio_range"]
        aim = AIMS.get(name)
        said = "" if aim is None else f"{aim} {'met' if one['ratio'] <= aim else 'missed'}"
        if "run again" in one["seconds"]:
            said = f"run again: {one['seconds']['run again'] / one['seconds']['plain']:.1f}"
        cells = [name, listed, f"{1e3 * one['seconds']['plain']:.3g}"]
        cells += [f"{1e3 * one['seconds']['row']:.3g}", f"{one['ratio']:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{low:.2f} to {high:.2f}", said]) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="parts of names, with commas: lstm,gru")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the figures that lie there")
    return parser


if __name__ == "__main__":
    main()
