"""Effect of leaving out a group on the embedding of single samples, blind to rotations.

The profile of a sample is the vector of cosines between its embedding and those of anchor samples,
embeddings centred by the mean over the view rows that the coefficients were solved on:

    f_t = A^T (k_t - kbar),   profile_t = [cos(f_t, f_a)]_a,
    effect(g, t) = 1 - Pearson(profile_t with all samples, profile_t without g).

Anchors that belong to the group are left out of both profiles. A loss that sees standardised
components only (Barlow Twins) leaves their scales to the damping; there every component is divided
by its deviation. Measured against retraining on digits, Spearman over all pairs of group and
sample, relative damping 1: Barlow Twins .59 with and .32 without, VICReg .72 either way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.stages.moments.moments import Moments

LEAST_ANCHORS = 50
SUB_ROWS = 1024
FLAT = 1e-12
Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Embedding:
    """Coefficients with the mean that centres their embedding.

    Args:
        coefficients: A [landmark, component].
        mean: kbar, mean kernel row over views and samples [landmark].
    """

    coefficients: Float
    mean: Float

    def directions(self, rows: Float) -> Float:
        """Unit embeddings [sample, component] of kernel rows [sample, landmark]; 0 without one."""
        f = rows @ self.coefficients - self.mean @ self.coefficients
        length = np.linalg.norm(f, axis=1, keepdims=True)
        return np.asarray(f / np.where(length > 0, length, 1.0))


def standardise(coefficients: Float, moments: Moments) -> Float:
    """Coefficients whose embedding has deviation 1 in every component [landmark, component].

    Args:
        coefficients: A [landmark, component].
        moments: of the view rows that it was solved on; the deviation is over samples and views.
    """
    mean = moments.mean.mean(axis=0)
    square = np.sum(coefficients * (moments.mean_uncentred() @ coefficients), axis=0)
    variance = np.maximum(square - (mean @ coefficients) ** 2, 0.0)
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0))
    return np.asarray(coefficients / deviation)


def effects(rows: Float, anchors: Float, full: Embedding, rest: Embedding) -> Float:
    """Effect on every sample [sample]; NaN where a profile is constant.

    Args:
        rows: kernel rows of the samples [sample, landmark].
        anchors: kernel rows of the anchors, at least 2 [anchor, landmark].
        full: the embedding of all samples.
        rest: the embedding without the group.
    """
    found = np.empty(len(rows))
    sides = [(embedding, embedding.directions(anchors)) for embedding in (full, rest)]
    for start in range(0, len(rows), SUB_ROWS):
        cut = slice(start, start + SUB_ROWS)
        profiles = [e.directions(rows[cut]) @ anchor.T for e, anchor in sides]
        found[cut] = 1.0 - correlation(*profiles)
    return found


def correlation(left: Float, right: Float) -> Float:
    """Pearson correlation of each row [sample]; NaN where one side is constant."""
    a = left - left.mean(axis=1, keepdims=True)
    b = right - right.mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    flat = (sizes[0] <= FLAT) | (sizes[1] <= FLAT)
    product = np.where(flat, 1.0, sizes[0] * sizes[1])
    return np.where(flat, np.nan, np.einsum("sa,sa->s", a, b) / product)


def refusal(n_samples: int, count: int, anchors_left: int, anchors: int) -> str:
    """Reason that a group cannot be left out; empty if it can.

    Args:
        n_samples: samples in all.
        count: samples of the group.
        anchors_left: anchors that do not belong to it.
        anchors: anchors in all.
    """
    if not count:
        return "no sample"
    if count == n_samples:
        return "all samples"
    if count == n_samples - 1:
        return "one sample is left"
    if anchors_left < LEAST_ANCHORS:
        return f"{anchors_left} of {anchors} anchors are left, at least {LEAST_ANCHORS} needed"
    return ""


@dataclass(frozen=True)
class GroupSummary:
    """Effects of all groups, summed up.

    Args:
        mean_effect: over samples [group].
        mean_effect_stderr: standard error over samples [group].
        effect_by_group: mean over the samples of each group [group, group_].
        residual_on_size: mean effect beyond the line on log count [group].
    """

    mean_effect: Float
    mean_effect_stderr: Float
    effect_by_group: Float
    residual_on_size: Float


def summarise(effect: Float, members: Mask, count: npt.NDArray[np.int64]) -> GroupSummary:
    """Means over samples and groups; NaN where nothing is defined.

    Args:
        effect: [group, sample].
        members: whether a sample belongs to a group [group, sample].
        count: samples of every group in the source [group].
    """
    known = np.isfinite(effect)
    values = np.where(known, effect, 0.0)
    total, samples = values.sum(axis=1), known.sum(axis=1)
    mean = _ratio(total, samples)
    spread = np.where(known, effect - mean[:, None], 0.0)
    stderr = np.sqrt(_ratio((spread**2).sum(axis=1), samples * np.maximum(samples - 1, 0)))
    chosen = members.T.astype(np.float64)
    by_group = _ratio(values @ chosen, known.astype(np.float64) @ chosen)
    return GroupSummary(mean, stderr, by_group, residual_on_size(mean, count))


def residual_on_size(mean: Float, count: npt.NDArray[np.int64]) -> Float:
    """Residual of mean effects beyond their least-squares line on log count [group].

    NaN for groups without an effect, and for all if fewer than three have one.
    """
    found = np.full(len(mean), np.nan)
    known = np.flatnonzero(np.isfinite(mean) & (count > 0))
    if len(known) < 3:
        return found
    size = np.log(count[known].astype(np.float64))
    size -= size.mean()
    centred = mean[known] - mean[known].mean()
    scatter = float(size @ size)
    slope = float(size @ centred) / scatter if scatter > 0 else 0.0
    found[known] = centred - slope * size
    return found


def _ratio(numerator: Float, denominator: npt.NDArray[np.generic]) -> Float:
    """Quotients; NaN where the denominator is 0."""
    positive = np.asarray(denominator) > 0
    return np.where(positive, numerator / np.where(positive, denominator, 1), np.nan)
