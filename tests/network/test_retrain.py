"""Training on a part of the samples, and the weights that a user's function may return."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from krepes_ooc.core import counter_rng
from krepes_ooc.errors import NetworkError, SourceError, Stopped
from krepes_ooc.network.checkpoint import save_weights
from krepes_ooc.network.pretrain import PretrainSettings, new_state, train_epoch
from krepes_ooc.network.retrain import (
    DemoTraining,
    call_trainer,
    network_of,
    outputs_of,
    seconds_of_training,
    state_sha256,
)
from krepes_ooc.network.spec import NetworkSpec

SPEC = NetworkSpec("krepes_ooc.network.zoo:mlp", {"inputs": 6, "hidden": [16], "outputs": 4})
DATA = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
SETTINGS = PretrainSettings(epochs=3, batch=16, learning_rate=1e-2)
ALL = np.arange(len(DATA))


def views(chosen: np.ndarray, seen: list[np.ndarray] | None = None):
    def batch(index: np.ndarray, epoch: int) -> tuple[np.ndarray, ...]:
        positions, column = chosen[index], np.arange(6)
        if seen is not None:
            seen.append(positions)
        noise = [counter_rng.normal(3, epoch, v, positions[:, None], column) for v in range(2)]
        return tuple((DATA[positions] + 0.1 * each).astype(np.float32) for each in noise)

    return batch


def train(chosen: np.ndarray, saved: Path, seed: int = 0, batch_views=None):
    training = DemoTraining(SPEC, SETTINGS, Path())
    return training.train(seed, len(chosen), len(DATA), batch_views or views(chosen), saved)


def test_all_samples_give_the_weights_of_the_demo_trainer(tmp_path: Path):
    state = new_state(SPEC, SETTINGS)
    for _ in range(SETTINGS.epochs):
        train_epoch(state, SETTINGS, len(DATA), views(ALL))
    found = train(ALL, tmp_path / "none")
    assert state_sha256(found) == state_sha256(dict(state.module.state_dict()))


@pytest.mark.parametrize("left", [20, 45, 10])
def test_a_part_takes_the_steps_of_all_and_sees_each_sample_as_often(tmp_path: Path, left: int):
    chosen, seen = np.sort(np.random.default_rng(1).permutation(70)[:left]), []
    train(chosen, tmp_path / "none", batch_views=views(chosen, seen))
    assert len(seen) == SETTINGS.epochs * (70 // 16)
    assert set(np.concatenate(seen)) <= set(chosen)
    epoch = np.concatenate(seen[:4])
    counts = np.bincount(epoch, minlength=70)[chosen]
    assert counts.max() - counts.min() <= 1
    if left < 16:
        assert all(len(batch) == left for batch in seen)


def test_a_killed_training_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("krepes_ooc.network.retrain.SAVE_SECONDS", -1.0)
    chosen = ALL[5:]
    whole = train(chosen, tmp_path / "whole.pt")
    calls, draw = [0], views(chosen)

    def stops(index, epoch):
        calls[0] += 1
        if calls[0] == 7:
            raise Stopped("enough")
        return draw(index, epoch)

    with pytest.raises(Stopped):
        train(chosen, tmp_path / "part.pt", batch_views=stops)
    assert (tmp_path / "part.pt").exists()
    assert state_sha256(train(chosen, tmp_path / "part.pt")) == state_sha256(whole)
    assert state_sha256(train(chosen, tmp_path / "other.pt", seed=1)) != state_sha256(whole)


TRAINERS = """
import numpy as np
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 4))

def arrays(subset, seed):
    draw = np.random.default_rng(seed)
    return {"0.weight": draw.normal(size=(4, 6)).astype("float32"), "0.bias": np.zeros(4, "f4")}

def path(subset, seed):
    return "w.safetensors"

def raises(subset, seed):
    raise ValueError("no more samples\\nthan this")

def nothing(subset, seed):
    pass

def numbers(subset, seed):
    return {"0.weight": 3.0}

def other_keys(subset, seed):
    return {"0.weight": torch.zeros(4, 6), "1.bias": torch.zeros(4)}

def other_shape(subset, seed):
    return {"0.weight": torch.zeros(5, 6), "0.bias": torch.zeros(4)}

def infinite(subset, seed):
    return {"0.weight": torch.zeros(4, 6), "0.bias": torch.tensor([0.0, 1.0, float("inf"), 2.0])}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(TRAINERS)
    return tmp_path


def loaded(folder: Path, name: str, seed: int = 3):
    weights = call_trainer(f"train.py:{name}", folder, None, seed)
    return network_of(NetworkSpec("train.py:net"), folder, weights, "without group 'a'")


def test_weights_are_loaded_as_those_of_a_checkpoint(folder: Path):
    network = loaded(folder, "arrays")
    wanted = np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32)
    found = outputs_of(network, DATA[:5], np.array([2, 0]))
    np.testing.assert_allclose(found, (DATA[:5] @ wanted.T)[:, [2, 0]], rtol=1e-5)
    save_weights(
        {k: torch.ones_like(v) for k, v in network.inner.state_dict().items()},
        folder / "w.safetensors",
    )
    assert float(loaded(folder, "path").inner[0].weight.sum()) == 24


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "train.py:raises failed: ValueError: no more samples than this; expected a f"),
        ("nothing", "train.py:nothing returned nothing; expected a mapping"),
        ("numbers", "returned float under '0.weight'; expected a mapping"),
        ("other_keys", "1 keys missing (0.bias), 1 unexpected (1.bias)"),
        ("other_shape", "0.weight has shape (5, 6); expected shape (4, 6)"),
        ("infinite", "0.bias: 1 of 4 values are NaN or infinite"),
    ],
)
def test_bad_weights_are_refused_in_one_line(folder: Path, name: str, said: str):
    with pytest.raises(NetworkError) as caught:
        loaded(folder, name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_that_does_not_exist_is_a_wrong_recipe(folder: Path):
    for name in ("train.py:none", "no_such_module:train", "train"):
        with pytest.raises(SourceError, match=r"stages\.retraining\.train"):
            call_trainer(name, folder, None, 0)


def test_outputs_that_are_not_finite_are_refused(folder: Path):
    with pytest.raises(NetworkError, match="output is NaN"):
        outputs_of(loaded(folder, "arrays"), np.full((2, 6), np.inf, np.float32), np.arange(4))


def test_the_time_of_a_training_is_that_of_its_steps():
    training = DemoTraining(SPEC, PretrainSettings(epochs=5000, batch=16), Path())
    assert 1 < seconds_of_training(training, len(DATA), views(ALL), 0.1) < 1000
    short = DemoTraining(SPEC, PretrainSettings(epochs=1, batch=70), Path())
    assert seconds_of_training(short, len(DATA), views(ALL), 5.0) < 5
