"""The algebra against the independent oracle: kernels, moments, spectrum, objectives, influence.

The oracle (tests/dense.py) was written from the published formulas without a look at the package.
Here the package's route runs from kernel rows to the step: float64 blocks through ``moment_sums``,
its own start, its own solver; every figure is compared with the dense one.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from krepes_ooc.core.array_columns import BlockFunction
from krepes_ooc.core.blocks import Block
from krepes_ooc.core.feature_layout import FeatureLayout, LayerFactor, sketch_layout
from krepes_ooc.core.landmark_rows import sum_views
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.fidelity import metrics
from krepes_ooc.stages.influence import scores
from krepes_ooc.stages.kernel import kernel_map
from krepes_ooc.stages.kernel.normalisation import Normalisation
from krepes_ooc.stages.moments import sums
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.basis import Basis
from krepes_ooc.stages.newton.damping import absolute_damping, evaluate_sweep
from krepes_ooc.stages.newton.levenberg_marquardt import levenberg_marquardt
from krepes_ooc.stages.newton.objectives.barlow_twins import BarlowTwins, BarlowTwinsSettings
from krepes_ooc.stages.newton.objectives.byol import BYOL, Predictor, fit_predictor
from krepes_ooc.stages.newton.objectives.interface import Objective
from krepes_ooc.stages.newton.objectives.registry import create, settings_type
from krepes_ooc.stages.newton.objectives.simclr import SimCLR, SimCLRSettings
from krepes_ooc.stages.newton.objectives.vicreg import VICReg, VICRegSettings
from krepes_ooc.stages.newton.preconditioners import Kronecker, RandomizedNystrom
from krepes_ooc.stages.newton.solvers import KrylovSolver, choose_solver
from krepes_ooc.stages.spectrum import nystrom
from tests import cases, dense

Float = cases.Float
TABLE = cases.cases()
every_case = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
every_objective = pytest.mark.parametrize("objective", dense.OBJECTIVES)
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
one_thread = pytest.fixture(autouse=True, scope="module")(dense.one_thread)


def relative(found: object, expected: object) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300))


# ------------------------------------------------------------------------------------- kernels


@st.composite
def layouts(draw: st.DrawFn) -> FeatureLayout:
    """Some layers with or without input and bias, one to three probes, unused columns between."""
    if draw(st.booleans()):
        return sketch_layout(draw(st.integers(1, 9)))
    at, factors = 0, []
    for _ in range(draw(st.integers(1, 3))):
        at += draw(st.integers(0, 1))
        inputs = (at, at + draw(st.integers(1, 4))) if draw(st.booleans()) else None
        at = inputs[1] if inputs else at
        bias = inputs is None or draw(st.booleans())
        width, gradients = draw(st.integers(1, 3)), []
        for _ in range(draw(st.integers(1, 3))):
            at += draw(st.integers(0, 1))
            gradients.append((at, at + width))
            at += width
        factors.append(LayerFactor(inputs, bias, tuple(gradients)))
    return FeatureLayout(tuple(factors), ((0, at, 0),))


@few
@given(layouts(), seeds, st.integers(1, 6), st.floats(-12, 12))
def test_kernels_equal_explicit_features(
    layout: FeatureLayout, seed: int, n_samples: int, power: float
) -> None:
    draw = np.random.default_rng(seed)
    x = 2.0**power * draw.normal(size=(n_samples, layout.n_features))
    y = 2.0**power * draw.normal(size=(4, layout.n_features))
    phi_x, phi_y = dense.explicit_features(x, layout), dense.explicit_features(y, layout)
    size_x, size_y = np.linalg.norm(phi_x, axis=1), np.linalg.norm(phi_y, axis=1)
    k = inner_products.gram(x, y, layout)
    assert abs((k - phi_x @ phi_y.T) / np.outer(size_x, size_y)).max() < 1e-12
    assert relative(inner_products.self_kernel(x, layout), size_x**2) < 1e-12
    centre = inner_products.centre_sum(x, layout) / n_samples
    assert centre.shape == (layout.n_moments,)
    assert relative(centre, phi_x.mean(axis=0)) < 1e-12
    c_y, bound = inner_products.centre_kernel(y, centre, layout), size_y * np.linalg.norm(centre)
    assert abs((c_y - phi_y @ phi_x.mean(axis=0)) / bound).max() < 1e-12


@few
@given(layouts(), seeds, st.sampled_from([np.float32, np.float64]))
def test_normalised_rows_are_centred_cosines(
    layout: FeatureLayout, seed: int, dtype: type[np.floating]
) -> None:
    draw = np.random.default_rng(seed)
    x = (draw.normal(size=(6, layout.n_features)) + 1).astype(dtype)
    phi = dense.explicit_features(x, layout)
    centre = inner_products.centre_sum(x, layout) / len(x)
    normalisation = Normalisation("ccos", inner_products.centre_self(centre))
    found = kernel_map.kernel_map(x[:3], layout, centre, normalisation).rows(x)
    own = ((phi - phi.mean(axis=0)) ** 2).sum(axis=1) / (phi**2).sum(axis=1)
    sound = own > 1e-3  # rows that float32 can tell from the centre
    expected = dense.centred_cosine(phi, phi[:3], phi.mean(axis=0))
    error = abs(found - expected)[np.ix_(sound, sound[:3])]
    assert error.size == 0 or error.max() < (1e-2 if dtype is np.float32 else 1e-9)
    K_mm = kernel_map.landmark_kernel(x[:3], layout, centre, normalisation)
    assert (K_mm == K_mm.T).all()
    exact = (own > 1e-4)[:3]
    error = abs(K_mm - expected[:3])[np.ix_(exact, exact)]
    assert error.size == 0 or error.max() < (1e-3 if dtype is np.float32 else 1e-9)


def test_gram_of_linear_layers_is_the_jacobian_kernel() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2, bias=False)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    probes = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) / 2**0.5
    hidden = module[1](module[0](x))
    d1 = [(probe @ module[2].weight) * (1 - hidden**2) for probe in probes]
    rows = torch.cat([x, *d1, hidden, *(probe.expand(6, 2) for probe in probes)], dim=1)
    layout = FeatureLayout(
        (
            LayerFactor((0, 3), True, ((3, 8), (8, 13))),
            LayerFactor((13, 18), False, ((18, 20), (20, 22))),
        ),
        ((0, 22, 0),),
    )
    found = inner_products.gram(rows.detach().numpy(), rows.detach().numpy()[:4], layout)
    assert relative(found, dense.jacobian_kernel(module, x, x[:4], probes)) < 1e-13


# ------------------------------------------------------------------- moments, start, spectrum


def moments_of(case: cases.Case, block_rows: int = 8, sub_rows: int = 4) -> Moments:
    """The package's moments: blocks, sub-blocks, shifted sums, merged pairwise in a tree."""
    views, n_samples = list(case.kernels), case.kernels.shape[1]
    cuts = [slice(i, i + block_rows) for i in range(0, n_samples, block_rows)]
    shift = sums.block_shift([K[cuts[0]] for K in views])
    parts = [sums.moment_sums([K[cut] for K in views], shift, sub_rows) for cut in cuts]
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [sums.merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return Moments(*sums.finish(parts[0]), n_samples)


@every_case
def test_moments_equal_the_dense_ones(case: cases.Case) -> None:
    mean, second = dense.moments(case.kernels)
    found = moments_of(case)
    assert relative(found.mean, mean) < 1e-13
    assert relative(found.second, second) < (1e-13 if case.well_posed else 1e-10)
    assert (found.second == found.second.transpose(1, 0, 3, 2)).all()


@few
@given(
    seeds,
    st.integers(2, 40),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(0, 1e4),
)
def test_moments_hold_under_any_cut_and_mean(
    seed: int, n_samples: int, m: int, p: int, block_rows: int, sub_rows: int, mean: float
) -> None:
    draw = np.random.default_rng(seed)
    K = mean * draw.normal(size=m) + draw.normal(size=(p, n_samples, m))
    case = cases.Case("drawn", K, np.eye(m), np.eye(m), np.eye(m))
    found = moments_of(case, block_rows, sub_rows)
    expected_mean, second = dense.moments(K)
    assert relative(found.mean, expected_mean) < 1e-13
    # The oracle itself subtracts means of size ``mean`` from deviations of size one.
    assert relative(found.second, second) < 1e-13 * (1 + mean) * n_samples
    for a, b in itertools.product(range(p), repeat=2):
        assert relative(found.uncentred(a, b), K[a].T @ K[b] / n_samples) < 1e-12
        D = (K[a] - K[b]).T @ (K[a] - K[b]) / n_samples
        assert abs(found.difference(a, b) - D).max() < 1e-12 * (1 + mean) * n_samples


@every_case
def test_start_and_nystrom_error_equal_the_dense_ones(case: cases.Case) -> None:
    eigenvalues, U = nystrom.eigenpairs(case.landmark_kernel)
    h = case.start.shape[1]
    if case.name not in {"duplicate-landmark", "constant-column", "nearly-collapsed"}:
        # Those three keep the start of the case they were made from.
        assert relative(nystrom.start(eigenvalues, U, h), case.start) < 1e-7
    K = case.kernels.reshape(-1, case.kernels.shape[-1])
    own = np.full(len(K), 2 * abs(case.landmark_kernel).max())
    expected = dense.nystrom_error(K, case.landmark_kernel, own, h)
    S = np.mean([K_a.T @ K_a for K_a in case.kernels], axis=0) / case.kernels.shape[1]
    found = nystrom.nystrom_error(own[0], S, eigenvalues, U, h)
    assert found == pytest.approx(np.clip(expected, 0, 1), abs=1e-9)


@every_case
def test_embedding_size_from_moments(case: cases.Case) -> None:
    views = dense.embeddings(case.coefficients, case.kernels, case.offset)
    expected = torch.stack(views).square().sum(dim=-1).mean().sqrt()
    found = moments_of(case).embedding_rms(case.coefficients, case.offset)
    assert found == pytest.approx(float(expected), rel=1e-9 if case.well_posed else 1e-6)


# ---------------------------------------------------------------------------------- influence


@few
@given(seeds, st.integers(1, 7), st.integers(1, 9), st.integers(1, 4))
def test_influence_equals_the_loops(seed: int, audited: int, m: int, h: int) -> None:
    draw = np.random.default_rng(seed)
    K, step, A = draw.normal(size=(audited, m)), draw.normal(size=(m, h)), draw.normal(size=(m, h))
    offset, root = draw.normal(size=h), draw.normal(size=(m, m))
    K_mm, K[0] = root @ root.T, 0.0
    step[0] = 0.0
    f = scores.embedding(K, A, offset)
    more = {"offset": offset, "landmark_kernel": K_mm}
    found = {
        "is": scores.influence_score(K, step),
        "kernel": scores.scorer("kernel", step, K_mm)(K),
        "aligned": scores.aligned(K, step, K_mm),
        "signed-step": scores.contribution(K, step, f),
        "signed-embedding": scores.embedding_contribution(K, A, f),
    }
    for measure, score in found.items():
        expected = dense.influence(measure, K, step, A, **more)
        np.testing.assert_allclose(score, expected, rtol=1e-9, atol=1e-12, err_msg=measure)
    total = (f * (f - offset)).sum(axis=1)
    np.testing.assert_allclose(found["signed-embedding"].sum(axis=1), total, atol=1e-9)


@few
@given(seeds, st.integers(1, 7))
def test_unique_kernel_is_the_regression_residual(seed: int, m: int) -> None:
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(40, m))
    S, K = rows.T @ rows / 40, draw.normal(size=(5, m))
    found = scores.unique(K, scores.leave_one_out(S))
    np.testing.assert_allclose(found, dense.unique_kernel(K, S), rtol=1e-8, atol=1e-10)


