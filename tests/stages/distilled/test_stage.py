"""Distilled coefficients against a dense refit, on a whole audit and where they are not defined."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.explanation.explain_sums import explain_decision, explain_pair
from krepes_ooc.runner.run import run
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.distilled.stage import (
    DistilledSettings,
    distil,
    estimate_cost,
    r_squared_by_output,
    summary_lines,
)
from krepes_ooc.stages.fidelity.metrics import RIDGE_GRID
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.stages import audits


def dense_ridge(kernel: np.ndarray, target: np.ndarray, relative: float) -> tuple:
    """A and gamma of the centred normal equations."""
    k_mean, t_mean = kernel.mean(axis=0), target.mean(axis=0)
    X, Y = kernel - k_mean, target - t_mean
    unit = np.trace(X.T @ X) / X.shape[1]
    A = np.linalg.solve(X.T @ X + relative * unit * np.eye(X.shape[1]), X.T @ Y)
    return A, t_mean - k_mean @ A, unit


def dense_penalty(kernel: np.ndarray, target: np.ndarray) -> float:
    """The penalty of least error on left-out rows, each refitted with its own means."""
    errors = []
    unit = dense_ridge(kernel, target, 1.0)[2]
    for relative in RIDGE_GRID:
        total = 0.0
        for i in range(len(kernel)):
            rest = np.delete(np.arange(len(kernel)), i)
            own = dense_ridge(kernel[rest], target[rest], 1.0)[2]
            A, gamma, _ = dense_ridge(kernel[rest], target[rest], relative * unit / own)
            total += np.sum((target[i] - kernel[i] @ A - gamma) ** 2)
        errors.append(total)
    return RIDGE_GRID[int(np.argmin(errors))]


def test_coefficients_against_refits() -> None:
    draw = np.random.default_rng(0)
    kernel = draw.normal(size=(40, 6)) + 1.0
    target = kernel @ draw.normal(size=(6, 3)) + 2.0 + 0.8 * draw.normal(size=(40, 3))
    found = distil(kernel[:30], target[:30], kernel[30:], target[30:])
    assert found.damping == dense_penalty(kernel[:30], target[:30])
    A, gamma, _ = dense_ridge(kernel[:30], target[:30], found.damping)
    assert found.coefficients == pytest.approx(A, rel=1e-9)
    assert found.offset == pytest.approx(gamma, rel=1e-9)
    predicted = kernel[30:] @ A + gamma
    spread = np.sum((target[30:] - target[30:].mean(axis=0)) ** 2)
    assert found.r_squared == pytest.approx(1 - np.sum((target[30:] - predicted) ** 2) / spread)
    by_output = r_squared_by_output(target[30:], predicted)
    for j in range(3):
        residual = target[30:, j] - predicted[:, j]
        expected = 1 - residual @ residual / np.sum((target[30:, j] - target[30:, j].mean()) ** 2)
        assert by_output[j] == pytest.approx(expected)


def test_a_constant_output_has_no_share() -> None:
    target = np.stack([np.ones(5), np.arange(5.0)], axis=1)
    assert r_squared_by_output(target, target).tolist() == [0.0, 1.0]


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(StageFailed, match="1 fit samples; expected at least 2"):
        distil(np.ones((1, 3)), np.ones((1, 2)), np.ones((4, 3)), np.ones((4, 2)))


def test_the_store_reproduces_the_network(tmp_path: Path) -> None:
    space = audits.finished()
    store, audited = space.reader("distilled"), space.reader("audited")
    role, kernel = audited.array("role"), space.reader("influence").array("kernel")
    network = audited.array("network_embedding").astype(float)
    predicted = kernel @ store.array("distilled") + store.array("offset")
    A, gamma, _ = dense_ridge(
        kernel[role == 1], network[role == 1], store.attributes["penalty_relative"]
    )
    assert predicted == pytest.approx(kernel @ A + gamma, abs=1e-6)
    here = role == 0
    spread = np.sum((network[here] - network[here].mean(axis=0)) ** 2)
    expected = 1 - np.sum((network[here] - predicted[here]) ** 2) / spread
    assert store.attributes["r_squared"] == pytest.approx(expected)
    fidelity = space.reader("fidelity").attributes["figures"]["ridge_ceiling"]["value"]
    assert store.attributes["r_squared"] == pytest.approx(fidelity)
    flipped = store.attributes["deletion"]["flipped"]
    assert set(flipped) == {"logit_terms", "kernel", "aligned", "random"}
    assert flipped["logit_terms"] >= flipped["random"]


def test_without_fit_samples_it_says_why(tmp_path: Path) -> None:
    names = ("pretrain", "features", "landmarks", "audited", "kernel", "moments", "spectrum")
    for name in (*names, "newton", "minimiser", "influence", "distilled"):
        run(small.recipe("stages.audited.fit=0"), tmp_path / "w", Options(workers=2, only=name))
    store = Workspace(tmp_path / "w").reader("distilled")
    assert not store.attributes["defined"]
    assert "0 fit samples" in store.attributes["reason"]
    assert not store.array("distilled").any()
    assert summary_lines(store.attributes)[0].startswith("no distilled coefficients: ")
    # What reads it says so too, and a probe has nothing to be fitted on.
    x = int(Workspace(tmp_path / "w").reader("audited").array("sample_id")[0])
    with pytest.raises(UsageError, match=r"there are no distilled coefficients: .*0 fit samples"):
        explain_pair(tmp_path / "w", sample=x, against=x, coefficients="distilled")
    with pytest.raises(UsageError, match="0 classes among 0 fit samples with labels"):
        explain_decision(tmp_path / "w", sample=x, probe="3")
    one = explain_pair(tmp_path / "w", sample=x, against=x)[0]
    assert one.record()["coefficients"]["likeness"] is None


def test_cost_grows_with_the_fit_samples() -> None:
    from krepes_ooc.runner.audit import Audit

    space = audits.finished()
    sizes = Audit(audits.recipe_of(space), space).sizes()
    assert isinstance(sizes, AuditSizes)
    more = dataclasses.replace(sizes, n_audited=sizes.n_audited + 1000)
    small_cost, large_cost = (estimate_cost(s, DistilledSettings()) for s in (sizes, more))
    extra = 1000 * 8 * (3 * sizes.n_landmarks + 4 * sizes.n_outputs)
    assert large_cost.memory.total - small_cost.memory.total == extra
