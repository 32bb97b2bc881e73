"""The oracle's own checks: known values, finite differences, two routes to every curvature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm

from krepes_ooc.core.feature_layout import FeatureLayout, LayerFactor
from tests import cases, dense

TABLE = cases.cases()
every_case = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
every_objective = pytest.mark.parametrize("objective", dense.OBJECTIVES)
one_thread = pytest.fixture(autouse=True, scope="module")(dense.one_thread)


def arguments(case: cases.Case, objective: str) -> dict[str, object]:
    return {"kernels": case.kernels, "offset": case.offset, **case.settings(objective)}


def relative(found: object, expected: object) -> float:
    found, expected = dense.as_tensor(found), dense.as_tensor(expected)
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


# --------------------------------------------------------------------------------- known values


def test_barlow_twins_is_zero_for_white_identical_views() -> None:
    z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert dense.barlow_twins([z, z], epsilon=0.0) == pytest.approx(0.0, abs=1e-30)
    assert dense.barlow_twins([z, -z], epsilon=0.0) == pytest.approx(8.0)  # diagonal -1 twice
    swapped = z[:, [1, 0]]  # c is the exchange matrix: two wrong ones on, two ones off
    assert dense.barlow_twins([z, swapped], epsilon=0.0) == pytest.approx(2 + 2 * 0.0051)


def test_barlow_twins_standardises_as_batch_norm_in_training_mode() -> None:
    z = torch.randn(9, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    expected = batch_norm(z, None, None, training=True, eps=1e-5)
    assert relative(dense.standardise(z, 1e-5), expected) < 1e-14


def test_vicreg_terms_by_hand() -> None:
    z = torch.tensor([[0.0, 0.0], [2.0, 2.0]], dtype=torch.float64)  # variances 2, covariance 2
    assert dense.vicreg([z, z]) == pytest.approx(2 * (2 * 2.0**2 / 2))  # two views, two entries
    w = z + torch.tensor([3.0, 0.0], dtype=torch.float64)
    assert dense.vicreg([z, w]) - dense.vicreg([z, z]) == pytest.approx(25 * 9 / 2)
    flat = torch.zeros(4, 2, dtype=torch.float64)
    assert dense.vicreg([flat, flat]) == pytest.approx(25 * (1 - 0.01))


def test_simclr_of_equal_embeddings_is_log_of_negatives() -> None:
    z = torch.ones(10, 3, dtype=torch.float64)
    # batches of 8 and 2 samples: 16 anchors among 15 others, 4 anchors among 3 others
    expected = (16 * math.log(15) + 4 * math.log(3)) / 20
    assert dense.simclr([z, z], batch=8) == pytest.approx(expected)
    assert dense.simclr([z[:9], z[:9]], batch=8) == pytest.approx(math.log(15))


@pytest.mark.parametrize("n_views", [2, 3])
def test_simclr_equals_the_sum_over_anchors(n_views: int) -> None:
    generator = torch.manual_seed(1)
    views = torch.randn(n_views, 11, 3, dtype=torch.float64, generator=generator).numpy()
    pairs = []
    for z1, z2 in itertools.combinations(views, 2):
        terms = []
        for first in (0, 4, 8):
            u = np.concatenate([z1[first : first + 4], z2[first : first + 4]])
            u = u / np.linalg.norm(u, axis=1, keepdims=True)
            for i in range(len(u)):
                others = [math.exp(u[i] @ u[j] / 0.3) for j in range(len(u)) if j != i]
                positive = (i + len(u) // 2) % len(u)
                terms.append(math.log(sum(others)) - u[i] @ u[positive] / 0.3)
        pairs.append(np.mean(terms))
    found = dense.simclr([dense.as_tensor(z) for z in views], temperature=0.3, batch=4)
    assert float(found) == pytest.approx(np.mean(pairs), rel=1e-13)


def test_simclr_temperature_is_one_half_unless_told() -> None:
    views = [cases.case("two-views").kernels[a] @ cases.case("two-views").start for a in (0, 1)]
    z = [dense.as_tensor(view) for view in views]
    assert float(dense.simclr(z)) == float(dense.simclr(z, temperature=0.5))
    A, arguments = cases.case("two-views").start, (cases.case("two-views").kernels, 0.0)
    inner, outer = dense.split_simclr(*arguments)
    assert float(outer(inner(dense.as_tensor(A)))) == pytest.approx(float(dense.simclr(z)))


def test_byol_counts_each_view_once() -> None:
    z = torch.randn(6, 3, dtype=torch.float64, generator=torch.manual_seed(2))
    for n_views in (2, 3):
        views = [z] * n_views
        targets = dense.byol_targets(np.eye(3), views)
        assert dense.byol(views, targets) == pytest.approx(0.0, abs=1e-14)
        assert dense.byol([-z] * n_views, targets) == pytest.approx(8.0)
        assert dense.byol(views, targets, predictor_weight=-np.eye(3)) == pytest.approx(8.0)


def test_byol_predictor_acts_after_the_embedding() -> None:
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    weight, bias = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1.0, 0.0])
    found = dense.byol([z, z], [z, z], weight, bias)  # W z + b = (1, 1): cosine sqrt(1/2)
    assert found == pytest.approx(2 * (2 - math.sqrt(2)))


def test_spectral_contrastive_by_hand() -> None:
    z = math.sqrt(2) * torch.eye(2, dtype=torch.float64)  # E z z^T = 1: the minimum is -h
    assert dense.spectral_contrastive([z, z]) == pytest.approx(-2.0)
    assert dense.loss("spectral-contrastive", torch.eye(2), [z, z], offset=7.0) == pytest.approx(-2)


# ---------------------------------------------------------------------- derivatives, two routes


@every_objective
@every_case
def test_split_equals_the_published_loss(case: cases.Case, objective: str) -> None:
    settings = case.settings(objective)
    inner, outer = dense.SPLITS[objective](case.kernels, case.offset, **settings)
    expected = dense.loss(objective, case.coefficients, case.kernels, case.offset, **settings)
    found = outer(inner(dense.as_tensor(case.coefficients)))
    assert float(found) == pytest.approx(float(expected), rel=1e-11, abs=1e-13)


@every_objective
@every_case
def test_gradient_equals_finite_differences(case: cases.Case, objective: str) -> None:
    draw = np.random.default_rng(3)
    size = np.linalg.norm(case.coefficients)
    direction = draw.normal(size=case.coefficients.shape)
    direction *= size / np.linalg.norm(direction)
    G = dense.gradient(objective, case.coefficients, **arguments(case, objective))

    def value(t: float) -> float:
        A = case.coefficients + t * direction
        return float(dense.loss(objective, A, **arguments(case, objective)))

    h = 1e-3  # fourth-order central difference
    slope = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    scale = float(G.norm()) * size + 1e-4 * abs(value(0.0)) + 1e-9
    assert slope == pytest.approx(float((G.numpy() * direction).sum()), abs=2e-5 * scale)


@every_objective
@every_case
def test_curvature_is_symmetric_psd_and_equals_its_products(
    case: cases.Case, objective: str
) -> None:
    H = dense.ggn(objective, case.coefficients, **arguments(case, objective))
    V = np.random.default_rng(4).normal(size=case.coefficients.shape)
    found = dense.ggn_product(objective, case.coefficients, V, **arguments(case, objective))
    expected = H @ dense.as_tensor(V).reshape(-1)
    eigenvalues = torch.linalg.eigvalsh((H + H.T) / 2)
    # One component on the unit sphere has no curvature: only rounding is left to compare.
    rounding = 1e-14 / np.linalg.norm(case.coefficients) ** 2
    close = {"rtol": 1e-9, "atol": rounding * np.linalg.norm(V)}
    torch.testing.assert_close(found.reshape(-1), expected, **close)
    torch.testing.assert_close(H, H.T, rtol=1e-10, atol=1e-13 * float(H.abs().max()))
    assert float(eigenvalues[0]) >= -1e-12 * float(eigenvalues[-1]) - rounding


@pytest.mark.parametrize("objective", ["vicreg", "spectral-contrastive"])
def test_curvature_is_the_hessian_where_the_inner_function_is_linear(objective: str) -> None:
    """Without its curved terms VICReg is a quadratic; so is the spectral loss in one factor."""
    case = cases.case("two-views")
    if objective == "vicreg":
        settings = {"variance": 0.0, "covariance": 0.0}
        A = case.coefficients
    else:  # at A = 0 the inner function's second derivative meets only the linear outer term
        settings, A = {}, np.zeros_like(case.coefficients)
    H = dense.ggn(objective, A, case.kernels, case.offset, **settings)
    flat = dense.as_tensor(A).reshape(-1)

    def value(a: torch.Tensor) -> torch.Tensor:
        return dense.loss(objective, a.reshape(A.shape), case.kernels, case.offset, **settings)

    hessian = torch.func.hessian(value)(flat)
    if objective == "vicreg":
        assert relative(H, hessian) < 1e-12
    else:
        assert float(H.norm()) == 0.0  # J = 0 there: the curvature drops what the Hessian keeps
        assert float(hessian.norm()) > 0.1


def test_barlow_twins_curvature_has_rank_at_most_components_squared() -> None:
    case = cases.case("two-views")
    H = dense.ggn("barlow-twins", case.coefficients, **arguments(case, "barlow-twins"))
    eigenvalues = torch.linalg.eigvalsh(H)
    assert len(eigenvalues) == 21
    assert int((eigenvalues > 1e-10 * eigenvalues[-1]).sum()) <= 9


@every_objective
def test_step_solves_the_damped_system(objective: str) -> None:
    case = cases.case("two-views")
    step = dense.step(objective, case.coefficients, 0.1, **arguments(case, objective))
    H_step = dense.ggn_product(objective, case.coefficients, step, **arguments(case, objective))
    G = dense.gradient(objective, case.coefficients, **arguments(case, objective))
    assert relative(H_step + 0.1 * step, -G) < 1e-11


@every_objective
def test_oracle_notices_a_changed_view(objective: str) -> None:
    """No figure is blind to its input: every view moves loss and gradient."""
    case = cases.case("three-views")
    base = arguments(case, objective)
    for view in range(3):
        kernels = case.kernels.copy()
        kernels[view] = kernels[view][::-1]
        changed = {**base, "kernels": kernels}
        values = [float(dense.loss(objective, case.coefficients, **a)) for a in (base, changed)]
        assert abs(values[0] - values[1]) > 1e-6


# ---------------------------------------------------------------------- moments, start, spectrum


def test_moments_equal_numpy_covariances() -> None:
    K = cases.case("three-views").kernels
    mean, second = dense.moments(K)
    joint = np.cov(np.concatenate(list(K), axis=1).T, bias=True)  # [view landmark, view_ landmark_]
    m = K.shape[2]
    for a, b in itertools.product(range(3), repeat=2):
        block = joint[a * m : (a + 1) * m, b * m : (b + 1) * m]
        np.testing.assert_allclose(second[a, b], block, atol=1e-15)
    np.testing.assert_allclose(mean, K.mean(axis=1), atol=1e-15)


def test_start_whitens_the_landmark_kernel() -> None:
    case = cases.case("all-components")
    A = case.start
    np.testing.assert_allclose(A.T @ case.landmark_kernel @ A, np.eye(4), atol=1e-9)
    assert (A[abs(A).argmax(axis=0), range(4)] > 0).all()


def test_nystrom_error_is_zero_at_landmarks_and_one_far_away() -> None:
    K = cases.case("all-components").landmark_kernel
    assert dense.nystrom_error(K, K, np.diag(K), rank=4) == pytest.approx(0.0, abs=1e-9)
    assert dense.nystrom_error(0 * K, K, np.diag(K), rank=4) == 1.0


# ------------------------------------------------------------------------------------ kernels


def network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def test_jacobian_kernel_sums_autograd_gradients_over_probes() -> None:
    module, x = network(), torch.randn(3, 3, dtype=torch.float64)
    probes = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
    phi = []
    for sample, probe in itertools.product(x, probes):
        grads = torch.autograd.grad(module(sample) @ probe, list(module.parameters()))
        phi.append(torch.cat([g.reshape(-1) for g in grads]))
    rows = torch.stack(phi).reshape(3, -1)
    assert relative(dense.jacobian_kernel(module, x, x[:2], probes), rows @ rows[:2].T) < 1e-13
    only = dense.jacobian_features(module, x, probes, ["0.weight"])
    assert relative(only, torch.stack(phi).reshape(3, 2, -1)[:, :, :12]) < 1e-13


def test_explicit_features_are_the_jacobian_of_linear_layers() -> None:
    module, x = network(), torch.randn(4, 3, dtype=torch.float64)
    hidden = module[1](module[0](x))
    probe = torch.tensor([1.0, -1.0], dtype=torch.float64)
    d1 = (probe @ module[2].weight) * (1 - hidden**2)
    rows = torch.cat([x, d1, hidden, probe.expand(4, 2)], dim=1).detach()
    factors = (LayerFactor((0, 3), True, ((3, 7),)), LayerFactor((7, 11), True, ((11, 13),)))
    layout = FeatureLayout(factors, ((0, 13, 0),))
    phi = dense.explicit_features(rows, layout)
    assert phi.shape == (4, layout.n_moments)
    expected = dense.jacobian_kernel(module, x, x, probe[None])
    assert relative(phi @ phi.T, expected) < 1e-13


def test_centred_cosine() -> None:
    phi = np.array([[3.0, 1.0], [1.0, 3.0], [1.0, 1.0]])
    found = dense.centred_cosine(phi, phi, [1.0, 1.0])
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 1, 0], [0, 0, 0]])


# ------------------------------------------------------------------------- influence, measures


def test_influence_by_hand() -> None:
    k, step, A = [[2.0, -1.0]], [[3.0, 4.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]]
    # f = (2, -2); df_t = (6, 7); with K_mm = 1: df_l = step rows
    more = {"landmark_kernel": np.eye(2)}
    expected = {
        "is": [10.0, 1.0],
        "kernel": [2.0, -1.0],
        "signed-step": [2 * (6 - 8) / 8**0.5, 2 / 8**0.5],
        "signed-embedding": [4.0, 4.0],
        "aligned": [2 * (18 + 28) / 5 / 85**0.5, -7 / 85**0.5],
    }
    for measure, score in expected.items():
        np.testing.assert_allclose(dense.influence(measure, k, step, A, **more), [score])


def test_unique_kernel_is_orthogonal_to_the_other_landmarks() -> None:
    K = cases.case("two-views").kernels[0]
    residual = dense.unique_kernel(K, K.T @ K / len(K), ridge=0.0)
    off = (residual.T @ K) * (1 - np.eye(K.shape[1]))
    assert abs(off).max() < 1e-8
    assert dense.unique_kernel(K[:, :1], np.eye(1), ridge=0.0).tolist() == K[:, :1].tolist()


def test_alignment_gap_by_hand() -> None:
    score, kernel = [[0.1, -5.0, 0.2]], [[1.0, 1.0, 2.0]]
    assert dense.alignment_gap(score, [0.0], [0.0, 0.5, 3.0], 1.0, count=1) == pytest.approx(0.0)
    assert dense.alignment_gap(score, ["a"], ["b", "a", "b"], None, count=1) == pytest.approx(2 / 3)
    found = dense.weighted_alignment_gap(score, kernel, ["a"], ["b", "a", "b"], None, count=2)
    assert found == pytest.approx(1 / 3 - 1 / 4)


def test_measures_by_hand() -> None:
    assert dense.spectral_entropy(np.eye(3)) == pytest.approx(1.0)
    assert dense.spectral_entropy(np.ones((4, 3))) == pytest.approx(0.0, abs=1e-12)
    assert dense.spectral_entropy([[2.0]]) == 0.0
    assert dense.coverage([0, 0, 1, 2], [0, 1, 3, 2]) == 4
    assert dense.coverage([0, 0, 1, 2], [3, 2, 1, 0]) == 3
    with pytest.raises(ValueError, match="leaves a class out"):
        dense.coverage([0, 0, 1, 2], [0, 1])
    assert dense.kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert dense.kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)


# ----------------------------------------------------------------------------------- the table


@every_case
def test_case_holds_float32_values_and_usable_shapes(case: cases.Case) -> None:
    assert (case.kernels.astype(np.float32) == case.kernels).all()
    assert case.kernels.shape[2] == len(case.landmark_kernel) == len(case.coefficients)
    assert np.isfinite(case.coefficients).all()
    assert len({c.name for c in TABLE}) == len(TABLE)
