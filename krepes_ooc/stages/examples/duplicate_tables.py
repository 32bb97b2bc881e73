"""Tables of near duplicates: by the network's embedding, and by the inputs of its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.examples.near_duplicates import (
    NearPairs,
    near_pairs,
    nearest_neighbours,
    reduce_images,
    shifted_distances,
)
from krepes_ooc.views.spec import CLEAN

# Numbers of an input that are compared; larger images are reduced, longer rows are not compared.
COMPARED_INPUTS = 4096
# Numbers that are read at a time.
READ_NUMBERS = 2**22
IMAGES, ROWS, NOTHING = "shifted images", "rows", ""
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def duplicate_tables(
    recipe: RecipeInputs, sample_id: Index, network: Float, count: int
) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """Both tables and the nearest other sample of each, and what of the inputs is compared.

    Args:
        recipe: the source.
        sample_id: position in the source [audited].
        network: the network's embedding [audited, output].
        count: pairs of each table at most.
    """
    near = nearest_neighbours(network)
    pairs = near_pairs(near.index, near.distance, count)
    inputs, compared_by = compared_inputs(recipe, sample_id)
    copies = near_pairs(near.index[:0], near.distance[:0], 0)
    if inputs is not None:
        copies = near_pairs(near.index, shifted_distances(inputs, near.index), count)
    alone = not near.index.size
    arrays = {
        "nearest_audited": np.full(len(network), -1) if alone else near.index[:, 0],
        "nearest_distance": np.zeros(len(network)) if alone else near.distance[:, 0],
        **_table("pair", pairs, sample_id),
        **_table("copy", copies, sample_id),
    }
    return arrays, compared_by


def _table(name: str, pairs: NearPairs, sample_id: Index) -> dict[str, npt.NDArray[Any]]:
    return {
        f"{name}_first_id": sample_id[pairs.first],
        f"{name}_second_id": sample_id[pairs.second],
        f"{name}_distance": pairs.distance,
        f"{name}_ratio": pairs.ratio,
    }


def compared_inputs(
    recipe: RecipeInputs, sample_id: Index
) -> tuple[npt.NDArray[np.float32] | None, str]:
    """The network's inputs of some samples, reduced where they are long images.

    Returns:
        [sample, channel, y, x] or [sample, input], and what they are; None where they are
        tokens or rows too long to compare.
    """
    shape = recipe.source.input_shape
    numbers, is_image = int(np.prod(shape)), len(shape) == 3
    if not len(sample_id) or (numbers > COMPARED_INPUTS and not is_image):
        return None, NOTHING
    step = max(1, READ_NUMBERS // numbers)
    parts = []
    for start in range(0, len(sample_id), step):
        rows, _ = recipe.encode(sample_id[start : start + step], CLEAN)
        # Differences of token numbers mean nothing.
        if np.asarray(rows).dtype.kind != "f":
            return None, NOTHING
        read = np.asarray(rows, dtype=np.float32)
        parts.append(reduce_images(read, COMPARED_INPUTS) if is_image else read)
    joined = np.concatenate(parts)
    if is_image:
        return joined, IMAGES
    return joined.reshape(len(joined), -1), ROWS
