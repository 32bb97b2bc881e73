"""The tape, its layers, its plan: every gradient against autograd on each sample alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from krepes_ooc.errors import NetworkError
from krepes_ooc.jacobian import attention, gradient_plan, module_vjp, recurrent
from krepes_ooc.jacobian.jacobian import GradientRule, Jacobian
from krepes_ooc.jacobian.replaced_parameters import replaced_parameters
from krepes_ooc.jacobian.tape import Tape
from krepes_ooc.network import zoo
from krepes_ooc.network.frozen import FrozenNetwork, freeze

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # vmap tells where it is slow


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


def overwriting() -> FrozenNetwork:
    def run(m, x):
        h = m.a(x)
        z = m.b(h)
        h.mul_(2.0)
        return z + h

    torch.manual_seed(0)
    return freeze(Custom(run, a=nn.Linear(6, 4), b=nn.Linear(4, 4)))


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


def exact_gradients(network: FrozenNetwork, inputs, probe, names=()) -> dict[str, torch.Tensor]:
    """One sample after the other, by plain autograd."""
    names = names or [name for name, _ in network.inner.named_parameters()]
    copied = network.differentiable_copy(names)
    leaves = [copied.inner.get_parameter(name) for name in names]
    rows = [
        torch.autograd.grad(copied(x[None].clone())[0] @ probe, leaves, materialize_grads=True)
        for x in inputs
    ]
    return {
        name: torch.stack(row) for name, row in zip(names, zip(*rows, strict=True), strict=True)
    }


@pytest.mark.parametrize("case", CASES)
def test_planned_gradients_are_exact(case: str) -> None:
    network, inputs = build(case)
    units = gradient_plan.plan_rules(network, network.trainable, inputs[:2])
    methods = CASES[case][2]
    assert not methods or {unit.method for unit in units} == methods
    double = network.deep_copy().double()
    probe = torch.linspace(-1.0, 1.5, double(inputs.double()).shape[1], dtype=torch.float64)
    exact = exact_gradients(double, inputs.double(), probe)
    scale = max(float(g.norm()) for g in exact.values())
    loops = Jacobian(double, [unit.in_loop() for unit in units])
    actual = dict(loops.gradients(inputs.double(), probe))
    assert set(actual) == set(exact)
    for name, gradient in exact.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-9, atol=1e-11 * scale)
    single = dict(Jacobian(network, units).gradients(inputs, probe.float()))
    for name, gradient in exact.items():
        torch.testing.assert_close(single[name].double(), gradient, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("case", [case for case in CASES if "shared" in case])
def test_a_module_with_several_names_is_as_it_was_afterwards(case: str) -> None:
    network, inputs = build(case)
    inner = network.inner
    before = dict(inner.named_parameters(remove_duplicate=False))
    state = {name: 2.0 * value for name, value in inner.named_parameters()}
    for _ in range(2):
        with replaced_parameters(inner, state):
            result = inner(inputs.clone())
        assert not torch.equal(result, inner(inputs.clone()))
        after = dict(inner.named_parameters(remove_duplicate=False))
        assert all(after[name] is parameter for name, parameter in before.items())
    # As if the weights themselves were changed.
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.mul_(2.0)
    torch.testing.assert_close(result, inner(inputs.clone()))


def test_modules_in_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = build("transposed convolution")
    jacobian = Jacobian(network, gradient_plan.plan_rules(network, network.trainable, inputs[:2]))
    probe = torch.ones(network(inputs).shape[1])
    whole = dict(jacobian.gradients(inputs, probe))
    monkeypatch.setattr(
        module_vjp, "CHUNK_NUMBERS", 3 * sum(p.numel() for p in network.parameters())
    )
    for name, part in jacobian.gradients(inputs, probe):
        torch.testing.assert_close(part, whole[name])


def test_where_vmap_fails_a_loop_is_taken() -> None:
    def run(m, x):
        assert float(x.sum()) < 1e9  # vmap refuses to turn a value into a number
        return functional.linear(x, m.a.weight)

    network = freeze(Custom(run, a=nn.Linear(6, 4, bias=False)))
    inputs, probe = torch.randn(3, 6), torch.ones(4)
    units = gradient_plan.plan_rules(network, network.trainable, inputs[:2])
    assert [unit.method for unit in units] == ["loop"]
    for _, gradient in Jacobian(network, units).gradients(inputs, probe):
        torch.testing.assert_close(gradient, inputs[:, None, :].expand(3, 4, 6))


def test_what_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = build("weight used functionally")
    monkeypatch.setattr(gradient_plan, "_common_ancestors", lambda owners: owners)
    with pytest.raises(NetworkError, match=r"a.weight: no way was found.*leave it out"):
        gradient_plan.plan_rules(network, network.trainable, inputs[:2])


def test_an_input_overwritten_behind_the_tape_is_run_again() -> None:
    network, inputs = overwriting(), torch.randn(3, 6)
    units = gradient_plan.plan_rules(network, ("a.weight", "b.bias"), inputs[:2])
    assert {(unit.method, unit.name) for unit in units} == {("layer", "a"), ("vjp", "")}
    probe = torch.ones(4)
    exact = exact_gradients(network, inputs, probe, ("a.weight", "b.bias"))
    for name, gradient in Jacobian(network, units).gradients(inputs, probe):
        torch.testing.assert_close(gradient, exact[name])


def test_wrong_plans_are_not_believed() -> None:
    """The trial that judges plans sees each planted fault."""
    network, inputs = build("transformer")
    trial = gradient_plan.GradientTrial(network, network.trainable, inputs[:2])
    good = {"head.weight": (GradientRule("layer", "head", ("head.weight",)),)}
    assert trial.wrong_parameters(good) == []
    name = "encoder.layers.0.linear1.weight"
    faults: list[gradient_plan.GradientPath] = [
        (),
        (GradientRule("layer", "encoder.layers.0.linear1", (name,), 1),),
        (GradientRule("layer", "encoder.layers.0.linear2", (name,)),),
        (GradientRule("vjp", "encoder.layers.0.linear1", (name,), 0, (1, 1)),),
        (GradientRule("bare", name, (name,), 3),),
    ]
    for fault in faults:
        assert trial.wrong_parameters({name: fault}) == [name]
        assert trial.wrong_parameters({**good, name: fault}) == [name]


def sensitive() -> FrozenNetwork:
    """Rounding of a sample alone changes the gradient by some hundredths, and no output."""

    def run(m, x):
        if len(x) == 1 and x.dtype == torch.float32:
            x = x * (1 + 2e-7)
        z = m.a(x)
        # The derivative 1 + 0.05 cos(2e7 z), which float32 can only guess.
        return m.b(z + 2.5e-9 * torch.sin(2e7 * z))

    torch.manual_seed(0)
    return freeze(Custom(run, a=nn.Linear(6, 4), b=nn.Linear(4, 3)))


def test_sample_axes_are_found_for_all_modules_in_two_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = freeze(nn.Sequential(*[nn.PReLU(6) for _ in range(9)]))
    tapes: list[tuple[str, ...]] = []

    class Counted(Tape):
        def __init__(self, network: FrozenNetwork, layers: tuple[str, ...]) -> None:
            tapes.append(tuple(layers))
            super().__init__(network, layers)

    monkeypatch.setattr(gradient_plan, "Tape", Counted)
    rules = gradient_plan.plan_rules(network, network.trainable, torch.randn(4, 6))
    assert {rule.axes for rule in rules} == {(0, 0)}
    assert [len(names) for names in tapes if names] == [9]


def test_rounding_is_no_fault_of_a_path() -> None:
    network, inputs = sensitive(), torch.randn(4, 6)
    trial = gradient_plan.GradientTrial(network, network.trainable, inputs[:2])
    right = {name: (GradientRule("layer", name[0], (name,)),) for name in ("a.weight", "a.bias")}
    paths = Jacobian(network, gradient_plan.merge_rules(u for p in right.values() for u in p))
    rows = paths.gradients(trial.inputs, trial.probe)
    # Beside the sample alone both are wrong, whatever the path.
    assert min(trial._exact.errors(list(right), rows).values()) > 1e-2
    assert trial.wrong_parameters(right) == []
    # What is wrong in the batch too stays wrong.
    name = "a.weight"
    for fault in (
        (),
        (GradientRule("layer", "b", (name,)),),
        (GradientRule("bare", name, (name,), 3),),
    ):
        assert trial.wrong_parameters({**right, name: fault}) == [name]
    assert {u.method for u in gradient_plan.plan_rules(network, network.trainable, inputs[:2])} == {
        "layer"
    }


def test_an_overwritten_input_is_told_by_the_tape() -> None:
    call = Tape(overwriting(), ["b"]).record(torch.randn(3, 6)).calls[0]
    with pytest.raises(NetworkError, match=r"b: the network overwrites this layer's input.*x \+="):
        _ = call.input


def test_hooks_stay_on_the_tape() -> None:
    network, inputs = build("transformer")
    before = network(inputs)
    Tape(network, ["head"], ["encoder.layers.0.self_attn"]).record(inputs)
    assert not any(layer._forward_hooks for layer in network.modules())
    assert torch.equal(network(inputs), before)


def test_what_runs_without_gradient_has_none() -> None:
    def run(m, x):
        with torch.no_grad():
            h = m.a(x)
        return m.b(h)

    network = freeze(Custom(run, a=nn.Linear(6, 4), b=nn.Linear(4, 2)))
    inputs = torch.randn(3, 6)
    units = gradient_plan.plan_rules(network, network.trainable, inputs[:2])
    actual = dict(Jacobian(network, units).gradients(inputs, torch.ones(2)))
    assert float(actual["a.weight"].norm()) == 0.0
    assert float(actual["b.weight"].norm()) > 0.0


def masks(n_samples: int, n_queries: int, n_keys: int) -> dict[str, dict[str, object]]:
    padding = torch.zeros(n_samples, n_keys, dtype=torch.bool)
    padding[0, -1] = True
    return {
        "plain": {},
        "weights of heads": {"average_attn_weights": False},
        "no weights": {"need_weights": False},
        "padding": {"key_padding_mask": padding},
        "additive padding, no weights": {
            "key_padding_mask": torch.randn(n_samples, n_keys),
            "need_weights": False,
        },
        "mask": {"attn_mask": torch.ones(n_queries, n_keys).triu(1).bool()},
        "mask a head, padding": {
            "attn_mask": torch.randn(2 * n_samples, n_queries, n_keys),
            "key_padding_mask": padding,
            "need_weights": False,
        },
        "causal": {
            "attn_mask": torch.ones(n_queries, n_keys).triu(1).bool(),
            "is_causal": True,
            "need_weights": False,
        },
    }


@pytest.mark.parametrize("mask", masks(3, 4, 4))
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("same", [True, False], ids=["self", "cross"])
def test_recorded_attention_is_torch_attention(mask: str, batch_first: bool, same: bool) -> None:
    torch.manual_seed(0)
    n_keys = 4 if same else 5
    layer = nn.MultiheadAttention(6, 2, batch_first=batch_first).eval().requires_grad_(False)
    query, memory = torch.randn(3, 4, 6), torch.randn(3, n_keys, 6)
    provided = [query, query, query] if same else [query, memory, memory]
    if not batch_first:
        query, memory = query.transpose(0, 1), memory.transpose(0, 1)
        provided = [query, query, query] if same else [query, memory, memory]
    options = masks(3, 4, n_keys)[mask]
    expected = layer(*provided, **options)
    seen: list[str] = []

    def note(name, projection, inputs, result):
        seen.append(projection.weight)
        return result

    attention.record_attention(layer, "it", note)
    actual = layer(*provided, **options)
    assert seen == ["in_proj_weight"] * (1 if same else 3) + ["out_proj.weight"]
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    assert (actual[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-6)


def test_recorded_attention_without_a_batch() -> None:
    layer = nn.MultiheadAttention(6, 2, bias=False).eval()
    tokens, padding = torch.randn(4, 6), torch.tensor([False, True, False, False])
    expected = layer(tokens, tokens, tokens, key_padding_mask=padding)
    attention.record_attention(layer, "it", lambda name, projection, inputs, result: result)
    actual = layer(tokens, tokens, tokens, key_padding_mask=padding)
    for one, two in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


RECURRENT = {
    "lstm": lambda **kw: nn.LSTM(4, 3, 2, **kw),
    "shorter lstm": lambda **kw: nn.LSTM(4, 3, proj_size=2, **kw),
    "gru": lambda **kw: nn.GRU(4, 3, 2, **kw),
    "rnn": lambda **kw: nn.RNN(4, 3, **kw),
    "relu rnn": lambda **kw: nn.RNN(4, 3, nonlinearity="relu", **kw),
}


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}])
def test_recorded_recurrent_layers_are_torch_layers(kind: str, given: bool, options: dict) -> None:
    torch.manual_seed(0)
    layer = RECURRENT[kind](**options).double().eval()
    x = torch.randn(5, 5, 4, dtype=torch.float64)
    result, last = layer(x)
    is_lstm = isinstance(last, tuple)
    start = None
    if given:
        parts = [torch.randn_like(part) for part in (last if is_lstm else (last,))]
        start = tuple(parts) if is_lstm else parts[0]
        result, last = layer(x, start)
    told: list[tuple[str, tuple[int, ...]]] = []

    def record(name, projection, inputs, value):
        told.append((projection.weight, tuple(inputs.shape)))
        return value

    recurrent.record_recurrent(layer, "rnn", record)
    actual, actual_last = layer(x, start)
    torch.testing.assert_close(actual, result, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(actual_last, last, rtol=1e-12, atol=1e-14)
    weights = [name for name, _ in layer.named_parameters() if name.startswith("weight")]
    assert sorted(name for name, _ in told) == sorted(weights)
    assert {shape[:2] for _, shape in told} == {(5, 5)}
