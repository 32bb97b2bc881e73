"""Networks of a running script: copied, weights saved, factory named where that is proven."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from krepes_ooc.core.import_object import find_factory
from krepes_ooc.core.live_objects import LIVE, object_sha256
from krepes_ooc.errors import NetworkError
from krepes_ooc.network.checkpoint import save_weights
from krepes_ooc.network.frozen import check_module

Factory = tuple[str, dict[str, Any]]


def copy_module(model: nn.Module) -> nn.Module:
    """Copy of a network on the processor in float32; the script's own is never changed.

    Raises:
        NetworkError: it cannot be copied.
    """
    # Computed tensors among the attributes carry a graph: they are copied without it.
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(model, memo).cpu().float()
    except (TypeError, RuntimeError) as error:
        raise NetworkError(
            f"the network cannot be copied: {str(error).splitlines()[0]}",
            where=type(model).__name__,
            expected="a module without locks, open files or generators as attributes",
        ) from error


def save_live(model: nn.Module, folder: Path) -> Path:
    """Save the weights of a network; equal weights are one file.

    Args:
        model: the network.
        folder: where; made if it is not there.

    Raises:
        NetworkError: it is no network whose layers can be recorded.
    """
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in check_module(model).state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }
    # The name is that of the values: a network that was trained further is another file.
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(
            tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"network-{digest.hexdigest()[:16]}.safetensors"
    if not path.is_file():
        save_weights(state, path)
    return path


def name_factory(model: nn.Module, example: npt.NDArray[np.float32]) -> Factory:
    """Name and arguments of a factory that builds a network; ``live`` where none is proven to.

    A candidate must give the same modules, trainable parameters and, with the same weights, the
    same bits for an example.

    Args:
        model: the network.
        example: one input [1, ...].
    """
    for factory, arguments in _candidates(model):
        state = torch.get_rng_state()
        try:
            built = check_module(find_factory(factory)(**arguments))
            if _is_same(built.float(), copy_module(model), torch.tensor(example)):
                return factory, arguments
        # Code of the user fails in any way; the live object remains.
        except Exception:
            continue
        finally:
            # Building draws initial values, which the script's own draws must not notice.
            torch.set_rng_state(state)
    return LIVE, {}


def _candidates(model: nn.Module) -> list[Factory]:
    """Factories that may have built a network, by what it says of itself."""
    candidates: list[Factory] = []
    kind = type(model)
    # A class of the running script cannot be imported by another process.
    if kind.__module__ != "__main__" and "<" not in kind.__qualname__:
        candidates.append((f"{kind.__module__}:{kind.__qualname__}", {}))
    settings = getattr(model, "pretrained_cfg", None)
    architecture = settings.get("architecture") if isinstance(settings, dict) else None
    if kind.__module__.startswith("timm.") and architecture:
        given = {"model_name": architecture, "num_classes": getattr(model, "num_classes", 1000)}
        candidates.append(("timm:create_model", given))
    return candidates


def _is_same(built: nn.Module, model: nn.Module, example: torch.Tensor) -> bool:
    """Whether two networks agree in code, form, trainable parameters and the bits of an output."""
    trainable = [[(n, p.requires_grad) for n, p in m.named_parameters()] for m in (built, model)]
    if object_sha256(built) != object_sha256(model) or trainable[0] != trainable[1]:
        return False
    built.load_state_dict(model.state_dict())
    with torch.no_grad():
        outputs = [repr_bits(module.eval()(example)) for module in (built, model)]
    return outputs[0] == outputs[1]


def repr_bits(result: Any) -> list[bytes]:
    """Bytes of all tensors in the result of a network."""
    leaves = torch.utils._pytree.tree_leaves(result)
    return [leaf.numpy().tobytes() for leaf in leaves if isinstance(leaf, torch.Tensor)]
