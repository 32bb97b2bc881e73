"""Change of basis of the coefficients, A = T B, so that damping is measured in another norm.

With T = U_r Lambda_r^(-1/2) of the landmark kernel K_mm = U Lambda U^T, the Euclidean norm of B is
the RKHS norm of the embedding function, |B|^2 = tr(A^T K_mm A). An objective in B is the same
objective on kernel rows k^T T, hence on T^T C T: only its input changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from krepes_ooc.core.array_columns import Array, BlockFunction
from krepes_ooc.core.blocks import Block
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives.interface import Stream


@dataclass(frozen=True)
class Basis:
    """A = T B.

    Args:
        T: [landmark, direction].
        inverse: T^+ [direction, landmark].
    """

    T: Array
    inverse: Array

    @classmethod
    def rkhs(cls, eigenvalues: Array, eigenvectors: Array, rank: int) -> Basis:
        """The basis in which the Euclidean norm is the RKHS norm.

        Args:
            eigenvalues: of the landmark kernel, descending [landmark].
            eigenvectors: U [landmark, landmark_].
            rank: number of directions r, at most the usable rank.
        """
        root = np.sqrt(eigenvalues[:rank])
        U = eigenvectors[:, :rank]
        # T = U Lambda^(-1/2) and T^+ = Lambda^(1/2) U^T.
        return cls(U / root, (U * root).T)

    def moments(self, moments: Moments) -> Moments:
        """Moments of the rows k^T T: mu_a^T T and T^T C_ab T."""
        # E[T^T k_a] = T^T mu_a; a linear map of the rows acts on C_ab from both sides.
        second = self.T.T @ moments.second @ self.T
        return Moments(moments.mean @ self.T, second, moments.n_samples)

    def stream(self, stream: Stream) -> ChangedStream:
        """The stream of kernel blocks K T."""
        return in_basis(stream, self.T)

    def to_basis(self, A: Array) -> Array:
        """B = T^+ A for A [landmark, component] or [landmark, component, column]."""
        return np.tensordot(self.inverse, A, axes=1)

    def from_basis(self, B: Array) -> Array:
        """A = T B for B [direction, component] or [direction, component, column]."""
        return np.tensordot(self.T, B, axes=1)


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


def in_float64(stream: Stream) -> ChangedStream:
    """The stream in float64, so that every product is in float64.

    Products of float32 blocks leave a relative residual of about 1e-6 where the damping is small;
    a solve that starts from such a step reaches rounding level in a few passes over this stream.
    """
    return ChangedStream(stream, _to_float64)


def _changed(
    change: Callable[[Any], Any], function: BlockFunction, views: tuple[Any, ...], block: Block
) -> tuple[Any, ...]:
    return function(tuple(change(K) for K in views), block)


def _times(T: Array, K: Any) -> Any:
    return K @ array_namespace(K).astype(T, K.dtype, copy=False)


def _to_float64(K: Any) -> Any:
    xp = array_namespace(K)
    return xp.astype(K, xp.float64)
