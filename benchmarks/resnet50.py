"""A network of the shape of ResNet-50 (He et al. 2016), random weights, nothing downloaded."""

from __future__ import annotations

import torch
from torch import nn

STAGES = ((1, 3, 1), (2, 4, 2), (4, 6, 2), (8, 3, 2))  # width, blocks, stride


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 and a way around them."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.inner = nn.Sequential(
            *(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)),
        )
        self.around: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.around = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x) + self.around(x))


def resnet50(width: int = 64, outputs: int = 128) -> nn.Module:
    """23.5 million parameters for width 64, and a linear head.

    Args:
        width: channels of the first layer.
        outputs: of the head, as a projector would read.
    """
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)]
    layers += [nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = width
    for times, count, stride in STAGES:
        for index in range(count):
            layers.append(Bottleneck(before, times * width, stride if index == 0 else 1))
            before = 4 * times * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs)]
    return nn.Sequential(*layers)
