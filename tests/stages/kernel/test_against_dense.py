"""Kernels of features against the dense oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from krepes_ooc.core.feature_layout import FeatureLayout, LayerFactor, sketch_layout
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.kernel import kernel_map
from krepes_ooc.stages.kernel.normalisation import Normalisation
from tests import dense
from tests.stages.dense_comparison import few, relative, seeds

one_thread = pytest.fixture(autouse=True, scope="module")(dense.one_thread)


@st.composite
def layouts(draw: st.DrawFn) -> FeatureLayout:
    """Some layers with or without input and bias, one to three probes, unused columns between."""
    if draw(st.booleans()):
        return sketch_layout(draw(st.integers(1, 9)))
    at, factors = 0, []
    for _ in range(draw(st.integers(1, 3))):
        at += draw(st.integers(0, 1))
        inputs = (at, at + draw(st.integers(1, 4))) if draw(st.booleans()) else None
        at = inputs[1] if inputs else at
        bias = inputs is None or draw(st.booleans())
        width, gradients = draw(st.integers(1, 3)), []
        for _ in range(draw(st.integers(1, 3))):
            at += draw(st.integers(0, 1))
            gradients.append((at, at + width))
            at += width
        factors.append(LayerFactor(inputs, bias, tuple(gradients)))
    return FeatureLayout(tuple(factors), ((0, at, 0),))


@few
@given(layouts(), seeds, st.integers(1, 6), st.floats(-12, 12))
def test_kernels_equal_explicit_features(
    layout: FeatureLayout, seed: int, n_samples: int, power: float
) -> None:
    draw = np.random.default_rng(seed)
    x = 2.0**power * draw.normal(size=(n_samples, layout.n_features))
    y = 2.0**power * draw.normal(size=(4, layout.n_features))
    phi_x, phi_y = dense.explicit_features(x, layout), dense.explicit_features(y, layout)
    size_x, size_y = np.linalg.norm(phi_x, axis=1), np.linalg.norm(phi_y, axis=1)
    k = inner_products.gram(x, y, layout)
    assert abs((k - phi_x @ phi_y.T) / np.outer(size_x, size_y)).max() < 1e-12
    assert relative(inner_products.self_kernel(x, layout), size_x**2) < 1e-12
    centre = inner_products.centre_sum(x, layout) / n_samples
    assert centre.shape == (layout.n_moments,)
    assert relative(centre, phi_x.mean(axis=0)) < 1e-12
    c_y, bound = inner_products.centre_kernel(y, centre, layout), size_y * np.linalg.norm(centre)
    assert abs((c_y - phi_y @ phi_x.mean(axis=0)) / bound).max() < 1e-12


@few
@given(layouts(), seeds, st.sampled_from([np.float32, np.float64]))
def test_normalised_rows_are_centred_cosines(
    layout: FeatureLayout, seed: int, dtype: type[np.floating]
) -> None:
    draw = np.random.default_rng(seed)
    x = (draw.normal(size=(6, layout.n_features)) + 1).astype(dtype)
    phi = dense.explicit_features(x, layout)
    centre = inner_products.centre_sum(x, layout) / len(x)
    normalisation = Normalisation("ccos", inner_products.centre_self(centre))
    found = kernel_map.kernel_map(x[:3], layout, centre, normalisation).rows(x)
    own = ((phi - phi.mean(axis=0)) ** 2).sum(axis=1) / (phi**2).sum(axis=1)
    sound = own > 1e-3  # rows that float32 can tell from the centre
    expected = dense.centred_cosine(phi, phi[:3], phi.mean(axis=0))
    error = abs(found - expected)[np.ix_(sound, sound[:3])]
    assert error.size == 0 or error.max() < (1e-2 if dtype is np.float32 else 1e-9)
    K_mm = kernel_map.landmark_kernel(x[:3], layout, centre, normalisation)
    assert (K_mm == K_mm.T).all()
    exact = (own > 1e-4)[:3]
    error = abs(K_mm - expected[:3])[np.ix_(exact, exact)]
    assert error.size == 0 or error.max() < (1e-3 if dtype is np.float32 else 1e-9)


def test_gram_of_linear_layers_is_the_jacobian_kernel() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2, bias=False)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    probes = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) / 2**0.5
    hidden = module[1](module[0](x))
    d1 = [(probe @ module[2].weight) * (1 - hidden**2) for probe in probes]
    rows = torch.cat([x, *d1, hidden, *(probe.expand(6, 2) for probe in probes)], dim=1)
    layout = FeatureLayout(
        (
            LayerFactor((0, 3), True, ((3, 8), (8, 13))),
            LayerFactor((13, 18), False, ((18, 20), (20, 22))),
        ),
        ((0, 22, 0),),
    )
    found = inner_products.gram(rows.detach().numpy(), rows.detach().numpy()[:4], layout)
    assert relative(found, dense.jacobian_kernel(module, x, x[:4], probes)) < 1e-13
