from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krepes_ooc.stages.fidelity.uniform_landmarks import LandmarkSubspace
from tests import dense


def example(seed: int, n: int = 40, m: int = 6) -> tuple[LandmarkSubspace, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    phi, marks = draw.normal(size=(n, 8)), draw.normal(size=(m, 8))
    K, own = phi @ marks.T, np.sum(phi**2, axis=1)
    return LandmarkSubspace(marks @ marks.T, K.T @ K / n, float(own.mean()), "float64"), K, own


def test_error_is_that_of_projections() -> None:
    span, K, own = example(0)
    expected = dense.nystrom_error(K, span.landmark_kernel, own, rank=6)
    assert span.nystrom_error() == pytest.approx(expected)
    part = np.array([4, 1, 3])
    expected = dense.nystrom_error(K[:, part], span.landmark_kernel[np.ix_(part, part)], own, 3)
    assert span.subset(part).nystrom_error() == pytest.approx(expected)


def test_dimension_is_a_trace() -> None:
    span, _, _ = example(1)
    K = span.landmark_kernel
    mean = np.trace(K) / 6
    assert span.effective_dimension() == pytest.approx(
        np.trace(K @ np.linalg.inv(K + mean * np.eye(6)))
    )


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 7.0]))
def test_more_landmarks_miss_less_whatever_scale_and_order(seed: int, scale: float) -> None:
    span, _, _ = example(seed)
    order = np.random.default_rng(seed).permutation(6)
    errors = [span.subset(order[:m]).nystrom_error() for m in range(1, 7)]
    sizes = [span.subset(order[:m]).effective_dimension() for m in range(1, 7)]
    assert all(0 <= error <= 1 for error in errors)
    assert (np.diff(errors) <= 1e-9).all()
    assert all(0 < size <= m for m, size in enumerate(sizes, start=1))
    assert errors[-1] == pytest.approx(span.nystrom_error())
    larger = LandmarkSubspace(
        scale * span.landmark_kernel,
        scale**2 * span.second,
        scale * span.self_kernel_mean,
        "float64",
    )
    assert larger.nystrom_error() == pytest.approx(span.nystrom_error(), abs=1e-9)
    assert larger.effective_dimension() == pytest.approx(span.effective_dimension())