def test_unique_kernel_of_duplicates_is_small() -> None:
    """What a duplicate leaves of its twin is nothing; other landmarks keep their residual."""
    K = cases.case("duplicate-landmark").kernels[0]
    K[:, 0] += 0.0  # columns 0 and 1 are equal
    S = K.T @ K / len(K)
    found = scores.unique(K, scores.leave_one_out(S))
    assert np.isfinite(found).all()
    # The ridge of 1e-4 leaves that share of them.
    assert abs(found[:, :2]).max() < 1e-3
    expected = dense.unique_kernel(K[:, 1:], S[1:, 1:])[:, 1:]
    assert abs(found[:, 2:] - expected).max() < 1e-3


@few
@given(seeds, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_rows_of_one_landmark_are_summed_before_the_norm(
    seed: int, audited: int, landmarks: int, views: int
) -> None:
    draw = np.random.default_rng(seed)
    rows = landmarks * views
    K, step = draw.normal(size=(audited, rows)), draw.normal(size=(rows, 3))
    expected = np.zeros((audited, landmarks))
    plain = np.zeros_like(expected)
    for t, landmark in itertools.product(range(audited), range(landmarks)):
        its_rows = [view * landmarks + landmark for view in range(views)]
        expected[t, landmark] = np.linalg.norm(sum(K[t, row] * step[row] for row in its_rows))
        plain[t, landmark] = sum(K[t, row] for row in its_rows)
    found = scores.grouped_influence_score(K, step, views)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(sum_views(K, views), plain, atol=1e-12)


@few
@given(seeds, st.integers(1, 4), st.integers(1, 12), st.integers(1, 12))
def test_top_landmarks_equal_a_full_sort(seed: int, audited: int, m: int, count: int) -> None:
    score = np.random.default_rng(seed).integers(-3, 4, size=(audited, m)).astype(float)
    found = scores.top_k(score, count)
    for t, row in enumerate(score):
        order = sorted(range(m), key=lambda j: (-abs(row[j]), j))[:count]
        assert found[0][t].tolist() == order
        assert found[1][t].tolist() == row[order].tolist()


@few
@given(seeds, st.integers(1, 4), st.integers(1, 9), st.integers(1, 5))
def test_what_pushes_most_equals_a_loop(seed: int, audited: int, m: int, count: int) -> None:
    signed = np.random.default_rng(seed).integers(-2, 3, size=(audited, m)).astype(float)
    landmark, value = scores.repelling(signed, count)
    for t, row in enumerate(signed):
        left = {j: entry for j, entry in enumerate(row) if entry < 0}
        for place in range(min(count, m)):
            lowest = min(left.values(), default=0.0)
            first = min((j for j in left if left[j] == lowest), default=-1)
            left.pop(first, None)
            assert (landmark[t, place], value[t, place]) == (first, lowest)
    assert landmark.shape == value.shape == (audited, min(count, m))


# --------------------------------------------------------------------------------- objectives


class BlockStream:
    """Kernel blocks in order, summed from left to right."""

    def __init__(
        self, kernels: Float, block_rows: int = 8, dtype: type[np.floating] = np.float64
    ) -> None:
        self.kernels, self.block_rows, self.dtype = kernels, block_rows, dtype
        self.n_views, self.n_samples = kernels.shape[:2]

    def reduce(self, function: BlockFunction) -> tuple[np.ndarray, ...]:
        parts = []
        for index, first in enumerate(range(0, self.n_samples, self.block_rows)):
            block = Block(index, first, min(first + self.block_rows, self.n_samples))
            rows = self.kernels[:, block.start : block.stop].astype(self.dtype)
            parts.append(function(tuple(rows), block))
        return tuple(sum(terms) for terms in zip(*parts, strict=True))


def build(objective: str, case: cases.Case, stream: BlockStream | None = None) -> Objective:
    """The package's objective on a case, moments and blocks made by the package."""
    constants = {"batch": case.batch} if objective == "simclr" else {}
    return create(
        objective,
        settings_type(objective)(**constants),
        moments=moments_of(case),
        stream=stream or BlockStream(case.kernels),
        start=case.start,
        offset=case.offset,
        sub_rows=5,
    )


def oracle(case: cases.Case, objective: str) -> dict[str, object]:
    return {"kernels": case.kernels, "offset": case.offset, **case.settings(objective)}


def assert_close(found: object, expected: object, rounding: float, tolerance: float) -> None:
    """Relative to the norm of what is expected, or nothing but ``rounding``."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    error = float(np.linalg.norm(found - expected))
    assert error <= tolerance * float(np.linalg.norm(expected)) + rounding


def compare(
    case: cases.Case, objective: str, found: Objective, tolerance: float, seed: int = 0
) -> None:
    """Value, gradient and product at the case's coefficients.

    Where a figure vanishes only rounding is left: on the unit sphere of one component nothing can
    turn. There a gradient is measured by ``turn``, the fastest that any embedding turns with A.
    """
    A = case.coefficients
    at_A, arguments = found.linearise(A), oracle(case, objective)
    value = float(dense.loss(objective, A, **arguments))
    turn, small = turning(case), 1e-4 * tolerance * (1 + abs(value))
    assert_close(at_A.value, value, small, tolerance)
    assert_close(found.value(A), value, small, tolerance)
    gradient = dense.gradient(objective, A, **arguments)
    assert_close(at_A.gradient, gradient, small * turn, tolerance)
    V = np.random.default_rng(seed).normal(size=A.shape)
    expected = dense.ggn_product(objective, A, V, **arguments)
    assert_close(at_A.product(V), expected, small * turn**2 * np.linalg.norm(V), tolerance)


def turning(case: cases.Case) -> float:
    """1 / |A|, or for one component the largest |k| / |z| of any row."""
    if case.coefficients.shape[1] > 1:
        return 1 / float(np.linalg.norm(case.coefficients))
    views = dense.embeddings(case.coefficients, case.kernels, case.offset)
    z = np.linalg.norm(torch.stack(views).numpy(), axis=-1)
    return float((np.linalg.norm(case.kernels, axis=-1) / z).max())


@every_objective
@every_case
def test_objectives_equal_the_published_losses(case: cases.Case, objective: str) -> None:
    compare(case, objective, build(objective, case), 1e-10 if case.well_posed else 1e-7)


@every_objective
@every_case
def test_curvature_equals_the_dense_one_and_is_psd(case: cases.Case, objective: str) -> None:
    A, found = case.coefficients, build(objective, case).linearise(case.coefficients)
    basis = np.eye(A.size).reshape(*A.shape, A.size)
    H = found.product(basis).reshape(A.size, A.size)
    expected = dense.ggn(objective, A, **oracle(case, objective)).numpy()
    rounding = 1e-13 * A.size / np.linalg.norm(A) ** 2
    assert_close(H, expected, rounding, 1e-9 if case.well_posed else 1e-7)
    assert abs(H - H.T).max() <= 1e-11 * abs(H).max() + rounding
    eigenvalues = np.linalg.eigvalsh((H + H.T) / 2)
    assert eigenvalues[0] >= -1e-11 * eigenvalues[-1] - rounding
    mean_diagonal = np.trace(expected) / A.size
    assert found.mean_diagonal == pytest.approx(mean_diagonal, rel=1e-7, abs=rounding)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(dense.OBJECTIVES),
    seeds,
    st.integers(2, 30),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(2, 4),
    st.integers(-12, 12),
)
def test_objectives_hold_for_any_shape_and_scale(
    objective: str, seed: int, n_samples: int, m: int, h: int, p: int, power: int
) -> None:
    """Coefficients that keep the embedding's size, so that no loss saturates."""
    plain = cases.make("drawn", n_samples, m, min(m, h), p, seed, noise=0.8)
    case = cases.scaled(plain, "drawn", 4.0**power)
    compare(case, objective, build(objective, case), 1e-9, seed)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["simclr", "byol"]), seeds, st.integers(4, 26), st.sampled_from([8, 16, 64]))
