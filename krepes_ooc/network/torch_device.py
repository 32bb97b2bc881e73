"""Devices of torch: where a network runs, and the settings for exact, repeatable results."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import torch
from torch import nn

from krepes_ooc.network.frozen import FrozenNetwork


def available_device(requested: str) -> str:
    """The requested device if torch can use it, else ``cpu``."""
    return requested if requested == "cpu" or torch.cuda.is_available() else "cpu"


def network_on(network: FrozenNetwork, device: str) -> FrozenNetwork:
    """Copy of the network on a device of torch.

    Matrix products and convolutions keep the precision of float32 on it: by default torch rounds
    the inputs of convolutions to ten bits (TF32). Sums have a fixed order where torch offers one.
    """
    if device == "cuda":
        # cuBLAS reads this before its first product; without it its sums have no fixed order.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.allow_tf32 = False
        # A benchmark would choose another algorithm, hence other bits, on every run.
        torch.backends.cudnn.benchmark = False
        torch.set_float32_matmul_precision("highest")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        # Only a warning: an operation without such an algorithm is left to the self-check.
        torch.use_deterministic_algorithms(True, warn_only=True)
    return network.deep_copy().to(device)


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run torch operations of this process on one thread each; restore the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
