"""Nystrom error of the first landmarks over the stored views of a random part of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.engine.device import HOST
from krepes_ooc.stages.base.inputs import Rows
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.featurizer import open_row_source, unscale_rows
from krepes_ooc.stages.kernel.kernel_map import kernel_map, landmark_kernel
from krepes_ooc.stages.kernel.normalisation import Normalisation, normalised_self
from krepes_ooc.stages.landmarks.count_rule import nystrom_errors
from krepes_ooc.storage.store_reader import StoreReader

# Samples whose views are read, in whole blocks: the first stored ones, a random part of all.
CURVE_SAMPLES = 2048


def view_errors(
    features: StoreReader,
    recipe: RecipeInputs,
    context: StageContext,
    landmarks: Rows,
    counts: Sequence[int],
) -> npt.NDArray[np.float64]:
    """Nystrom error in the centred cosine kernel, by number of landmarks [count].

    Args:
        features: the store ``features``.
        recipe: source, network and views; used only if the store holds no rows.
        context: the running stage.
        landmarks: unscaled feature rows in the order of choice [landmark, feature].
        counts: numbers of landmarks.
    """
    layout = FeatureLayout.from_attributes(features.attributes["layout"])
    centre = np.asarray(features.array("centre"))
    normalisation = Normalisation("ccos", inner_products.centre_self(centre))
    K_mm = landmark_kernel(landmarks, layout, centre, normalisation)
    to_landmarks = kernel_map(landmarks, layout, centre, normalisation)
    source = open_row_source(features, recipe, replace(context, device=HOST))
    rows = []
    norms = []
    for block in context.plan.blocks():
        if block.start >= CURVE_SAMPLES:
            break
        for view in range(features.info("self_kernel").shape[0]):
            context.stop.check()
            known = np.asarray(features.block("self_kernel", block, view))
            x = unscale_rows(np.asarray(source.rows(block, view)), layout)
            c_x = to_landmarks.centre_rows(x)
            rows.append(np.asarray(to_landmarks.rows(x, known, c_x), dtype=np.float64))
            norms.append(np.asarray(normalised_self(c_x, known, normalisation)))
    return nystrom_errors(np.concatenate(rows), np.asarray(K_mm), counts, np.concatenate(norms))
