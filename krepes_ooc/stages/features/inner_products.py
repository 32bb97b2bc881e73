"""Inner products of feature rows: Gram blocks, self kernels and the centre."""

from __future__ import annotations

from collections.abc import Iterator

from array_api_compat import array_namespace, device

from krepes_ooc.core.array_columns import Array
from krepes_ooc.core.feature_layout import FeatureLayout

CENTRE_ROWS = 512


def unscale(values: Array, layout: FeatureLayout) -> Array:
    """The features [.., feature] behind stored values: every column range times 2**-exponent.

    Powers of two: exact, unless a value leaves the range of its float type.
    """
    xp = array_namespace(values)
    # One factor per column, so that the multiplication is a single pass over the rows.
    factor = xp.ones(values.shape[-1], dtype=values.dtype, device=device(values))
    for start, stop, exponent in layout.scales:
        factor[start:stop] = 2.0**-exponent
    return values * factor


def gram(x: Array, y: Array, layout: FeatureLayout) -> Array:
    """Raw kernel k [x, y] of unscaled feature rows; for a sketch one matrix product."""
    total = None
    for factor in layout.factors:
        # sum_r <d_r, d'_r>
        part = _sum(x[:, a:b] @ y[:, a:b].T for a, b in _joined(factor.gradients))
        # times <a, a'> + bias, for a layer whose gradient is the outer product of a and d
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
        # (|a|^2 + bias) sum_r |d_r|^2
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
    # Fixed row ranges: the length of a product decides its rounding.
    for start in range(0, x.shape[0], CENTRE_ROWS):
        rows = x[start : min(start + CENTRE_ROWS, x.shape[0]), :]
        total += xp.concat(list(_moments(rows, layout)))
    return total


def centre_kernel(x: Array, centre: Array, layout: FeatureLayout) -> Array:
    """c_x = <phi_x, centre> [x], float64 sums; for factors sum_lr [a, bias] M_lr d_lr^T."""
    xp = array_namespace(x, centre)
    centre = xp.astype(centre, x.dtype)
    total = xp.zeros(x.shape[0], dtype=xp.float64, device=device(x))
    offset = 0
    for factor in layout.factors:
        for start, stop in factor.gradients:
            d = x[:, start:stop]
            width = stop - start
            mapped: Array = 0.0
            # a M_lr, where M_lr = mean of a^T d_r is the next part of the centre
            if factor.inputs is not None:
                a = x[:, factor.inputs[0] : factor.inputs[1]]
                M = xp.reshape(centre[offset : offset + a.shape[1] * width], (a.shape[1], width))
                mapped = a @ M
                offset += a.shape[1] * width
            # plus the mean of d_r, the part of the centre that belongs to the bias
            if factor.bias:
                mapped = mapped + centre[None, offset : offset + width]
                offset += width
            # <a M_lr, d_r>
            total += _row_dot(mapped, d)
    return total


def centre_self(centre: Array) -> float:
    """c0 = <centre, centre>, the squared length of the centre [moment]."""
    xp = array_namespace(centre)
    return float(xp.sum(centre * centre, dtype=xp.float64))


def _moments(rows: Array, layout: FeatureLayout) -> Iterator[Array]:
    """Parts of the feature moment summed over rows, in the order of the centre."""
    xp = array_namespace(rows)
    for factor in layout.factors:
        for start, stop in factor.gradients:
            d = rows[:, start:stop]
            # a^T d_r summed over the rows, then the sum of d_r for the bias
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


def to_float64(values: Array) -> Array:
    """The same values in float64."""
    xp = array_namespace(values)
    return xp.astype(values, xp.float64)
