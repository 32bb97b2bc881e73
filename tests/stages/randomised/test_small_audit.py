"""The step of a small audit in memory, against the dense oracle of every objective."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.core.settings import to_mapping
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.randomised import small_audit as module
from krepes_ooc.stages.randomised.small_audit import (
    ArrayStream,
    StepRule,
    array_moments,
    solve_audit,
)
from tests import cases, dense

H, DAMPING = 3, 0.7


def rule(objective: str, metric: str = "euclidean", damping: float = DAMPING) -> StepRule:
    constants = dict(to_mapping(registry.settings_type(objective)()))
    if objective == "simclr":
        constants["batch"] = 8
    return StepRule(objective, constants, damping, metric, H)


@pytest.mark.parametrize("objective", dense.OBJECTIVES)
def test_step_of_every_objective(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAM_TOLERANCE", 1e-9)
    monkeypatch.setattr(module, "MOMENT_TOLERANCE", 1e-10)
    case = cases.case("two-views")
    stream = ArrayStream(case.kernels, 16)
    found = solve_audit(rule(objective), case.landmark_kernel, stream)
    start = dense.start(case.landmark_kernel, H)
    assert found.start == pytest.approx(start, abs=1e-8)
    offset = -start.T @ case.kernels.mean(axis=(0, 1))
    settings = {"batch": 8} if objective == "simclr" else {}
    if objective == "byol":
        settings = {"targets": dense.byol_targets(start, list(case.kernels), offset)}
    G = dense.gradient(objective, start, case.kernels, offset, **settings).numpy()
    H_dense = dense.ggn(objective, start, case.kernels, offset, **settings).numpy()
    damping = DAMPING * np.trace(H_dense) / start.size
    expected = np.linalg.solve(H_dense + damping * np.eye(start.size), -G.reshape(-1))
    assert found.step == pytest.approx(expected.reshape(start.shape), rel=2e-5, abs=1e-6)
    f = case.kernels[0] @ (start + expected.reshape(start.shape)) + offset
    assert found.embedding(case.kernels[0]) == pytest.approx(f, rel=1e-4, abs=1e-5)


def test_moments_of_rows_in_memory() -> None:
    case = cases.case("two-views")
    mean, second = dense.moments(case.kernels)
    found = array_moments(ArrayStream(case.kernels, 7))
    assert found.mean == pytest.approx(mean, abs=1e-14)
    assert found.second == pytest.approx(second, abs=1e-14)


def test_blocks_are_summed_once_each() -> None:
    case = cases.case("two-views")
    stream = ArrayStream(case.kernels, 7)
    total, rows = stream.reduce(lambda views, block: (views[1].sum(axis=0), block.rows))
    assert total == pytest.approx(case.kernels[1].sum(axis=0))
    assert rows == stream.n_samples == case.kernels.shape[1]


def test_rkhs_step_solves_its_own_system() -> None:
    case = cases.case("two-views")
    stream = ArrayStream(case.kernels, 16)
    plain = solve_audit(rule("vicreg"), case.landmark_kernel, stream)
    other = solve_audit(rule("vicreg", "rkhs"), case.landmark_kernel, stream)
    assert other.start == pytest.approx(plain.start)
    assert not np.allclose(other.step, plain.step, rtol=1e-2)
    # With next to no damping both metrics give the same embedding.
    plain, other = (
        solve_audit(rule("vicreg", metric, 1e-9), case.landmark_kernel, stream)
        for metric in ("euclidean", "rkhs")
    )
    first, second = (found.embedding(case.kernels[0]) for found in (plain, other))
    assert np.linalg.norm(first - second) < 0.05 * np.linalg.norm(first)


def test_a_constant_kernel_is_refused() -> None:
    ones = np.ones((2, 20, 6))
    with pytest.raises(StageFailed):
        solve_audit(rule("vicreg"), np.ones((6, 6)), ArrayStream(ones, 8))
