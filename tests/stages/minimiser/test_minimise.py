"""The damped minimiser against a dense minimisation of the published losses."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as dense_minimize

from krepes_ooc.errors import Stopped, UsageError
from krepes_ooc.stages.minimiser.minimise import _Path, _Reached, minimise
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.objectives.interface import Linearisation, Objective
from krepes_ooc.stages.newton.preconditioners import Kronecker, KroneckerPath
from tests import cases, dense

NAMES = ("barlow-twins", "vicreg", "spectral-contrastive")


def problem(name: str) -> tuple[cases.Case, Moments, Objective]:
    case = cases.case("two-views")
    moments = Moments(*dense.moments(case.kernels), case.kernels.shape[1])
    constants = registry.settings_type(name)()
    objective = registry.create(
        name, constants, moments=moments, start=case.start, offset=case.offset
    )
    return case, moments, objective


def dense_minimum(name: str, case: cases.Case, damping: float) -> np.ndarray:
    """Minimum of the published loss plus damping by BFGS and exact Newton steps, from A0."""
    start = torch.as_tensor(case.start)

    def damped_loss(flat: torch.Tensor) -> torch.Tensor:
        A = flat.reshape(start.shape)
        return (
            dense.loss(name, A, case.kernels, case.offset)
            + damping / 2 * (A - start).square().sum()
        )

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        variable = torch.as_tensor(x).requires_grad_()
        value = damped_loss(variable)
        return float(value), torch.autograd.grad(value, variable)[0].numpy()

    x = dense_minimize(
        value_and_gradient, case.start.reshape(-1), jac=True, method="BFGS",
        options={"gtol": 1e-8, "maxiter": 5000},
    ).x  # fmt: skip
    point = torch.as_tensor(x)
    for _ in range(3):
        H = torch.func.hessian(damped_loss)(point)
        assert torch.linalg.eigvalsh(H)[0] > 0  # a minimum
        gradient = torch.as_tensor(value_and_gradient(point.numpy())[1])
        point = point - torch.linalg.solve(H, gradient)
    return point.numpy().reshape(start.shape)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_minimum_of_the_published_loss(name: str, preconditioned: bool) -> None:
    case, moments, objective = problem(name)
    at_start = objective.linearise(case.start)
    # VICReg with a standard deviation of 1 in no component: the hinge is smooth at the minimum.
    damping = (20.0 if name == "vicreg" else 0.5) * float(at_start.mean_diagonal)
    model = KroneckerPath.build(at_start, moments) if preconditioned else None
    found = minimise(objective, case.start, damping, model=model, tolerance=1e-9)
    assert found.converged
    expected = dense_minimum(name, case, damping)
    assert found.coefficients == pytest.approx(expected, rel=1e-8, abs=1e-8)
    assert found.loss == pytest.approx(float(dense.loss(name, expected, case.kernels, case.offset)))
    assert found.loss < float(at_start.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_one_it_reports(name: str) -> None:
    case, moments, objective = problem(name)
    at_start = objective.linearise(case.start)
    damping = 0.1 * float(at_start.mean_diagonal)
    found = minimise(objective, case.start, damping, model=KroneckerPath.build(at_start, moments))
    A = found.coefficients
    G = objective.linearise(A).gradient + damping * (A - case.start)
    relative = np.linalg.norm(G) / np.linalg.norm(at_start.gradient)
    assert found.gradient == pytest.approx(relative, rel=1e-6)
    assert found.converged == (relative <= 1e-4)
    damped = found.loss + damping / 2 * np.sum((A - case.start) ** 2)
    assert found.damped_loss == pytest.approx(damped)


def test_a_large_damping_stays_at_the_start_and_a_smaller_one_goes_further() -> None:
    case, _, objective = problem("vicreg")
    unit = float(objective.linearise(case.start).mean_diagonal)
    moved, losses = [], []
    for relative in (1e8, 10.0, 1.0, 0.1):
        found = minimise(objective, case.start, relative * unit)
        moved.append(np.linalg.norm(found.coefficients - case.start))
        losses.append(found.loss)
    assert moved == sorted(moved)
    assert losses == sorted(losses, reverse=True)
    assert moved[0] < 1e-6


def test_a_minimum_on_the_kink_of_the_hinge_is_not_called_converged() -> None:
    case, moments, objective = problem("vicreg")
    at_start = objective.linearise(case.start)
    damping = 0.5 * float(at_start.mean_diagonal)
    model = KroneckerPath.build(at_start, moments)
    found = minimise(objective, case.start, damping, model=model)
    assert not found.converged
    deviations = np.sqrt(np.diagonal(
        found.coefficients.T @ moments.second[0, 0] @ found.coefficients
    ) * moments.n_samples / (moments.n_samples - 1))  # fmt: skip
    assert np.abs(deviations - 1.0).min() < 1e-2
    assert found.damped_loss < 0.9 * float(at_start.value)


def test_too_few_evaluations_are_a_result() -> None:
    case, _, objective = problem("barlow-twins")
    found = minimise(objective, case.start, 1e-6, tolerance=1e-12, max_evaluations=5)
    assert not found.converged
    assert found.evaluations == 5
    assert found.gradient > 1e-12


def test_it_can_be_stopped_and_is_repeatable() -> None:
    case, _, objective = problem("vicreg")

    def stop() -> None:
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        minimise(objective, case.start, 1.0, check=stop)
    first, second = (minimise(objective, case.start, 1.0) for _ in range(2))
    assert np.array_equal(first.coefficients, second.coefficients)


def test_what_cannot_be_minimised_is_refused() -> None:
    case, _, objective = problem("vicreg")
    with pytest.raises(UsageError, match="damping 0; expected a number above 0"):
        minimise(objective, case.start, 0.0)

    class Once:
        name, can_iterate = "byol", False

    with pytest.raises(UsageError, match="collapses if repeated"):
        minimise(Once(), case.start, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_it_may_begin_elsewhere(name: str) -> None:
    """The minimum is that of the loss damped around A0, wherever the iteration begins."""
    case, moments, objective = problem(name)
    at_start = objective.linearise(case.start)
    damping = (20.0 if name == "vicreg" else 0.5) * float(at_start.mean_diagonal)
    model = KroneckerPath.build(at_start, moments)
    from_start = minimise(objective, case.start, damping, model=model, tolerance=1e-9)
    noise = np.random.default_rng(1).normal(size=case.start.shape)
    near = from_start.coefficients + 1e-3 * np.abs(case.start).max() * noise
    found = minimise(objective, case.start, damping, model=model, point=near, tolerance=1e-9)
    assert found.converged
    assert found.coefficients == pytest.approx(from_start.coefficients, rel=1e-6, abs=1e-7)
    if name != "vicreg":
        assert found.evaluations < from_start.evaluations
    # Its gradient is relative to that at A0, not to that at the point.
    at_end = minimise(
        objective, case.start, damping, model=model, point=found.coefficients, tolerance=1e-9
    )
    assert at_end.evaluations <= 2
    assert at_end.gradient == pytest.approx(found.gradient)


class Counted:
    """A model of the curvature that counts how often it is asked."""

    def __init__(self, model: KroneckerPath, *, renewed: bool = True) -> None:
        self.model, self.renewed = model, renewed
        self.points: list[Linearisation] = []

    def __call__(self, at: Linearisation) -> Kronecker:
        self.points.append(at)
        return self.model(at if self.renewed else self.points[0])


def decaying_spectrum() -> tuple[np.ndarray, Moments, Objective]:
    """Kernel rows of 60 landmarks whose variances decay as 1 / k^2, and 12 components."""
    m, h, n = 60, 12, 600
    draw = np.random.default_rng(0)
    axes = np.linalg.qr(draw.normal(size=(m, m)))[0]
    scale = 1.0 / np.arange(1, m + 1)
    shared = draw.normal(size=(n, m)) * scale
    views = [shared + 0.3 * draw.normal(size=(n, m)) * scale for _ in range(2)]
    kernels = np.stack([view @ axes.T for view in views])
    moments = Moments(*dense.moments(kernels), n)
    objective = registry.create(
        "barlow-twins",
        registry.settings_type("barlow-twins")(),
        moments=moments,
        start=axes[:, :h],
        offset=np.zeros(h),
    )
    return axes[:, :h], moments, objective


def test_a_model_that_is_renewed_leads_to_the_minimum_sooner() -> None:
    start, moments, objective = decaying_spectrum()
    at_start = objective.linearise(start)
    damping = 0.1 * float(at_start.mean_diagonal)
    found = []
    for renewed in (True, False):
        model = Counted(KroneckerPath.build(at_start, moments), renewed=renewed)
        found.append(minimise(objective, start, damping, model=model, tolerance=1e-6))
        assert len(model.points) > 1
    assert all(one.converged for one in found)
    assert found[0].damped_loss == pytest.approx(found[1].damped_loss, rel=1e-6)
    assert found[0].evaluations < 0.7 * found[1].evaluations


def test_a_loss_that_is_invariant_to_rotations_keeps_its_model() -> None:
    case, moments, objective = problem("spectral-contrastive")
    at_start = objective.linearise(case.start)
    model = Counted(KroneckerPath.build(at_start, moments))
    minimise(objective, case.start, 0.1 * float(at_start.mean_diagonal), model=model)
    assert len(model.points) == 1


def test_without_the_tolerance_the_point_of_least_loss_is_the_result() -> None:
    case, moments, objective = problem("barlow-twins")
    at_start = objective.linearise(case.start)
    damping = 0.1 * float(at_start.mean_diagonal)
    model, losses = KroneckerPath.build(at_start, moments), []
    for most in (5, 10, 20, 40):
        found = minimise(objective, case.start, damping, model=model, max_evaluations=most)
        losses.append(found.damped_loss)
    assert losses == sorted(losses, reverse=True)


class Bounded:
    """sum of -log(1 - a) - 2 a: defined where every a is below 1, least at 1/2."""

    name, can_iterate, rotation_invariant = "bounded", True, False

    def __init__(self) -> None:
        self.outside = 0

    def linearise(self, A: np.ndarray) -> SimpleNamespace:
        self.outside += bool((A >= 1).any())
        value = float(np.sum(-np.log(1.0 - A) - 2.0 * A))
        return SimpleNamespace(value=value, gradient=1.0 / (1.0 - A) - 2.0, mean_diagonal=1.0)


def test_a_step_out_of_the_domain_of_the_loss_is_taken_back() -> None:
    objective, start = Bounded(), np.array([[-50.0, -5.0], [-20.0, 0.0]])
    found = minimise(objective, start, 1e-12, tolerance=1e-8)  # type: ignore[arg-type]
    assert objective.outside > 0
    assert found.converged
    assert found.coefficients == pytest.approx(np.full((2, 2), 0.5), abs=1e-6)


def test_a_newton_step_out_of_the_domain_is_no_root() -> None:
    objective, start = Bounded(), np.array([[-5.0, -3.0]])
    path = _Path(objective, start, 1e-12, None, None, 1e-8, 500, None)  # type: ignore[arg-type]
    with contextlib.suppress(_Reached):
        path.polish()
    assert objective.outside > 0
    # It goes on from the shortened step, and stops at no point where there is no loss.
    assert path.result().gradient < 0.6
    assert path.result().evaluations > 20
