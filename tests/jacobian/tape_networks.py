"""Networks of every kind of layer that the tape reads, with random inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from krepes_ooc.network import zoo
from krepes_ooc.network.frozen import FrozenNetwork, freeze


class Custom(nn.Module):
    """A module with named parts and a forward given as a function of itself and the input."""

    def __init__(self, forward: Callable, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def tied() -> nn.Module:
    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.weight = a.weight
    return nn.Sequential(a, nn.Tanh(), b)


def embedding_tied_to_the_output() -> nn.Module:
    def run(m, x):
        return functional.linear(m.mix(m.table(x.long())), m.table.weight).mean(dim=1)

    return Custom(run, table=nn.Embedding(7, 4, padding_idx=0), mix=nn.Linear(4, 4))


def in_place(m, x):
    h = m.a(x).relu_()
    h = h + m.b(h)
    h *= 2.0
    h.view(-1)[:] += 1.0
    return m.c(functional.relu_(h).view(-1, 4))


def vit(batch_first: bool) -> nn.Module:
    def run(m, x):
        tokens = m.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([m.token.expand(len(x), -1, -1), tokens], dim=1) + m.position
        if not batch_first:
            return m.head(m.encoder(tokens.transpose(0, 1))[0])
        return m.head(m.encoder(tokens)[:, 0])

    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
    return Custom(
        run,
        embed=nn.Conv2d(2, 8, 2, 2),
        token=parameter(1, 1, 8),
        position=parameter(1, 5, 8),
        encoder=nn.TransformerEncoder(layer, 2),
        head=nn.Linear(8, 3),
    )


def cross_attention(**options: int) -> nn.Module:
    def run(m, x):
        memory = m.project(x)
        memory = memory[..., : options.get("kdim", 4)]
        return m.attention(x[:, :2], memory, memory)[0].flatten(1)

    attention_layer = nn.MultiheadAttention(4, 2, batch_first=True, **options)
    return Custom(run, project=nn.Linear(4, 4), attention=attention_layer)


def normalised_cnn() -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, (3, 1), stride=(2, 1), groups=3, bias=False),
        nn.GroupNorm(3, 6),
        nn.Conv2d(6, 4, 1, stride=2, dilation=1),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    for _ in range(2):
        module(torch.randn(16, 2, 4, 4))
    return module


class Standardised(nn.Conv2d):
    """Weights with mean 0 and variance 1 in every row, as BiT's residual networks have them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.weight.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True) + 1e-6).sqrt()
        weight = flat.view_as(self.weight)
        return functional.conv2d(
            x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class StandardisedVolume(nn.Conv3d):
    """The same for volumes, by batch normalisation, and with keywords."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(rows, None, None, training=True).reshape_as(self.weight)
        return functional.conv3d(input=x, weight=weight, bias=self.bias, padding=self.padding)


class Scaled(Standardised):
    """Standardised weights times a gain, which is a parameter too; the input is padded first."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.rand(sizes[1], 1, 1, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(rows, None, None, self.gain.view(-1), training=True)
        return functional.conv2d(functional.pad(x, (0, 1, 0, 1)), weight.reshape_as(self.weight),
                                 self.bias)  # fmt: skip


def equalised(function: Callable, n_inputs: int, *shape: int) -> nn.Module:
    """A layer that is no layer of torch: its weight is scaled at every run."""

    def run(m, x):
        x = x.transpose(1, 2) if len(shape) > 1 else x
        result = function(x, 0.3 * m.matrix)
        return result.transpose(1, 2) + 0.7 * m.shift if len(shape) > 1 else result + 0.7 * m.shift

    n_outputs = shape[0]
    return Custom(run, matrix=parameter(n_outputs, n_inputs, *shape[1:]),
                  shift=parameter(n_outputs))  # fmt: skip


def mixed_weights(m, x):
    """Each sample has the mixture of matrices that it asks for."""
    shares = m.route(x).softmax(1)
    rows = [
        functional.linear(row[None], torch.einsum("e,eoi->oi", share, m.experts))
        for row, share in zip(x, shares, strict=True)
    ]
    return torch.cat(rows)


def steps(rnn: nn.RNNBase) -> nn.Module:
    width = (rnn.proj_size or rnn.hidden_size) * (1 + rnn.bidirectional)
    return Custom(lambda m, x: m.a(m.rnn(x)[0])[:, -1], rnn=rnn, a=nn.Linear(width, 2))


def packed() -> nn.Module:
    def run(m, x):
        lengths = torch.full((len(x),), 4)
        sequence = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return m.a(m.rnn(sequence)[1][0][0])

    return Custom(run, rnn=nn.LSTM(4, 3, batch_first=True), a=nn.Linear(3, 2))


class Blocks(nn.Module):
    """Blocks that hold one module in common, as encodings of positions are shared."""

    def __init__(self, shared: nn.Module, n_blocks: int = 2) -> None:
        super().__init__()
        self.shared = shared
        self.blocks = nn.ModuleList(
            Custom(lambda m, x: m.shared(m.a(x).tanh()), a=nn.Linear(6, 6), shared=shared)
            for _ in range(n_blocks)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def shared_in_a_list() -> nn.Module:
    """One convolution in two lists of one module: several names of one place inside it."""

    def run(m, x):
        parts = x.view(len(x), 2, 3).unbind(1)
        weight = m.again[0].weight
        return torch.cat([functional.linear(p, weight[:, :, 0]) for p in parts], 1).tanh()

    convolution = nn.Conv1d(3, 3, 1, bias=False)
    first, second = nn.ModuleList([convolution]), nn.ModuleList([convolution])
    return Custom(run, first=first, again=second)


def shared_and_tied() -> nn.Module:
    """A module under two names whose weight is the weight of a third one too."""
    prelu, other = nn.PReLU(6), nn.PReLU(6)
    other.weight = prelu.weight
    return nn.Sequential(nn.Linear(6, 6), prelu, nn.Linear(6, 6), prelu, nn.Linear(6, 6), other)


IMAGES, VECTORS, TOKENS, SEQUENCES = (2, 4, 4), (6,), "tokens", (5, 4)
CASES: dict[str, tuple[Callable[[], nn.Module], object, set[str]]] = {
    "mlp": (lambda: zoo.mlp(6, [5], 3), VECTORS, {"layer"}),
    "small cnn": (lambda: zoo.small_cnn(2, 2, 3), IMAGES, {"layer"}),
    "small vit": (
        lambda: zoo.small_vit(2, 4, 3, 2, 8, 1, 2),
        IMAGES,
        {"layer", "bare", "attention"},
    ),
    "cnn": (normalised_cnn, IMAGES, {"layer"}),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(5, 4, 3, padding="same", dilation=2), nn.Flatten()),
        SEQUENCES,
        {"layer"},
    ),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.Flatten()), (1, 3, 3, 3), {"layer"}),
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 3, 2), IMAGES, {"vjp"}),
    "transformer": (lambda: vit(True), IMAGES, {"layer", "bare", "attention"}),
    "transformer, samples second": (lambda: vit(False), IMAGES, {"layer", "bare", "attention"}),
    "cross attention": (cross_attention, SEQUENCES, {"layer", "attention"}),
    "cross attention, other widths": (
        lambda: cross_attention(kdim=3, vdim=3),
        SEQUENCES,
        {"layer", "attention"},
    ),
    "attention with extra keys": (
        lambda: cross_attention(add_bias_kv=True),
        SEQUENCES,
        {"layer", "vjp"},
    ),
    "norms": (
        lambda: nn.Sequential(nn.LayerNorm((5, 4)), nn.RMSNorm(4), nn.Linear(4, 3)),
        SEQUENCES,
        {"layer"},
    ),
    "batch norm of sequences": (
        lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Flatten()),
        SEQUENCES,
        {"layer"},
    ),
    "samples folded with positions": (
        lambda: nn.Sequential(
            nn.Flatten(0, 1), nn.Linear(4, 3), nn.LayerNorm(3), nn.Unflatten(0, (-1, 5))
        ),
        SEQUENCES,
        {"layer"},
    ),
    "images folded with positions": (
        lambda: nn.Sequential(
            nn.Flatten(0, 1), nn.Unflatten(1, (1, 4)), nn.Conv2d(1, 3, 2), nn.Unflatten(0, (-1, 2))
        ),
        IMAGES,
        {"layer"},
    ),
    "tied weights": (tied, VECTORS, {"layer"}),
    "layer called twice": (
        lambda: Custom(lambda m, x: m.a(m.a(x).tanh()), a=nn.Linear(6, 6)),
        VECTORS,
        {"layer"},
    ),
    "module shared by blocks": (lambda: Blocks(nn.PReLU(6)), VECTORS, {"layer", "vjp"}),
    "module shared by lists": (shared_in_a_list, VECTORS, {"vjp"}),
    "module shared and tied": (shared_and_tied, VECTORS, {"layer", "vjp"}),
    "in place": (
        lambda: Custom(in_place, a=nn.Linear(6, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 3)),
        VECTORS,
        {"layer"},
    ),
    "weight used functionally": (
        lambda: Custom(
            lambda m, x: m.b(functional.linear(x, m.a.weight, m.a.bias).relu_()),
            a=nn.Linear(6, 5),
            b=nn.Linear(5, 3),
        ),
        VECTORS,
        {"layer", "vjp"},
    ),
    "weight norm": (
        lambda: parametrizations.weight_norm(nn.Linear(6, 4)),
        VECTORS,
        {"layer", "computed"},
    ),
    "weight norm of a convolution": (
        lambda: parametrizations.weight_norm(
            nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect", groups=2)
        ),
        IMAGES,
        {"layer", "computed"},
    ),
    "orthogonal, spectral norm, a sequence": (
        lambda: nn.Sequential(
            parametrizations.orthogonal(nn.Linear(4, 4)),
            nn.Tanh(),
            parametrizations.spectral_norm(nn.Linear(4, 3)),
        ),
        SEQUENCES,
        {"layer", "computed"},
    ),
    "weight standardisation": (
        lambda: nn.Sequential(
            Standardised(2, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            Standardised(6, 4, 3, padding="same", groups=2, bias=False),
            nn.GroupNorm(2, 4),
            Standardised(4, 3, (2, 1), stride=(2, 1), dilation=(1, 2)),
        ),
        IMAGES,
        {"layer", "computed"},
    ),
    "weight standardisation of volumes, called twice": (
        lambda: Custom(
            lambda m, x: m.a(m.a(x).tanh()), a=StandardisedVolume(1, 1, 3, padding="same")
        ),
        (1, 3, 3, 3),
        {"layer", "computed"},
    ),
    "equalised learning rates": (
        lambda: nn.Sequential(
            equalised(functional.conv1d, 4, 5, 3), nn.Tanh(), equalised(functional.linear, 5, 2)
        ),
        SEQUENCES,
        {"bare", "computed"},
    ),
    "scaled weight standardisation": (
        lambda: nn.Sequential(Scaled(2, 4, 3), nn.Flatten()),
        IMAGES,
        {"layer", "computed"},
    ),
    "weight that a sample computes": (
        lambda: Custom(mixed_weights, route=nn.Linear(6, 2), experts=parameter(2, 3, 6)),
        VECTORS,
        {"layer", "vjp"},
    ),
    "prelu": (lambda: nn.Sequential(nn.Linear(6, 4), nn.PReLU(4)), VECTORS, {"layer", "vjp"}),
    "bare parameters": (
        lambda: Custom(
            lambda m, x: (m.a(x) * m.gain * m.scale + m.shift) @ m.matrix,
            a=nn.Linear(4, 4),
            gain=parameter(4),
            scale=nn.Parameter(torch.tensor(1.5)),
            shift=parameter(1, 5, 4),
            matrix=parameter(4, 3),
        ),
        SEQUENCES,
        {"layer", "bare"},
    ),
    "bare matrix of vectors": (
        lambda: Custom(lambda m, x: x @ m.matrix, matrix=parameter(6, 3)),
        VECTORS,
        {"vjp"},
    ),
    "embedding": (
        lambda: Custom(
            lambda m, x: m.a(m.table(x.long())).mean(dim=1),
            table=nn.Embedding(7, 4, padding_idx=0),
            a=nn.Linear(4, 3),
        ),
        TOKENS,
        {"layer"},
    ),
    "embedding tied to the output": (embedding_tied_to_the_output, TOKENS, {"layer", "vjp"}),
    "lstm": (lambda: steps(nn.LSTM(4, 3, batch_first=True)), SEQUENCES, {"recurrent", "layer"}),
    "lstm of both directions, two layers, projected": (
        lambda: steps(nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2, batch_first=True)),
        SEQUENCES,
        {"recurrent", "layer"},
    ),
    "gru, samples second, with a first state": (
        lambda: Custom(
            lambda m, x: m.a(m.rnn(x.transpose(0, 1), m.b(x[:, 0])[None])[0][-1]),
            rnn=nn.GRU(4, 3),
            a=nn.Linear(3, 2),
            b=nn.Linear(4, 3),
        ),
        SEQUENCES,
        {"recurrent", "layer"},
    ),
    "gru of both directions, last state": (
        lambda: Custom(
            lambda m, x: m.rnn(x)[1].transpose(0, 1).flatten(1),
            rnn=nn.GRU(4, 3, 2, bidirectional=True, batch_first=True, bias=False),
        ),
        SEQUENCES,
        {"recurrent"},
    ),
    "rnn with relu, called twice": (
        lambda: Custom(
            lambda m, x: m.rnn(m.rnn(x)[0])[0][:, -1],
            rnn=nn.RNN(4, 4, nonlinearity="relu", batch_first=True),
        ),
        SEQUENCES,
        {"recurrent"},
    ),
    "lstm of packed sequences": (packed, SEQUENCES, {"loop", "layer"}),
}


def build(case: str) -> tuple[FrozenNetwork, torch.Tensor]:
    make, shape, _ = CASES[case]
    torch.manual_seed(0)
    module = make()
    if shape == TOKENS:
        inputs = torch.from_numpy(np.random.default_rng(0).integers(0, 7, (4, 5))).float()
    else:
        inputs = torch.randn(4, *shape)  # type: ignore[misc]
    return freeze(module), inputs
