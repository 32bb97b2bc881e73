from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from krepes_ooc.core.feature_layout import FeatureLayout, sketch_layout
from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import DataError, NetworkError, RecipeError, StageFailed, UsageError
from krepes_ooc.jacobian.feature_map import FeatureSettings, open_features
from krepes_ooc.jacobian.float16_rows import store_rows
from krepes_ooc.network import zoo
from krepes_ooc.network.frozen import freeze

INPUTS = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)


class Counted(TorchDispatchMode):
    """Count the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count[operation.overloadpacket.__name__] += 1
        return operation(*args, **(kwargs or {}))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return zoo.mlp(6, [9, 8], 5)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Parameter(torch.ones(10000)), nn.Linear(6, 2)

    def forward(self, x):
        return self.layer(x.flatten(1)) * self.table.mean()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(self.layer(x.flatten(1)).relu())


class Stacked(nn.Module):
    """A layer that reads two rows a sample once a number is large."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        x = x.flatten(1)
        twice = bool((x > 100.0).any())
        return self.layer(torch.cat([x, x]) if twice else x)[: len(x)]


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 2), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x.flatten(1))


class Bypassed(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.b(nn.functional.linear(x.flatten(1), self.a.weight, self.a.bias))


def normalised(seed: int = 0) -> nn.Module:
    """Linear layers with all that an encoder usually has between them."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 8, bias=False),
        nn.BatchNorm1d(8),
        nn.PReLU(),
        nn.Linear(8, 8),
        nn.LayerNorm(8),
        nn.GELU(),
        nn.Linear(8, 5),
    )
    for _ in range(3):
        module(torch.randn(64, 2, 3))
    return module.eval()


def factor_kernel(rows: np.ndarray, layout: FeatureLayout) -> np.ndarray:
    """The double sum of krepes_ooc.core.feature_layout, loop by loop."""
    rows, kernel = rows.astype(np.float64), 0.0
    for factor in layout.factors:
        weight = float(factor.bias)
        if factor.inputs:
            a = rows[:, slice(*factor.inputs)]
            weight = weight + a @ a.T
        for span in factor.gradients:
            d = rows[:, slice(*span)]
            kernel = kernel + weight * (d @ d.T)
    return kernel


def dense_kernel(module: nn.Module, names: list[str], probes: np.ndarray) -> np.ndarray:
    """sum_r <J^T v_r, J'^T v_r> from torch.func.jacrev, float64."""
    module = module.double()
    state = {k: v.detach() for k, v in module.named_parameters()}
    chosen = {k: state[k] for k in names}

    def outputs(parameters):
        return torch.func.functional_call(
            module, {**state, **parameters}, torch.from_numpy(INPUTS).double()
        )

    jacobian = torch.func.jacrev(outputs)(chosen)
    flat = torch.cat([j.reshape(len(INPUTS), 5, -1) for j in jacobian.values()], dim=2).numpy()
    taken = np.einsum("ro,noP->rnP", probes.astype(np.float64), flat)
    return np.einsum("rnP,rmP->nm", taken, taken)


@pytest.mark.parametrize(
    ("make", "probes", "globs"),
    [
        (network, 1, ()),
        (network, 3, ("*.weight",)),
        (network, 5, ("*.bias",)),
        (network, 3, ("1.*", "*.bias")),
        (normalised, 1, ("1.*", "*.bias")),
        (normalised, 3, ()),
    ],
)
def test_rows_hold_the_kernel_exactly(make, probes: int, globs: tuple[str, ...]) -> None:
    settings = FeatureSettings(probes=probes, parameters=globs)
    opened = open_features(make(), settings, INPUTS, seed=4)
    assert opened.describe()["kind"] == "factors"
    rows, embedding = opened.rows(INPUTS)
    assert rows.dtype == embedding.dtype == np.float32
    assert rows.shape == (7, opened.layout.n_features)
    exact = dense_kernel(make(), list(opened.parameters), opened.probes)
    np.testing.assert_allclose(factor_kernel(rows, opened.layout), exact, rtol=2e-6, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(embedding, make()(torch.from_numpy(INPUTS)), atol=1e-6)


def test_rows_are_written_in_one_pass() -> None:
    """Three products forward, two back, one joint: no weight gradient, no copy of an activation."""
    opened = open_features(network(), FeatureSettings(), INPUTS)
    with Counted() as counted:
        opened.rows(INPUTS)
    done = {name: counted.count[name] for name in ("addmm", "mm", "bmm", "cat", "clone")}
    assert done == {"addmm": 3, "mm": 2, "bmm": 0, "cat": 1, "clone": 1}, "the clone: outputs"
    assert counted.count["copy_"] <= 1, "the probe"


def test_a_layer_that_reads_two_rows_a_sample_is_told() -> None:
    opened = open_features(Stacked(), FeatureSettings(kind="factors"), INPUTS)
    wild = INPUTS.copy()
    wild[2, 0, 0] = 200.0
    with pytest.raises(
        NetworkError, match=r"layer: .*reads shape \(14, 6\) in a batch of 7 samples"
    ):
        opened.rows(wild)


def test_all_probes_give_the_trace_kernel_and_outputs_select() -> None:
    opened = open_features(network(), FeatureSettings(probes=9, outputs=(4, 1)), INPUTS)
    rows, embedding = opened.rows(INPUTS)
    selector = np.zeros((2, 5))
    selector[0, 4] = selector[1, 1] = 1.0
    exact = dense_kernel(network(), list(opened.parameters), selector)
    np.testing.assert_allclose(factor_kernel(rows, opened.layout), exact, rtol=2e-6, atol=1e-5)
    assert opened.n_outputs == embedding.shape[1] == 2
    with torch.no_grad():
        expected = network()(torch.from_numpy(INPUTS))[:, [4, 1]]
    np.testing.assert_allclose(embedding, expected, rtol=1e-6)


def test_batch_size_does_not_matter_and_clones_agree_bit_for_bit() -> None:
    opened = open_features(network(), FeatureSettings(), INPUTS)
    rows, _ = opened.rows(INPUTS)
    again, _ = opened.clone().rows(INPUTS)
    np.testing.assert_array_equal(rows, again)
    halves = np.concatenate([opened.rows(INPUTS[:3])[0], opened.rows(INPUTS[3:])[0]])
    np.testing.assert_allclose(rows, halves, rtol=1e-5, atol=1e-6)
    tapes = [copy._jacobian._tape.network for copy in (opened, opened.clone())]
    assert tapes[0] is not tapes[1]
    for one, two in zip(tapes[0].parameters(), tapes[1].parameters(), strict=True):
        assert one.data_ptr() == two.data_ptr(), "threads share one copy of the weights"


def test_the_module_is_not_touched() -> None:
    module = network().train()
    open_features(module, FeatureSettings(), INPUTS)
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert not any(m._forward_hooks for m in module.modules())


def test_read_only_inputs_and_inplace_layers_leave_inputs_alone() -> None:
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), network()[1])
    values = INPUTS.copy()
    values.setflags(write=False)
    open_features(module, FeatureSettings(), values).rows(values)
    np.testing.assert_array_equal(values, INPUTS)


