"""The networks of the feature benchmark, lightly trained, and samples to run them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from krepes_ooc.network import zoo
from krepes_ooc.network.ssl_losses import view_loss

COLUMNS = 108


@dataclass(frozen=True)
class Case:
    """One network.

    Args:
        build: makes it.
        inputs: makes that many samples [sample, ...].
        batch: samples of one pass when speed and memory are measured.
        samples: samples that the kernels are compared on.
        steps: steps of light training.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], torch.Tensor]
    batch: int
    samples: int
    steps: int


def cases() -> dict[str, Case]:
    """All networks by name."""
    return {
        "mlp": Case(lambda: zoo.mlp(COLUMNS, [512, 512], 128), people, 256, 256, 200),
        "vit": Case(lambda: zoo.small_vit(3, 32, 64, 4, 192, 6, 3), pictures, 32, 128, 60),
        "resnet": Case(lambda: ResNet(64), pictures, 24, 96, 30),
        "cnn": Case(lambda: zoo.small_cnn(3, 16, 64), pictures, 64, 200, 200),
    }


def trained(case: Case) -> nn.Module:
    """The network after a few steps of Barlow Twins, in eval mode."""
    torch.manual_seed(0)
    module, data = case.build(), case.inputs(512)
    optimiser = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(case.steps):
        batch = data[torch.randint(len(data), (24,))]
        views = [module(batch + 0.3 * torch.randn_like(batch)) for _ in range(2)]
        optimiser.zero_grad()
        view_loss("barlow-twins", views).backward()
        optimiser.step()
    return module.eval()


def people(count: int) -> torch.Tensor:
    """Rows like those of Adult: six numbers and one-hot columns that follow six hidden traits."""
    draw = np.random.default_rng(0)
    traits, weights = draw.normal(size=(count, 6)), draw.normal(size=(6, COLUMNS))
    scores = traits @ weights + draw.normal(size=(count, COLUMNS))
    rows = (scores > 2.0).astype(np.float32)
    rows[:, :6] = scores[:, :6]
    return torch.from_numpy(rows)


def pictures(count: int) -> torch.Tensor:
    """Handwritten digits in random colours, scaled to 32 x 32."""
    images = torch.from_numpy(load_digits().images[:count]).float()[:, None] / 16
    colours = torch.rand(len(images), 3, 1, 1, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(images, 32, mode="bilinear") * (0.3 + 0.7 * colours)


class ResNet(nn.Module):
    """ResNet18 for 32 x 32 pictures: a 3 x 3 stem without pooling (He et al. 2016)."""

    def __init__(self, width: int, outputs: int = 128) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks, before = [], width
        for stage in range(4):
            for index in range(2):
                after = width * 2**stage
                blocks.append(Residual(before, after, 2 if stage and not index else 1))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs [sample, output] of pictures."""
        hidden = self.blocks(functional.relu(self.norm(self.stem(x))))
        return self.head(hidden.mean(dim=(2, 3)))


class Residual(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm_one = nn.BatchNorm2d(after)
        self.two = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm_two = nn.BatchNorm2d(after)
        self.short = nn.Identity()
        if stride != 1 or before != after:
            convolution = nn.Conv2d(before, after, 1, stride, bias=False)
            self.short = nn.Sequential(convolution, nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's result."""
        hidden = functional.relu(self.norm_one(self.one(x)), inplace=True)
        return functional.relu(self.norm_two(self.two(hidden)) + self.short(x), inplace=True)
