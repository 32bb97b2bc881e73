"""Kernel rows against explicit feature vectors: phi = concatenated outer products [a, bias]^T d."""

from __future__ import annotations

import array_api_strict as strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core.feature_layout import FeatureLayout, LayerFactor, sketch_layout
from krepes_ooc.errors import UsageError
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.kernel import kernel_map
from krepes_ooc.stages.kernel.normalisation import Normalisation

# Two layers, the second without bias; gradients of two probes, adjacent in the first layer only.
FACTORS = FeatureLayout(
    (
        LayerFactor((0, 3), True, ((3, 5), (5, 7))),
        LayerFactor((7, 11), False, ((11, 13), (15, 17))),
        LayerFactor(None, True, ((13, 15),)),
    ),
    ((0, 3, 4), (3, 7, -2), (7, 11, 0), (11, 17, 9)),
)
LAYOUTS = {"sketch": sketch_layout(24), "factors": FACTORS}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> FeatureLayout:
    return LAYOUTS[request.param]


def rows(layout: FeatureLayout, n: int, seed: int = 0, mean: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, (n, layout.n_features))


def explicit(x: np.ndarray, layout: FeatureLayout) -> np.ndarray:
    """The Jacobian features themselves, one row at a time."""
    features = []
    for row in x.astype(np.float64):
        parts = []
        for factor in layout.factors:
            a = row[slice(*factor.inputs)] if factor.inputs else np.zeros(0)
            a = np.append(a, 1.0) if factor.bias else a
            parts += [np.outer(a, row[slice(*d)]).ravel() for d in factor.gradients]
        features.append(np.concatenate(parts))
    return np.array(features)


def ccos(phi: np.ndarray, centre: np.ndarray) -> np.ndarray:
    moved = phi - centre
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def test_gram_is_the_inner_product_of_explicit_features(layout: FeatureLayout) -> None:
    x, y = rows(layout, 9), rows(layout, 5, seed=1)
    expected = explicit(x, layout) @ explicit(y, layout).T
    np.testing.assert_allclose(inner_products.gram(x, y, layout), expected, rtol=1e-13)


def test_self_kernel_is_the_diagonal_of_gram(layout: FeatureLayout) -> None:
    x = rows(layout, 9).astype(np.float32)
    own = inner_products.self_kernel(x, layout)
    assert own.dtype == np.float64
    np.testing.assert_allclose(own, np.sum(explicit(x, layout) ** 2, axis=1), rtol=1e-6)


def test_inputs_are_not_changed(layout: FeatureLayout) -> None:
    x = rows(layout, 4)
    before = x.copy()
    (
        inner_products.gram(x, x, layout),
        inner_products.self_kernel(x, layout),
        inner_products.centre_sum(x, layout),
    )
    inner_products.unscale(x, layout)
    np.testing.assert_array_equal(x, before)


def test_centre_is_the_mean_of_explicit_features(layout: FeatureLayout) -> None:
    x = rows(layout, 1100)  # more than one range of rows
    total = inner_products.centre_sum(x, layout)
    assert total.shape == (layout.n_moments,)
    np.testing.assert_allclose(total, explicit(x, layout).sum(axis=0), rtol=1e-10, atol=1e-9)


def test_centre_kernel_is_the_product_with_the_centre(layout: FeatureLayout) -> None:
    x = rows(layout, 30)
    phi = explicit(x, layout)
    centre = inner_products.centre_sum(x, layout) / len(x)
    np.testing.assert_allclose(
        inner_products.centre_kernel(x, centre, layout), phi @ phi.mean(axis=0), rtol=1e-12
    )
    assert inner_products.centre_self(centre) == pytest.approx(
        np.sum(phi.mean(axis=0) ** 2), rel=1e-13
    )


def test_unscale_undoes_the_power_of_two_exactly() -> None:
    x = rows(FACTORS, 6).astype(np.float32)
    stored = x.copy()
    for start, stop, exponent in FACTORS.scales:
        stored[:, start:stop] *= 2.0**exponent
    restored = inner_products.unscale(stored, FACTORS)
    assert restored.dtype == np.float32
    np.testing.assert_array_equal(restored, x)


def test_ccos_rows_are_centred_cosines(layout: FeatureLayout) -> None:
    x, y = rows(layout, 40), rows(layout, 7, seed=1)
    phi = explicit(x, layout)
    centre = phi.mean(axis=0)
    normalisation = Normalisation("ccos", float(centre @ centre))
    mapped = kernel_map.kernel_map(y, layout, centre, normalisation)
    expected = ccos(phi, centre) @ ccos(explicit(y, layout), centre).T
    np.testing.assert_allclose(mapped.rows(x), expected, atol=1e-13)
    stored = inner_products.self_kernel(x, layout)
    np.testing.assert_array_equal(mapped.rows(x, stored), mapped.rows(x))