def test_frozen_parameters_are_left_out_unless_named() -> None:
    module = network()
    module[1].requires_grad_(False)
    opened = open_features(module, FeatureSettings(), INPUTS)
    assert opened.parameters == ("3.weight", "3.bias", "5.weight", "5.bias")
    named = open_features(module, FeatureSettings(parameters=("*",)), INPUTS)
    assert len(named.parameters) == 6


def test_describe_is_complete() -> None:
    opened = open_features(network(), FeatureSettings(probes=2), INPUTS)
    described = opened.describe()
    assert described["kind"] == "factors"
    np.testing.assert_array_equal(np.float32(described["probes"]), opened.probes)
    assert described["parameters"] == list(opened.parameters)
    assert [entry["name"] for entry in described["plan"]] == ["1", "3", "5"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"parameters": ["nope*"]}, r"'nope\*' matches no parameter; expected 1.weight"),
        ({"outputs": [5]}, r"outputs \[5\]; expected different indices from 0 to 4"),
        ({"outputs": [1, 1]}, "different indices"),
        ({"probes": 0}, "at least 1"),
        ({"kind": "lora"}, "one of auto, factors, sketch"),
    ],
)
def test_wrong_settings_are_usage_errors(settings: dict[str, object], words: str) -> None:
    with pytest.raises((UsageError, RecipeError), match=words):
        open_features(network(), read_settings(FeatureSettings, settings, "features"), INPUTS)


def test_wrong_inputs_and_networks_are_named() -> None:
    with pytest.raises(
        NetworkError,
        match=r"type float32: the network does not run.*the shape that the network was built for",
    ):
        open_features(network(), FeatureSettings(), INPUTS.reshape(7, 6)[:, :4].copy())
    with pytest.raises(UsageError, match="1 calibration samples"):
        open_features(network(), FeatureSettings(), INPUTS[:1])
    with pytest.raises(UsageError, match="no trainable parameter"):
        open_features(freeze(network().requires_grad_(False)), FeatureSettings(), INPUTS)
    bad = INPUTS.copy()
    bad[3, 0, 0] = np.nan
    with pytest.raises(NetworkError, match="calibration sample 3 is not finite"):
        open_features(network(), FeatureSettings(), bad)


