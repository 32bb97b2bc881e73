"""Predictions of the effect of leaving out a group that know little or nothing of the objective.

Each gives a number for every pair of group and sample: the size of the group, whether the sample
belongs to it, principal components of kernel rows or of inputs solved again without the group, and
the sums of a score over the landmarks of the group. A prediction that is not above them says
nothing that they do not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from krepes_ooc.stages.group_influence.effects import Embedding, correlation, effects
from krepes_ooc.stages.influence.scores import unit_rows
from krepes_ooc.stages.moments.moments import Moments

SUB_ROWS = 1024
Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RowMoments:
    """Sums of rows and of their outer products, in float64; sums of disjoint samples add.

    Args:
        count: rows.
        total: sum [column].
        products: sum of x x^T [column, column_].
    """

    count: int
    total: Float
    products: Float

    @classmethod
    def of(cls, rows: npt.NDArray[np.floating], about: Float) -> RowMoments:
        """Sums of rows [sample, column] about one vector [column], near their mean."""
        total = np.zeros_like(about)
        products = np.zeros((len(about), len(about)))
        # A short range at a time: the float64 copy of all rows is never made.
        for start in range(0, len(rows), SUB_ROWS):
            deviation = rows[start : start + SUB_ROWS] - about
            total += deviation.sum(axis=0)
            products += deviation.T @ deviation
        return cls(len(rows), total, products)

    def without(self, part: RowMoments) -> RowMoments:
        """The sums less those of a part."""
        count = self.count - part.count
        return RowMoments(count, self.total - part.total, self.products - part.products)

    def covariance(self) -> Float:
        """Covariance [column, column_]; the divisor is the number of rows."""
        mean = self.total / self.count
        return np.asarray(self.products / self.count - np.multiply.outer(mean, mean))


def principal_axes(covariance: Float, count: int) -> Float:
    """Leading eigenvectors [column, component], at most as many as there are columns."""
    size = len(covariance)
    first = max(0, size - count)
    _, vectors = eigh(covariance, subset_by_index=[first, size - 1])
    axes: Float = np.ascontiguousarray(vectors[:, ::-1])
    return axes


def kernel_covariance(moments: Moments) -> Float:
    """Covariance of kernel rows over samples and views [landmark, landmark_]."""
    mean = np.asarray(moments.mean).mean(axis=0)
    covariance: Float = np.asarray(moments.mean_uncentred()) - np.multiply.outer(mean, mean)
    return covariance


def kernel_components(moments: Moments, count: int) -> Embedding:
    """Principal components of kernel rows over samples and views, as an embedding."""
    mean = np.asarray(moments.mean).mean(axis=0)
    return Embedding(principal_axes(kernel_covariance(moments), count), mean)


def input_effects(
    rows: Float,
    anchors: Float,
    sampled: npt.NDArray[np.floating],
    members: Mask,
    outside: Mask,
    count: int,
) -> Iterator[Float]:
    """Effect on every sample of solving the principal components of inputs again without a group.

    Args:
        rows: inputs of the samples [sample, column].
        anchors: inputs of the anchors [anchor, column].
        sampled: inputs that the components are solved on [row, column].
        members: whether these belong to each group [group, row].
        outside: whether an anchor does not belong to each group [group, anchor].
        count: components.

    Yields:
        Effects [sample] of every group; NaN where fewer than two rows are left.
    """
    about = sampled.mean(axis=0, dtype=np.float64)
    total = RowMoments.of(sampled, about)
    full = Embedding(principal_axes(total.covariance(), count), about)
    for member, kept in zip(members, outside, strict=True):
        if (~member).sum() < 2:
            yield np.full(len(rows), np.nan)
            continue
        left = total.without(RowMoments.of(sampled[member], about))
        axes = principal_axes(left.covariance(), count)
        rest = Embedding(axes, about + left.total / left.count)
        yield effects(rows, anchors[kept], full, rest)


def landmark_sums(score: Float, members: Mask) -> Float:
    """Sum of a score over the landmarks of every group [group, sample].

    Args:
        score: of every landmark for every sample [sample, landmark].
        members: whether landmarks belong to each group [group, landmark].
    """
    return np.asarray(members.astype(np.float64) @ score.T)


def profile_effect(full: Sequence[Float], rest: Sequence[Float]) -> Float:
    """Effect on every sample, from embeddings of two networks: 1 - Pearson of the cosine profiles.

    Args:
        full: embeddings of samples and of anchors, [sample, output] and [anchor, output], centred
            by the mean over all samples.
        rest: the same of the network without the group, centred by the mean over the others.

    Returns:
        [sample]; NaN where a profile is constant.
    """
    sides = [(unit_rows(samples), unit_rows(anchors)) for samples, anchors in (full, rest)]
    profiles = [np.asarray(samples @ anchors.T) for samples, anchors in sides]
    return 1.0 - correlation(*profiles)