def test_sample_objectives_do_not_depend_on_blocks(
    objective: str, seed: int, n_samples: int, block_rows: int
) -> None:
    case = cases.make("drawn", n_samples, 4, 3, 3, seed)
    compare(case, objective, build(objective, case, BlockStream(case.kernels, block_rows)), 1e-9)


@pytest.mark.parametrize("objective", ["simclr", "byol"])
def test_float32_blocks_keep_their_digits(objective: str) -> None:
    case = cases.case("three-views")
    stream = BlockStream(case.kernels, dtype=np.float32)
    compare(case, objective, build(objective, case, stream), 2e-5)


@every_objective
def test_columns_of_coefficients_have_their_losses(objective: str) -> None:
    case, draw = cases.case("three-views"), np.random.default_rng(1)
    A = case.coefficients[..., None] + 0.1 * draw.normal(size=(*case.coefficients.shape, 3))
    found = build(objective, case).values(A)
    arguments = oracle(case, objective)
    expected = [float(dense.loss(objective, A[..., c], **arguments)) for c in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_other_constants_reach_the_losses() -> None:
    """Every constant away from its default, both ways."""
    case = cases.case("three-views")
    given_moments, stream = moments_of(case), BlockStream(case.kernels)
    weight = np.random.default_rng(2).normal(size=(3, 3))
    bias = np.array([0.1, -0.2, 0.3])
    twist = {"predictor_weight": weight, "predictor_bias": bias}
    constants: dict[str, tuple[Objective, dict[str, object]]] = {
        "barlow-twins": (
            BarlowTwins(given_moments, BarlowTwinsSettings(off_diagonal=0.3, epsilon=0.1)),
            {"off_diagonal": 0.3, "epsilon": 0.1},
        ),
        "vicreg": (
            VICReg(given_moments, VICRegSettings(3.0, 50.0, 7.0, 0.05)),
            {"invariance": 3.0, "variance": 50.0, "covariance": 7.0, "epsilon": 0.05},
        ),
        "simclr": (
            SimCLR(stream, case.offset, SimCLRSettings(temperature=0.07, batch=4)),
            {"temperature": 0.07, "batch": 4},
        ),
        "byol": (
            BYOL(stream, case.offset, case.start, Predictor(weight, bias)),
            {**case.settings("byol"), **twist},
        ),
    }
    A, V = case.coefficients, np.random.default_rng(3).normal(size=case.coefficients.shape)
    for objective, (built, more) in constants.items():
        found, arguments = built.linearise(A), (case.kernels, case.offset)
        assert_close(found.value, dense.loss(objective, A, *arguments, **more), 0.0, 1e-10)
        assert_close(found.gradient, dense.gradient(objective, A, *arguments, **more), 0.0, 1e-10)
        product = dense.ggn_product(objective, A, V, *arguments, **more)
        assert_close(found.product(V), product, 0.0, 1e-10)
        H = dense.ggn(objective, A, *arguments, **more)
        assert_close(found.mean_diagonal, float(H.trace()) / A.size, 0.0, 1e-9)


@pytest.mark.parametrize("objective", ["simclr", "byol"])
def test_component_curvature_is_what_each_point_sees_of_itself(objective: str) -> None:
    """With one landmark a point, H holds the curvature in z; its diagonal blocks are summed."""
    case = cases.make("points", n_samples=7, n_components=3, seed=12)
    Z = np.concatenate(dense.embeddings(case.coefficients, case.kernels, case.offset))
    points = np.eye(14).reshape(2, 7, 14)
    H = dense.ggn(objective, Z, points, **case.settings(objective)).reshape(14, 3, 14, 3)
    expected = sum(H[i, :, i] for i in range(14))
    _, Q = build(objective, case).linearise(case.coefficients).kronecker(moments_of(case))
    assert_close(Q, expected, 0.0, 1e-10)


@every_objective
@pytest.mark.parametrize("name", ["two-views", "three-views", "duplicate-landmark", "two-samples"])
@pytest.mark.parametrize("relative_damping", [1e-3, 1.0, 1e3])
def test_solved_steps_equal_the_dense_solve(
    objective: str, name: str, relative_damping: float
) -> None:
    case = cases.case(name)
    at_A = build(objective, case).linearise(case.coefficients)
    damping = float(absolute_damping(relative_damping, at_A, case.coefficients))
    model = Kronecker.build(at_A, moments_of(case))
    expected = dense.step(objective, case.coefficients, damping, **oracle(case, objective))
    for preconditioner in (None, model):
        krylov = KrylovSolver(at_A, preconditioner, 1e-10, 5000)
        chosen = choose_solver(at_A, lambda model=preconditioner: model, tolerance=1e-8)
        for solution in (krylov.solve(damping), chosen.solve(damping)):
            assert solution.converged
            assert_close(solution.step, expected, 0.0, 1e-6)


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        ("simclr", "one-landmark"),
        ("simclr", "one-component"),
        ("byol", "one-component"),
        ("byol", "one-component-three-views"),
        ("byol", "one-landmark"),
    ],
)
def test_one_component_on_a_sphere_has_no_damping(objective: str, name: str) -> None:
    """u = +-1 cannot turn, so gradient and curvature are zero and no step has a meaning."""
    case = cases.case(name)
    H = dense.ggn(objective, case.coefficients, **oracle(case, objective))
    assert float(H.norm()) < 1e-12 * turning(case) ** 2
    built = build(objective, case, BlockStream(case.kernels, dtype=np.float32))
    with pytest.raises(StageFailed, match="no curvature"):
        absolute_damping(1.0, built.linearise(case.coefficients), case.coefficients)


