from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from krepes_ooc.core import counter_rng
from krepes_ooc.core.partial_files import write_partial_file
from krepes_ooc.errors import NetworkError, UsageError
from krepes_ooc.network import ssl_losses
from krepes_ooc.network.pretrain import (
    PretrainSettings,
    load_state,
    new_state,
    resume_state,
    save_checkpoint,
    save_state,
    train_epoch,
)
from krepes_ooc.network.spec import NetworkSpec, load_network

SPEC = NetworkSpec("krepes_ooc.network.zoo:mlp", {"inputs": 6, "hidden": [16], "outputs": 4})
DATA = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
OBJECTIVES = ["barlow-twins", "vicreg", "simclr", "byol", "spectral-contrastive"]


def views(positions: np.ndarray, epoch: int) -> tuple[np.ndarray, ...]:
    column = np.arange(6)
    return tuple(
        (
            DATA[positions] + 0.1 * counter_rng.normal(3, epoch, view, positions[:, None], column)
        ).astype(np.float32)
        for view in range(2)
    )


def settings(**more: object) -> PretrainSettings:
    return PretrainSettings(**{"epochs": 4, "batch": 16, "learning_rate": 1e-2, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, objective: str) -> None:
    chosen = settings(objective=objective)
    whole = new_state(SPEC, chosen)
    for _ in range(4):
        train_epoch(whole, chosen, len(DATA), views)
    state = new_state(SPEC, chosen)
    for _ in range(4):
        torch.manual_seed(np.random.default_rng().integers(1000))  # the process's own generator
        train_epoch(state, chosen, len(DATA), views)
        save_state(state, tmp_path / "state.pt")
        state = load_state(tmp_path / "state.pt", SPEC, chosen)
    assert state.losses == whole.losses
    assert state.epoch == 4
    for name, value in state.module.state_dict().items():
        assert torch.equal(value, whole.module.state_dict()[name])
    assert whole.losses[-1] < whole.losses[0]
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_the_checkpoint_is_what_was_trained(tmp_path: Path) -> None:
    state = new_state(SPEC, settings())
    train_epoch(state, settings(), len(DATA), views)
    save_checkpoint(state, tmp_path / "w.safetensors")
    network = load_network(SPEC, tmp_path / "w.safetensors", tmp_path)
    state.module.eval()
    inputs = torch.from_numpy(DATA[:3])
    with torch.no_grad():
        assert torch.equal(network(inputs), state.module(inputs))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    state = new_state(SPEC, settings())
    train_epoch(state, settings(), len(DATA), views)
    assert torch.equal(before, torch.get_rng_state())
    other = new_state(SPEC, settings(), seed=1)
    first = next(state.module.parameters()), next(other.module.parameters())
    assert not torch.equal(*first)


def test_every_epoch_has_its_own_order_and_no_repeats() -> None:
    seen: list[np.ndarray] = []

    def spy(positions: np.ndarray, epoch: int) -> tuple[np.ndarray, ...]:
        seen.append(positions)
        return views(positions, epoch)

    state = new_state(SPEC, settings(batch=35))
    for _ in range(2):
        train_epoch(state, settings(batch=35), len(DATA), spy)
    first, second = np.concatenate(seen[:2]), np.concatenate(seen[2:])
    np.testing.assert_array_equal(np.sort(first), np.arange(70))
    np.testing.assert_array_equal(np.sort(second), np.arange(70))
    assert (first != second).any()


def test_failures_are_told(tmp_path: Path) -> None:
    state = new_state(SPEC, settings())
    with pytest.raises(UsageError, match=r"1 samples; expected at least 2"):
        train_epoch(state, settings(), 1, views)
    with pytest.raises(NetworkError, match=r"epoch 1, step 1: the loss is nan.*lower stages"):
        train_epoch(state, settings(), 70, lambda p, e: tuple(v * np.nan for v in views(p, e)))
    with pytest.raises(UsageError, match="nothing to train"):
        new_state(NetworkSpec("torch.nn:Flatten"), settings())
    path = tmp_path / "state.pt"
    for damage in (b"", b"no archive"):
        path.write_bytes(damage)
        with pytest.raises(NetworkError, match=r"cannot resume.*delete the file"):
            load_state(path, SPEC, settings())
    buffer = io.BytesIO()
    torch.save({"model": {}}, buffer)
    write_partial_file(path, buffer.getvalue(), tmp_path)
    with pytest.raises(NetworkError, match="other keys"):
        load_state(path, SPEC, settings())
    save_state(
        new_state(NetworkSpec(SPEC.factory, {**SPEC.arguments, "outputs": 5}), settings()), path
    )
    with pytest.raises(NetworkError, match="cannot resume: RuntimeError"):
        load_state(path, SPEC, settings())


@pytest.mark.parametrize("harm", ["flipped", "of another training", "of an earlier version"])
def test_a_state_that_is_not_the_recorded_one_is_no_state(tmp_path: Path, harm: str) -> None:
    """torch reads a flipped weight, and the state of another seed, without a word."""
    chosen, path = settings(), tmp_path / "state.pt"
    state = new_state(SPEC, chosen)
    train_epoch(state, chosen, len(DATA), views)
    save_state(state, path, "digest/state.pt")
    assert resume_state(path, SPEC, chosen, tmp_path, 0, "digest/state.pt").epoch == 1
    key = "digest/state.pt"
    if harm == "flipped":
        data = bytearray(path.read_bytes())
        place = data.index(next(state.module.parameters()).detach().numpy().tobytes())
        data[place] ^= 1
        path.write_bytes(data)
    elif harm == "of another training":
        key = "another/state.pt"
    else:
        path.write_bytes(path.read_bytes()[:-4])
    assert resume_state(path, SPEC, chosen, tmp_path, 0, key).epoch == 0


def test_losses_follow_their_formulas() -> None:
    generator = np.random.default_rng(2)
    one, two = generator.normal(size=(2, 9, 3))
    n, h = one.shape
    a, b = (torch.from_numpy(z) for z in (one, two))
    unit = [(z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (one, two)]
    c = unit[0].T @ unit[1] / n
    expected = sum(
        (1.0 if i == j else 0.0051) * (c[i, j] - (i == j)) ** 2 for i in range(h) for j in range(h)
    )
    assert float(ssl_losses.barlow_twins(a, b)) == pytest.approx(expected, rel=1e-12)

    expected = 25 * ((one - two) ** 2).mean()
    for z in (one, two):
        s = np.cov(z.T)
        expected += 12.5 * np.maximum(0, 1 - np.sqrt(np.diag(s) + 1e-4)).mean()
        expected += ((s**2).sum() - (np.diag(s) ** 2).sum()) / h
    assert float(ssl_losses.vicreg(a, b)) == pytest.approx(expected, rel=1e-12)

    z = np.concatenate([one, two])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    s = np.exp(z @ z.T / 0.5)
    terms = [-np.log(s[i, (i + n) % (2 * n)] / (s[i].sum() - s[i, i])) for i in range(2 * n)]
    assert float(ssl_losses.simclr(a, b)) == pytest.approx(np.mean(terms), rel=1e-12)

    s = one @ two.T
    off = (s**2).sum() - (np.diag(s) ** 2).sum()
    expected = -2 * np.diag(s).mean() + off / (n * (n - 1))
    assert float(ssl_losses.spectral_contrastive(a, b)) == pytest.approx(expected, rel=1e-12)

    moment, targets = np.cov(one.T), (two + 1.0, one - 1.0)
    predictor = moment / np.linalg.eigvalsh(moment).max() + 0.3 * np.eye(h)
    expected = 0.0
    for z, t in ((one @ predictor, targets[1]), (two @ predictor, targets[0])):
        cosine = (z * t).sum(1) / np.linalg.norm(z, axis=1) / np.linalg.norm(t, axis=1)
        expected += (2 - 2 * cosine).mean() / 2
    right = [torch.from_numpy(t) for t in targets]
    result = ssl_losses.byol([a, b], right, torch.from_numpy(moment))
    assert float(result) == pytest.approx(expected, rel=1e-12)

    third = a + b
    pairs = [ssl_losses.simclr(a, b), ssl_losses.simclr(a, third), ssl_losses.simclr(b, third)]
    assert float(ssl_losses.view_loss("simclr", [a, b, third])) == pytest.approx(
        float(sum(pairs)) / 3
    )
