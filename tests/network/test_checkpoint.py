"""Checkpoints as people have them: loaded with a line that says how, or refused with the cause."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tarfile
import types
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import KrepesError, NetworkError, UsageError
from krepes_ooc.jacobian.feature_map import FeatureSettings, open_features
from krepes_ooc.network.checkpoint_file import content_files
from krepes_ooc.network.frozen import FrozenNetwork
from krepes_ooc.network.spec import NetworkSpec, load_network, weight_files
from krepes_ooc.stages.features.inner_products import self_kernel
from tests import small

FACTORIES = """
import torch
from torch import nn


def batch_norm():
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))


def linear():
    return nn.Linear(12, 8)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.body = nn.Linear(12, 12, bias=False), nn.Linear(12, 12)
        self.last = nn.Linear(12, 12, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.body(torch.tanh(self.first(x)))))


def old_weight_norm():
    return nn.Sequential(nn.Linear(12, 16), nn.utils.weight_norm(nn.Linear(16, 8), dim=1))


def old_spectral_norm():
    return nn.Sequential(nn.Linear(12, 16), nn.utils.spectral_norm(nn.Linear(16, 8)))


def old_weight_norm_of_a_convolution():
    return nn.Sequential(nn.Unflatten(1, (3, 4)), nn.utils.weight_norm(nn.Conv1d(3, 5, 2)))


def new_weight_norm():
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(nn.Linear(12, 16), norm(nn.Linear(16, 8), dim=1))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 8)
        self.register_buffer("mask", torch.ones(12, dtype=torch.bool))
        self.register_buffer("place", torch.arange(8))

    def forward(self, x):
        return self.layer(x * self.mask)
