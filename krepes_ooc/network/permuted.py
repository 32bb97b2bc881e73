"""The same architecture with its weights permuted: the network of a model randomisation control.

Source: Adebayo et al. (2018), "Sanity checks for saliency maps". Permuting keeps the distribution
of every tensor, so that scales stay those of the network and only what was learned is lost. The
weights of a network that was never trained are exchangeable inside every tensor: its permutations
have the distribution of the network itself.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn

from krepes_ooc.core import counter_rng
from krepes_ooc.network.frozen import FrozenNetwork

_STREAM = 701


def permuted_network(network: FrozenNetwork, seed: int, draw: int) -> FrozenNetwork:
    """A copy whose weights are permuted inside every parameter tensor.

    The scale, shift and running statistics of one normalisation layer move together, channel by
    channel, so that a channel's statistics stay beside its scale. Other buffers are constants of
    the architecture and stay.

    Args:
        network: the frozen network; never changed.
        seed: key of all draws.
        draw: number of this draw.

    Raises:
        NetworkError: the module cannot be copied.
    """
    copied = network.deep_copy()
    moved: set[int] = set()
    for name, module in copied.inner.named_modules():
        tensors = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.InstanceNorm1d):
            tensors |= dict(module.named_buffers(recurse=False))
        per_channel = _is_normalisation(module)
        for key, tensor in tensors.items():
            # A tensor that two modules share is permuted once.
            if id(tensor) in moved or tensor.numel() < 2:
                continue
            moved.add(id(tensor))
            _permute(tensor, seed, draw, name if per_channel else f"{name}.{key}")
    return copied


def _permute(tensor: torch.Tensor, seed: int, draw: int, name: str) -> None:
    """Permute the entries of a tensor in place by a draw that is keyed by ``name``."""
    named = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
    keys = counter_rng.bits(seed, _STREAM, draw, named, np.arange(tensor.numel()))
    order = torch.from_numpy(np.argsort(keys, kind="stable"))
    with torch.no_grad():
        tensor.copy_(tensor.reshape(-1)[order].reshape(tensor.shape))


def _is_normalisation(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    return isinstance(module, kinds)
