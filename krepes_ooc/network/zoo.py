"""Factories of small demo networks: ``factory: krepes_ooc.network.zoo:mlp``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


def small_cnn(channels: int, width: int, outputs: int) -> nn.Module:
    """Three convolutions with batch normalisation, average pooling, one Linear layer.

    Args:
        channels: channels of an image [channel, y, x], at least 4 pixels wide and high.
        width: channels of the first convolution; the next ones have two and four times as many.
        outputs: width of the embedding.
    """
    layers: list[nn.Module] = []
    for step, factor in enumerate((1, 2, 4)):
        stride = 1 if step == 0 else 2
        layers += [
            nn.Conv2d(channels, factor * width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(factor * width),
            nn.ReLU(),
        ]
        channels = factor * width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs)
    )


def small_vit(
    channels: int,
    size: int,
    outputs: int,
    patch: int = 4,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
) -> nn.Module:
    """A vision transformer with a class token on square images.

    Args:
        channels: channels of an image.
        size: pixels of an image's side, a multiple of ``patch``.
        outputs: width of the embedding.
        patch: pixels of a patch's side.
        width: width of a token.
        depth: number of encoder layers.
        heads: attention heads; they divide ``width``.
    """
    return _SmallViT(channels, size // patch, outputs, patch, width, depth, heads)


class _SmallViT(nn.Module):
    def __init__(
        self,
        channels: int,
        patches: int,
        outputs: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(
            nn.init.normal_(torch.empty(1, patches**2 + 1, width), std=0.02)
        )
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], dim=1)
        encoded: torch.Tensor = self.encoder(tokens + self.position)
        outputs: torch.Tensor = self.head(self.norm(encoded)[:, 0])
        return outputs
