"""The kernel of feature rows: inner products, the centre and the map from features to kernel rows.

    k(x, y) = sum_l (<a_l, a'_l> + bias_l) sum_r <d_lr, d'_lr>                   (see layout)

One definition serves landmark selection, the kernel store, the audit and new samples. Rows are
float32 or float64 and already unscaled; the functions speak the array API.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from array_api_compat import array_namespace, device

from krepes_ooc.algebra.normalisation import Normalisation, normalise, normalised_self
from krepes_ooc.errors import UsageError
from krepes_ooc.layout import FeatureLayout

Array = Any
_CENTRE_ROWS = 512


@dataclass(frozen=True)
class KernelMap:
    """The map from feature rows to kernel rows: everything known about the landmarks.

    Args:
        layout: the factors of a feature row.
        normalisation: how values are normalised.
        centre: mean feature moment [moment], or None where the mode needs none.
        landmarks: unscaled feature rows [landmark, feature].
        landmark_centre: c_l [landmark], float64, or None.
        landmark_self: k(l, l) [landmark], float64.
    """

    layout: FeatureLayout
    normalisation: Normalisation
    centre: Array | None
    landmarks: Array
    landmark_centre: Array | None
    landmark_self: Array

    @cached_property
    def _row_centre(self) -> Array:
        """The centre in the type of the rows, cast once."""
        xp = array_namespace(self.landmarks)
        return None if self.centre is None else xp.astype(self.centre, self.landmarks.dtype)

    def centre_rows(self, x: Array) -> Array:
        """c_x [sample] of unscaled feature rows [sample, feature]; None without centring."""
        return None if self.centre is None else centre_kernel(x, self._row_centre, self.layout)

    def rows(
        self, x: Array, self_kernel_x: Array | None = None, centre_x: Array | None = None
    ) -> Array:
        """Normalised kernel rows [sample, landmark] of unscaled feature rows [sample, feature].

        Args:
            x: unscaled feature rows.
            self_kernel_x: k(x, x) [sample] where it is stored; computed where it is not.
            centre_x: what ``centre_rows`` gave for x, if it is known.
        """
        if self.normalisation.mode in ("ccos", "cosine") and self_kernel_x is None:
            self_kernel_x = self_kernel(x, self.layout)
        return normalise(
            gram(x, self.landmarks, self.layout),
            self.centre_rows(x) if centre_x is None else centre_x,
            self.landmark_centre,
            self_kernel_x,
            self.landmark_self,
            self.normalisation,
        )


def kernel_map(
    landmarks: Array, layout: FeatureLayout, centre: Array | None, normalisation: Normalisation
) -> KernelMap:
    """The kernel map of unscaled landmark rows [landmark, feature]; ``centre`` [moment] for ccos.

    Raises:
        UsageError: the mode is ``ccos`` and no centre is given.
    """
    centre = _needed_centre(centre, normalisation)
    exact = _float64(landmarks)
    c_l = None if centre is None else centre_kernel(exact, centre, layout)
    return KernelMap(layout, normalisation, centre, landmarks, c_l, self_kernel(exact, layout))


def landmark_kernel(
    landmarks: Array, layout: FeatureLayout, centre: Array | None, normalisation: Normalisation
) -> Array:
    """K_mm [landmark, landmark_] in float64: exactly symmetric, its diagonal what the mode says.

    Raises:
        UsageError: the mode is ``ccos`` and no centre is given.
    """
    mapped = kernel_map(_float64(landmarks), layout, centre, normalisation)
    everything = slice(0, landmarks.shape[0])
    return landmark_tile(mapped, everything, everything)


def landmark_tile(mapped: KernelMap, left: slice, right: slice) -> Array:
    """Rows ``left`` and columns ``right`` of K_mm; the same range twice, or two that are disjoint.

    The tile [right, left] is the transpose, so that K_mm is exactly symmetric tile by tile.

    Args:
        mapped: of landmarks in float64.
        left: landmarks of the rows.
        right: landmarks of the columns.
    """
    c_l, own = mapped.landmark_centre, mapped.landmark_self
    there = dataclasses.replace(
        mapped,
        landmarks=mapped.landmarks[right, :],
        landmark_centre=None if c_l is None else c_l[right],
        landmark_self=own[right],
    )
    K = there.rows(mapped.landmarks[left, :], own[left], None if c_l is None else c_l[left])
    if left != right:
        return K
    xp = array_namespace(K)
    K = (K + K.T) / 2
    own = normalised_self(there.landmark_centre, there.landmark_self, mapped.normalisation)
    diagonal = xp.eye(K.shape[0], dtype=xp.bool, device=device(K))
    return xp.where(diagonal, own[:, None], K)


def unscale(values: Array, layout: FeatureLayout) -> Array:
    """The features [.., feature] behind stored values: every column range times 2**-exponent.

    Powers of two: exact, unless a value leaves the range of its float type.
    """
    xp = array_namespace(values)
    factor = xp.ones(values.shape[-1], dtype=values.dtype, device=device(values))
    for start, stop, exponent in layout.scales:
        factor[start:stop] = 2.0**-exponent
    return values * factor


def gram(x: Array, y: Array, layout: FeatureLayout) -> Array:
    """Raw kernel k [x, y] of unscaled feature rows; for a sketch one matrix product."""
    total = None
    for factor in layout.factors:
        part = _sum(x[:, a:b] @ y[:, a:b].T for a, b in _joined(factor.gradients))
        if factor.inputs is not None:
            a, b = factor.inputs
            inner = x[:, a:b] @ y[:, a:b].T
            if factor.bias:
                inner += 1.0
            part *= inner
        total = part if total is None else _added(total, part)
    return total


def self_kernel(x: Array, layout: FeatureLayout) -> Array:
    """Raw k(x, x) [x] of unscaled feature rows, summed in float64."""
    parts = []
    for factor in layout.factors:
        part = _sum(_row_dot(x[:, a:b], x[:, a:b]) for a, b in _joined(factor.gradients))
        if factor.inputs is not None:
            a, b = factor.inputs
            part = part * (_row_dot(x[:, a:b], x[:, a:b]) + (1.0 if factor.bias else 0.0))
        parts.append(part)
    return _sum(iter(parts))


def centre_sum(x: Array, layout: FeatureLayout) -> Array:
    """Sum over rows of the feature moment [moment], float64; divided by all rows: the centre.

    For every factor and probe r the matrix [a, bias]^T d_r, flattened; for a sketch the row itself.
    Matrix products run in the type of x on short row ranges and are added in float64.
    """
    xp = array_namespace(x)
    total = xp.zeros(layout.n_moments, dtype=xp.float64, device=device(x))
    for start in range(0, x.shape[0], _CENTRE_ROWS):
        rows = x[start : min(start + _CENTRE_ROWS, x.shape[0]), :]
        total += xp.concat(list(_moments(rows, layout)))
    return total


def centre_kernel(x: Array, centre: Array, layout: FeatureLayout) -> Array:
    """c_x = <phi_x, centre> [x], float64 sums; for factors sum_lr [a, bias] M_lr d_lr^T."""
    xp = array_namespace(x, centre)
    centre = xp.astype(centre, x.dtype)
    total = xp.zeros(x.shape[0], dtype=xp.float64, device=device(x))
    at = 0
    for factor in layout.factors:
        for start, stop in factor.gradients:
            d, width = x[:, start:stop], stop - start
            mapped: Array = 0.0
            if factor.inputs is not None:
                a = x[:, factor.inputs[0] : factor.inputs[1]]
                M = xp.reshape(centre[at : at + a.shape[1] * width], (a.shape[1], width))
                mapped = a @ M
                at += a.shape[1] * width
            if factor.bias:
                mapped = mapped + centre[None, at : at + width]
                at += width
            total += _row_dot(mapped, d)
    return total


def centre_self(centre: Array) -> float:
    """c0 = <centre, centre>, the squared length of the centre [moment]."""
    xp = array_namespace(centre)
    return float(xp.sum(centre * centre, dtype=xp.float64))


def _needed_centre(centre: Array | None, normalisation: Normalisation) -> Array | None:
    if normalisation.mode != "ccos":
        return None
    if centre is None:
        raise UsageError(
            "no centre",
            where="stages.kernel.normalise",
            expected="the mean feature moment for ccos",
            advice="compute the centre first, or normalise by cosine",
        )
    return centre


def _moments(rows: Array, layout: FeatureLayout) -> Iterator[Array]:
    xp = array_namespace(rows)
    for factor in layout.factors:
        for start, stop in factor.gradients:
            d = rows[:, start:stop]
            if factor.inputs is not None:
                a = rows[:, factor.inputs[0] : factor.inputs[1]]
                yield xp.astype(xp.reshape(a.T @ d, (-1,)), xp.float64)
            if factor.bias:
                yield xp.sum(d, axis=0, dtype=xp.float64)


def _joined(ranges: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Adjacent column ranges as one: sum_r <d_r, d'_r> is then one matrix product."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _row_dot(x: Array, y: Array) -> Array:
    xp = array_namespace(x, y)
    return xp.sum(x * y, axis=1, dtype=xp.float64)


def _sum(parts: Iterator[Array]) -> Array:
    total = next(parts)
    for part in parts:
        total = _added(total, part)
    return total


def _added(total: Array, part: Array) -> Array:
    total += part  # in place: a kernel block is large
    return total


def _float64(values: Array) -> Array:
    xp = array_namespace(values)
    return xp.astype(values, xp.float64)
