"""One small audit, recomputed from network and data by naive dense float64 code.

Nothing but the stored probes, the row order and the chosen landmarks is taken from the workspace:
features by torch.func.jacrev over all parameters, the centre as a plain mean, kernel rows, moments,
start, step and scores by the formulas. Differences are those of float16 rows and float32 products.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from krepes_ooc.runner.audit import Audit
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace
from tests import dense
from tests.residual import relative_residual

ROWS, LANDMARKS, COMPONENTS = 300, 12, 4
SETTINGS = (
    f"source.limit={ROWS}",
    "network.arguments={inputs: 64, hidden: [12], outputs: 6}",
    "stages.pretrain.epochs=3",
    "stages.features.block_rows=256",
    f"stages.landmarks.count={LANDMARKS}",
    "stages.audited={audit: 20, fit: 40}",
    f"stages.spectrum.components={COMPONENTS}",
    "stages.influence.measure=is",
)


@dataclass(frozen=True)
class Naive:
    """Everything recomputed: explicit features and the kernel rows that follow from them."""

    kernels: list[dense.Float]
    landmark_kernel: dense.Float
    audited_kernel: dense.Float
    self_kernel: dense.Float


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("audit") / "w"
    run(Recipe.load("digits", SETTINGS), root)
    return root


@pytest.fixture(scope="module")
def audit(workspace: Path) -> Any:
    return zarr.open_group(str(workspace / "audit.zarr"), mode="r", use_consolidated=False)


@pytest.fixture(scope="module")
def naive(workspace: Path, audit: Any) -> Naive:
    inputs = Audit(Recipe.load("digits", SETTINGS), Workspace(workspace)).inputs
    probes = np.asarray(audit["features"].attrs["probes"])

    def explicit(name: str, view: int) -> dense.Float:
        rows = inputs.encode(audit[name][:], view)[0].astype(np.float64)
        return dense.jacobian_features(inputs.network.inner, rows, probes).flatten(1).numpy()

    views = [explicit("kernel/sample_id", view) for view in range(2)]
    landmarks, audited = explicit("landmarks/sample_id", -1), explicit("audited/sample_id", -1)
    centre = np.concatenate(views).mean(axis=0)
    return Naive(
        kernels=[dense.centred_cosine(phi, landmarks, centre) for phi in views],
        landmark_kernel=dense.centred_cosine(landmarks, landmarks, centre),
        audited_kernel=dense.centred_cosine(audited, landmarks, centre),
        self_kernel=np.stack([(phi**2).sum(axis=1) for phi in views]),
    )


def test_rows_are_a_shuffle_of_the_source(audit: Any) -> None:
    ids = audit["features/sample_id"][:]
    assert sorted(ids) == list(range(ROWS))
    assert list(ids) != list(range(ROWS))
    assert np.array_equal(ids, audit["kernel/sample_id"][:])


def test_self_kernel_is_that_of_the_jacobian(audit: Any, naive: Naive) -> None:
    np.testing.assert_allclose(audit["features/self_kernel"][:], naive.self_kernel, rtol=2e-3)


@pytest.mark.parametrize("view", [0, 1])
def test_kernel_rows(audit: Any, naive: Naive, view: int) -> None:
    np.testing.assert_allclose(audit["kernel/values"][view], naive.kernels[view], atol=4e-3)


def test_landmark_kernel(audit: Any, naive: Naive) -> None:
    stored = audit["kernel/landmark_kernel"][:]
    np.testing.assert_allclose(stored, naive.landmark_kernel, atol=4e-3)
    assert np.array_equal(stored, stored.T)
    assert np.array_equal(np.diagonal(stored), np.ones(LANDMARKS))


def test_moments_are_those_of_the_stored_rows(audit: Any) -> None:
    mean, second = dense.moments(audit["kernel/values"][:].astype(np.float64))
    np.testing.assert_allclose(audit["moments/mean"][:], mean, atol=1e-6)
    np.testing.assert_allclose(audit["moments/second"][:], second, atol=1e-6)


def test_start_whitens_the_landmark_kernel(audit: Any) -> None:
    K, start = audit["kernel/landmark_kernel"][:], audit["spectrum/start"][:]
    np.testing.assert_allclose(start.T @ K @ start, np.eye(COMPONENTS), atol=1e-10)
    np.testing.assert_allclose(start, dense.start(K, COMPONENTS), atol=1e-8)
    kbar = audit["kernel/values"][:].astype(np.float64).mean(axis=(0, 1))
    np.testing.assert_allclose(audit["spectrum/offset"][:], -start.T @ kbar, atol=1e-5)


def test_step_solves_its_damped_system(workspace: Path) -> None:
    assert relative_residual(workspace)[1] < 1e-6


def test_loss_before_and_after_is_the_published_one(audit: Any) -> None:
    facts, settings = audit["newton"].attrs, dict(audit["newton"].attrs["objective_settings"])
    kernels = audit["kernel/values"][:].astype(np.float64)
    for name, array in (("loss_start", "spectrum/start"), ("loss_step", "newton/coefficients")):
        expected = dense.loss("barlow-twins", audit[array][:], list(kernels), **settings)
        assert facts[name] == pytest.approx(float(expected), rel=1e-4)


def test_influence_of_every_audited_sample(audit: Any, naive: Naive) -> None:
    store = audit["influence"]
    np.testing.assert_allclose(store["kernel"][:], naive.audited_kernel, atol=4e-3)
    step, coefficients = store["step"][:], store["coefficients"][:]
    offset, K_mm = audit["spectrum/offset"][:], audit["kernel/landmark_kernel"][:]
    np.testing.assert_allclose(
        store["embedding"][:], store["kernel"][:] @ coefficients + offset, atol=1e-10
    )
    score = dense.influence(
        store.attrs["measure"], store["kernel"][:], step, coefficients, landmark_kernel=K_mm
    )
    top = store["top_landmark"][:]
    np.testing.assert_allclose(np.take_along_axis(score, top, axis=1), store["score"][:], atol=1e-9)
    kept = np.sort(np.abs(score), axis=1)[:, ::-1][:, : top.shape[1]]
    np.testing.assert_allclose(np.abs(store["score"][:]), kept, atol=1e-9)
    signed = dense.influence("signed-step", store["kernel"][:], step, coefficients, offset=offset)
    np.testing.assert_allclose(
        np.take_along_axis(signed, top, axis=1), store["contribution"][:], atol=1e-9
    )


def test_landmarks_are_not_audited(audit: Any) -> None:
    assert not set(audit["landmarks/sample_id"][:]) & set(audit["audited/sample_id"][:])
