from __future__ import annotations

import copy
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from krepes_ooc.core.import_object import factory_sha256, find_factory
from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import NetworkError, RecipeError, UsageError
from krepes_ooc.network import frozen
from krepes_ooc.network import spec as spec_module
from krepes_ooc.network.checkpoint import LoadedState, read_state, save_weights
from krepes_ooc.network.spec import NetworkSpec, build_network, load_network
from krepes_ooc.network.state_fit import KeyRules, fill_module

ARGUMENTS = {"inputs": 4, "hidden": [5], "outputs": 3}
MLP = "krepes_ooc.network.zoo:mlp"


def spec(weights: str, **more: object) -> NetworkSpec:
    return read_settings(
        NetworkSpec, {"factory": MLP, "arguments": ARGUMENTS, "weights": weights, **more}, "network"
    )


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_network(spec("w")).state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_arrive_frozen_in_eval_mode(tmp_path: Path, state, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    save_weights(state, path) if suffix == ".safetensors" else torch.save(state, path)
    network = load_network(spec(path.name), None, tmp_path)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert len(network.trainable) == 4
    for name, value in network.inner.state_dict().items():
        assert torch.equal(value, state[name])
    assert not network.train().training
    assert not [p for p in tmp_path.iterdir() if p.name != path.name], "a temporary file stays"


def test_half_precision_is_widened(tmp_path: Path, state) -> None:
    path = tmp_path / "w.pt"
    torch.save({k: v.half() for k, v in state.items()}, path)
    network = load_network(spec("w.pt"), None, tmp_path)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_builtin_factory_has_a_name_for_a_source() -> None:
    with pytest.raises(NetworkError, match="the factory returned dict"):
        build_network(NetworkSpec("builtins:dict"))
    assert factory_sha256("builtins:dict") != factory_sha256("builtins:list")


def test_file_factory_is_never_stale(tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text("def make(): return 1\n")
    assert find_factory("net.py:make", tmp_path)() == 1
    source.write_text("def make(): return 2\n")
    assert find_factory("net.py:make", tmp_path)() == 2


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("nothing", "names no factory"),
        (":f", "names no factory"),
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        ("krepes_ooc.network.zoo:nope", "no callable 'nope'"),
        ("missing.py:f", "no such file"),
        (MLP, "does not take these arguments"),
    ],
)
def test_wrong_factory_is_a_usage_error(tmp_path: Path, factory: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_network(NetworkSpec(factory, {"depth": 3}), tmp_path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("1 / 0", "import failed: ZeroDivisionError"),
        ("import no_such_dependency", "import failed: ModuleNotFoundError"),
        ("def make(): raise ValueError('seven')", "factory failed: ValueError: seven"),
        ("def make(): return {}", "the factory returned dict"),
        ("import torch\ndef make(): return torch.jit.script(torch.nn.Linear(2, 2))", "TorchScript"),
        (
            "import torch\ndef make():\n m = torch.nn.Linear(2, 2)\n"
            " return torch.export.export(m, (torch.zeros(3, 2),))",
            "exported program",
        ),
        (
            "import torch\ndef make():\n m = torch.nn.Sequential(torch.nn.Linear(2, 2))\n"
            " return torch.export.export(m, (torch.zeros(3, 2),)).module()",
            "exported graph",
        ),
        ("import torch\ndef make(): return torch.compile(torch.nn.Linear(2, 2))", "compiled"),
        (
            "from torch import nn\n"
            "def make(): return nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))",
            "0: BatchNorm1d has track_running_stats=False",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_unfit_factory_is_a_network_error(tmp_path: Path, code: str, words: str) -> None:
    (tmp_path / "net.py").write_text(code + "\n")
    with pytest.raises(NetworkError, match=words):
        build_network(NetworkSpec("net.py:make"), tmp_path)


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no checkpoint yet.*run the recipe"):
        load_network(spec("pretrain"), None, tmp_path)
    with pytest.raises(UsageError, match=r"no such file"):
        load_network(spec("absent.pt"), None, tmp_path)
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(NetworkError, match=r"w.h5: is a text; expected a safetensors file"):
        load_network(spec("w.h5"), None, tmp_path)
    with pytest.raises(RecipeError, match=r"strip_prefix"):
        spec("w.pt", strip_prefix=3)


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code ran",))


def test_pickled_code_is_refused_and_never_run(tmp_path: Path, capsys) -> None:
    torch.save({"a": Hostile()}, tmp_path / "w.pt")
    with pytest.raises(NetworkError, match=r"never runs.*state dict.*save module.state_dict"):
        load_network(spec("w.pt"), None, tmp_path)
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(NetworkError, match=r"pickled code or a whole module"):
        load_network(spec("whole.pt"), None, tmp_path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_truncated_checkpoint_names_size_and_hash(tmp_path, state, suffix, share) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(NetworkError, match=r"cannot be read.*\d+ bytes, sha256 [0-9a-f]{64}"):
        load_network(spec(path.name), None, tmp_path)


def test_prefix_is_found_and_stripped(tmp_path: Path, state) -> None:
    path = tmp_path / "w.pt"
    torch.save({f"module.{k}": v for k, v in state.items()}, path)
    with pytest.raises(NetworkError, match=r"4 keys missing.*strip_prefix to 'module\.'"):
        load_network(spec("w.pt"), None, tmp_path)
    load_network(spec("w.pt", strip_prefix="module."), None, tmp_path)


def test_state_key_is_found_and_used(tmp_path: Path, state) -> None:
    path = tmp_path / "w.pt"
    torch.save({"epoch": 3, "deep": {"state_dict": state}, "state_dict": state}, path)
    with pytest.raises(UsageError, match=r"set network.state_key to one of state_dict"):
        load_network(spec("w.pt"), None, tmp_path)
    with pytest.raises(UsageError, match=r"no key 'model'.*epoch, deep, state_dict"):
        load_network(spec("w.pt", state_key="model"), None, tmp_path)
    load_network(spec("w.pt", state_key="state_dict"), None, tmp_path)
    load_network(spec("w.pt", state_key="deep.state_dict"), None, tmp_path)
    torch.save([1, 2], path)
    with pytest.raises(UsageError, match=r"no state dict"):
        read_state(path)


def test_keys_and_shapes_must_fit(tmp_path: Path, state) -> None:
    module = build_network(spec("w"))
    extra = {**state, "head.weight": torch.zeros(2)}
    with pytest.raises(
        NetworkError, match=r"1 unexpected \(head.weight\).*network.ignore: \[head\.\*\]"
    ):
        fill_module(module, LoadedState(extra), tmp_path, KeyRules())
    short = {k: v for k, v in state.items() if k != "1.bias"}
    with pytest.raises(NetworkError, match=r"1 keys missing \(1.bias\).*check network.factory"):
        fill_module(module, LoadedState(short), tmp_path, KeyRules())
    wide = {**state, "1.bias": torch.zeros(9)}
    with pytest.raises(NetworkError, match=r"1.bias has shape \(9,\); expected shape \(5,\)"):
        fill_module(module, LoadedState(wide), tmp_path, KeyRules())


def test_unfinite_and_unready_parameters_are_named() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        module[0].bias[1] = torch.nan
    with pytest.raises(NetworkError, match=r"0.bias: 1 of 2 values are NaN or infinite"):
        frozen.check_state_finite(module)
    with pytest.raises(NetworkError, match=r"weight: has no values yet"):
        frozen.check_state_finite(nn.LazyLinear(3))
    with pytest.raises(NetworkError, match=r"weight: is torch.complex64"):
        frozen.check_state_finite(nn.Linear(2, 2, dtype=torch.complex64))


def test_a_module_that_cannot_be_copied_is_told() -> None:
    network = frozen.freeze(nn.Linear(2, 2))
    network.inner.lock = threading.Lock()
    for make in (network.deep_copy, network.shared_copy):
        with pytest.raises(NetworkError, match=r"Linear: the network cannot be copied.*lock"):
            make()


class Several(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(3, 2)

    def forward(self, x):
        value = self.layer(x)
        return {
            "dict": {"a": value, "b": value + 1},
            "tuple": (value, value + 1),
            "deep": {"a": value[:, None, None, :]},
            "mixed": value.sum(),
            "long": value.long(),
        }[self.kind]


def test_output_is_chosen_and_flattened() -> None:
    x = torch.ones(4, 3)
    plain = Several("tuple")(x)[0]
    assert torch.equal(frozen.freeze(Several("dict"), "b")(x).shape and plain, plain)
    for kind, key, width in (("dict", "b", 2), ("tuple", "-1", 2), ("deep", "a", 2)):
        assert frozen.freeze(Several(kind), key)(x).shape == (4, width)
    with pytest.raises(NetworkError, match=r"returns dict.*set network.output to one of a, b"):
        frozen.freeze(Several("dict"))(x)
    with pytest.raises(NetworkError, match=r"returns tuple.*index from 0 to 1"):
        frozen.freeze(Several("tuple"))(x)
    with pytest.raises(NetworkError, match=r"returns a tensor of torch.int64; .*such as logits"):
        frozen.freeze(Several("long"))(x)
    with pytest.raises(NetworkError, match=r"output shape \(\) for 4 samples"):
        frozen.freeze(Several("mixed"))(x)
    with pytest.raises(UsageError, match=r"no output 'c'; expected a, b"):
        frozen.freeze(Several("dict"), "c")(x)
    with pytest.raises(UsageError, match=r"no output '5'; expected 0 to 1"):
        frozen.freeze(Several("tuple"), "5")(x)
    with pytest.raises(UsageError, match=r"no output 'a'; expected no entry"):
        frozen.freeze(Several("mixed"), "a")(x)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: torch.jit.script(nn.Linear(3, 3)), "1: TorchScript hides its layers"),
        (lambda: torch.compile(nn.Linear(3, 3)), "1: a compiled module hides its layers"),
        (
            lambda: torch.ao.nn.quantized.dynamic.Linear(3, 3),
            "1: Linear is quantised and has no gradients",
        ),
    ],
    ids=["script", "compiled", "quantised"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_layers_inside_that_cannot_be_recorded_are_named(layer: Any, words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        frozen.check_module(nn.Sequential(nn.Linear(3, 3), layer()))
    with pytest.raises(NetworkError, match=words.removeprefix("1: ")):
        frozen.check_module(layer())


def test_a_module_that_is_compiled_in_place_runs_its_layers() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    x = torch.ones(2, 3)
    plain = module(x)
    module.compile(backend=lambda graph, inputs: pytest.fail("compiled"))
    assert torch.equal(frozen.freeze(frozen.check_module(module))(x), plain)


def test_hooks_on_parameters_are_said() -> None:
    module = nn.Linear(3, 2)
    assert frozen.freeze(copy.deepcopy(module)).notes == ()
    module.weight.register_hook(lambda gradient: 3 * gradient)
    (note,) = frozen.freeze(module).notes
    assert note == "hooks on parameters change no row, which is the gradient itself: weight"


def test_sparse_outputs_are_read() -> None:
    class Sparse(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).to_sparse()

    network = frozen.freeze(Sparse(3, 2))
    x = torch.ones(4, 3)
    assert torch.equal(network(x), network.inner(x).to_dense())


def test_reading_settings_does_not_load_torch() -> None:
    code = (
        "import sys; from krepes_ooc.jacobian import feature_map; "
        "from krepes_ooc.network import pretrain, spec; "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(spec_module.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
