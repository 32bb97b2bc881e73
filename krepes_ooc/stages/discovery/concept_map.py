"""Linear activation of concepts on kernel rows, their stability, and their random control.

    z = P^T k - zbar,   P = U_r Lambda_r^(-1/2)          Nystrom map, centred over the fit rows
    a = <z, c> = <k, W> - const,   W = P c,   const = <zbar, c>

so that the activation of any sample, new ones too, takes its kernel row alone. The concept that a
sample shows is the one of the largest activation, which is that of the largest cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

_RANDOM_STREAM, _HALF_STREAM = 821, 822


@dataclass(frozen=True)
class ConceptMap:
    """Activation of concepts.

    Args:
        weights: W [landmark, concept], or [input, concept] for a map of inputs.
        const: [concept].
    """

    weights: Float
    const: Float

    @classmethod
    def of_centres(cls, centres: Float, mean: Float, projection: Float | None = None) -> ConceptMap:
        """The map of unit centres [concept, direction].

        Args:
            centres: c.
            mean: zbar [direction].
            projection: P [landmark, direction]; None: rows are directions themselves.
        """
        weights = centres.T if projection is None else projection @ centres.T
        return cls(np.ascontiguousarray(weights), centres @ mean)

    def activation(self, rows: npt.NDArray[np.floating]) -> Float:
        """Activations [sample, concept] of kernel rows or inputs [sample, ...]."""
        return np.asarray(rows.astype(np.float64, copy=False) @ self.weights - self.const)

    def winners(self, rows: npt.NDArray[np.floating]) -> Index:
        """Concept of the largest activation, the first among equals [sample]."""
        return np.asarray(np.argmax(self.activation(rows), axis=1), dtype=np.int64)


def nystrom_projection(eigenvalues: Float, eigenvectors: Float, rank: int) -> Float:
    """P = U_r Lambda_r^(-1/2) [landmark, direction], of the leading positive eigenvalues.

    Args:
        eigenvalues: Lambda, descending [eigenvalue].
        eigenvectors: U [landmark, component]; fewer components than the rank lower it.
        rank: usable rank r.
    """
    rank = min(rank, eigenvectors.shape[1], int(np.count_nonzero(eigenvalues > 0)))
    return np.asarray(eigenvectors[:, :rank] / np.sqrt(eigenvalues[:rank]))


def stability(centres: Float, refits: Sequence[Float]) -> Float:
    """Mean cosine of every centre to its match in each refit [concept], within [0, 1].

    Centres are matched one to one by the largest sum of cosines (Kuhn 1955); a centre without a
    match counts 0.

    Args:
        centres: unit vectors [concept, direction].
        refits: unit centres of fits on parts of the rows.
    """
    from scipy.optimize import linear_sum_assignment  # on first use: 0.2 s

    total = np.zeros(len(centres))
    for refit in refits:
        cosine = centres @ refit.T
        found, match = linear_sum_assignment(-cosine)
        total[found] += np.maximum(cosine[found, match], 0.0)
    return total / max(1, len(refits))


def half_sample(n_rows: int, seed: int, key: int) -> Index:
    """Rows of a keyed half sample, ascending; at least one."""
    order = np.argsort(counter_rng.bits(seed, _HALF_STREAM, key, np.arange(n_rows)), kind="stable")
    return np.sort(order[: max(1, n_rows // 2)])


def random_centres(count: int, n_directions: int, seed: int) -> Float:
    """Keyed unit vectors, uniform on the sphere [concept, direction]."""
    rows, columns = np.arange(count)[:, None], np.arange(n_directions)[None, :]
    drawn = counter_rng.normal(seed, _RANDOM_STREAM, rows, columns)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
