"""Libraries of models, imported for tests without compiled operators that no model here uses."""

from __future__ import annotations

import contextlib
import importlib
from types import ModuleType

import pytest
import torch

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_KEPT: list[torch.library.Library] = []


def library(name: str) -> ModuleType:
    """The library, or a skip with the reason why it cannot be imported."""
    # torchvision first: the others import it where it is there.
    with contextlib.suppress(ModuleNotFoundError):
        _import_torchvision()
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} cannot be imported: {type(error).__name__}: {error}")


def _import_torchvision() -> None:
    """Import it; without its compiled operators these are declared, and never called."""
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError:
        _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
    for operator in _OPERATORS:
        with contextlib.suppress(RuntimeError):
            _KEPT[0].define(operator)
    importlib.import_module("torchvision")
