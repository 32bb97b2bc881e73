"""Every objective against the published loss by automatic differentiation (tests/dense/)."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core.blocks import Block
from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.objectives.barlow_twins import BarlowTwins
from krepes_ooc.stages.newton.objectives.byol import BYOL, Predictor, fit_predictor
from krepes_ooc.stages.newton.objectives.simclr import SimCLR, SimCLRSettings
from krepes_ooc.stages.newton.objectives.spectral_contrastive import SpectralContrastive
from krepes_ooc.stages.newton.objectives.vicreg import VICReg
from tests import cases, dense

MOMENT = {kind.name: kind for kind in (BarlowTwins, VICReg, SpectralContrastive)}
TABLE = [case for case in cases.cases() if case.well_posed]
every_case = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
every_sample = pytest.mark.parametrize("name", ["simclr", "byol"])
every_moment = pytest.mark.parametrize("name", MOMENT)


def moments_of(kernels: np.ndarray) -> Moments:
    n_samples = kernels.shape[1]
    mean = kernels.mean(axis=1)
    centred = kernels - mean[:, None]
    return Moments(mean, np.einsum("anl,bnk->ablk", centred, centred) / n_samples, n_samples)


@dataclass
class ArrayStream:
    """Kernel blocks of arrays in memory, summed in order."""

    kernels: np.ndarray
    block_rows: int = 8
    blocks: int = 0

    @property
    def n_samples(self) -> int:
        return self.kernels.shape[1]

    @property
    def n_views(self) -> int:
        return self.kernels.shape[0]

    def reduce(self, function):
        total = None
        for index, start in enumerate(range(0, self.n_samples, self.block_rows)):
            stop = min(start + self.block_rows, self.n_samples)
            part = function(tuple(self.kernels[:, start:stop]), Block(index, start, stop))
            total = part if total is None else tuple(map(np.add, total, part))
        return total


def sample_objective(name: str, case: cases.Case, dtype=np.float64, **more):
    stream = ArrayStream(case.kernels.astype(dtype), **more)
    if name == "byol":
        return BYOL(stream, case.offset, case.start, sub_rows=3)
    return SimCLR(stream, case.offset, SimCLRSettings(batch=case.batch))


def relative(found: object, expected: object) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-6))


def dense_curvature(case: cases.Case, name: str) -> np.ndarray:
    H = dense.ggn(name, case.coefficients, case.kernels, case.offset, **case.settings(name))
    return np.asarray(H)


@every_moment
@every_case
def test_moment_objectives_match_the_published_losses(name: str, case: cases.Case) -> None:
    A, arguments = case.coefficients, (case.kernels, case.offset)
    found = MOMENT[name](moments_of(case.kernels)).linearise(A)
    settings = case.settings(name)
    assert found.value == pytest.approx(float(dense.loss(name, A, *arguments, **settings)), 1e-10)
    assert relative(found.gradient, dense.gradient(name, A, *arguments, **settings)) < 1e-9
    H = dense_curvature(case, name)
    V = np.random.default_rng(0).normal(size=A.shape)
    expected = (H @ V.ravel()).reshape(A.shape)
    assert relative(found.product(V), expected) < 1e-9
    assert found.mean_diagonal == pytest.approx(np.trace(H) / A.size, 1e-9)


@every_sample
@every_case
def test_sample_objectives_match_the_published_losses(name: str, case: cases.Case) -> None:
    A, arguments = case.coefficients, (case.kernels, case.offset)
    objective, settings = sample_objective(name, case), case.settings(name)
    found = objective.linearise(A)
    assert objective.passes == 1
    assert found.value == pytest.approx(float(dense.loss(name, A, *arguments, **settings)), 1e-10)
    assert relative(found.gradient, dense.gradient(name, A, *arguments, **settings)) < 1e-9
    H = dense_curvature(case, name)
    V = np.random.default_rng(0).normal(size=A.shape)
    expected = (H @ V.ravel()).reshape(A.shape)
    assert relative(found.product(V), expected) < 1e-9
    assert found.mean_diagonal == pytest.approx(np.trace(H) / A.size, 1e-9, abs=1e-14)


@every_moment
def test_columns_share_a_product(name: str) -> None:
    case = cases.case("three-views")
    found = MOMENT[name](moments_of(case.kernels)).linearise(case.coefficients)
    V = np.random.default_rng(0).normal(size=(*case.coefficients.shape, 4))
    together = found.product(V)
    assert together.shape == V.shape
    for column in range(4):
        assert relative(together[..., column], found.product(V[..., column])) < 1e-13


@pytest.mark.parametrize("name", ["two-views", "three-views", "one-component", "tiny-scale"])
def test_barlow_twins_is_a_least_squares_problem(name: str) -> None:
    case = cases.case(name)
    found = BarlowTwins(moments_of(case.kernels)).linearise(case.coefficients)
    basis = np.eye(case.coefficients.size).reshape(-1, *case.coefficients.shape)
    J = found.jacobian(basis).T
    adjoint = found.adjoint(np.eye(len(J))).reshape(len(J), -1)
    assert relative(adjoint, J) < 1e-13
    assert relative(found.gram(), J @ J.T) < 1e-12
    assert relative(found.gradient.ravel(), J.T @ found.residual) < 1e-12
    assert found.value == pytest.approx(found.residual @ found.residual / 2)


@every_sample
def test_columns_share_a_pass(name: str) -> None:
    case = cases.case("three-views")
    objective = sample_objective(name, case)
    found = objective.linearise(case.coefficients)
    V = np.random.default_rng(0).normal(size=(*case.coefficients.shape, 4))
    together, values = found.product(V), objective.values(V)
    assert objective.passes == 3
    for column in range(4):
        assert relative(together[..., column], found.product(V[..., column])) < 1e-13
        assert values[column] == pytest.approx(objective.value(V[..., column]), 1e-13)


@every_moment
def test_values_of_columns(name: str) -> None:
    case = cases.case("two-views")
    objective = MOMENT[name](moments_of(case.kernels))
    V = np.random.default_rng(0).normal(size=(*case.coefficients.shape, 3))
    assert objective.values(V).tolist() == [objective.value(V[..., i]) for i in range(3)]


@every_sample
def test_blocks_do_not_change_the_result(name: str) -> None:
    case = cases.make("blocks", n_samples=37, n_components=2)
    rows = [16, 8, 64]  # multiples of the batch; sub-blocks of 3 rows straddle nothing
    found = [sample_objective(name, case, block_rows=r).linearise(case.start) for r in rows]
    for other in found[1:]:
        assert other.value == pytest.approx(found[0].value, 1e-13)
        assert relative(other.gradient, found[0].gradient) < 1e-12


@every_sample
def test_single_precision_blocks_sum_in_double(name: str) -> None:
    case = cases.case("two-views")
    exact = sample_objective(name, case).linearise(case.coefficients)
    found = sample_objective(name, case, np.float32).linearise(case.coefficients)
    V = np.random.default_rng(0).normal(size=case.coefficients.shape)
    assert found.gradient.dtype == found.product(V).dtype == np.float64
    assert found.value == pytest.approx(exact.value, 1e-6)
    assert relative(found.gradient, exact.gradient) < 1e-5
    assert relative(found.product(V), exact.product(V)) < 1e-5
    assert found.mean_diagonal == pytest.approx(exact.mean_diagonal, 1e-5)


@every_sample
def test_block_kernels_keep_to_the_array_api(name: str) -> None:
    strict = pytest.importorskip("array_api_strict")
    case = cases.case("three-views")
    expected = sample_objective(name, case, np.float32).linearise(case.coefficients)
    objective = sample_objective(name, case, np.float32)
    plain = objective.stream

    def moved(thing):
        """What a pass carries besides the blocks, with its arrays where the blocks are."""
        if isinstance(thing, np.ndarray):
            return strict.asarray(thing)
        if not is_dataclass(thing):
            return thing
        values = {field.name: moved(getattr(thing, field.name)) for field in fields(thing)}
        return replace(thing, **values)

    class StrictStream(ArrayStream):
        def reduce(self, function):
            there = partial(function.func, *map(moved, function.args))

            def wrapped(views, block):
                parts = there(tuple(strict.asarray(K) for K in views), block)
                return tuple(np.from_dlpack(part) for part in parts)

            return plain.reduce(wrapped)

    objective.stream = StrictStream(plain.kernels)
    found = objective.linearise(case.coefficients)
    V = np.random.default_rng(0).normal(size=case.coefficients.shape)
    assert found.value == expected.value
    assert relative(found.gradient, expected.gradient) < 1e-6
    assert relative(found.product(V), expected.product(V)) < 1e-6
    if name == "byol":
        fit_predictor(objective.stream, case.start, case.offset, 1e-2)


@every_sample
def test_an_embedding_without_direction_gives_no_nan(name: str) -> None:
    case = cases.case("two-views")
    kernels = case.kernels.copy()
    kernels[:, :3] = 0.0
    objective = sample_objective(name, case)
    objective.stream, objective.offset = ArrayStream(kernels), np.zeros(3)
    found = objective.linearise(case.coefficients)
    assert np.isfinite(found.product(case.start)).all()
    assert np.isfinite(found.gradient).all()
    assert found.mean_diagonal > 0


@given(
    st.sampled_from([*MOMENT, "simclr", "byol"]),
    st.integers(4, 14),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(2, 3),
    st.floats(-2, 2),
)
def test_curvature_is_symmetric_and_not_negative(
    name: str, n: int, m: int, h: int, p: int, power: float
) -> None:
    draw = np.random.default_rng(n * m * h)
    kernels, A = draw.normal(size=(p, n, m)) * 10.0**power, draw.normal(size=(m, h))
    case = cases.Case("drawn", kernels, np.eye(m), A, A)
    if name in MOMENT:
        found = MOMENT[name](moments_of(kernels)).linearise(A)
    else:
        found = sample_objective(name, case).linearise(A)
    H = found.product(np.eye(A.size).reshape(m, h, -1)).reshape(A.size, A.size)
    scale = abs(H).max()
    assert abs(H - H.T).max() <= 1e-9 * scale + 1e-12
    assert np.linalg.eigvalsh((H + H.T) / 2).min() >= -1e-9 * scale - 1e-12
    assert np.trace(H) / A.size == pytest.approx(found.mean_diagonal, rel=1e-6, abs=1e-12)


@every_case
def test_component_curvature_of_sample_objectives(case: cases.Case) -> None:
    """BYOL's Q is sum_i 4/(n p) |z|^-2 (I - u u^T); SimCLR's the point's own 2nd derivative."""
    n, h = case.kernels.shape[1], case.start.shape[1]
    found = sample_objective("byol", case).linearise(case.coefficients)
    Z = np.concatenate(list(case.kernels @ case.coefficients + case.offset))
    expected = (
        sum((np.eye(h) - np.outer(z, z) / (z @ z)) / (z @ z) for z in Z)
        * 4
        / (n * len(case.kernels))
    )
    np.testing.assert_allclose(found.component_curvature, expected, rtol=1e-9, atol=1e-9)
    S, Q = found.kronecker(moments_of(case.kernels))
    np.testing.assert_allclose(S, np.mean([K.T @ K / n for K in case.kernels], axis=0))
    assert Q is found.component_curvature
    Q = sample_objective("simclr", case).linearise(case.coefficients).component_curvature
    np.testing.assert_allclose(Q, naive_own_curvature(case, Z), rtol=1e-8, atol=1e-10)


