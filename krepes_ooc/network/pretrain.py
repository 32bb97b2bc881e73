"""Demo trainer: an encoder, two or more views of each sample, one self-supervised loss.

The loss acts on the output of the encoder, without a projector, because that output is what is
audited. Batch order, views and dropout are keyed by (seed, epoch, step), so a run that was killed
continues with the bits it would have had. torch is imported on first use.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.partial_files import read_partial_file, write_partial_file
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import NetworkError, UsageError
from krepes_ooc.network.spec import NetworkSpec, build_network

if TYPE_CHECKING:
    import torch

BatchViews = Callable[[npt.NDArray[np.int64], int], tuple[npt.NDArray[np.float32], ...]]
MIN_BATCH = 2
# Streams of the counter-based generator.
_ORDER_STREAM, _DROPOUT_STREAM, _INITIAL_STREAM = 211, 212, 213
_STATE_KEYS = {"model", "target", "correlation", "optimiser", "epoch", "losses"}
TARGET_DECAY = 0.99
CORRELATION_DECAY = 0.5


@dataclass(frozen=True)
class PretrainSettings:
    """The recipe key ``stages.pretrain``."""

    objective: Literal["barlow-twins", "vicreg", "simclr", "byol", "spectral-contrastive"] = (
        setting("barlow-twins", about="the loss")
    )
    epochs: int = setting(20, about="passes over the source", minimum=1)
    batch: int = setting(
        256, about="samples of one step; the rest of an epoch is left out", minimum=2
    )
    learning_rate: float = setting(1e-3, about="Adam's rate at the start of the cosine", above=0)
    weight_decay: float = setting(1e-6, about="Adam's weight decay", minimum=0)


@dataclass
class TrainState:
    """Everything that the next epoch depends on.

    Args:
        module: the encoder.
        optimiser: Adam with its moments.
        seed: key of initial weights, batch order and dropout.
        epoch: finished epochs.
        losses: mean loss of each finished epoch.
        target: BYOL's target encoder, an exponential moving average.
        correlation: BYOL's running second moment of the embedding [output, output].
    """

    module: torch.nn.Module
    optimiser: torch.optim.Optimizer
    seed: int = 0
    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    target: torch.nn.Module | None = None
    correlation: torch.Tensor | None = None


def new_state(
    spec: NetworkSpec, settings: PretrainSettings, base: Path = Path(), seed: int = 0
) -> TrainState:
    """State before the first epoch; initial weights depend on the seed alone.

    Raises:
        UsageError: the factory's module has nothing to train.
    """
    import torch

    with keyed_generator(seed, _INITIAL_STREAM):
        module = build_network(spec, base)
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError("the factory's module has nothing to train", where="network.factory")
    # The encoder alone is trained: there is no projector.
    optimiser = torch.optim.Adam(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    target = copy.deepcopy(module) if settings.objective == "byol" else None
    return TrainState(module, optimiser, seed, target=target)


def train_epoch(
    state: TrainState,
    settings: PretrainSettings,
    n_samples: int,
    batch_views: BatchViews,
    output: str | None = None,
    epoch_samples: int = 0,
) -> float:
    """Train one epoch in place and return its mean loss.

    Args:
        state: advanced by one epoch.
        settings: objective, batch and rates.
        n_samples: samples of the source.
        batch_views: views of the samples at given positions, for a given epoch.
        output: key or index of the trained output.
        epoch_samples: samples whose number sets the steps of an epoch, so that training on a part
            of them takes the steps of all; 0: ``n_samples``.

    Raises:
        UsageError: fewer than two samples.
        NetworkError: the loss is not finite.
    """
    batch, steps = _schedule(settings, n_samples, epoch_samples or n_samples)
    order = _EpochOrder(state.seed, state.epoch, n_samples)
    total = 0.0
    # Batch statistics and dropout on, whatever ran between two epochs.
    state.module.train()
    for step in range(steps):
        _set_rate(state, settings, (state.epoch + step / steps) / settings.epochs)
        positions = order(np.arange(step * batch, (step + 1) * batch))
        views = batch_views(positions, state.epoch)
        # Dropout draws from the global generator: keyed by the step.
        with keyed_generator(state.seed, _DROPOUT_STREAM, state.epoch, step):
            loss = _train_step(state, settings, views, output)
        # A diverged network would be saved, and audited, in silence.
        if not math.isfinite(loss):
            raise NetworkError(
                f"the loss is {loss}",
                where=f"pretrain, epoch {state.epoch + 1}, step {step + 1}",
                expected="a finite loss",
                advice="lower stages.pretrain.learning_rate",
            )
        total += loss
    state.epoch += 1
    state.losses.append(total / steps)
    return state.losses[-1]


def save_state(state: TrainState, path: Path, key: str = "") -> None:
    """Write the whole training state, whole or absent, with a checksum.

    Args:
        state: after an epoch.
        path: the file.
        key: what the training is part of; the state is resumed under the same key only.

    Raises:
        StageFailed: the disk is full; torch itself would fail without saying so.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(state_content(state), buffer)
    write_partial_file(path, buffer.getvalue(), path.parent, key)


def resume_state(
    path: Path, spec: NetworkSpec, settings: PretrainSettings, base: Path, seed: int, key: str
) -> TrainState:
    """Training state that ``save_state`` wrote under this key; else that of the first step.

    A state that is damaged, of another training or of an earlier version is no state.

    Raises:
        NetworkError: the state belongs to another network.
    """
    if read_partial_file(path, key) is None:
        return new_state(spec, settings, base, seed)
    return load_state(path, spec, settings, base, seed, key)


