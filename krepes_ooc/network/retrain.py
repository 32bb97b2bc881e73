"""Networks trained again on a part of the samples, by the demo trainer or by a user's function.

Both give weights that are loaded into the factory's module as a checkpoint is: all keys, shapes and
finite values are checked. torch is imported on first use.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.import_object import load_callable
from krepes_ooc.errors import KrepesError, NetworkError
from krepes_ooc.network import pretrain
from krepes_ooc.network.pretrain import BatchViews, PretrainSettings
from krepes_ooc.network.spec import NetworkSpec, build_network, freeze_network

if TYPE_CHECKING:
    import torch

    from krepes_ooc.network.frozen import FrozenNetwork

TRAIN_KEY = "stages.retraining.train"
SAVE_SECONDS = 30.0
_FUNCTION_STREAM = 214
WEIGHTS = "a mapping from the names of the factory's parameters and buffers to tensors, or the "
WEIGHTS += "path of a checkpoint"
Rows = npt.NDArray[np.float32]
State = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class DemoTraining:
    """One training by the demo trainer, on a part of the samples and with the steps of all.

    Args:
        spec: the recipe key ``network``.
        settings: of the demo trainer.
        base: folder of the recipe.
    """

    spec: NetworkSpec
    settings: PretrainSettings
    base: Path

    def train(
        self, seed: int, n_samples: int, epoch_samples: int, batch_views: BatchViews, saved: Path
    ) -> State:
        """Weights after all epochs; resumed from ``saved``, which is removed by the caller.

        Args:
            seed: key of initial weights, batch order and dropout.
            n_samples: samples that are left.
            epoch_samples: samples in all, which set the steps of an epoch.
            batch_views: views of samples that are left, by their index.
            saved: file of the training state.

        Raises:
            NetworkError: the loss is not finite.
            UsageError: fewer than two samples, or a module with nothing to train.
        """
        key = f"{seed}/{saved.name}"
        state = pretrain.resume_state(saved, self.spec, self.settings, self.base, seed, key)
        written = time.monotonic()
        while state.epoch < self.settings.epochs:
            pretrain.train_epoch(
                state, self.settings, n_samples, batch_views, self.spec.output, epoch_samples
            )
            # A short training is cheaper done again than saved every epoch.
            if time.monotonic() - written > SAVE_SECONDS:
                pretrain.save_state(state, saved, key)
                written = time.monotonic()
        return dict(state.module.state_dict())


def call_trainer(function: str, base: Path, subset: Any, seed: int) -> State:
    """Weights that a user's train function gives.

    Args:
        function: ``module:function``, called as ``function(subset, seed)``.
        base: folder of the recipe.
        subset: the samples to train on.
        seed: of the training.

    Raises:
        SourceError: there is no such function.
        NetworkError: it raised, or returned neither a state dict nor the path of one.
    """
    from krepes_ooc.network.checkpoint import read_state

    train = load_callable(function, base, TRAIN_KEY)
    try:
        # Initial weights that a function draws from torch's own generator are keyed by the seed.
        with pretrain.keyed_generator(seed, _FUNCTION_STREAM):
            weights = train(subset, seed)
    except KrepesError:
        raise  # a stop or a fault of the source, which says itself what is wrong
    except Exception as error:
        raise NetworkError(
            f"{function} failed: {type(error).__name__}: {error}",
            where=TRAIN_KEY,
            expected="a function of a subset of the source and a seed, which returns weights",
        ) from error
    if isinstance(weights, str | Path):
        return read_state(base / weights).tensors
    return _state(weights, function)


def network_of(
    spec: NetworkSpec,
    base: Path,
    weights: State,
    where: str,
    example: Callable[[], Rows] | None = None,
) -> FrozenNetwork:
    """Frozen network with these weights, loaded as those of a checkpoint.

    Args:
        spec: the recipe key ``network``.
        base: folder of the recipe.
        weights: state dict.
        where: what gave them, for messages.
        example: gives one input [1, ...], which ``spec.module`` needs.

    Raises:
        NetworkError: keys or shapes do not fit, or a value is not finite.
    """
    from krepes_ooc.network.checkpoint import LoadedState
    from krepes_ooc.network.state_fit import KeyRules, fill_module

    module = build_network(spec, base)
    rules = KeyRules(spec.strip_prefix, spec.ignore, spec.rename)
    filled = fill_module(module, LoadedState(weights), Path(where), rules)
    return freeze_network(spec, module, example, filled)


def state_sha256(weights: State) -> str:
    """sha256 over names, types, shapes and bits of a state dict."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def checkpoint_sha256(path: Path) -> str:
    """``state_sha256`` of a checkpoint."""
    from krepes_ooc.network.checkpoint import read_state

    return state_sha256(read_state(path).tensors)


def outputs_of(network: FrozenNetwork, inputs: Rows, outputs: npt.NDArray[np.int64]) -> Rows:
    """Chosen outputs [sample, output] of network inputs [sample, ...].

    Raises:
        NetworkError: an output is not finite.
    """
    import torch

    with torch.no_grad():
        # A copy, because the network may work in place.
        found = network(torch.tensor(inputs)).numpy()[:, outputs]
    if not np.isfinite(found).all():
        raise NetworkError(
            "an output is NaN or infinite",
            where="network.output",
            expected="finite outputs of a network that was trained again",
        )
    return np.asarray(found, dtype=np.float32)


def seconds_of_training(
    training: DemoTraining, n_samples: int, batch_views: BatchViews, seconds: float
) -> float:
    """Expected wall time of one training of the demo trainer, from a few steps of it.

    Args:
        training: the trainer.
        n_samples: samples of the source.
        batch_views: views of samples, by their position.
        seconds: time to measure for, about.
    """
    calls: list[float] = []

    class EnoughStepsError(Exception):
        """The time is over."""

    def timed(positions: npt.NDArray[np.int64], epoch: int) -> tuple[Rows, ...]:
        # Called at the start of every step; the first step loads libraries and is not timed.
        calls.append(time.monotonic())
        if len(calls) > 2 and calls[-1] - calls[1] > seconds:
            raise EnoughStepsError
        return batch_views(positions, epoch)

    settings = training.settings
    state = pretrain.new_state(training.spec, settings, training.base)
    started = time.monotonic()
    try:
        while state.epoch < settings.epochs:
            pretrain.train_epoch(state, settings, n_samples, timed, training.spec.output)
    except EnoughStepsError:
        steps = settings.epochs * (n_samples // min(settings.batch, n_samples))
        return (calls[-1] - calls[1]) / (len(calls) - 2) * steps
    return time.monotonic() - started


def _state(weights: Any, function: str) -> State:
    """A mapping of arrays or tensors as a state dict.

    Raises:
        NetworkError: it is something else.
    """
    import torch

    if not isinstance(weights, Mapping) or not weights:
        kind = "nothing" if weights is None else type(weights).__name__
        raise NetworkError(f"{function} returned {kind}", where=TRAIN_KEY, expected=WEIGHTS)
    state: State = {}
    for name, value in weights.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise NetworkError(
                f"{function} returned {type(value).__name__} under {name!r}",
                where=TRAIN_KEY,
                expected=WEIGHTS,
            )
        # A copy: the function may go on training the tensors that it returned.
        state[name] = value.detach().cpu().clone()
    return state
