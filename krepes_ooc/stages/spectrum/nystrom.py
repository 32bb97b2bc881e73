"""Nystrom eigendecomposition of the landmark kernel: start, usable rank, approximation error.

    K_mm = U diag(Lambda) U^T,   start A0 = U_h Lambda_h^(-1/2),   offset gamma = -A0^T kbar

so that the embedding f = K A0 + gamma is kernel PCA restricted to the landmarks.
Source: Williams and Seeger (2001), "Using the Nystrom method to speed up kernel machines".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.array_columns import Eigh
from krepes_ooc.errors import DataError, StageFailed

Float = npt.NDArray[np.float64]

# Half the relative spacing of stored kernel values.
_ROUNDING = {"float16": 2.0**-12, "float32": 2.0**-25, "float64": 2.0**-54}
_NOISE_LIMIT = 0.05
_RELATIVE_FLOOR = 1e-10
_TIE = 1e-6


def eigenpairs(landmark_kernel: Float, eigh: Eigh = np.linalg.eigh) -> tuple[Float, Float]:
    """Eigenvalues [component], descending, and eigenvectors U [landmark, component] of K_mm.

    The sign of a column is fixed: its largest entry in absolute value is positive; among entries
    that tie within 1e-6 the first decides, so rounding cannot flip a symmetric column.

    Args:
        landmark_kernel: K_mm [landmark, landmark_].
        eigh: the eigendecomposition of a symmetric matrix, ascending; a device has another one.

    Raises:
        DataError: the kernel holds NaN or infinity.
        StageFailed: the kernel has no positive eigenvalue.
    """
    if not np.isfinite(landmark_kernel).all():
        row, column = np.argwhere(~np.isfinite(landmark_kernel))[0]
        raise DataError(
            f"value {landmark_kernel[row, column]} at landmarks {row}, {column}",
            where="kernel.landmark_kernel",
            expected="finite numbers",
        )
    # LAPACK sorts ascending; components are numbered from the largest eigenvalue.
    ascending, vectors = eigh(landmark_kernel)
    eigenvalues = ascending[::-1].copy()
    U = vectors[:, ::-1].copy()
    if eigenvalues[0] <= 0:
        raise StageFailed(
            f"the largest eigenvalue of {len(U)} landmarks is {eigenvalues[0]:g}",
            where="spectrum",
            expected="a positive one",
            advice="the landmarks do not differ: the network has collapsed on this source",
        )
    return eigenvalues, U * column_signs(U)


def column_signs(U: Float) -> Float:
    """+1 or -1 for every column of U [landmark, component]: the sign of its deciding entry."""
    size = np.abs(U)
    # argmax takes the first of the entries within 1e-6 of the largest.
    deciding = np.argmax(size >= (1 - _TIE) * size.max(axis=0), axis=0)
    return np.where(U[deciding, np.arange(U.shape[1])] < 0, -1.0, 1.0)


def usable_rank(eigenvalues: Float, rms: float, n_landmarks: int, dtype: str) -> int:
    """Number of leading components above the rounding noise of the stored kernel.

    Column j of K A0 has the noise-to-signal ratio eps rms(K) sqrt(m) / Lambda_j, with eps the
    rounding of ``dtype``; it must stay below 0.05, and Lambda_j above 1e-10 Lambda_1.

    Args:
        eigenvalues: of K_mm, descending.
        rms: root mean square of the stored kernel values.
        n_landmarks: m, rows of K_mm.
        dtype: float type of the stored kernel.

    Raises:
        ValueError: no float type of that name is known.
    """
    if dtype not in _ROUNDING:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(_ROUNDING)}")
    # eps rms(K) sqrt(m) / Lambda_j < limit, solved for Lambda_j.
    noise = _ROUNDING[dtype] * rms * np.sqrt(n_landmarks) / _NOISE_LIMIT
    usable = (eigenvalues > noise) & (eigenvalues > _RELATIVE_FLOOR * eigenvalues[0])
    return int(np.count_nonzero(usable))


def check_rank(n_components: int, rank: int) -> None:
    """Refuse more components than the usable rank of the kernel.

    Raises:
        StageFailed: ``n_components`` exceeds the usable rank.
    """
    if n_components > rank:
        raise StageFailed(
            f"{n_components} components asked of a kernel with usable rank {rank}",
            where="stages.spectrum.components",
            expected=f"at most {rank}",
            advice="ask for fewer components, take more landmarks or store the kernel as float32",
        )


def start(eigenvalues: Float, U: Float, n_components: int) -> Float:
    """Principal-component start A0 = U_h Lambda_h^(-1/2) [landmark, component].

    Args:
        eigenvalues: Lambda, descending.
        U: eigenvectors [landmark, component].
        n_components: h, at most the usable rank.
    """
    return U[:, :n_components] / np.sqrt(eigenvalues[:n_components])


def offset(A0: Float, kernel_mean: Float) -> Float:
    """The offset gamma = -A0^T kbar [component], kbar [landmark] over all samples and views."""
    return -(A0.T @ kernel_mean)


def effective_dimension(eigenvalues: Float, damping: float) -> float:
    """sum_j Lambda_j / (Lambda_j + damping), damping > 0 in the units of the eigenvalues.

    Negative eigenvalues (rounding) count as 0. Source: Rudi, Carratino and Rosasco (2017).

    Raises:
        ValueError: the damping is not above 0.
    """
    if not damping > 0:
        raise ValueError(f"damping {damping} is not above 0")
    positive = np.maximum(eigenvalues, 0.0)
    return float(np.sum(positive / (positive + damping)))


def nystrom_error(
    self_kernel_mean: float, second: Any, eigenvalues: Float, U: Float, rank: int
) -> float:
    """Nystrom approximation error: mean of k(x,x) - k_x^T K_mm^+ k_x over mean of k(x,x).

    The mean runs over all samples and views, and mean(k_x^T K_mm^+ k_x) = tr(K_mm^+ S), so the
    moments suffice. 0 = the landmarks span every row, 1 = they span nothing.

    Args:
        self_kernel_mean: mean normalised self kernel over all samples and views.
        second: un-centred S [landmark, landmark_], mean over samples and views of k_x k_x^T;
            any object with ``second @ V``.
        eigenvalues: of K_mm, descending.
        U: eigenvectors [landmark, component].
        rank: components of the pseudo-inverse (the usable rank).

    Raises:
        StageFailed: the mean self kernel is not above 0.
    """
    if not self_kernel_mean > 0:
        raise StageFailed(
            f"the mean self kernel is {self_kernel_mean:g}", where="kernel", expected="more than 0"
        )
    leading = U[:, :rank]
    # tr(K_mm^+ S) = sum_j u_j^T S u_j / Lambda_j.
    explained = np.sum(np.sum(leading * (second @ leading), axis=0) / eigenvalues[:rank])
    # Rounding of a float16 kernel can leave the interval by a little.
    return float(np.clip(1.0 - explained / self_kernel_mean, 0.0, 1.0))


def spectral_entropy(A: Float) -> float:
    """Normalised entropy of the spectrum of A^T A, A [landmark, component]; 1 = all equal.

    H = -sum_j p_j ln p_j / ln h with p_j the shares of the eigenvalues. By convention 0 for a zero
    matrix and for a single component.
    """
    from scipy.special import entr  # on first use: scipy costs 0.2 s

    # Squared singular values of A; negative ones are rounding.
    eigenvalues = np.maximum(np.linalg.eigvalsh(A.T @ A), 0.0)
    total = eigenvalues.sum()
    if len(eigenvalues) < 2 or not total > 0:
        return 0.0
    # entr(p) = -p ln p, and 0 at 0.
    return float(np.sum(entr(eigenvalues / total)) / np.log(len(eigenvalues)))