@given(mean=st.floats(0, 30), seed=st.integers(0, 99))
def test_float32_rows_agree_with_float64_even_far_from_the_origin(mean: float, seed: int) -> None:
    layout = sketch_layout(24)
    x, y = rows(layout, 20, seed, mean).astype(np.float32), rows(layout, 6, seed + 1, mean)
    centre = inner_products.centre_sum(x, layout) / len(x)
    normalisation = Normalisation("ccos", inner_products.centre_self(centre))
    exact = kernel_map.kernel_map(y, layout, centre, normalisation).rows(x.astype(np.float64))
    single = kernel_map.kernel_map(y.astype(np.float32), layout, centre, normalisation).rows(x)
    assert single.dtype == np.float32
    # Rounding of products of length mean^2, seen at the scale of the centred kernel.
    np.testing.assert_allclose(single, exact, atol=4e-6 * (1 + mean**2))


@pytest.mark.parametrize("mode", ["ccos", "cosine", "mean-diagonal", "none"])
def test_landmark_kernel_is_symmetric_positive_with_its_diagonal(
    layout: FeatureLayout, mode: str
) -> None:
    y = rows(layout, 12).astype(np.float32)
    y[5] = y[4]
    phi = explicit(y, layout)
    centre = phi.mean(axis=0)
    scale = float(np.mean(np.sum(phi**2, axis=1)))
    normalisation = Normalisation(mode, float(centre @ centre), scale)
    K = kernel_map.landmark_kernel(y, layout, centre, normalisation)
    expected = {
        "ccos": np.ones(12),
        "cosine": np.ones(12),
        "mean-diagonal": np.sum(phi**2, axis=1) / scale,
        "none": np.sum(phi**2, axis=1),
    }[mode]
    assert K.dtype == np.float64
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_allclose(np.diagonal(K), expected, rtol=1e-13)
    assert np.linalg.eigvalsh(K)[0] > -1e-12 * np.trace(K)
    np.testing.assert_allclose(K[4], K[5], rtol=1e-12, atol=1e-12)


def test_landmark_kernel_of_float32_rows_is_computed_in_float64(layout: FeatureLayout) -> None:
    y = rows(layout, 12, mean=5.0).astype(np.float32)
    centre = explicit(y, layout).mean(axis=0)
    normalisation = Normalisation("ccos", float(centre @ centre))
    K = kernel_map.landmark_kernel(y, layout, centre, normalisation)
    unit = ccos(explicit(y, layout), centre)
    np.testing.assert_allclose(K, unit @ unit.T, atol=1e-12)


def test_a_row_that_equals_the_centre_has_kernel_zero(layout: FeatureLayout) -> None:
    same = np.repeat(rows(layout, 1), 5, axis=0).astype(np.float32)
    centre = inner_products.centre_sum(same, layout) / 5
    normalisation = Normalisation("ccos", inner_products.centre_self(centre))
    K = kernel_map.kernel_map(same, layout, centre, normalisation).rows(same)
    np.testing.assert_array_equal(K, 0.0)
    np.testing.assert_array_equal(
        kernel_map.landmark_kernel(same, layout, centre, normalisation), 0.0
    )


def test_the_centre_is_required_for_ccos_only() -> None:
    layout = sketch_layout(24)
    y = rows(layout, 3)
    with pytest.raises(UsageError, match="no centre; expected the mean feature moment for ccos"):
        kernel_map.kernel_map(y, layout, None, Normalisation("ccos"))
    cosine = kernel_map.kernel_map(y, layout, None, Normalisation("cosine")).rows(y)
    unit = y / np.linalg.norm(y, axis=1, keepdims=True)
    np.testing.assert_allclose(cosine, unit @ unit.T, rtol=1e-13)


def test_block_functions_keep_to_the_array_api(layout: FeatureLayout) -> None:
    """On another device a hidden numpy call or an array made on the default device raises."""
    x = rows(layout, 600).astype(np.float32)
    y, centre = x[:5], inner_products.centre_sum(x, layout) / len(x)
    normalisation = Normalisation("ccos", inner_products.centre_self(centre))
    here = strict.Device("device1")

    def there(values: np.ndarray) -> object:
        return strict.asarray(values, device=here)

    mapped = kernel_map.kernel_map(there(y), layout, there(centre), normalisation)
    K = mapped.rows(inner_products.unscale(there(x), layout))
    assert K.device == here
    expected = kernel_map.kernel_map(y, layout, centre, normalisation).rows(
        inner_products.unscale(x, layout)
    )
    np.testing.assert_allclose(np.asarray(K.to_device(strict.Device("CPU_DEVICE"))), expected)
    total = inner_products.centre_sum(there(x), layout).to_device(strict.Device("CPU_DEVICE"))
    np.testing.assert_array_equal(np.asarray(total), inner_products.centre_sum(x, layout))
    assert kernel_map.landmark_kernel(there(y), layout, there(centre), normalisation).device == here
