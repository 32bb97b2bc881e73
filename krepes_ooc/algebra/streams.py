"""Kernel streams whose blocks are changed as they are read: another basis, a longer mantissa."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from array_api_compat import array_namespace

from krepes_ooc.algebra.curvature import Array, BlockFunction, Stream
from krepes_ooc.blocks import Block


@dataclass(frozen=True)
class ChangedStream:
    """A stream of ``change(K)`` for the kernel blocks K of another stream."""

    stream: Stream
    change: Callable[[Any], Any]

    @property
    def n_samples(self) -> int:
        """Rows of the kernel."""
        return self.stream.n_samples

    @property
    def n_views(self) -> int:
        """Number of views p."""
        return self.stream.n_views

    def reduce(self, function: BlockFunction) -> tuple[Any, ...]:
        """Sum ``function(change(K) of each view, block)`` over all blocks."""
        return self.stream.reduce(partial(_changed, self.change, function))


def in_basis(stream: Stream, T: Array) -> ChangedStream:
    """The stream of K T [sample, direction] for T [landmark, direction]."""
    return ChangedStream(stream, partial(_times, T))


def in_double(stream: Stream) -> ChangedStream:
    """The stream in float64, so that every product is.

    Products of float32 blocks leave a relative residual of about 1e-6 where the damping is small;
    a solve that starts from such a step reaches rounding level in a few passes over this stream.
    """
    return ChangedStream(stream, _double)


def _changed(
    change: Callable[[Any], Any], function: BlockFunction, views: tuple[Any, ...], block: Block
) -> tuple[Any, ...]:
    return function(tuple(change(K) for K in views), block)


def _times(T: Array, K: Any) -> Any:
    return K @ array_namespace(K).astype(T, K.dtype, copy=False)


def _double(K: Any) -> Any:
    xp = array_namespace(K)
    return xp.astype(K, xp.float64)
