"""Solve in another basis of coefficients: A = T B, so that damping is measured in another norm.

With T = U_r Lambda_r^(-1/2) of the landmark kernel K_mm = U Lambda U^T, the plain norm of B is the
norm of the embedding's function, |B|^2 = tr(A^T K_mm A): damping in the kernel's own (RKHS) metric.
An objective in B is the same objective on kernel rows k^T T, hence on T^T C T, so that nothing but
its input changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from krepes_ooc.algebra.curvature import Array, Moments, Stream
from krepes_ooc.algebra.streams import ChangedStream, in_basis


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

    def stream(self, stream: Stream) -> ChangedStream:
        """The stream of kernel blocks K T."""
        return in_basis(stream, self.T)

    def to_basis(self, A: Array) -> Array:
        """B = T^+ A for A [landmark, component] or [landmark, component, column]."""
        return np.tensordot(self.inverse, A, axes=1)

    def from_basis(self, B: Array) -> Array:
        """A = T B for B [direction, component] or [direction, component, column]."""
        return np.tensordot(self.T, B, axes=1)