def naive_own_curvature(case: cases.Case, Z: np.ndarray, temperature: float = 0.5) -> np.ndarray:
    views = np.split(Z, len(case.kernels))
    total, anchors = np.zeros((Z.shape[1],) * 2), 0
    for a in range(len(views)):
        for b in range(a + 1, len(views)):
            for rows in dense.batches(len(views[0]), case.batch):
                z = np.concatenate([views[a][rows], views[b][rows]])
                total += naive_batch(z, temperature)
                anchors += len(z)
    return total / anchors


def naive_batch(z: np.ndarray, temperature: float) -> np.ndarray:
    u, total = z / np.linalg.norm(z, axis=1, keepdims=True), np.zeros((z.shape[1],) * 2)
    P = np.exp(u @ u.T / temperature) * (1 - np.eye(len(z)))
    P /= P.sum(axis=1, keepdims=True)
    for i in range(len(z)):
        free = (np.eye(z.shape[1]) - np.outer(u[i], u[i])) / np.linalg.norm(z[i]) / temperature
        mean = P[i] @ u
        inner = sum(
            (P[i, j] + P[j, i] * (1 - P[j, i])) * np.outer(u[j], u[j]) for j in range(len(z))
        )
        total += free @ (inner - np.outer(mean, mean)) @ free
    return total


