"""Embeddings on a plane: principal components, and the rotation of one plane onto another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
DIMENSIONS = 2


@dataclass(frozen=True)
class Projected:
    """Coordinates on the first two principal components.

    Args:
        samples: [sample, 2].
        landmarks: [landmark, 2].
        variance: share of the samples' variance on each of the two [2].
    """

    samples: Float
    landmarks: Float
    variance: Float


def principal_plane(samples: Float, landmarks: Float) -> Projected:
    """Principal components of the samples; landmarks are projected onto them.

    The sign of a component is that of its largest loading, so that equal embeddings give equal
    planes. An embedding of one component has zeros for the second.

    Args:
        samples: embedding [sample, component].
        landmarks: embedding [landmark, component].
    """
    mean = samples.mean(axis=0)
    centred = samples - mean
    covariance = centred.T @ centred
    value, vector = np.linalg.eigh(covariance)
    kept = min(DIMENSIONS, len(value))
    # Largest eigenvalues first
    axes = vector[:, ::-1][:, :kept]
    largest = np.argmax(np.abs(axes), axis=0)
    axes = axes * np.where(axes[largest, np.arange(kept)] < 0, -1.0, 1.0)
    padding = ((0, 0), (0, DIMENSIONS - kept))
    total = float(value.clip(min=0).sum())
    share = value[::-1][:kept].clip(min=0) / (total or 1.0)
    return Projected(
        np.pad(centred @ axes, padding),
        np.pad((landmarks - mean) @ axes, padding),
        np.pad(share, (0, DIMENSIONS - kept)),
    )


def turn_onto(plane: Projected, reference: Projected) -> tuple[Projected, float]:
    """A plane turned and mirrored until its samples lie nearest to those of a reference.

    Orthogonal Procrustes (Schoenemann 1966): R = U V' of the singular value decomposition
    P' Q = U S V'. The likeness is (sum S)^2 / (|P|^2 |Q|^2), the share of Q's variance that P R
    reproduces at the best scale.

    Args:
        plane: P, which is turned.
        reference: Q, with the same samples.

    Returns:
        The turned plane and the likeness, 0 where one of the two is a single point.
    """
    left, singular, right = np.linalg.svd(plane.samples.T @ reference.samples)
    rotation = left @ right
    sizes = float(np.sum(plane.samples**2) * np.sum(reference.samples**2))
    likeness = float(singular.sum() ** 2) / sizes if sizes > 0 else 0.0
    turned = Projected(
        plane.samples @ rotation,
        plane.landmarks @ rotation,
        # Variance along the turned axes is no longer that of single components
        plane.variance,
    )
    return turned, min(likeness, 1.0)