@every_objective
def test_steps_are_judged_by_the_published_loss(objective: str) -> None:
    case, relative_damping = cases.case("three-views"), np.array([1e-1, 1e1, 1e3])
    built, arguments = build(objective, case), oracle(case, objective)
    at_A, A = built.linearise(case.coefficients), case.coefficients
    solver = choose_solver(at_A, lambda: None, tolerance=1e-10)
    solution = solver.solve(relative_damping * at_A.mean_diagonal)
    losses = built.values(A[..., None] + solution.step)
    sweep = evaluate_sweep(
        losses, at_A, A, solution, relative_damping, moments_of(case), case.offset
    )
    start = float(dense.loss(objective, A, **arguments))
    for column in range(3):
        step = dense.step(objective, A, sweep.damping[column], **arguments)
        loss = float(dense.loss(objective, A + step.numpy(), **arguments))
        G = dense.gradient(objective, A, **arguments)
        H_step = dense.ggn_product(objective, A, step, **arguments)
        predicted = float(-(G * step).sum() - (step * H_step).sum() / 2)
        views = dense.embeddings(step, case.kernels)
        f = dense.embeddings(A, case.kernels, case.offset)
        change = float(torch.stack(views).norm() / torch.stack(f).norm())
        assert sweep.loss[column] == pytest.approx(loss, rel=1e-7)
        assert sweep.predicted[column] == pytest.approx(predicted, rel=1e-6)
        assert sweep.rho[column] == pytest.approx((start - loss) / predicted, rel=1e-5)
        assert sweep.step_norm[column] == pytest.approx(float(step.norm()), rel=1e-6)
        assert sweep.embedding_change[column] == pytest.approx(change, rel=1e-6)


