"""Moments tile by tile and the iterated spectrum give what the plain ways give."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.core import blocks
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.moments import stage
from krepes_ooc.stages.spectrum import stage as spectrum
from krepes_ooc.storage.workspace import Workspace
from tests import small


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles") / "w"
    small.audit(folder, until="spectrum")
    return folder


@pytest.fixture
def workspace(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "w"))


def forget(workspace: Path, *stages: str) -> None:
    for name in stages:
        shutil.rmtree(workspace / ".krepes" / "stages" / name, ignore_errors=True)


def test_tiles_of_moments(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> tuple[np.ndarray, np.ndarray]:
        reader = Workspace(workspace).reader("moments")
        return reader.array("mean"), reader.array("second")

    mean, second = read()
    for module in (blocks,):
        monkeypatch.setattr(module, "TILE", 10)  # 24 landmarks: tiles of 10, 10 and 4
    found = []
    for workers in (1, 2):
        forget(workspace, "moments", "spectrum")
        small.audit(workspace, until="moments", workers=workers)
        found.append(read())
    assert np.array_equal(found[0][1], found[1][1])
    K = Workspace(workspace)["kernel"]["values"].values.astype(np.float64)
    centred = K - K.mean(axis=1, keepdims=True)
    dense = np.einsum("anl,bnk->ablk", centred, centred) / K.shape[1]
    for m, c in ((mean, second), found[0]):
        assert np.allclose(m, K.mean(axis=1), atol=1e-7)
        assert np.allclose(c, dense, atol=1e-7)
    assert np.array_equal(found[0][1], found[0][1].transpose(1, 0, 3, 2))


def test_tiles_resume(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blocks,):
        monkeypatch.setattr(module, "TILE", 10)
    forget(workspace, "moments", "spectrum")
    small.audit(workspace, until="moments")
    whole = Workspace(workspace).reader("moments").array("second")
    forget(workspace, "moments")
    really, calls = stage.cross_sums, []

    def stumble(*given: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise StageFailed("killed here")
        return really(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "cross_sums", stumble)
    with pytest.raises(StageFailed, match="killed here"):
        small.audit(workspace, until="moments", workers=1)
    small.audit(workspace, until="moments")
    assert np.array_equal(Workspace(workspace).reader("moments").array("second"), whole)


def test_iterated_spectrum(workspace: Path) -> None:
    dense = {n: Workspace(workspace).reader("spectrum").array(n) for n in ("start", "eigenvalues")}
    error = Workspace(workspace).reader("spectrum").attributes["nystrom_error"]
    small.audit(workspace, "stages.spectrum.solver=subspace", until="spectrum", restart_stale=True)
    reader = Workspace(workspace).reader("spectrum")
    assert np.allclose(reader.array("eigenvalues"), dense["eigenvalues"][:4], rtol=1e-9)
    assert np.allclose(reader.array("start"), dense["start"], atol=1e-6)
    K = Workspace(workspace).reader("kernel").array("landmark_kernel")
    U = reader.array("eigenvectors")
    assert np.linalg.norm(K @ U - U * reader.array("eigenvalues")) < 1e-8 * np.linalg.norm(K)
    assert error <= reader.attributes["nystrom_error"] <= 1


def test_iteration_that_fails_says_so(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from krepes_ooc.stages.spectrum.subspace_iteration import leading_eigenpairs

    monkeypatch.setattr(
        spectrum,
        "leading_eigenpairs",
        lambda *given: leading_eigenpairs(*given, tolerance=0.0, max_products=1),
    )
    with pytest.raises(StageFailed, match=r"products left a residual of .*solver=dense"):
        small.audit(
            workspace, "stages.spectrum.solver=subspace", until="spectrum", restart_stale=True
        )
