"""Moments of groups of samples: sums in float64, and the moments of all other samples.

With one fixed shift mu_a for each view, the mean kernel row of all samples, a group g has

    s_a = sum_{i in g} (k_i^a - mu_a),  G_ab = sum_{i in g} (k_i^a - mu_a)(k_i^b - mu_b)^T,  a <= b.

Sums of disjoint groups add, so that the moments of all samples but a group need no pass over the
data: rest = total - group. Products are in float64, because a difference of float32 sums would
leave the rest with their rounding errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.moments.sums import pair_index

Float = npt.NDArray[np.float64]


@dataclass
class GroupSums:
    """Sums over samples of one group, about the fixed shift; float64, changed in place.

    Args:
        rows: samples summed.
        sums: s_a [view, landmark].
        products: G_ab [pair, landmark, landmark_], pairs as ``pair_index`` orders them; of a pair
            a = a only the lower triangle until ``finish``.
    """

    rows: int
    sums: Float
    products: Float

    @classmethod
    def zeros(cls, n_views: int, n_landmarks: int) -> GroupSums:
        """The sums of no sample."""
        pairs = len(pair_index(n_views))
        return cls(0, np.zeros((n_views, n_landmarks)), np.zeros((pairs, n_landmarks, n_landmarks)))

    def add_rows(self, deviations: Sequence[Float]) -> None:
        """Add samples: k - mu [sample, landmark] of each view, C-ordered, rows paired."""
        from scipy.linalg import blas

        self.rows += len(deviations[0])
        for view, B in enumerate(deviations):
            self.sums[view] += B.sum(axis=0)
        # BLAS adds into the transposed, Fortran-ordered view: G^T += B_b^T B_a, no temporary.
        for index, (a, b) in enumerate(pair_index(len(deviations))):
            target = self.products[index].T
            if a == b:
                blas.dsyrk(1.0, deviations[a].T, beta=1.0, c=target, overwrite_c=1)
            else:
                blas.dgemm(
                    *(1.0, deviations[b].T, deviations[a].T),
                    beta=1.0,
                    c=target,
                    trans_b=True,
                    overwrite_c=1,
                )

    def add(self, other: GroupSums) -> None:
        """Add the sums of other samples about the same shift."""
        self.rows += other.rows
        self.sums += other.sums
        self.products += other.products


@dataclass(frozen=True)
class GroupMoments:
    """Moments of the kernel rows of some samples.

    Args:
        n_samples: samples, possibly 0.
        mean: mu_a [view, landmark]; 0 without samples.
        second: C_ab with divisor ``n_samples`` [pair, landmark, landmark_]; 0 without samples.
    """

    n_samples: int
    mean: Float
    second: Float

    def full(self) -> Moments:
        """The same with C_ab for every ordered pair of views [view, view_, landmark, landmark_]."""
        views, m = self.mean.shape
        second = np.empty((views, views, m, m))
        for index, (a, b) in enumerate(pair_index(views)):
            second[a, b] = self.second[index]
            second[b, a] = self.second[index].T
        return Moments(self.mean, second, self.n_samples)


def finish(sums: GroupSums, shift: Float) -> GroupMoments:
    """Mean and centred second moments; C_aa exactly symmetric. ``sums`` is used up.

    Args:
        sums: of one group.
        shift: mu_a [view, landmark].
    """
    views = sums.sums.shape[0]
    if not sums.rows:
        return GroupMoments(0, np.zeros_like(sums.sums), np.zeros_like(sums.products))
    deviation = sums.sums / sums.rows
    for index, (a, b) in enumerate(pair_index(views)):
        C = sums.products[index]
        if a == b:
            upper = np.triu_indices(len(C), 1)
            C[upper] = C.T[upper]
        C /= sums.rows
        C -= np.multiply.outer(deviation[a], deviation[b])
    return GroupMoments(sums.rows, deviation + shift, sums.products)


def union(parts: Iterable[GroupMoments], about: Float) -> GroupMoments:
    """Moments of disjoint groups together, summed in their order about one vector.

    Args:
        parts: at least one with samples; read one at a time.
        about: [view, landmark], near their mean.

    Raises:
        ValueError: no part has a sample.
    """
    total: GroupSums | None = None
    for part in parts:
        if part.n_samples:
            total = total or GroupSums(0, np.zeros_like(part.mean), np.zeros_like(part.second))
            total.add(_sums_about(part, about))
    if total is None:
        raise ValueError("no part has a sample")
    return _finish_full(total, about)


def rest_of(total: GroupMoments, group: GroupMoments) -> GroupMoments:
    """Moments of all samples but a group.

    Raises:
        ValueError: no sample is left.
    """
    if total.n_samples <= group.n_samples:
        raise ValueError(f"{total.n_samples - group.n_samples} samples are left")
    # About the total mean the sums of all samples are 0 and n C.
    left = _sums_about(group, total.mean)
    left.rows = total.n_samples - group.n_samples
    np.negative(left.sums, out=left.sums)
    np.negative(left.products, out=left.products)
    left.products += total.n_samples * total.second
    return _finish_full(left, total.mean)


def _sums_about(part: GroupMoments, about: Float) -> GroupSums:
    """Sums of a part: n d and n (C + d d^T), d = mean - about, both triangles."""
    d = part.mean - about
    products = np.empty_like(part.second)
    for index, (a, b) in enumerate(pair_index(len(d))):
        np.add(part.second[index], np.multiply.outer(d[a], d[b]), out=products[index])
    products *= part.n_samples
    return GroupSums(part.n_samples, part.n_samples * d, products)


def _finish_full(sums: GroupSums, about: Float) -> GroupMoments:
    deviation = sums.sums / sums.rows
    for index, (a, b) in enumerate(pair_index(len(deviation))):
        C = sums.products[index]
        C /= sums.rows
        C -= np.multiply.outer(deviation[a], deviation[b])
    return GroupMoments(sums.rows, deviation + about, sums.products)