@every_objective
def test_preconditioners_equal_their_dense_models(objective: str) -> None:
    case, draw = cases.case("two-views"), np.random.default_rng(4)
    at_A, A = build(objective, case).linearise(case.coefficients), case.coefficients
    R, damping = draw.normal(size=(*A.shape, 2)), np.array([0.01, 3.0]) * at_A.mean_diagonal
    H = dense.ggn(objective, A, **oracle(case, objective)).numpy()
    model = np.kron(*at_A.kronecker(moments_of(case)))
    found = Kronecker.build(at_A, moments_of(case)).apply(R, damping)
    full = RandomizedNystrom.build(at_A.product, A.shape, A.size).apply(R, damping)
    for column, shift in enumerate(damping):
        r = R[..., column].ravel()
        expected = np.linalg.solve(model + shift * np.eye(A.size), r)
        assert_close(found[..., column].ravel(), expected, 0.0, 1e-7)
        # With all directions sketched M^-1 is (l_r + damping) (H + damping)^-1, l_r the smallest.
        exact = np.linalg.solve(H + shift * np.eye(A.size), r)
        smallest = max(np.linalg.eigvalsh(H)[0], 0.0)
        assert_close(full[..., column].ravel(), (smallest + shift) * exact, 0.0, 1e-6)


