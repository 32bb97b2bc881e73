"""Landmarks that stand for each class of samples, and those of other classes beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
NONE = -1


@dataclass(frozen=True)
class ClassLandmarks:
    """Landmarks of every class.

    Args:
        samples: samples of the class [class].
        first_same: of them, samples whose first landmark has their class [class].
        prototypes: landmarks of the class of the largest summed score [class, rank].
        confusing: landmarks of other classes, likewise [class, rank]; -1: no further one.
    """

    samples: Index
    first_same: Index
    prototypes: Index
    confusing: Index


def class_landmarks(
    label: Index, landmark_label: Index, top: Index, score: Float, n_classes: int, count: int
) -> ClassLandmarks:
    """Sum the scores of every landmark over the samples of every class, and rank them.

    Args:
        label: class of every sample, -1 for none [sample].
        landmark_label: class of every landmark sample [landmark].
        top: their ranked landmarks, -1 for none; never the sample itself [sample, rank].
        score: of these landmarks [sample, rank].
        n_classes: number of classes.
        count: landmarks of either kind at most.
    """
    mass = np.zeros((n_classes, len(landmark_label)))
    row, rank = np.nonzero((top >= 0) & (label[:, None] >= 0))
    np.add.at(mass, (label[row], top[row, rank]), np.abs(score[row, rank]))
    same = landmark_label[None, :] == np.arange(n_classes)[:, None]
    known = landmark_label[None, :] >= 0
    # The first landmark that is left; a sample without one counts as another class
    first = top[np.arange(len(top)), np.argmax(top >= 0, axis=1)]
    agrees = (first >= 0) & (label >= 0) & (landmark_label[first] == label)
    return ClassLandmarks(
        np.bincount(label[label >= 0], minlength=n_classes),
        np.bincount(label[agrees], minlength=n_classes),
        _largest(np.where(same, mass, 0.0), count),
        _largest(np.where(known & ~same, mass, 0.0), count),
    )


def _largest(mass: Float, count: int) -> Index:
    """Places of the largest values above 0 [class, rank]; -1: no further one."""
    order = np.argsort(-mass, axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(mass, order, axis=1)
    return np.where(values > 0, order, NONE)