def test_byol_with_a_linear_predictor() -> None:
    case, draw = cases.case("three-views"), np.random.default_rng(4)
    W, b = draw.normal(size=(2, 3)), draw.normal(size=2)
    W, b = np.vstack([W, W[:1]]), np.append(b, 0.3)
    objective = BYOL(ArrayStream(case.kernels), case.offset, case.start, Predictor(W, b))
    settings = {**case.settings("byol"), "predictor_weight": W, "predictor_bias": b}
    arguments = ("byol", case.coefficients, case.kernels, case.offset)
    found = objective.linearise(case.coefficients)
    assert found.value == pytest.approx(float(dense.loss(*arguments, **settings)))
    assert relative(found.gradient, dense.gradient(*arguments, **settings)) < 1e-10
    H = np.asarray(dense.ggn(*arguments, **settings))
    V = draw.normal(size=case.coefficients.shape)
    assert relative(found.product(V).ravel(), H @ V.ravel()) < 1e-10
    assert found.mean_diagonal == pytest.approx(np.trace(H) / V.size)


def test_ridge_predictor_is_the_regression_of_targets_on_embeddings() -> None:
    case = cases.case("three-views")
    found = fit_predictor(ArrayStream(case.kernels), case.start, case.offset, 1e-2, sub_rows=3)
    Z = case.kernels @ case.start + case.offset
    T = np.asarray(dense.byol_targets(case.start, case.kernels, case.offset))
    goals = np.stack([(T.sum(axis=0) - t) / 2 for t in T]).reshape(-1, 3)
    rows = Z.reshape(-1, 3)
    z, t = rows - rows.mean(axis=0), goals - goals.mean(axis=0)
    penalty = 1e-2 * np.trace(z.T @ z) / 3
    W = np.linalg.solve(z.T @ z + penalty * np.eye(3), z.T @ t).T
    np.testing.assert_allclose(found.weight, W, rtol=1e-8)
    np.testing.assert_allclose(found.bias, goals.mean(axis=0) - W @ rows.mean(axis=0), rtol=1e-8)


