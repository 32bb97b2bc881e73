"""Factories of small demo networks: ``factory: krepes_ooc.network.zoo:mlp``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Module:
    """Linear layers with ReLU between them; samples of any shape are flattened.

    Args:
        inputs: numbers in one sample.
        hidden: widths of the hidden layers.
        outputs: width of the embedding.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
