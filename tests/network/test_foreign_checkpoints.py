"""Checkpoints that hold something else than weights: what is left out, read or refused."""

from __future__ import annotations

import argparse
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
from torch import nn

from tests.network.checkpoints import FACTORIES, assert_same, built, load, refusal

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(FACTORIES)
    return tmp_path


def test_all_fitting_prefixes_are_named_in_one_order(folder: Path) -> None:
    state = built("batch_norm").state_dict()
    both = {f"{p}.backbone.{k}": v for p in ("teacher", "student") for k, v in state.items()}
    torch.save(both, folder / "w.pth")
    code = (
        "import sys; sys.path.insert(0, '.'); from tests.network.checkpoints import *; "
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
        (Own(), "tests.network.test_foreign_checkpoints.Own under args: the checkpoint holds"),
        ({"deep": [Own()]}, "tests.network.test_foreign_checkpoints.Own under args.deep.0: the"),
        (Mapping(a=1), "tests.network.test_foreign_checkpoints.Mapping: the checkpoint holds"),
        (Own, "tests.network.test_foreign_checkpoints.Own under args: the checkpoint holds"),
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
