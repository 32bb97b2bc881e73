"""Checkpoints as people have them: loaded with a line that says how, or refused with the cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from krepes_ooc.errors import UsageError
from krepes_ooc.jacobian.feature_map import FeatureSettings, open_features
from krepes_ooc.network.checkpoint_file import content_files
from krepes_ooc.network.spec import NetworkSpec, weight_files
from krepes_ooc.stages.features.inner_products import self_kernel
from tests import small
from tests.network.checkpoints import FACTORIES, X, assert_same, built, load, refusal

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(FACTORIES)
    return tmp_path


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
