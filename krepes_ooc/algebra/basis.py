"""Solve in another basis of coefficients: A = T B, so that damping is measured in another norm.

With T = U_r Lambda_r^(-1/2) of the landmark kernel K_mm = U Lambda U^T, the plain norm of B is the
norm of the embedding's function, |B|^2 = tr(A^T K_mm A): damping in the kernel's own (RKHS) metric.
An objective in B is the same objective on kernel rows k^T T, hence on T^T C T, so that nothing but
its input changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from krepes_ooc.algebra.curvature import Array, BlockFunction, Moments, Stream
from krepes_ooc.blocks import Block


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
        """The basis in which the plain norm is the RKHS norm.

        Args:
            eigenvalues: of the landmark kernel, descending [landmark].
            eigenvectors: U [landmark, landmark_].
            rank: directions to keep, at most the usable rank.
        """
        root, U = np.sqrt(eigenvalues[:rank]), eigenvectors[:, :rank]
        return cls(U / root, (U * root).T)

    def moments(self, moments: Moments) -> Moments:
        """Moments of the rows k^T T."""
        second = self.T.T @ moments.second @ self.T
        return Moments(moments.mean @ self.T, second, moments.n_samples)

    def stream(self, stream: Stream) -> BasisStream:
        """The stream of kernel blocks K T."""
        return BasisStream(stream, self.T)

    def to_basis(self, A: Array) -> Array:
        """B = T^+ A for A [landmark, component] or [landmark, component, column]."""
        return np.tensordot(self.inverse, A, axes=1)

    def from_basis(self, B: Array) -> Array:
        """A = T B for B [direction, component] or [direction, component, column]."""
        return np.tensordot(self.T, B, axes=1)


@dataclass(frozen=True)
class BasisStream:
    """A stream whose blocks are multiplied by T [landmark, direction] as they are read."""

    stream: Stream
    T: Array

    @property
    def n_samples(self) -> int:
        """Rows of the kernel."""
        return self.stream.n_samples

    @property
    def n_views(self) -> int:
        """Number of views p."""
        return self.stream.n_views

    def reduce(self, function: BlockFunction) -> tuple[Any, ...]:
        """Sum ``function(K T of each view, block)`` over all blocks."""
        return self.stream.reduce(partial(_in_basis, self.T, function))


def _in_basis(
    T: Array, function: BlockFunction, views: tuple[Any, ...], block: Block
) -> tuple[Any, ...]:
    xp = array_namespace(*views)
    return function(tuple(K @ xp.asarray(T, dtype=K.dtype) for K in views), block)
