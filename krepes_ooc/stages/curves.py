"""Label-free curves: entropy over damping, ceiling over components, error over landmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc import counter
from krepes_ooc.algebra import nystrom
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelityrows import Rows, curve
from krepes_ooc.stages.probing import powers_of_two
from krepes_ooc.storage.reader import StoreReader

LEAST_LANDMARKS = 8
_SUBSET_STREAM = 422
Float = npt.NDArray[np.float64]


def entropy_curve(newton: StoreReader) -> dict[str, Any]:
    """Spectral entropy of start + step over the damping sweep."""
    return curve(
        "Spectral entropy over the damping",
        ("relative damping", "entropy of A, 1 = all directions alike"),
        newton.array("damping_relative"),
        {"start + step": newton.array("entropy")},
        "Each point is a step of its own; the chosen damping is in the panel of the step.",
    )


def ceiling_curve(fit: Rows, held: Rows) -> dict[str, Any]:
    """R squared of the network's embedding from the first h components of the start.

    Raises:
        StageFailed: fewer than two fit samples, or as ``ridge_ceiling``.
    """
    from krepes_ooc.algebra.measures import ridge_ceiling

    if len(fit.kernel) < 2:
        raise StageFailed("too few fit samples", where="fidelity", expected="at least two")

    counts = powers_of_two(fit.start.shape[1])
    found = [
        ridge_ceiling(fit.start[:, :h], fit.network, held.start[:, :h], held.network).r_squared
        for h in counts
    ]
    return curve(
        "What h components carry of the network's embedding",
        ("components h", "held-out R squared"),
        counts,
        {"start": found},
        "Ridge regression from the first h components of the embedding at the start.",
    )


def landmark_curves(
    landmark_kernel: Float,
    second: Float,
    self_kernel_mean: float,
    rms: float,
    dtype: str,
    seed: int,
) -> dict[str, Any]:
    """Nystrom error and effective dimension of nested random subsets of the landmarks.

    Args:
        landmark_kernel: K_mm [landmark, landmark_].
        second: un-centred S [landmark, landmark_].
        self_kernel_mean: mean normalised self kernel.
        rms: root mean square of the stored kernel values.
        dtype: of the stored kernel.
        seed: of the order in which landmarks are added.
    """
    m, own = len(landmark_kernel), float(np.mean(np.diag(landmark_kernel)))
    order = np.argsort(counter.bits(seed, _SUBSET_STREAM, np.arange(m)), kind="stable")
    counts = [count for count in powers_of_two(m) if count >= min(m, LEAST_LANDMARKS)]
    errors, dimensions = [], []
    for count in counts:
        part = np.ix_(order[:count], order[:count])
        values, vectors = nystrom.eigenpairs(landmark_kernel[part])
        rank = max(1, nystrom.usable_rank(values, rms, count, dtype))
        errors.append(nystrom.nystrom_error(self_kernel_mean, second[part], values, vectors, rank))
        dimensions.append(nystrom.effective_dimension(values, own))
    subsets = "Random subsets of the landmarks, each holding the one before."
    return {
        "nystrom_error_over_landmarks": curve(
            "Share of the kernel that is missed, against the number of landmarks",
            ("landmarks m", "Nystrom error"),
            counts,
            {"these landmarks": errors},
            subsets + " Where the curve is still falling at its end, more landmarks would help.",
        ),
        "effective_dimension_over_landmarks": curve(
            "Effective dimension against the number of landmarks",
            ("landmarks m", "sum of Lambda / (Lambda + mean k(x, x))"),
            counts,
            {"these landmarks": dimensions},
            subsets + " It levels off once the landmarks span the data.",
        ),
    }
