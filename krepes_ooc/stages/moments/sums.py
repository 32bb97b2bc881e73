"""First and second moments of kernel rows over the samples, in one pass.

    shift = mean of the first block           # any fixed vector; it kills cancellation
    for every block:  B_a = K_a - shift;  s_a += colsum(B_a);  G_ab += B_a^T B_b   (a <= b)
    mu_a = s_a / n + shift;  C_ab = G_ab / n - (s_a / n)(s_b / n)^T

Products run in the type of the block (float32), their results are added in float64. Sums of
disjoint blocks merge by addition, so any fixed tree over blocks gives the moments of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from array_api_compat import array_namespace, device

from krepes_ooc.core.array_columns import Array
from krepes_ooc.core.blocks import tile_slices
from krepes_ooc.errors import StageFailed


@dataclass(frozen=True)
class MomentSums:
    """Sums over the samples of one or more blocks, about a fixed shift; all float64.

    Args:
        rows: number of samples summed.
        shift: subtracted from every row [landmark].
        sums: s_a [view, landmark].
        products: G_ab [pair, landmark, landmark_], pairs as ``pair_index`` orders them.
    """

    rows: int
    shift: Array
    sums: Array
    products: Array

    @property
    def n_views(self) -> int:
        """Number of views."""
        return int(self.sums.shape[0])


def pair_index(n_views: int) -> tuple[tuple[int, int], ...]:
    """All view pairs (a, b) with a <= b, in the order of ``MomentSums.products``."""
    return tuple((a, b) for a in range(n_views) for b in range(a, n_views))


def block_shift(views: Sequence[Array]) -> Array:
    """The shift [landmark]: mean over samples and views of one block [sample, landmark] per view.

    Float64, rounded to the type of the block, so that subtracting it is exact where it cancels.
    """
    xp = array_namespace(*views)
    total = sum(xp.sum(K, axis=0, dtype=xp.float64) for K in views)
    mean = total / (len(views) * views[0].shape[0])
    # Round to the type of the block: K - shift is then exact where both are close.
    return xp.astype(xp.astype(mean, views[0].dtype), xp.float64)


def moment_sums(
    views: Sequence[Array], shift: Array, sub_rows: int, into: MomentSums | None = None
) -> MomentSums:
    """Moment sums of one block: K_a [sample, landmark] for every view a, rows paired.

    Args:
        views: one kernel block per view, all of one shape.
        shift: fixed vector [landmark], the same for every block of the store.
        sub_rows: rows of one matrix product.
        into: sums about the same shift to which these are added in place; not to be used again.

    Raises:
        ValueError: the blocks differ in shape, or ``sub_rows`` is below 1.
    """
    if sub_rows < 1 or any(K.shape != views[0].shape for K in views):
        raise ValueError(f"shapes {[K.shape for K in views]} with sub_rows {sub_rows}")
    xp = array_namespace(*views)
    rows, m = views[0].shape
    pairs = pair_index(len(views))
    placement = {"device": device(views[0])}
    shift = xp.astype(shift, views[0].dtype)
    # Accumulators in float64; products stay in the type of the block.
    total = into or MomentSums(
        0,
        xp.astype(shift, xp.float64),
        xp.zeros((len(views), m), dtype=xp.float64, **placement),
        xp.zeros((len(pairs), m, m), dtype=xp.float64, **placement),
    )
    for start in range(0, rows, sub_rows):
        stop = min(start + sub_rows, rows)
        # Deviations B_a = K_a - shift, small against K: no cancellation at the end.
        B = [K[start:stop, :] - shift for K in views]
        # s_a += 1^T B_a. As a product it is as exact as the Gram matrix of the deviations.
        ones = xp.ones((1, stop - start), dtype=shift.dtype, **placement)
        for a, deviation in enumerate(B):
            total.sums[a, :] += xp.astype((ones @ deviation)[0, :], xp.float64)
        # G_ab += B_a^T B_b; for a == b both factors are one array, so BLAS runs syrk.
        for index, (a, b) in enumerate(pairs):
            total.products[index, :, :] += B[a].T @ B[b]
    return MomentSums(total.rows + rows, total.shift, total.sums, total.products)


def merge(left: MomentSums, right: MomentSums) -> MomentSums:
    """The sums of both sets of samples together.

    Raises:
        ValueError: the two were summed about different shifts or for different views.
    """
    xp = array_namespace(left.shift, right.shift)
    if left.sums.shape != right.sums.shape or not xp.all(left.shift == right.shift):
        raise ValueError("moment sums of different shifts or views do not merge")
    return MomentSums(
        left.rows + right.rows,
        left.shift,
        left.sums + right.sums,
        left.products + right.products,
    )


def finish(sums: MomentSums) -> tuple[Array, Array]:
    """Mean mu_a [view, landmark] and centred moments C_ab [view, view_, landmark, landmark_].

    Divided by n (biased), float64; C_ba is exactly the transpose of C_ab, C_aa exactly symmetric.

    Raises:
        StageFailed: no sample was summed.
    """
    if sums.rows < 1:
        raise StageFailed("no sample", where="moments", expected="at least one kernel row")
    xp = array_namespace(sums.sums)
    p, m = sums.sums.shape
    # s_a / n: the mean about the shift.
    deviation = sums.sums / sums.rows
    second = xp.empty((p, p, m, m), dtype=xp.float64, device=device(sums.sums))
    for index, (a, b) in enumerate(pair_index(p)):
        # C_ab = G_ab / n - (s_a / n)(s_b / n)^T; the shift cancels.
        C = sums.products[index, :, :] / sums.rows
        C = C - deviation[a, :, None] * deviation[b, None, :]
        # Off-diagonal rounding of a product that was not syrk is averaged out.
        if a == b:
            C = (C + C.T) / 2
        second[a, b, :, :] = C
        second[b, a, :, :] = C.T
    return deviation + sums.shift[None, :], second


def landmark_tiles(n_landmarks: int) -> tuple[tuple[slice, slice], ...]:
    """Landmark ranges (left, right), left <= right, that cover one triangle of the moments.

    A single tile up to ``blocks.TILE`` landmarks. Moments too large for memory are summed tile
    by tile: a tile on the diagonal with ``moment_sums``, the others with ``cross_sums``.
    """
    ranges = tile_slices(n_landmarks)
    return tuple((left, right) for i, left in enumerate(ranges) for right in ranges[i:])


@dataclass(frozen=True)
class CrossSums:
    """Sums between two disjoint ranges of landmarks, about a fixed shift; all float64.

    Args:
        rows: number of samples summed.
        left: s_a [view, left landmark].
        right: s_b [view, right landmark].
        products: G_ab [view, view_, left landmark, right landmark].
    """

    rows: int
    left: Array
    right: Array
    products: Array


def cross_sums(
    left: Sequence[Array],
    right: Sequence[Array],
    left_shift: Array,
    right_shift: Array,
    sub_rows: int,
    into: CrossSums | None = None,
) -> CrossSums:
    """Sums of one block between left K_a [sample, left] and right K_b [sample, right], every view.

    Args:
        left: columns of one tile range, one block per view.
        right: columns of another tile range, same samples and views.
        left_shift: shift of the left columns [left].
        right_shift: shift of the right columns [right].
        sub_rows: rows of one matrix product.
        into: sums to which these are added in place; not to be used again.
    """
    xp = array_namespace(*left, *right)
    p = len(left)
    rows, m = left[0].shape
    width = right[0].shape[1]
    placement = {"dtype": xp.float64, "device": device(left[0])}
    left_shift = xp.astype(left_shift, left[0].dtype)
    right_shift = xp.astype(right_shift, left[0].dtype)
    total = into or CrossSums(
        0,
        xp.zeros((p, m), **placement),
        xp.zeros((p, width), **placement),
        xp.zeros((p, p, m, width), **placement),
    )
    for start in range(0, rows, sub_rows):
        stop = min(start + sub_rows, rows)
        # Deviations of both landmark ranges from their shifts.
        B = [K[start:stop, :] - left_shift for K in left]
        D = [K[start:stop, :] - right_shift for K in right]
        for a in range(p):
            total.left[a, :] += xp.sum(B[a], axis=0, dtype=xp.float64)
            total.right[a, :] += xp.sum(D[a], axis=0, dtype=xp.float64)
            # G_ab += B_a^T D_b. Off the diagonal no symmetry links (a, b) to (b, a): all pairs.
            for b in range(p):
                total.products[a, b, :, :] += B[a].T @ D[b]
    return CrossSums(total.rows + rows, total.left, total.right, total.products)


def merge_cross(left: CrossSums, right: CrossSums) -> CrossSums:
    """The sums of both sets of samples together; both about the same shifts."""
    return CrossSums(
        left.rows + right.rows,
        left.left + right.left,
        left.right + right.right,
        left.products + right.products,
    )


def finish_cross(sums: CrossSums) -> Array:
    """Centred C_ab [view, view_, left landmark, right landmark] of a tile off the diagonal.

    The mirrored tile is C_ba[right, left] = C_ab[left, right]^T.
    """
    left = sums.left / sums.rows
    right = sums.right / sums.rows
    # C_ab = G_ab / n - (s_a / n)(s_b / n)^T.
    return sums.products / sums.rows - left[:, None, :, None] * right[None, :, None, :]