def state_content(state: TrainState) -> dict[str, Any]:
    """The whole training state as ``load_state`` reads it from a file of ``torch.save``."""
    return {
        "model": state.module.state_dict(),
        "target": state.target.state_dict() if state.target else None,
        "correlation": state.correlation,
        "optimiser": state.optimiser.state_dict(),
        "epoch": state.epoch,
        "losses": list(state.losses),
    }


def load_state(
    path: Path,
    spec: NetworkSpec,
    settings: PretrainSettings,
    base: Path = Path(),
    seed: int = 0,
    key: str = "",
) -> TrainState:
    """Training state that ``save_state`` wrote.

    Raises:
        NetworkError: the file is damaged or belongs to another network.
    """
    import torch

    state = new_state(spec, settings, base, seed)
    try:
        data = read_partial_file(path, key)
        if data is None:
            raise ValueError("the checksum of a training state does not match")
        file = io.BytesIO(data)
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if set(content) != _STATE_KEYS:
            raise ValueError("other keys than a training state has")
        # Strict: all keys and shapes must fit the network of the recipe.
        state.module.load_state_dict(content["model"])
        state.optimiser.load_state_dict(content["optimiser"])
        if state.target:
            state.target.load_state_dict(content["target"])
        state.correlation = content["correlation"]
    except Exception as error:
        raise NetworkError(
            f"cannot resume: {type(error).__name__}: {str(error)[:200]}",
            where=str(path),
            expected="the training state of this network",
            advice="delete the file to train from the start",
        ) from error
    state.epoch = int(content["epoch"])
    state.losses = [float(loss) for loss in content["losses"]]
    return state


def save_checkpoint(state: TrainState, path: Path) -> None:
    """Write the trained weights as a safetensors file that ``load_network`` reads."""
    from krepes_ooc.network.checkpoint import save_weights

    save_weights(state.module.state_dict(), path)


@contextlib.contextmanager
def keyed_generator(seed: int, *keys: int) -> Iterator[None]:
    """Keyed state of torch's global generator, which layers and factories draw from."""
    import torch

    # torch takes 63 bits.
    key = int(counter_rng.bits(seed, *keys) >> np.uint64(1))
    before = torch.get_rng_state()
    torch.set_rng_state(torch.Generator().manual_seed(key).get_state())
    try:
        yield
    finally:
        torch.set_rng_state(before)


@dataclass(frozen=True)
class _EpochOrder:
    """Order of the samples in one epoch, keyed, so that a resumed run sees the same batches.

    Args:
        seed: of the training.
        epoch: from 0.
        n_samples: samples; an epoch that takes more goes through them again in another order.
    """

    seed: int
    epoch: int
    n_samples: int

    def __call__(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Positions of consecutive indices: a permutation without a table."""
        turns = index // self.n_samples
        positions = np.empty_like(index)
        for turn in np.unique(turns).tolist():
            # The first turn has no key of its own: it is that of an epoch over all samples.
            again = (turn,) if turn else ()
            keyed = int(counter_rng.bits(self.seed, _ORDER_STREAM, self.epoch, *again))
            chosen = turns == turn
            order = counter_rng.Bijection(self.n_samples, keyed)
            positions[chosen] = order(index[chosen] - turn * self.n_samples)
        return positions


def _schedule(settings: PretrainSettings, n_samples: int, epoch_samples: int) -> tuple[int, int]:
    """Samples of a batch, and batches of an epoch.

    Raises:
        UsageError: fewer than two samples.
    """
    if n_samples < MIN_BATCH:
        raise UsageError(
            f"{n_samples} samples", where="stages.pretrain", expected=f"at least {MIN_BATCH}"
        )
    # A source smaller than a batch is one batch.
    batch = min(settings.batch, n_samples)
    return batch, epoch_samples // min(settings.batch, epoch_samples)


def _set_rate(state: TrainState, settings: PretrainSettings, progress: float) -> None:
    """Set the cosine-decayed rate, a function of progress alone: nothing has to be saved."""
    for group in state.optimiser.param_groups:
        group["lr"] = settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def _train_step(
    state: TrainState,
    settings: PretrainSettings,
    views: tuple[npt.NDArray[np.float32], ...],
    output: str | None,
) -> float:
    import torch

    from krepes_ooc.network.frozen import pick_output
    from krepes_ooc.network.ssl_losses import byol, view_loss

    def embed(module: torch.nn.Module) -> list[torch.Tensor]:
        results = [pick_output(module(torch.tensor(view)), output) for view in views]
        return [result.flatten(1) for result in results]

    embeddings = embed(state.module)
    if state.target is None:
        loss = view_loss(settings.objective, embeddings)
    else:
        with torch.no_grad():
            # Stop-gradient: only the online encoder learns.
            targets = embed(state.target)
        # DirectCopy sets the predictor from the second moment, before the loss uses it.
        state.correlation = _correlation(state, torch.cat(embeddings).detach())
        loss = byol(embeddings, targets, state.correlation)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimiser.step()
    # The target follows after the step of the online encoder.
    if state.target is not None:
        _update_target(state.target, state.module)
    return float(loss.detach())


def _correlation(state: TrainState, embedding: torch.Tensor) -> torch.Tensor:
    """Running second moment of the embedding [output, output]."""
    batch = embedding.T @ embedding / len(embedding)
    if state.correlation is None:
        return batch
    return CORRELATION_DECAY * state.correlation + (1.0 - CORRELATION_DECAY) * batch


def _update_target(target: torch.nn.Module, module: torch.nn.Module) -> None:
    """Exponential moving average: target <- decay target + (1 - decay) module."""
    for slow, fast in zip(target.parameters(), module.parameters(), strict=True):
        slow.data.lerp_(fast.data, 1.0 - TARGET_DECAY)
