from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core.feature_layout import FeatureLayout, LayerFactor, exponent_for, sketch_layout

TWO_LAYERS = FeatureLayout(
    factors=(
        LayerFactor(inputs=(0, 5), bias=True, gradients=((5, 8), (8, 11))),
        LayerFactor(inputs=(11, 14), bias=False, gradients=((14, 16), (16, 18))),
    ),
    scales=((0, 5, 2), (5, 8, -3), (8, 11, 0), (11, 14, 1), (14, 16, 4), (16, 18, -7)),
)


@st.composite
def layouts(draw: st.DrawFn) -> FeatureLayout:
    """All-Linear networks of one to four layers with one to three probes."""
    probes, at, factors, scales = draw(st.integers(1, 3)), 0, [], []
    for _ in range(draw(st.integers(1, 4))):
        widths = [draw(st.integers(1, 9)), *[draw(st.integers(1, 9))] * probes]
        edges = [at + sum(widths[:i]) for i in range(len(widths) + 1)]
        ranges = list(itertools.pairwise(edges))
        factors.append(LayerFactor(ranges[0], draw(st.booleans()), tuple(ranges[1:])))
        scales += [(*columns, draw(st.integers(-20, 20))) for columns in ranges]
        at = edges[-1]
    return FeatureLayout(tuple(factors), tuple(scales))


def test_sizes_of_two_layers():
    assert TWO_LAYERS.n_features == 18
    assert TWO_LAYERS.n_moments == (5 + 1) * 6 + 3 * 4
    assert not TWO_LAYERS.is_sketch


def test_moments_are_the_entries_of_the_probe_matrices():
    """n_moments against explicit matrices [a, bias]^T d, one for each layer and probe."""
    row, count = np.arange(18.0), 0
    for factor in TWO_LAYERS.factors:
        assert factor.inputs is not None
        left = np.append(row[slice(*factor.inputs)], [1.0] * factor.bias)
        count += sum(np.outer(left, row[slice(*columns)]).size for columns in factor.gradients)
    assert TWO_LAYERS.n_moments == count


@pytest.mark.parametrize("n_features", [1, 7, 4096])
def test_a_sketch_is_one_factor_without_inputs(n_features: int):
    layout = sketch_layout(n_features)
    assert layout.is_sketch
    assert layout.n_features == layout.n_moments == n_features
    assert layout.scales == ((0, n_features, 0),)


@given(layouts())
def test_layout_survives_json(layout: FeatureLayout):
    read = FeatureLayout.from_attributes(json.loads(json.dumps(layout.to_attributes())))
    assert read == layout
    assert hash(read) == hash(layout)


def test_sketch_survives_json():
    read = FeatureLayout.from_attributes(json.loads(json.dumps(sketch_layout(9).to_attributes())))
    assert read == sketch_layout(9)
    assert read.is_sketch


def test_new_exponents_keep_the_columns():
    scaled = TWO_LAYERS.with_scales((1, 2, 3, 4, 5, 6))
    assert [exponent for *_, exponent in scaled.scales] == [1, 2, 3, 4, 5, 6]
    assert [columns[:2] for columns in scaled.scales] == [c[:2] for c in TWO_LAYERS.scales]
    assert scaled.factors == TWO_LAYERS.factors


def test_wrong_number_of_exponents_is_refused():
    with pytest.raises(ValueError, match="2 exponents for 6 column ranges"):
        TWO_LAYERS.with_scales((1, 2))


@given(st.floats(1e-40, 1e40), st.floats(1e-3, 1e4))
def test_exponent_lifts_to_just_below_the_target(largest: float, target: float):
    lifted = math.ldexp(largest, exponent_for(largest, target))
    assert target / 2 * (1 - 1e-12) < lifted <= target * (1 + 1e-12)


@pytest.mark.parametrize("largest", [0.0, -1.0, math.nan, math.inf])
def test_exponent_of_nothing_is_zero(largest: float):
    assert exponent_for(largest) == 0