def test_factors_are_refused_where_they_do_not_apply() -> None:
    module = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 4), nn.Unflatten(0, (-1, 2)))
    with pytest.raises(UsageError, match=r"reads shape \(14, 3\), not one vector a sample"):
        open_features(module, FeatureSettings(kind="factors"), INPUTS)
    shared = nn.Linear(6, 6)
    for module, words in (
        (nn.Sequential(nn.Flatten(), shared, shared), "1.weight is shared"),
        (nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv2d(1, 9000, 2)), "no Linear layer"),
        (Wide(), r"hold 10000 numbers outside Linear layers \(Wide\)"),
        (Twice(), "layer layer is called twice as a layer"),
        (Bypassed(2000), "layer a is called nowhere as a layer"),
    ):
        with pytest.raises(UsageError, match=words):
            open_features(module, FeatureSettings(kind="factors"), INPUTS)
    tied = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Linear(6, 6))
    tied[2].weight = tied[1].weight
    with pytest.raises(UsageError, match=r"1.weight is shared by two layers"):
        open_features(tied, FeatureSettings(kind="factors"), INPUTS)


def test_stored_rows_are_scaled_by_powers_of_two() -> None:
    opened = open_features(network(), FeatureSettings(), INPUTS)
    rows, _ = opened.rows(INPUTS)
    stored = store_rows(rows, opened.layout)
    assert stored.dtype == np.float16
    for start, stop, exponent in opened.layout.scales:
        largest = np.abs(stored[:, start:stop].astype(float)).max()
        assert 128 <= largest <= 256.5
        back = stored[:, start:stop].astype(np.float64) * 2.0**-exponent
        np.testing.assert_allclose(back, rows[:, start:stop], rtol=2**-10, atol=largest * 1e-6)


def test_unfit_rows_name_their_columns() -> None:
    layout = FeatureLayout(sketch_layout(8).factors, ((0, 4, 3), (4, 8, 0)))
    rows = np.ones((5, 8), np.float32)
    rows[2, 6] = 1e5
    with pytest.raises(StageFailed, match=r"scale 2\*\*0: columns 4 to 8 overflow float16: 1e\+05"):
        store_rows(rows, layout)
    rows[2, 6] = np.nan
    with pytest.raises(DataError, match="columns 4 to 8 of row 2 are NaN or infinite"):
        store_rows(rows, layout)
    rows[2, 6], rows[0, 1] = 0.0, 1e-7
    with pytest.raises(
        StageFailed, match=r"2\*\*3: 1 of 20 values of columns 0 to 4 are subnormal"
    ):
        store_rows(rows, layout)
    rows[0, 1] = 1e-20
    with pytest.raises(StageFailed, match="1 of 20 values of columns 0 to 4"):
        store_rows(rows, layout)
    rows[0, 1] = 0.0
    assert store_rows(rows, layout)[0, 0] == 8.0
    many = np.tile(rows, (20, 1))
    many[0, 1] = 1e-7
    assert store_rows(many, layout)[0, 1] > 0.0, "one of 400 is within the limit"


def test_unused_layers_are_left_out_of_the_rows() -> None:
    opened = open_features(Headed(), FeatureSettings(), INPUTS)
    assert len(opened.parameters) == 4
    assert opened.layout.n_features == 6 + 2
    with pytest.raises(NetworkError, match="depend on none of the audited parameters"):
        open_features(Headed(), FeatureSettings(parameters=("unused.*",)), INPUTS)


def test_what_autograd_cannot_do_is_told() -> None:
    def overwrite(layer, args, output):
        args[0].mul_(2.0)

    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Linear(6, 3))
    module[2].register_forward_hook(overwrite)
    with pytest.raises(NetworkError, match=r"autograd cannot differentiate.*in-place operation"):
        open_features(module, FeatureSettings(), INPUTS)


def test_probes_of_a_store_are_taken_as_they_are() -> None:
    first = open_features(network(), FeatureSettings(probes=2), INPUTS, seed=7)
    again = open_features(
        network(), FeatureSettings(probes=2), INPUTS, first.describe()["probes"], seed=8
    )
    np.testing.assert_array_equal(first.probes, again.probes)
    np.testing.assert_array_equal(first.rows(INPUTS)[0], again.rows(INPUTS)[0])
