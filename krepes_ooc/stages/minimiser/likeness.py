"""Likeness of an embedding to the network's, and the damping that it chooses; no label is used.

    likeness(A) = |X^T Y|^2 / (|X^T X| |Y^T Y|)        Frobenius norms

with X the columns of K A and Y those of the network's embedding, each centred and divided by its
deviation over the fit samples: linear CKA (Kornblith, Norouzi, Lee and Hinton 2019) of standardised
columns. Losses of standardised components, such as Barlow Twins, leave the scale of a component
free; without the division the largest components decide, and the likeness falls while probes on
the embedding agree more and more.

The chosen damping is the largest one whose likeness lies within ``TOLERANCE`` of the best, as near
to the start as the network allows (settled on digits, docs/method.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

TOLERANCE = 0.01
# Deviations below this share of the largest are float noise: such a column is constant.
CONSTANT = 1e-7


def network_likeness(embedding: Float, network: Float) -> float:
    """Linear CKA of standardised columns, within [0, 1]; 0 if one embedding is constant.

    Args:
        embedding: of fit samples [sample, component]; an offset changes nothing.
        network: the network's embedding of the same samples [sample, output].
    """
    X, Y = standardise(embedding), standardise(network)
    size = np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y)
    return float(np.clip(np.sum((X.T @ Y) ** 2) / size, 0.0, 1.0)) if size > 0 else 0.0


def standardise(rows: Float) -> Float:
    """Columns [sample, column] centred and divided by their deviations; 0 where constant."""
    centred = rows - rows.mean(axis=0)
    deviation = centred.std(axis=0)
    size = np.sqrt(np.mean(rows**2)) if rows.size else 0.0
    varies = deviation > CONSTANT * max(float(deviation.max(initial=0.0)), float(size))
    return np.asarray(centred * np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0))


def choose_damping(likeness: Sequence[float], damping_relative: Sequence[float]) -> int:
    """Index of the largest damping whose likeness lies within ``TOLERANCE`` of the best."""
    values, dampings = np.asarray(likeness), np.asarray(damping_relative)
    near = np.flatnonzero(values >= values.max() - TOLERANCE)
    return int(near[np.argmax(dampings[near])])
