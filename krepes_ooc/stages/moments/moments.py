"""First and second moments of kernel rows over all samples.

    mu_a = E[k_a],   C_ab = E[(k_a - mu_a)(k_b - mu_b)^T],
    S_ab = E[k_a k_b^T] = C_ab + mu_a mu_b^T

Stored are mu and the centred C; the un-centred S is derived from them in this module alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from krepes_ooc.core.array_columns import Array, Number
from krepes_ooc.core.blocks import tile_slices


@dataclass(frozen=True)
class Moments:
    """Means and centred second moments of kernel rows over all samples.

    Args:
        mean: mu_a [view, landmark].
        second: C_ab = E[(k_a - mu_a)(k_b - mu_b)^T] [view, view_, landmark, landmark_].
        n_samples: rows that were averaged.

    Raises:
        ValueError: the shapes do not belong together.
    """

    mean: Array
    second: Array
    n_samples: int

    def __post_init__(self) -> None:
        views, landmarks = self.mean.shape
        if self.second.shape != (views, views, landmarks, landmarks):
            raise ValueError(f"mean has shape {self.mean.shape}, second {self.second.shape}")

    @property
    def n_views(self) -> int:
        """Number of views p."""
        return int(self.mean.shape[0])

    def pairs(self) -> Iterator[tuple[int, int]]:
        """All pairs of views a < b."""
        return view_pairs(self.n_views)

    def uncentred(self, a: int, b: int) -> Array:
        """S_ab = C_ab + mu_a mu_b^T [landmark, landmark_]."""
        xp = array_namespace(self.mean)
        return self.second[a, b, ...] + xp.linalg.outer(self.mean[a, :], self.mean[b, :])

    def uncentred_times(self, a: int, b: int, V: Array) -> Array:
        """S_ab V = C_ab V + mu_a (mu_b^T V) for V [..., landmark, component]; forms no S_ab."""
        projection = self.mean[b, :] @ V
        return self.second[a, b, ...] @ V + self.mean[a, :][:, None] * projection[..., None, :]

    def uncentred_trace(self, a: int) -> Number:
        """tr(S_aa) = tr(C_aa) + |mu_a|^2: the mean squared length of a kernel row of view a."""
        xp = array_namespace(self.mean)
        return xp.linalg.trace(self.second[a, a, ...]) + xp.sum(self.mean[a, :] ** 2)

    def difference(self, a: int, b: int) -> Array:
        """D_ab = E[(k_a - k_b)(k_a - k_b)^T] [landmark, landmark_]."""
        C = self.second
        # Centred part of the difference, then the outer product of its mean:
        # D_ab = C_aa + C_bb - C_ab - C_ba + (mu_a - mu_b)(mu_a - mu_b)^T.
        shift = self.mean[a, :] - self.mean[b, :]
        outer = array_namespace(shift).linalg.outer(shift, shift)
        return C[a, a, ...] + C[b, b, ...] - C[a, b, ...] - C[b, a, ...] + outer

    def mean_uncentred(self) -> Array:
        """S = (1/p) sum_a S_aa = E[k k^T] over samples and views [landmark, landmark_]."""
        # Summed in place: a second matrix of this size is not allocated.
        S = self.uncentred(0, 0)
        for a in range(1, self.n_views):
            S += self.uncentred(a, a)
        S /= self.n_views
        return S

    def embedding_rms(self, A: Array, offset: Array | None = None) -> Number:
        """Root mean square of |K A + gamma| over samples and views, without reading the kernel.

        E|f|^2 = tr(A^T S A) + 2 <gamma, A^T kbar> + |gamma|^2.

        Args:
            A: coefficients [landmark, component].
            offset: gamma [component]; None: 0.
        """
        xp = array_namespace(self.mean, A)
        gamma = xp.zeros_like(A[0, :]) if offset is None else offset
        # tr(A^T S A) = <A, S A>.
        square = xp.sum(A * (self.mean_uncentred() @ A))
        # <gamma, 2 A^T kbar + gamma>.
        square = square + gamma @ (2.0 * A.T @ xp.mean(self.mean, axis=0) + gamma)
        # Rounding can leave a negative number where the embedding is constant.
        return xp.sqrt(xp.maximum(square, 0.0))


@dataclass(frozen=True)
class TiledUncentredMoment:
    """S = (1/p) sum_a (C_aa + mu_a mu_a^T), multiplied tile by tile and never formed; on the host.

    Args:
        mean: mu_a [view, landmark].
        tile: (row, column) -> C of a pair of landmark ranges [view, view_, landmark, landmark_].
    """

    mean: Array
    tile: Callable[[int, int], Any]

    def __matmul__(self, V: Array) -> Array:
        """S V for V [landmark, column]."""
        ranges = tile_slices(len(V))
        total = np.zeros(V.shape)
        # sum_a C_aa V, tile by tile.
        for row, column in np.ndindex(len(ranges), len(ranges)):
            second = self.tile(row, column)
            for a in range(len(self.mean)):
                total[ranges[row]] += second[a, a] @ V[ranges[column]]
        # sum_a mu_a (mu_a^T V).
        for mu in self.mean:
            total += np.outer(mu, mu @ V)
        return total / len(self.mean)

    def trace(self) -> float:
        """tr(S), the mean squared length of a kernel row over samples and views."""
        views = range(len(self.mean))
        # sum_a tr(C_aa): the diagonal tiles hold the diagonal.
        diagonal = range(len(tile_slices(self.mean.shape[1])))
        tiles = [self.tile(i, i) for i in diagonal]
        centred = sum(float(np.trace(tile[a, a])) for tile in tiles for a in views)
        return (centred + float(np.sum(self.mean**2))) / len(self.mean)


def view_pairs(n_views: int) -> Iterator[tuple[int, int]]:
    """All pairs of views a < b."""
    return ((a, b) for a in range(n_views) for b in range(a + 1, n_views))
