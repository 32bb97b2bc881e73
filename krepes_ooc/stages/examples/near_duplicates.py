"""Near duplicates: pairs of samples that are much nearer than either is to its other neighbours.

    r_ij = d_ij / sqrt(s_i s_j),     s_i = distance of i to its fifth neighbour

with d the distance in the network's embedding, or that of the inputs up to a small shift. The local
scale s keeps dense regions, where every pair is near, from filling the table (Zelnik-Manor and
Perona 2004, "Self-tuning spectral clustering"). Only pairs among the nearest neighbours in the
embedding are looked at, so that no matrix of all pairs is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

# Neighbours in the embedding that are looked at, and the one whose distance is the local scale.
NEIGHBOURS = 50
SCALE_RANK = 5
# Largest shift of an image along each axis, in pixels.
SHIFT = 2
# Rows whose distances to all others are computed at a time.
ROWS = 256
# Squared distances below this share of the squared norms are rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Neighbours:
    """Nearest other samples of every sample, nearest first.

    Args:
        index: [sample, rank].
        distance: over the root mean square distance from the mean [sample, rank].
    """

    index: Index
    distance: Float


@dataclass(frozen=True)
class NearPairs:
    """Pairs of samples by ratio, smallest first.

    Args:
        first: sample of a pair, the lower one [pair].
        second: the other one [pair].
        distance: [pair].
        ratio: distance over the local scale of both [pair].
    """

    first: Index
    second: Index
    distance: Float
    ratio: Float


def nearest_neighbours(embedding: Float, count: int = NEIGHBOURS) -> Neighbours:
    """Nearest other samples in an embedding, a row range at a time.

    Args:
        embedding: [sample, output].
        count: neighbours at most.
    """
    n = len(embedding)
    count = min(count, n - 1)
    centred = embedding - embedding.mean(axis=0)
    square = np.sum(centred**2, axis=1)
    spread = float(np.sqrt(square.mean())) or 1.0
    index, distance = np.empty((n, count), dtype=np.int64), np.empty((n, count))
    for start in range(0, n if count else 0, ROWS):
        rows = np.arange(start, min(start + ROWS, n))
        both = square[rows, None] + square
        found = both - 2.0 * centred[rows] @ centred.T
        found[found <= ROUNDING * both] = 0.0
        found[rows - start, rows] = np.inf
        near = np.sort(np.argpartition(found, count - 1, axis=1)[:, :count], axis=1)
        squared = np.take_along_axis(found, near, axis=1)
        order = np.argsort(squared, axis=1, kind="stable")
        index[rows] = np.take_along_axis(near, order, axis=1)
        distance[rows] = np.sqrt(np.take_along_axis(squared, order, axis=1)) / spread
    return Neighbours(index, distance)


def near_pairs(index: Index, distance: Float, count: int) -> NearPairs:
    """Pairs of neighbours by distance over the local scale of both.

    Args:
        index: neighbours of every sample [sample, rank].
        distance: to them [sample, rank].
        count: pairs at most.
    """
    n, k = index.shape
    scale = np.zeros(n)
    if k:
        place = min(SCALE_RANK, k) - 1
        scale = np.partition(distance, place, axis=1)[:, place]
    rows = np.repeat(np.arange(n), k)
    others, lengths = index.reshape(-1), distance.reshape(-1)
    # The scale of equal samples is 0, and so is their ratio.
    size = np.sqrt(scale[rows] * scale[others])
    ratio = np.where(lengths > 0, lengths / np.where(size > 0, size, np.inf), 0.0)
    ratio[(lengths > 0) & (size == 0)] = np.inf
    first, second = np.minimum(rows, others), np.maximum(rows, others)
    order = np.lexsort((second, first, lengths, ratio))
    # Every pair once, at its first place.
    _, places = np.unique((first * n + second)[order], return_index=True)
    order = order[np.sort(places)][:count]
    order = order[np.isfinite(ratio[order])]
    return NearPairs(first[order], second[order], lengths[order], ratio[order])


def shifted_distances(inputs: npt.NDArray[np.floating], index: Index) -> Float:
    """Root mean square differences of inputs, the least over small shifts [sample, rank].

        d_ij^2 = min_s  sum_(p in overlap) (x_i(p - s) - x_j(p))^2 / |overlap|

    Args:
        inputs: images [sample, channel, y, x], or rows [sample, input], which are not shifted.
        index: samples that each one is compared with [sample, rank].
    """
    shape = inputs.shape[1:]
    moves = _moves(shape)
    inside = _moved(np.ones(shape), moves)
    pixels = inside.sum(axis=1)
    found = np.empty(index.shape)
    for sample, others in enumerate(index):
        moved = _moved(inputs[sample].astype(np.float64), moves)
        beside = inputs[others].reshape(len(others), inside.shape[1]).astype(np.float64)
        both = np.sum(moved**2, axis=1)[:, None] + inside @ (beside**2).T
        square = both - 2.0 * moved @ beside.T
        square[square <= ROUNDING * both] = 0.0
        found[sample] = np.sqrt((square / pixels[:, None]).min(axis=0))
    return found


def reduce_images(images: npt.NDArray[np.floating], most: int) -> npt.NDArray[np.float32]:
    """Block means of images, so that each has few numbers [sample, channel, y, x].

    Args:
        images: [sample, channel, y, x].
        most: numbers of an image at most, if its channels allow it.
    """
    n, channels, height, width = images.shape
    factor = 1
    while channels * (height // factor) * (width // factor) > most and factor < min(height, width):
        factor += 1
    high, wide = height // factor, width // factor
    # Pixels beyond the last whole block are left out.
    blocks = images[:, :, : high * factor, : wide * factor].reshape(
        n, channels, high, factor, wide, factor
    )
    return np.asarray(blocks.mean(axis=(3, 5)), dtype=np.float32)


def _moves(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Shifts of an image that leave an overlap; rows have none."""
    if len(shape) != 3:
        return [(0, 0)]
    down, right = (min(SHIFT, side - 1) for side in shape[1:])
    return [(y, x) for y in range(-down, down + 1) for x in range(-right, right + 1)]


def _moved(image: Float, moves: list[tuple[int, int]]) -> Float:
    """One image under every shift, flat; what moves in is 0 [shift, input]."""
    if image.ndim != 3:
        return image.reshape(1, -1)
    height, width = image.shape[1:]
    found = np.zeros((len(moves), *image.shape))
    for target, (y, x) in zip(found, moves, strict=True):
        target[:, max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)] = image[
            :, max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)
        ]
    return found.reshape(len(moves), -1)
