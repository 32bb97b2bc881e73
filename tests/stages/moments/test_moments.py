"""Un-centred second moments, whole and tile by tile, against their definition."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.core import blocks
from krepes_ooc.core.blocks import tile_slices
from krepes_ooc.stages.moments.moments import Moments, TiledUncentredMoment

VIEWS, SAMPLES, LANDMARKS = 3, 40, 11


@pytest.fixture
def kernels() -> np.ndarray:
    return np.random.default_rng(3).normal(1.0, 2.0, size=(VIEWS, SAMPLES, LANDMARKS))


def moments_of(kernels: np.ndarray) -> Moments:
    mean = kernels.mean(axis=1)
    centred = kernels - mean[:, None, :]
    second = np.einsum("anl,bnk->ablk", centred, centred) / SAMPLES
    return Moments(mean, second, SAMPLES)


def test_uncentred_moments_are_mean_products_of_rows(kernels: np.ndarray) -> None:
    moments = moments_of(kernels)
    V = np.random.default_rng(0).normal(size=(2, LANDMARKS, 4))
    for a, b in ((0, 0), (0, 2), (2, 1)):
        S = kernels[a].T @ kernels[b] / SAMPLES
        np.testing.assert_allclose(moments.uncentred(a, b), S)
        np.testing.assert_allclose(moments.uncentred_times(a, b, V), S @ V)
    assert moments.uncentred_trace(1) == pytest.approx(np.sum(kernels[1] ** 2) / SAMPLES)
    rows = kernels.reshape(-1, LANDMARKS)
    np.testing.assert_allclose(moments.mean_uncentred(), rows.T @ rows / len(rows))


@pytest.mark.parametrize("tile", [4, 11])
def test_tiles_of_the_uncentred_moment(
    kernels: np.ndarray, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "TILE", tile)
    moments = moments_of(kernels)
    ranges = tile_slices(LANDMARKS)
    S = TiledUncentredMoment(
        moments.mean, lambda row, column: moments.second[:, :, ranges[row], ranges[column]]
    )
    V = np.random.default_rng(0).normal(size=(LANDMARKS, 5))
    np.testing.assert_allclose(S @ V, moments.mean_uncentred() @ V)
    assert S.trace() == pytest.approx(np.trace(moments.mean_uncentred()))