def test_kronecker_model_of_vicreg_is_exact_without_spread() -> None:
    case = cases.case("two-views")
    built = VICReg(moments_of(case), VICRegSettings(variance=0.0, covariance=0.0))
    at_A = built.linearise(case.coefficients)
    zero = {"variance": 0.0, "covariance": 0.0}
    H = dense.ggn("vicreg", case.coefficients, case.kernels, case.offset, **zero).numpy()
    assert_close(np.kron(*at_A.kronecker(moments_of(case))), H, 0.0, 1e-12)


@every_objective
def test_rkhs_damping_is_a_penalty_on_the_landmark_kernel(objective: str) -> None:
    """In A: (H + damping K_mm) dA = -G for a landmark kernel of full rank."""
    case = cases.case("all-components")
    eigenvalues, U = nystrom.eigenpairs(case.landmark_kernel)
    basis = Basis.rkhs(eigenvalues, U, len(U))
    B, start = basis.to_basis(case.coefficients), basis.to_basis(case.start)
    constants = settings_type(objective)(**({"batch": 8} if objective == "simclr" else {}))
    built = create(
        objective,
        constants,
        moments=basis.moments(moments_of(case)),
        stream=basis.stream(BlockStream(case.kernels)),
        start=start,
        offset=case.offset,
    )
    at_B = built.linearise(B)
    step = basis.from_basis(KrylovSolver(at_B, None, 1e-12, 5000).solve(0.3).step)
    arguments = oracle(case, objective)
    H = dense.ggn(objective, case.coefficients, **arguments).numpy()
    G = dense.gradient(objective, case.coefficients, **arguments).numpy()
    penalty = 0.3 * np.kron(case.landmark_kernel, np.eye(G.shape[1]))
    expected = -np.linalg.solve(H + penalty, G.ravel()).reshape(G.shape)
    assert_close(step, expected, 0.0, 1e-6)


