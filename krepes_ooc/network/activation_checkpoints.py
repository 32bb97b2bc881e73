"""Activation checkpointing of torch, which is switched off while a frozen network runs.

A checkpointed part runs a second time inside the backward pass, where layers cannot be recorded;
torch.func refuses it. It saves memory and changes no value.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch.utils.checkpoint as torch_checkpoint

# Switched off in the threads that run a frozen network, and nowhere else.
_state = threading.local()
_GENERATOR = "_checkpoint_without_reentrant_generator"


@contextlib.contextmanager
def without_checkpoints() -> Iterator[None]:
    """Run checkpointed parts like all others."""
    _install()
    before = getattr(_state, "off", False)
    _state.off = True
    try:
        yield
    finally:
        _state.off = before


def _install() -> None:
    """Put switches into torch, once."""
    if hasattr(torch_checkpoint, "_krepes_switched"):
        return
    # The two forms of torch.utils.checkpoint.checkpoint; other releases may have other ones.
    generator = getattr(torch_checkpoint, _GENERATOR, None)
    if generator is not None:
        setattr(torch_checkpoint, _GENERATOR, _switched_generator(generator))
    function = getattr(torch_checkpoint, "CheckpointFunction", None)
    if function is not None:
        function.apply = staticmethod(_switched_apply(function.apply))
    torch_checkpoint._krepes_switched = True  # type: ignore[attr-defined]


def _switched_generator(original: Callable[..., Any]) -> Callable[..., Any]:
    def generator(*args: Any, **kwargs: Any) -> Iterator[None]:
        # One step before the part runs, one behind it.
        if getattr(_state, "off", False):
            yield
        else:
            yield from original(*args, **kwargs)

    return generator


def _switched_apply(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply(run: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if getattr(_state, "off", False):
            return run(*args)
        return original(run, preserve, *args)

    return apply
