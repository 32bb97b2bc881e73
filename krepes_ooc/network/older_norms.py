"""Older forms of ``weight_norm`` and ``spectral_norm``, rewritten as parametrisations.

In the older form a hook sets the computed weight as an attribute before every run: it carries a
graph, so the module cannot be copied, and its parts are hidden from whoever records the layer. The
parametrisation has the same values under other names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def rewrite_older_norms(module: nn.Module) -> None:
    """Replace the older normalisations of a module by parametrisations, in place."""
    for layer in module.modules():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if isinstance(hook, WeightNorm):
                del layer._forward_pre_hooks[key]
                _rewrite_weight_norm(layer, hook)
            elif isinstance(hook, SpectralNorm):
                del layer._forward_pre_hooks[key]
                _rewrite_spectral_norm(layer, hook)


def _rewrite_weight_norm(layer: nn.Module, hook: WeightNorm) -> None:
    """Length and direction become the two originals of the parametrisation."""
    name = hook.name
    length, direction = _take(layer, f"{name}_g"), _take(layer, f"{name}_v")
    _replace_computed(layer, name, direction)
    parametrizations.weight_norm(layer, name, hook.dim)
    _set_original(layer, name, "original0", length)
    _set_original(layer, name, "original1", direction)


def _rewrite_spectral_norm(layer: nn.Module, hook: SpectralNorm) -> None:
    """The weight and the two vectors of the power iteration keep their values."""
    name = hook.name
    weight = _take(layer, f"{name}_orig")
    left, right = _take(layer, f"{name}_u"), layer._buffers.pop(f"{name}_v", None)
    _replace_computed(layer, name, weight)
    parametrizations.spectral_norm(layer, name, hook.n_power_iterations, hook.eps, hook.dim)
    _set_original(layer, name, "original", weight)
    normalise: Any = layer.parametrizations[name][0]  # type: ignore[index]
    normalise._u.copy_(left)
    # Checkpoints before torch 1.1 hold the left vector alone.
    if right is not None:
        normalise._v.copy_(right)


def _take(layer: nn.Module, name: str) -> torch.Tensor:
    """Remove a parameter or buffer of a layer and return it."""
    tensor = getattr(layer, name)
    delattr(layer, name)
    return tensor  # type: ignore[no-any-return]


def _replace_computed(layer: nn.Module, name: str, like: torch.Tensor) -> None:
    """Register a parameter in the place of the computed weight.

    The older form lists hooks that load and save its state; they act on names that are gone.
    """
    delattr(layer, name)
    layer.register_parameter(name, nn.Parameter(like.detach().clone()))
    for hooks in (layer._load_state_dict_pre_hooks, layer._state_dict_hooks):
        for key, hook in list(hooks.items()):
            if type(hook).__module__ in (WeightNorm.__module__, SpectralNorm.__module__):
                del hooks[key]


def _set_original(layer: nn.Module, name: str, original: str, value: torch.Tensor) -> None:
    """Put a parameter into a parametrisation: itself, so that ties and freezing stay."""
    holder = layer.parametrizations[name]  # type: ignore[index]
    setattr(holder, original, value)
