"""Measures of fidelity against the dense oracle and loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.stages.fidelity import metrics
from krepes_ooc.stages.spectrum import nystrom
from tests import dense
from tests.stages.dense_comparison import few, seeds

one_thread = pytest.fixture(autouse=True, scope="module")(dense.one_thread)


@few
@given(seeds, st.integers(1, 9), st.integers(1, 5))
def test_entropy_equals_the_dense_one(seed: int, m: int, h: int) -> None:
    A = np.random.default_rng(seed).normal(size=(m, h))
    assert nystrom.spectral_entropy(A) == pytest.approx(dense.spectral_entropy(A), abs=1e-9)


@few
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_rank_correlation_counts_pairs(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert metrics.kendall_tau(x, y) == pytest.approx(dense.kendall_tau(x, y), abs=1e-12)


@few
@given(st.permutations([0, 0, 0, 1, 1, 2]), seeds)
def test_coverage_equals_the_walk(labels: list[int], seed: int) -> None:
    score = np.random.default_rng(seed).integers(0, 3, size=6).astype(float)
    order = sorted(range(6), key=lambda j: (-score[j], j))
    assert metrics.coverage(score, np.array(labels), 3) == dense.coverage(labels, order)