"""
X = np.random.default_rng(0).normal(size=(6, 12)).astype("f4")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(FACTORIES)
    return tmp_path


def built(name: str, seed: int = 1) -> nn.Module:
    """A trained network, as far as its weights can tell."""
    space: dict[str, Any] = {}
    exec(FACTORIES, space)
    torch.manual_seed(seed)
    net: nn.Module = space[name]()
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand_like(tensor))
    return net.eval()


def load(folder: Path, factory: str, weights: str, **keys: Any) -> FrozenNetwork:
    values = {"factory": f"nets.py:{factory}", "weights": weights, **keys}
    return load_network(read_settings(NetworkSpec, values, "network"), None, folder)


def assert_same(network: nn.Module, net: nn.Module) -> None:
    with torch.no_grad():
        assert torch.equal(network(torch.tensor(X)), net(torch.tensor(X)).flatten(1))


def refusal(folder: Path, factory: str, weights: str, **keys: Any) -> str:
    with pytest.raises(KrepesError) as caught:
        load(folder, factory, weights, **keys)
    assert caught.value.exit_code in (1, 2)
    return str(caught.value)


# keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_over", "glob"),
    [
        (("fc.0.weight", "fc.0.bias", "fc.2.weight"), "fc.*"),
        (("queue",), "queue"),
        (("0.adapter.weight", "0.adapter.bias"), "0.adapter.*"),
    ],
)
def test_a_left_over_head_is_left_out_by_a_key(
    folder: Path, left_over: tuple[str, ...], glob: str
) -> None:
    net = built("batch_norm")
    state = {**net.state_dict(), **{name: torch.randn(3) for name in left_over}}
    wrapped = {f"module.encoder_q.{k}": v for k, v in state.items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, folder / "w.pth")
    keys = {"state_key": "state_dict", "strip_prefix": "module.encoder_q."}
    told = refusal(folder, "batch_norm", "w.pth", **keys)
    assert f"{len(left_over)} unexpected ({left_over[0]}" in told
    assert told.endswith(f"leave them out with network.ignore: [{glob}]")
    network = load(folder, "batch_norm", "w.pth", **keys, ignore=[glob])
    assert_same(network, net)
    assert f"network.ignore leaves out {len(left_over)} tensor" in network.notes[0]


def test_keys_are_renamed(folder: Path) -> None:
    net = built("batch_norm")
    state = {("stem." + k[2:] if k.startswith("0.") else k): v for k, v in net.state_dict().items()}
    torch.save({f"m.{k}": v for k, v in state.items()}, folder / "w.pth")
    told = refusal(folder, "batch_norm", "w.pth", strip_prefix="m.")
    assert told.endswith("or set network.rename")
    for rename in (
        {"stem": "0"},
        {"stem.": "0."},
        {"stem.weight": "0.weight", "stem.bias": "0.bias"},
    ):
        assert_same(load(folder, "batch_norm", "w.pth", strip_prefix="m.", rename=rename), net)
    starred = {k.replace("3.", "deep.x.3.old."): v for k, v in net.state_dict().items()}
    torch.save(starred, folder / "s.pth")
    assert_same(load(folder, "batch_norm", "s.pth", rename={"deep.x.*.old": "*"}), net)
    with pytest.raises(UsageError, match=r"'deep.\*.old' and '3' have different numbers of stars"):
        load(folder, "batch_norm", "s.pth", rename={"deep.*.old": "3"})
    with pytest.raises(UsageError, match=r"network.rename: no key of w.pth is 'ste' or begins"):
        load(folder, "batch_norm", "w.pth", strip_prefix="m.", rename={"ste": "0"})
    with pytest.raises(UsageError, match=r"two tensors of w.pth get the name '3.weight'"):
        load(folder, "batch_norm", "w.pth", strip_prefix="m.", rename={"stem": "3"})
    with pytest.raises(UsageError, match=r"network.ignore: 'head.\*' matches no key of w.pth"):
        load(folder, "batch_norm", "w.pth", strip_prefix="m.", ignore=["head.*"])


def test_missing_counters_are_no_loss(folder: Path) -> None:
    net = built("batch_norm")
    torch.save({k: v for k, v in net.state_dict().items() if "num_b" not in k}, folder / "w.pth")
    network = load(folder, "batch_norm", "w.pth")
    assert_same(network, net)
    assert network.notes == ("1 counter of batches not in the checkpoint, not needed",)
    # A running mean is no counter.
    torch.save({k: v for k, v in net.state_dict().items() if "mean" not in k}, folder / "w.pth")
    assert "1 keys missing (1.running_mean)" in refusal(folder, "batch_norm", "w.pth")


@pytest.mark.parametrize("absent", ["last.weight", "first.weight"])
def test_the_second_name_of_a_tied_weight_is_filled(folder: Path, absent: str) -> None:
    net = built("Tied")
    state = {k: v.clone() for k, v in net.state_dict().items() if k != absent}
    save_file(state, folder / "w.safetensors")
    network = load(folder, "Tied", "w.safetensors")
    assert_same(network, net)
    assert f"1 second name of tied weights filled: {absent} from" in network.notes[0]


def test_a_tie_with_two_values_is_refused(folder: Path) -> None:
    state = {**built("Tied").state_dict(), "last.weight": torch.zeros(12, 12)}
    torch.save(state, folder / "w.pth")
    assert "first.weight and last.weight hold different values" in refusal(folder, "Tied", "w.pth")
    network = load(folder, "Tied", "w.pth", ignore=["last.weight"])
    assert torch.equal(network.inner.last.weight, state["first.weight"])


@pytest.mark.parametrize(
    "name", ["checkpoint.pth.tar", "W.PTH", "weights", "last.ckpt", "w.h5", "epoch.100"]
)
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_content_decides_and_not_the_suffix(folder: Path, name: str, form: str) -> None:
    net = built("batch_norm")
    if form == "safetensors":
        save_file(net.state_dict(), folder / name)
    else:
        zipped = form == "zip"
        torch.save(net.state_dict(), folder / name, _use_new_zipfile_serialization=zipped)
    assert_same(load(folder, "batch_norm", name), net)


def shards(folder: Path, net: nn.Module, ending: str) -> Path:
    """Two shards and their index, as model libraries write them."""
    state = net.state_dict()
    stem, write = ("model", save_file) if ending == "safetensors" else ("pytorch_model", torch.save)
    where = {}
    for number, names in enumerate((list(state)[:3], list(state)[3:]), 1):
        file = f"{stem}-{number:05d}-of-00002.{ending}"
        write({name: state[name].clone() for name in names}, folder / file)
        where |= dict.fromkeys(names, file)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_by_their_index_and_by_their_folder(folder: Path, ending: str) -> None:
    net = built("batch_norm")
    (folder / "hf").mkdir()
    index = shards(folder / "hf", net, ending)
    for weights in (f"hf/{index.name}", "hf"):
        assert_same(load(folder, "batch_norm", weights), net)
    # All files count for the digest.
    names = {path.name for path in content_files(folder / "hf")}
    assert names == {path.name for path in (folder / "hf").iterdir()}
    told = refusal(folder, "batch_norm", f"hf/{index.name.split('.')[0]}-00001-of-00002.{ending}")
    assert "is shard 1 of 2" in told
    assert told.endswith(f"set network.weights to their index {index.name}")
    (folder / f"hf/{index.name.split('.')[0]}-00002-of-00002.{ending}").unlink()
    assert "1 of 2 shards are not there" in refusal(folder, "batch_norm", "hf")


def test_a_lone_shard_without_its_index(folder: Path) -> None:
    index = shards(folder, built("batch_norm"), "safetensors")
    index.unlink()
    told = refusal(folder, "batch_norm", "model-00002-of-00002.safetensors")
    assert "is shard 2 of 2" in told
    assert "model.safetensors.index.json, which is not there either" in told


def test_an_index_that_leads_elsewhere_or_lies(folder: Path) -> None:
    index = shards(folder, built("batch_norm"), "safetensors")
    content = json.loads(index.read_text())
    content["weight_map"]["3.bias"] = "../secret.safetensors"
    index.write_text(json.dumps(content))
    assert "shards lie in another folder: ../secret" in refusal(folder, "batch_norm", index.name)
    content["weight_map"]["3.bias"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    assert "1 tensors are missing (3.bias)" in refusal(folder, "batch_norm", index.name)
    index.write_text("{}")
    assert "is a JSON text without weight_map" in refusal(folder, "batch_norm", index.name)


def test_a_folder_with_no_checkpoint_or_several(folder: Path) -> None:
    (folder / "hf").mkdir()
    assert "no checkpoints in this folder" in refusal(folder, "batch_norm", "hf")
    for name in ("a.pt", "b.pt"):
        torch.save(built("batch_norm").state_dict(), folder / "hf" / name)
    assert "one of a.pt, b.pt" in refusal(folder, "batch_norm", "hf")
    (folder / "hf/b.pt").unlink()
    load(folder, "batch_norm", "hf")


def test_a_changed_shard_changes_the_files_of_the_digest(folder: Path) -> None:
    index = shards(folder, built("batch_norm"), "safetensors")
    spec = NetworkSpec("nets.py:batch_norm", weights=index.name)
    assert len(weight_files(spec, folder)) == 3


@pytest.mark.parametrize(
    "name", ["old_weight_norm", "old_spectral_norm", "old_weight_norm_of_a_convolution"]
)
def test_older_norms_are_audited_as_parametrisations(folder: Path, name: str) -> None:
    net = built(name)
    torch.save(net.state_dict(), folder / "w.pth")
    network = load(folder, name, "w.pth")
    with torch.no_grad():
        want = net(torch.tensor(X)).flatten(1)
        assert torch.allclose(network(torch.tensor(X)), want, rtol=1e-6, atol=1e-7)
    assert any(".parametrizations.weight.original" in each for each in network.trainable)
    # The copies that threads and the self-check make.
    for copied in (network.deep_copy(), network.shared_copy(), network.deep_copy().double()):
        copied(torch.tensor(X, dtype=next(copied.parameters()).dtype))


@pytest.mark.parametrize("name", ["old_weight_norm", "old_spectral_norm"])
def test_rows_of_older_norms_are_their_gradients(folder: Path, name: str) -> None:
    network = load(folder, name, "factory")
    settings = FeatureSettings(outputs=(1,), probes=1, deflated_probes=0)
    shared = open_features(network, settings, X)
    assert shared.layout.factors
    got = np.asarray(self_kernel(shared.rows(X)[0], shared.layout))
    net = network.deep_copy().double()
    weights = [net.inner.get_parameter(each).requires_grad_(True) for each in network.trainable]
    assert len(weights) == (5 if "weight_norm" in name else 4)
    for row, x in zip(got, torch.tensor(X, dtype=torch.float64), strict=True):
        gradients = torch.autograd.grad(net(x[None])[0, 1], weights)
        assert abs(row / float(sum((g**2).sum() for g in gradients)) - 1) < 1e-5


@pytest.mark.parametrize(
    ("stored", "factory"),
    [("old_weight_norm", "new_weight_norm"), ("new_weight_norm", "old_weight_norm")],
)
def test_the_two_forms_of_weight_norm_read_each_other(
    folder: Path, stored: str, factory: str
) -> None:
    net = built(stored)
    torch.save(net.state_dict(), folder / "w.pth")
    network = load(folder, factory, "w.pth")
    assert "weight_norm is written in its other form" in network.notes[0]
    with torch.no_grad():
        assert torch.allclose(network(torch.tensor(X)), net(torch.tensor(X)), rtol=1e-6)


def test_a_norm_that_the_factory_lacks_is_named(folder: Path) -> None:
    torch.save(nn.utils.weight_norm(nn.Linear(12, 8)).state_dict(), folder / "w.pth")
    assert "the checkpoint has weight_norm: wrap these" in refusal(folder, "linear", "w.pth")


# messages -----------------------------------------------------------------------------------------


def test_all_fitting_prefixes_are_named_in_one_order(folder: Path) -> None:
    state = built("batch_norm").state_dict()
    both = {f"{p}.backbone.{k}": v for p in ("teacher", "student") for k, v in state.items()}
    torch.save(both, folder / "w.pth")
    code = (
        "import sys; sys.path.insert(0, '.'); from tests.network.test_checkpoint import *; "
        "print(refusal(Path(sys.argv[1]), 'batch_norm', 'w.pth'))"
    )
    told = set()
    for seed in "0", "1":
        command = [sys.executable, "-c", code, str(folder)]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        told.add(subprocess.run(command, env=env, capture_output=True, text=True).stdout)
    assert len(told) == 1
    assert "one of 'student.backbone.', 'teacher.backbone.'" in told.pop()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace under args"),
        ({"out": Path("runs")}, "pathlib.PosixPath under args.out"),
        (types.SimpleNamespace(lr=[1]), "types.SimpleNamespace under args"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_settings_beside_the_weights_are_left_out(
    folder: Path, settings: Any, words: str, zipped: bool
) -> None:
    net = built("batch_norm")
    content = {"teacher": net.state_dict(), "args": settings, "best": np.float64(0.5)}
    torch.save(content, folder / "w.pth", _use_new_zipfile_serialization=zipped)
    network = load(folder, "batch_norm", "w.pth", state_key="teacher")
    assert_same(network, net)
    assert network.notes == (f"left out of w.pth, and not run: {words}",)


@pytest.mark.parametrize(
    "beside",
    [
        np.float32(1),
        np.bool_(True),
        np.arange(3),
        np.array(["a"], object),
        defaultdict(list, a=[1]),
    ],
)
def test_plain_values_beside_the_weights_need_no_word(folder: Path, beside: Any) -> None:
    net = built("linear")
    torch.save({"model": net.state_dict(), "beside": beside}, folder / "w.pth")
    network = load(folder, "linear", "w.pth", state_key="model")
    assert_same(network, net)
    assert network.notes == ()


class Own:
    """A class of the user."""


class Mapping(dict):
    """A mapping of the user."""


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        (Own(), "tests.network.test_checkpoint.Own under args: the checkpoint holds"),
        ({"deep": [Own()]}, "tests.network.test_checkpoint.Own under args.deep.0: the"),
        (Mapping(a=1), "tests.network.test_checkpoint.Mapping: the checkpoint holds"),
        (Own, "tests.network.test_checkpoint.Own under args: the checkpoint holds"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_other_classes_are_named_with_their_key(
    folder: Path, beside: Any, words: str, zipped: bool
) -> None:
    content = {"model": built("linear").state_dict(), "args": beside}
    torch.save(content, folder / "w.pth", _use_new_zipfile_serialization=zipped)
    told = refusal(folder, "linear", "w.pth", state_key="model")
    assert words in told
    if "under" in words:
        assert "leave 'args' out when you save" in told


@pytest.mark.parametrize("where", ["model", "args"])
@pytest.mark.parametrize("call", [(os.mkdir, ("ran",)), (eval, ("1",)), (getattr, (Own, "x"))])
def test_code_is_refused_wherever_it_stands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, call: Any
) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return call

    monkeypatch.chdir(folder)
    content: dict[str, Any] = {"model": built("linear").state_dict(), "args": 1}
    content[where] = {"weight": Bomb()}
    torch.save(content, folder / "w.pth")
    told = refusal(folder, "linear", "w.pth", state_key="model")
    assert "which krepes never runs" in told
    assert not (folder / "ran").exists()


def test_a_forged_type_of_numpy_is_no_way_into_memory(folder: Path) -> None:
    """Flags and sizes of a pickled type are not believed, nor are addresses in place of objects."""

    class Forged:
        def __init__(self, code: str) -> None:
            self.code = code

        def __reduce__(self) -> Any:
            return np.dtype, (self.code, False, True), (3, "|", None, None, None, -1, -1, 0)

    class Scalar:
        def __init__(self, code: str) -> None:
            self.code = code

        def __reduce__(self) -> Any:
            return np._core.multiarray.scalar, (Forged(self.code), b"\x41" * 8)

    net = built("linear")
    for code in ("O8", "V8"):
        torch.save({"model": net.state_dict(), "x": Scalar(code)}, folder / "w.pth")
        assert_same(load(folder, "linear", "w.pth", state_key="model"), net)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 94567890\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS.format("0a" * 32).encode(), "is a pointer of git-lfs to a file of 94,567,890 bytes"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"\n <html><head>", "is a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
        (b"404: Not Found", "is a text"),
        (b"", "cannot be read: the file is empty"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file"),
        (b"\x1f\x8b\x08" + bytes(99), "is a gzip archive"),
        (b"GGUF" + bytes(99), "is a GGUF file of quantised weights"),
        (b"\x01\x02\x03\x04" + bytes(99), "begins with the bytes 01 02 03 04"),
        (b'{"architectures": ["ViTModel"]}', "is a JSON text without weight_map"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])
def test_files_that_are_no_weights_are_named(
    folder: Path, content: bytes, words: str, name: str
) -> None:
    (folder / name).write_bytes(content)
    told = refusal(folder, "batch_norm", name)
    if content[:1] == b"\x01" and name == "w.safetensors":
        words = "cannot be read: SafetensorError"
    assert words in told
    assert name in told


def test_archives_of_other_things(folder: Path) -> None:
    with zipfile.ZipFile(folder / "w.zip", "w") as archive:
        archive.writestr("model/w.bin", "x")
    assert "is a zip file of 1 other files" in refusal(folder, "linear", "w.zip")
    with tarfile.open(folder / "w.tar", "w") as archive:
        archive.add(folder / "nets.py", "nets.py")
    assert "is a tar archive" in refusal(folder, "linear", "w.tar")
    torch.jit.script(nn.Linear(2, 2)).save(folder / "w.pt")
    assert "is a TorchScript archive" in refusal(folder, "linear", "w.pt")


def test_numpy_arrays_are_read_as_tensors(folder: Path) -> None:
    net = built("batch_norm")
    state = {k: v.numpy() for k, v in net.state_dict().items()}
    torch.save(state, folder / "w.pth")
    np.savez(folder / "w.npz", **state)
    torch.save({k: np.asfortranarray(v.astype(">f4")) for k, v in state.items() if "num" not in k},
               folder / "big.pth")  # fmt: skip
    for name, count in (("w.pth", 9), ("w.npz", 9), ("big.pth", 8)):
        network = load(folder, "batch_norm", name)
        assert_same(network, net)
        if count == 9:
            assert network.notes == (f"9 values of {name} are NumPy arrays, read as tensors",)
    np.savez(folder / "o.npz", weight=np.array([{}], object))
    assert "cannot be read: ValueError" in refusal(folder, "linear", "o.npz")


@pytest.mark.parametrize(
    ("prefix", "heads"), [("modul.", "module."), ("module.x.", "module."), ("Module.", "module.")]
)
def test_a_prefix_with_a_typo(folder: Path, prefix: str, heads: str) -> None:
    state = built("batch_norm").state_dict()
    torch.save({f"module.{k}": v for k, v in state.items()}, folder / "w.pth")
    told = refusal(folder, "batch_norm", "w.pth", strip_prefix=prefix)
    assert (
        f"no key of w.pth begins with {prefix!r}; expected a beginning of its keys: {heads}" in told
    )


def test_entries_that_are_no_tensors(folder: Path) -> None:
    net = built("linear")
    torch.save({**net.state_dict(), "epoch": 3, "name": "a"}, folder / "w.pth")
    told = refusal(folder, "linear", "w.pth")
    assert "beside tensors the state dict holds epoch (int), name (str)" in told
    assert told.endswith("network.ignore: [epoch, name]")
    assert_same(load(folder, "linear", "w.pth", ignore=["epoch", "name"]), net)
    torch.save({"a": {"b.c": {"d": net.state_dict()}}}, folder / "w.pth")
    assert "set network.state_key to one of a.b.c.d" in refusal(folder, "linear", "w.pth")
    assert_same(load(folder, "linear", "w.pth", state_key="a.b.c.d"), net)
    assert "no key 'e'" in refusal(folder, "linear", "w.pth", state_key="a.b.c.e")


def test_another_protocol_of_pickle(folder: Path) -> None:
    state = built("linear").state_dict()
    torch.save(state, folder / "w.pth", pickle_protocol=4)
    assert "was saved with pickle protocol 4" in refusal(folder, "linear", "w.pth")
    (folder / "plain.pkl").write_bytes(pickle.dumps({k: v.numpy() for k, v in state.items()}))
    assert "was saved with pickle protocol" in refusal(folder, "linear", "plain.pkl")


# dtypes -------------------------------------------------------------------------------------------


def quantised(v: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(v, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: (v * 100).to(torch.int8), "int8"),
        (lambda v: v * (0.5 + 1j), "complex64"),
        (lambda v: v > 0, "bool"),
        (lambda v: (v * 100).long(), "int64"),
        (quantised, "quantised (qint8)"),
        (lambda v: v.to_sparse(), "sparse (sparse_coo, float32)"),
        (lambda v: v.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda v: v.to("meta"), "float32 without values (meta)"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_other_types_are_refused_with_key_and_both_types(
    folder: Path, change: Any, word: str
) -> None:
    torch.save({k: change(v) for k, v in built("linear").state_dict().items()}, folder / "w.pth")
    told = refusal(folder, "linear", "w.pth")
    assert f"weight is {word}; expected float32 as the factory builds it" in told


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_lengths_of_numbers_are_read(folder: Path, kind: torch.dtype) -> None:
    state = {k: v.to(kind) for k, v in built("linear").state_dict().items()}
    torch.save(state, folder / "w.pth")
    network = load(folder, "linear", "w.pth")
    assert torch.equal(network.inner.weight, state["weight"].float())


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("mask", torch.ones(12, dtype=torch.uint8), True),
        ("mask", torch.full((12,), 2, dtype=torch.uint8), False),
        ("mask", torch.ones(12), False),
        ("place", torch.arange(8, dtype=torch.int32), True),
        ("place", torch.arange(8.0), False),
        ("place", torch.arange(8) + 0j, False),
    ],
)
def test_whole_numbers_keep_their_values(
    folder: Path, name: str, value: torch.Tensor, fits: bool
) -> None:
    net = built("Masked")
    torch.save({**net.state_dict(), name: value}, folder / "w.pth")
    if fits:
        assert_same(load(folder, "Masked", "w.pth"), net)
    else:
        told = refusal(folder, "Masked", "w.pth")
        assert f"{name} is {str(value.dtype).removeprefix('torch.')}; expected" in told


def test_a_network_error_is_told_for_each_of_these(folder: Path) -> None:
    with pytest.raises(NetworkError):
        load(folder, "linear", "nets.py")


# the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda v: (v * 9).to(torch.int8), 1, "0.weight is int8; expected float32"),
        (lambda v: v.numpy(), 0, "network: 4 values of w.pth are NumPy arrays, read as tensors"),
        (str, 2, "the checkpoint is no state dict"),
    ],
)
def test_a_run_says_it_before_the_first_block(
    capsys: Any, tmp_path: Path, change: Any, code: int, words: str
) -> None:
    recipe = small.own_recipe(tmp_path, small.rows_csv(60))
    state = load_file(tmp_path / "weights.safetensors")
    torch.save({key: change(value) for key, value in state.items()}, tmp_path / "w.pth")
    given = ("run", str(recipe), "-w", str(tmp_path / "ws"), "--set", "network.weights=w.pth")
    told = small.krepes(capsys, *given, "--until", "features", "--workers", "1")
    assert told.code == code
    if code:
        assert words in told.line
        assert small.seals(tmp_path / "ws") == {}
    else:
        assert told.out.index(words) < told.out.index("features: sealed")