@pytest.mark.parametrize("objective", [name for name in dense.OBJECTIVES if name != "byol"])
def test_descent_ends_where_the_published_loss_is_lower(objective: str) -> None:
    case = cases.case("three-views")
    loss = build(objective, case)

    def prepare(A: np.ndarray) -> tuple[Any, Any]:
        here = loss.linearise(A)
        return here, choose_solver(here, lambda: None)

    found = levenberg_marquardt(loss, case.coefficients, prepare)
    arguments = oracle(case, objective)
    first = float(dense.loss(objective, case.coefficients, **arguments))
    last = float(dense.loss(objective, found.coefficients, **arguments))
    assert found.loss[0] == pytest.approx(first, rel=1e-10)
    assert found.loss[-1] == pytest.approx(last, rel=1e-10)
    assert (np.diff(found.loss) < 0).all()
    assert last < 0.9 * first if first > 0 else last < first
    # The next step's gain is what the model of the oracle promises at the first point.
    damping = found.damping_relative[0] * np.trace(
        dense.ggn(objective, case.coefficients, **arguments)
    )
    step = dense.step(
        objective, case.coefficients, damping / case.coefficients.size, **arguments
    ).numpy()
    loss = float(dense.loss(objective, case.coefficients + step, **arguments))
    assert found.loss[1] == pytest.approx(loss, rel=1e-6)


