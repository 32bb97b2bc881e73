"""Influence between groups: shares of the top landmarks' scores by group of the landmark.

    share[g, g'] = mean_{t in g} [ sum_{l in R_t, l in g'} w_tl / sum_{l in R_t} w_tl ]

with R_t the top landmarks of t and w_tl = |score|. Its chance level is the share of group g' among
the landmarks: what top landmarks drawn at random would give.
Source: the group table of KREPES (arXiv 2509.24467); the chance level is this project's choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import StageFailed

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GroupTable:
    """Shares of landmark mass between groups; every row of ``share`` sums to 1 or is NaN.

    Args:
        share: [group, group_] from the group of the sample to the group of the landmark.
        stderr: bootstrap standard error over the samples of a row [group, group_].
        chance: share of every group among the landmarks [group].
        samples: audited samples of every group [group].
        landmarks: landmarks of every group [group].
    """

    share: Float
    stderr: Float
    chance: Float
    samples: Index
    landmarks: Index


def group_table(
    group: Index, landmark_group: Index, top: Index, score: Float, n_groups: int
) -> GroupTable:
    """The table of one categorical column or of the labels.

    Args:
        group: code of every audited sample [audited], below 0 = unknown, left out.
        landmark_group: code of every landmark [landmark]; mass on unknown ones is left out.
        top: top landmarks [audited, rank].
        score: their scores [audited, rank]; the size counts.
        n_groups: number of groups.

    Raises:
        StageFailed: no sample or no landmark has a known group.
    """
    landmarks = np.bincount(landmark_group[landmark_group >= 0], minlength=n_groups)
    samples = np.bincount(group[group >= 0], minlength=n_groups)
    if not samples.any() or not landmarks.any():
        raise StageFailed(
            "no group is known",
            where="alignment",
            expected="audited samples and landmarks with a value in this column",
        )
    # Mean over the samples of each group that have any mass, with its standard error
    mass = landmark_mass(landmark_group[top], np.abs(score), n_groups)
    share, stderr = np.full((2, n_groups, n_groups), np.nan)
    for code in np.flatnonzero(samples):
        rows = mass[(group == code) & (mass.sum(axis=1) > 0)]
        if len(rows):
            share[code] = rows.mean(axis=0)
            stderr[code] = rows.std(axis=0) / np.sqrt(len(rows))
    return GroupTable(
        share,
        stderr,
        landmarks / landmarks.sum(),
        samples.astype(np.int64),
        landmarks.astype(np.int64),
    )


def landmark_mass(group: Index, weight: Float, n_groups: int) -> Float:
    """Share of landmark mass by group [audited, group]; a zero row if there is none.

    Args:
        group: of every top landmark, below 0 = unknown, left out [audited, rank].
        weight: of it, not negative [audited, rank].
        n_groups: number of groups.
    """
    mass = np.zeros((len(group), n_groups))
    # Unknown groups take no part; every row is then normalised to 1
    sample, rank = np.nonzero(group >= 0)
    np.add.at(mass, (sample, group[sample, rank]), weight[sample, rank])
    total = mass.sum(axis=1, keepdims=True)
    return np.asarray(mass / np.where(total > 0, total, 1.0))
