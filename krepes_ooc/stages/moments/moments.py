"""First and second moments of kernel rows over all samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from array_api_compat import array_namespace

from krepes_ooc.core.arrays import Array, Number


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
        """S_ab = E[k_a k_b^T] [landmark, landmark_]."""
        xp = array_namespace(self.mean)
        return self.second[a, b, ...] + xp.linalg.outer(self.mean[a, :], self.mean[b, :])

    def uncentred_times(self, a: int, b: int, V: Array) -> Array:
        """S_ab V for V [..., landmark, component]; S_ab is not formed."""
        shared = self.mean[b, :] @ V
        return self.second[a, b, ...] @ V + self.mean[a, :][:, None] * shared[..., None, :]

    def difference(self, a: int, b: int) -> Array:
        """D_ab = E[(k_a - k_b)(k_a - k_b)^T] [landmark, landmark_]."""
        shift, C = self.mean[a, :] - self.mean[b, :], self.second
        outer = array_namespace(shift).linalg.outer(shift, shift)
        return C[a, a, ...] + C[b, b, ...] - C[a, b, ...] - C[b, a, ...] + outer

    def mean_uncentred(self) -> Array:
        """S = E[k k^T] over samples and views [landmark, landmark_]."""
        S = self.uncentred(0, 0)
        for a in range(1, self.n_views):
            S += self.uncentred(a, a)
        S /= self.n_views
        return S

    def embedding_rms(self, A: Array, offset: Array | None = None) -> Number:
        """Root mean square of |K A + gamma| over samples and views, without reading the kernel.

        E|f|^2 = tr(A^T S A) + 2 <gamma, A^T kbar> + |gamma|^2, A [landmark, component].
        """
        xp = array_namespace(self.mean, A)
        gamma = xp.zeros_like(A[0, :]) if offset is None else offset
        square = xp.sum(A * (self.mean_uncentred() @ A))
        square = square + gamma @ (2.0 * A.T @ xp.mean(self.mean, axis=0) + gamma)
        return xp.sqrt(xp.maximum(square, 0.0))


def view_pairs(n_views: int) -> Iterator[tuple[int, int]]:
    """All pairs of views a < b."""
    return ((a, b) for a in range(n_views) for b in range(a + 1, n_views))
