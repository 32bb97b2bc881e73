"""Number of landmarks by a rule: the smallest one whose Nystrom error over the views is low.

Samplers list landmarks in the order of their choice, so that a prefix is a choice of fewer. With
the Cholesky factor L of the kernel among all of them and T = L^(-1) K^T, the share of the kernel
that the first m landmarks carry is a sum over the first m rows of T: one factor serves every m,

    error(m) = 1 - sum_x sum_{j <= m} T_jx^2 / sum_x k(x, x).

The error that the spectrum stage reports also counts what the rounding of the stored kernel costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

FIRST_COUNT = 256
MOST_ERROR = 0.1
# Of the mean diagonal: it keeps the factor of landmarks that nearly coincide finite.
_RIDGE = 1e-6


def candidate_counts(limit: int) -> tuple[int, ...]:
    """Numbers of landmarks that are tried, ascending: 256, 512, 1024, ... and the limit itself."""
    counts = [limit]
    count = FIRST_COUNT
    while count < limit:
        counts.append(count)
        count *= 2
    return tuple(sorted(counts))


def nystrom_errors(
    rows: Float, landmark_kernel: Float, counts: Sequence[int], self_kernel: Float
) -> Float:
    """Nystrom error of the first landmarks, for each number of them [count].

    0: they carry every row, 1: they carry nothing. Pivots of landmarks that coincide with earlier
    ones are rounding noise beside the ridge, and carry nothing.

    Args:
        rows: kernel values [row, landmark], landmarks in the order of their choice.
        landmark_kernel: K_mm [landmark, landmark_], in the same order.
        counts: numbers of landmarks, at most all.
        self_kernel: k(x, x) [row].
    """
    from scipy.linalg import solve_triangular  # on first use: scipy costs 0.2 s

    m = len(landmark_kernel)
    ridge = max(_RIDGE * float(np.trace(landmark_kernel)) / m, np.finfo(float).tiny)
    L = np.linalg.cholesky(landmark_kernel + ridge * np.eye(m))
    # Row j of T: what landmark j carries beyond the landmarks before it.
    T = solve_triangular(L, rows.T, lower=True)
    carried = np.cumsum(np.sum(T * T, axis=1))
    shares = carried[np.asarray(counts) - 1] / float(self_kernel.sum())
    return np.asarray(np.clip(1.0 - shares, 0.0, 1.0))


def choose_count(counts: Sequence[int], errors: Float, most_error: float = MOST_ERROR) -> int:
    """The smallest count whose error is at most ``most_error``; the largest if none is.

    Args:
        counts: ascending.
        errors: of ``nystrom_errors`` [count].
        most_error: error that is low enough.
    """
    good = np.flatnonzero(errors <= most_error)
    return int(counts[good[0]]) if len(good) else int(counts[-1])