def test_ridge_predictor_solves_its_normal_equations() -> None:
    """min mean |W z + b - t|^2 + penalty |W|^2 over samples and views, t the other views' mean."""
    case = cases.case("three-views")
    offset = case.offset + np.array([0.5, -0.3, 0.2])  # so that embeddings have a mean
    found = fit_predictor(BlockStream(case.kernels), case.start, offset, 0.1, sub_rows=5)
    views = dense.embeddings(case.start, case.kernels, offset)
    targets = torch.stack(dense.byol_targets(case.start, case.kernels, offset))
    goals = (targets.sum(dim=0) - targets) / 2
    Z, T = torch.cat(views).numpy(), goals.reshape(-1, 3).numpy()
    centred = Z - Z.mean(axis=0)
    penalty = 0.1 * (centred**2).mean()
    lifted = np.concatenate([centred / len(Z) ** 0.5, penalty**0.5 * np.eye(3)])
    wanted = np.concatenate([(T - T.mean(axis=0)) / len(Z) ** 0.5, np.zeros((3, 3))])
    weight = np.linalg.lstsq(lifted, wanted, rcond=None)[0].T
    assert_close(found.weight, weight, 0.0, 1e-10)
    assert_close(found.bias, T.mean(axis=0) - weight @ Z.mean(axis=0), 0.0, 1e-10)


# ------------------------------------------------------------------------------------ measures


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
