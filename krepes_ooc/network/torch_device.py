"""A network on the device that torch runs it on, and what torch is told there."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import torch
from torch import nn

from krepes_ooc.network.frozen import FrozenNetwork


def available_device(wanted: str) -> str:
    """The device that torch can use: ``cuda`` if it was built for it and has one, else ``cpu``."""
    return wanted if wanted == "cpu" or torch.cuda.is_available() else "cpu"


def network_on(network: FrozenNetwork, where: str) -> FrozenNetwork:
    """An own copy of the network on a device.

    Matrix products and convolutions keep all digits of float32 there: torch would round the inputs
    of convolutions to ten bits (TF32). Sums have a fixed order wherever torch knows one.
    """
    if where == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the first product
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.set_float32_matmul_precision("highest")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True, warn_only=True)
    return network.deep_copy().to(where)


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run torch operations of this process on one thread each; the old number comes back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
