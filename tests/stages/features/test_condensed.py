from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.core.feature_layout import (
    CONDENSED_WIDTH,
    FeatureLayout,
    LayerFactor,
    sketch_layout,
)
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.condensed import CountSketch

FACTORS = FeatureLayout(
    (
        LayerFactor((0, 5), True, ((5, 9), (9, 13))),
        LayerFactor((13, 16), False, ((16, 20), (20, 24))),
        LayerFactor(None, True, ((24, 30), (30, 36))),
    ),
    ((0, 36, 0),),
)
LAYOUTS = {"sketch": sketch_layout(48), "factors": FACTORS}


def rows(layout: FeatureLayout, count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, layout.n_features)).astype(np.float32)


def moment(x: np.ndarray, layout: FeatureLayout) -> np.ndarray:
    """[a, bias] (x) d of one row, every factor's matrix flattened: what the kernel is linear in."""
    parts = []
    for factor in layout.factors:
        a = x[slice(*factor.inputs)] if factor.inputs else np.empty(0)
        entry = np.append(a, [1.0] * factor.bias)
        d = np.concatenate([x[slice(*span)] for span in factor.gradients])
        parts.append(np.outer(entry, d).ravel())
    return np.concatenate(parts)


@pytest.mark.parametrize("name", LAYOUTS)
def test_inner_products_estimate_the_kernel_without_bias(name: str) -> None:
    layout = LAYOUTS[name]
    x = rows(layout)
    exact = inner_products.gram(x.astype(float), x.astype(float), layout)
    drawn = [CountSketch(layout, seed).rows(x).astype(float) for seed in range(300)]
    found = np.array([c @ c.T for c in drawn])
    spread = found.std(axis=0) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(axis=0) - exact) < 5 * spread + 1e-4)
    assert np.mean(np.linalg.norm(found - exact, axis=(1, 2))) < 0.35 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_is_linear_in_the_moment_so_the_mean_row_is_the_centre(name: str) -> None:
    layout = LAYOUTS[name]
    x = rows(layout, 2)
    moments = np.array([moment(one, layout) for one in x])
    found = CountSketch(layout, 3).rows(x)
    # A linear map that never sees the moments: fitted on other rows, it must give these.
    other = rows(layout, 400)[2:]
    basis = np.array([moment(one, layout) for one in other])
    fitted, *_ = np.linalg.lstsq(basis, CountSketch(layout, 3).rows(other), rcond=None)
    assert np.allclose(moments @ fitted, found, atol=1e-3)


def test_the_seed_is_the_map() -> None:
    x = rows(FACTORS)
    one, again, other = (CountSketch(FACTORS, seed).rows(x) for seed in (1, 1, 2))
    assert one.shape == (12, CONDENSED_WIDTH)
    assert one.tobytes() == again.tobytes()
    assert not np.allclose(one, other)