def test_vicreg_reports_its_active_hinges() -> None:
    case = cases.case("two-views")
    objective = VICReg(moments_of(case.kernels))
    assert objective.linearise(1e-3 * case.start).active_hinge == 1.0
    assert objective.linearise(1e3 * case.start).active_hinge == 0.0


@pytest.mark.parametrize("name", registry.OBJECTIVES)
def test_created_by_name(name: str) -> None:
    case = cases.case("two-views")
    given_ = {"settings": registry.settings_type(name)(), "start": case.start}
    given_ |= {"moments": moments_of(case.kernels), "stream": ArrayStream(case.kernels, 256)}
    found = registry.create(name, offset=case.offset, **given_)
    assert found.name == name
    assert found.uses_moments is registry.uses_moments(name)
    assert found.can_iterate is (name != "byol")
    assert np.isfinite(found.value(case.start))
    if not found.uses_moments:
        with pytest.raises(ValueError, match=f"{name} reads kernel blocks"):
            registry.create(name, offset=case.offset, **(given_ | {"stream": None}))


def test_created_byol_fits_or_takes_a_predictor() -> None:
    case = cases.case("two-views")
    settings = registry.BYOLSettings(predictor="ridge")
    given_ = {"moments": moments_of(case.kernels), "stream": ArrayStream(case.kernels)}
    given_ |= {"start": case.start, "offset": case.offset}
    fitted = registry.create("byol", settings, **given_)
    assert fitted.predictor.weight.shape == (3, 3)
    own = Predictor(np.eye(3), np.ones(3))
    assert registry.create("byol", settings, predictor=own, **given_).predictor is own


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="no objective 'dino'; expected one of barlow-twins, byol"):
        registry.settings_type("dino")


@pytest.mark.parametrize("name", registry.OBJECTIVES)
def test_one_view_is_refused(name: str) -> None:
    case = cases.case("two-views")
    one = case.kernels[:1]
    with pytest.raises(UsageError, match=f"{name} compares views, the kernel holds 1"):
        registry.create(
            name,
            registry.settings_type(name)(),
            moments=moments_of(one),
            stream=ArrayStream(one),
            start=case.start,
            offset=case.offset,
        )


def test_one_sample_is_refused() -> None:
    one = cases.case("two-views").kernels[:, :1]
    with pytest.raises(StageFailed, match="1 samples have no unbiased variance"):
        VICReg(moments_of(one))
    with pytest.raises(StageFailed, match="1 samples leave nothing to contrast"):
        SimCLR(ArrayStream(one), np.zeros(3))


def test_a_block_that_cuts_a_batch_is_refused() -> None:
    case = cases.case("two-views")
    objective = SimCLR(ArrayStream(case.kernels, 12), case.offset, SimCLRSettings(batch=8))
    with pytest.raises(UsageError, match="starts at row 12, inside a batch of 8"):
        objective.value(case.start)


def test_moments_check_their_shapes() -> None:
    with pytest.raises(ValueError, match="mean has shape"):
        Moments(np.zeros((2, 3)), np.zeros((2, 2, 3, 4)), 5)


def test_embedding_rms_needs_no_kernel() -> None:
    case = cases.case("three-views")
    f = case.kernels @ case.start + case.offset
    found = moments_of(case.kernels).embedding_rms(case.start, case.offset)
    assert found == pytest.approx(np.sqrt((f**2).sum(axis=-1).mean()))
