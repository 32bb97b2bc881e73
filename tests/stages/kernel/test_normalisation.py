from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.errors import DataError, StageFailed, UsageError
from krepes_ooc.stages.kernel.normalisation import (
    Normalisation,
    centred_self,
    is_collapsed,
    normalise,
    normalised_self,
)

PHI = np.random.default_rng(3).normal(2.0, 1.0, (8, 5))
CENTRE = PHI.mean(axis=0)
K, C, S, C0 = PHI @ PHI.T, PHI @ CENTRE, np.sum(PHI**2, axis=1), float(CENTRE @ CENTRE)


def test_ccos_is_the_formula_written_out() -> None:
    expected = np.empty_like(K)
    for x in range(8):
        for y in range(8):
            own_x, own_y = S[x] - 2 * C[x] + C0, S[y] - 2 * C[y] + C0
            expected[x, y] = (K[x, y] - C[x] - C[y] + C0) / np.sqrt(own_x * own_y)
    got = normalise(K, C, C, S, S, Normalisation("ccos", C0))
    np.testing.assert_allclose(got, expected, atol=1e-14)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("cosine", K / np.sqrt(np.outer(S, S))), ("mean-diagonal", K / 3.5), ("none", K)],
)
def test_modes_without_centre_need_none(mode: str, expected: np.ndarray) -> None:
    got = normalise(K, None, None, S, S, Normalisation(mode, scale=3.5))
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_normalised_self_is_the_diagonal() -> None:
    for mode in ("ccos", "cosine", "mean-diagonal", "none"):
        normalisation = Normalisation(mode, C0, 3.5)
        diagonal = np.diagonal(normalise(K, C, C, S, S, normalisation))
        np.testing.assert_allclose(normalised_self(C, S, normalisation), diagonal, rtol=1e-13)


@pytest.mark.parametrize("mode", ["ccos", "cosine"])
def test_collapsed_rows_give_zero_and_others_stay(mode: str) -> None:
    k, c, s = K.copy(), C.copy(), S.copy()
    if mode == "ccos":  # row 2 is the centre
        k[2], k[:, 2], k[2, 2], c[2], s[2] = C, C, C0, C0, C0 * (1 + 1e-9)
    else:  # row 2 is zero
        k[2], k[:, 2], s[2] = 0, 0, 0
    normalisation = Normalisation(mode, C0)
    got = normalise(k, c, c, s, s, normalisation)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[2], 0)
    np.testing.assert_array_equal(is_collapsed(c, s, normalisation), np.arange(8) == 2)
    np.testing.assert_array_equal(normalised_self(c, s, normalisation), np.arange(8) != 2)
    keep = np.arange(8) != 2
    untouched = normalise(K, C, C, S, S, normalisation)
    np.testing.assert_array_equal(got[np.ix_(keep, keep)], untouched[np.ix_(keep, keep)])


def test_values_never_leave_the_cosine_range() -> None:
    k = (K * (1 + 1e-3)).astype(np.float32)
    got = normalise(k, None, None, S, S, Normalisation("cosine"))
    assert got.dtype == np.float32
    assert np.abs(got).max() <= 1


def test_float32_keeps_digits_near_the_centre() -> None:
    """All rows close to a long centre: subtracting in another order would lose three digits."""
    phi = np.random.default_rng(0).normal(30.0, 1.0, (50, 40))
    centre = phi.mean(axis=0)
    k, c, s, c0 = phi @ phi.T, phi @ centre, np.sum(phi**2, axis=1), float(centre @ centre)
    normalisation = Normalisation("ccos", c0)
    exact = normalise(k, c, c, s, s, normalisation)
    single = normalise(k.astype(np.float32), c, c, s, s, normalisation)
    rounding = 2.0**-25 * c0 / centred_self(c, s, normalisation).min()
    assert np.abs(single - exact).max() < 4 * rounding


def test_unknown_mode_names_the_allowed_ones() -> None:
    with pytest.raises(UsageError, match="no normalisation 'rbf'; expected one of ccos, cosine"):
        Normalisation("rbf")  # type: ignore[arg-type]


@pytest.mark.parametrize("c0", [float("nan"), float("inf"), -1.0])
def test_a_bad_centre_is_refused(c0: float) -> None:
    with pytest.raises(DataError, match=r"landmarks: centre_self is .*look for NaN"):
        Normalisation("ccos", c0)


@pytest.mark.parametrize("scale", [0.0, float("nan")])
def test_zero_features_are_refused(scale: float) -> None:
    with pytest.raises(StageFailed, match=r"features: the mean self kernel is .*expected a finite"):
        Normalisation("mean-diagonal", scale=scale)
