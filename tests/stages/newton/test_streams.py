"""Changed streams; the basis change itself is tested with the basis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from krepes_ooc.stages.newton.basis import in_float64
from krepes_ooc.stages.newton.conjugate_gradient import conjugate_gradient
from tests import cases, dense
from tests.stages.newton.objectives.test_objectives import sample_objective


@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_a_step_in_single_precision_is_polished_in_float64(name: str) -> None:
    case = cases.make("polish", n_samples=32, n_landmarks=12, n_components=4)
    single = sample_objective(name, case, np.float32)
    at_start = single.linearise(case.start)
    damping = 1e-3 * at_start.mean_diagonal
    rough = conjugate_gradient(at_start.product, -at_start.gradient, damping, max_iterations=200)
    double = replace(single, stream=in_float64(single.stream))
    assert (double.stream.n_samples, double.stream.n_views) == (32, 2)
    exact = double.linearise(case.start)
    found = conjugate_gradient(
        exact.product, -exact.gradient, damping, guess=rough.step, tolerance=1e-9
    )
    assert found.converged
    assert found.iterations > 0  # single precision was not enough
    arguments = (case.kernels, case.offset)
    expected = dense.step(name, case.start, damping, *arguments, **case.settings(name))
    np.testing.assert_allclose(found.step, expected, rtol=1e-5, atol=1e-6)
