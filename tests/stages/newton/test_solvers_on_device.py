"""Solves by moments on a device that is not the host's: nothing comes back, and nothing is lost.

The device is array-api-strict's second one, where a host array is an error.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from krepes_ooc.core import array_columns
from krepes_ooc.engine.device import HOST, Device, to_device
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton import conjugate_gradient as conjugate_gradient_module
from krepes_ooc.stages.newton.basis import Basis
from krepes_ooc.stages.newton.conjugate_gradient import CGState, Solution, conjugate_gradient
from krepes_ooc.stages.newton.objectives import barlow_twins, spectral_contrastive, vicreg
from krepes_ooc.stages.newton.objectives.registry import create, settings_type
from krepes_ooc.stages.newton.preconditioners import (
    Kronecker,
    RandomizedNystrom,
    RotationDeflation,
    rotation_curvature,
)
from krepes_ooc.stages.newton.solvers import DirectSolver
from tests import cases, dense
from tests.foreign import THERE, StrictDevice

NAMES = ("barlow-twins", "vicreg", "spectral-contrastive")
HOW = ("kronecker", "nystrom", "rotations", "none")
DAMPING = np.array([1e-2, 1.0, 1e2])


@pytest.fixture
def one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy, too, by the calls of the array API, so that both ways have the same bits."""
    monkeypatch.setattr(array_columns, "is_numpy_array", lambda values: False)


def linearised(name: str, device: Device, views: str = "three-views") -> tuple[Any, Moments, Any]:
    """A linearisation, its moments and the coefficients, on a device."""
    case = cases.case(views)
    moments = Moments(*dense.moments(case.kernels), case.kernels.shape[1])
    on_device = to_device(device, moments)
    A = device.to_device(case.start)
    settings = settings_type(name)()
    objective: Any = create(name, settings, moments=on_device, start=A, offset=case.offset)
    return objective.linearise(A), on_device, A


def preconditioner(how: str, linearisation: Any, moments: Moments, A: Any) -> Any:
    if how == "none":
        return None
    if how == "nystrom":
        return RandomizedNystrom.build(linearisation.product, A.shape, 9, like=A)
    model = Kronecker.build(linearisation, moments)
    return RotationDeflation.build(model, A, 0.5) if how == "rotations" else model


def solved(name: str, how: str, device: Device, **more: Any) -> Solution:
    linearisation, moments, A = linearised(name, device)
    unit = linearisation.mean_diagonal
    unit = unit if device is HOST else float(device.to_host(unit))
    inverse = preconditioner(how, linearisation, moments, A)
    arguments = (linearisation.product, -linearisation.gradient, DAMPING * unit)
    return conjugate_gradient(*arguments, preconditioner=inverse, tolerance=1e-6, **more)


def returned(record: Any, device: Device) -> dict[str, Any]:
    found = {one.name: getattr(record, one.name) for one in fields(record)}
    return {k: v if isinstance(v, str) else device.to_host(v) for k, v in found.items()}


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.usefixtures("one_way")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", NAMES)
def test_conjugate_gradients_stay_on_the_device(name: str, how: str):
    device = StrictDevice()
    wanted = returned(solved(name, how, HOST), HOST)
    found = solved(name, how, device)
    moved, came = device.moved, device.came
    assert found.step.device == THERE
    assert (moved, came) == (3, 1)  # moments and start; the mean diagonal
    assert_same(returned(found, device), wanted)


@pytest.mark.usefixtures("one_way")
def test_the_exact_solver_stays_on_the_device():
    device = StrictDevice()
    on_host = linearised("barlow-twins", HOST)[0]
    on_device = linearised("barlow-twins", device)[0]
    wanted = returned(DirectSolver(on_host).solve(DAMPING), HOST)
    found = DirectSolver(on_device).solve(DAMPING)
    assert found.step.device == THERE
    assert device.came == 0
    assert_same(returned(found, device), wanted)
    single = DirectSolver(on_device).solve(0.5)
    assert single.step.shape == on_host.gradient.shape
    assert single.relative_residual.shape == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_linearisation_has_the_bits_of_the_host(name: str):
    device = StrictDevice()
    on_host, moments, A = linearised(name, HOST)
    on_device, device_moments, B = linearised(name, device)
    for what in ("value", "mean_diagonal", "gradient", "active_hinge"):
        if hasattr(on_host, what):
            found = device.to_host(getattr(on_device, what))
            np.testing.assert_array_equal(found, getattr(on_host, what))
    pairs = zip(on_device.kronecker(device_moments), on_host.kronecker(moments), strict=True)
    assert all(np.array_equal(device.to_host(found), wanted) for found, wanted in pairs)
    curvature = device.to_host(rotation_curvature(B, on_device.product))
    assert curvature == rotation_curvature(A, on_host.product)
    assert device.to_host(device_moments.embedding_rms(B)) == moments.embedding_rms(A)


def test_moments_in_another_basis_stay_on_the_device():
    device, case = StrictDevice(), cases.case("two-views")
    moments = Moments(*dense.moments(case.kernels), case.kernels.shape[1])
    m = case.start.shape[0]
    draw = np.random.default_rng(0)
    basis = Basis(draw.normal(size=(m, m - 2)), draw.normal(size=(m - 2, m)))
    wanted = basis.moments(moments)
    found = to_device(device, basis).moments(to_device(device, moments))
    np.testing.assert_array_equal(device.to_host(found.second), wanted.second)
    np.testing.assert_array_equal(device.to_host(found.mean), wanted.mean)


@pytest.mark.usefixtures("one_way")
def test_a_saved_state_resumes_on_the_device():
    device, states = StrictDevice(), []
    whole = solved("vicreg", "kronecker", device, checkpoint=states.append)
    assert len(states) > 3
    for state in states[:: len(states) // 3]:
        saved = CGState(**returned(state, device))
        again = solved("vicreg", "kronecker", device, state=to_device(device, saved))
        assert_same(returned(again, device), returned(whole, device))


def test_the_ways_of_host_and_device_differ_by_rounding_alone():
    device, draw = StrictDevice(), np.random.default_rng(0)
    X, Y, new = (draw.normal(size=(7, 3, count)) for count in (5, 5, 2))
    on_device = [device.to_device(one) for one in (X, Y, new)]
    active = np.array([3, 1])
    found = device.to_host(array_columns.dots(on_device[0], on_device[1]))
    np.testing.assert_allclose(found, array_columns.dots(X, Y), rtol=1e-12)
    index = device.to_device(active)
    taken = device.to_host(array_columns.take_columns(on_device[0], index))
    np.testing.assert_array_equal(taken, X[..., active])
    put = array_columns.put_columns(on_device[0], index, on_device[2])
    wanted = array_columns.put_columns(X, active, new)
    np.testing.assert_array_equal(device.to_host(put), wanted)
    np.testing.assert_array_equal(wanted[..., active], new)
    row, counts = X[0, 0], np.arange(5)
    for values in (row, counts):
        put = array_columns.put_columns(
            device.to_device(values), index, device.to_device(values[:2])
        )
        np.testing.assert_array_equal(
            device.to_host(put), array_columns.put_columns(values, active, values[:2])
        )
    np.testing.assert_array_equal(array_columns.diagonal_matrix(row), np.diag(row))


def late(function: Any, hole: Any) -> Any:
    """A function whose result is spoilt by a hole."""
    return lambda *given: hole(function(*given))


@pytest.mark.parametrize(
    ("owner", "function", "name"),
    [
        (conjugate_gradient_module, "dots", "vicreg"),
        (conjugate_gradient_module, "take_columns", "vicreg"),
        (conjugate_gradient_module, "put_columns", "vicreg"),
        (conjugate_gradient_module, "residual_of", "vicreg"),
        (conjugate_gradient_module._System, "_precondition", "vicreg"),
        (vicreg.VICRegCurvature, "product", "vicreg"),
        (spectral_contrastive.SpectralCurvature, "product", "spectral-contrastive"),
        (barlow_twins._Correlation, "jacobian", "barlow-twins"),
        (barlow_twins._Correlation, "adjoint", "barlow-twins"),
        (Kronecker, "apply", "vicreg"),
        (RotationDeflation, "along", "spectral-contrastive"),
    ],
)
def test_a_planted_transfer_stops_the_solve(
    monkeypatch: pytest.MonkeyPatch, owner: Any, function: str, name: str
):
    monkeypatch.setattr(owner, function, late(getattr(owner, function), np.asarray))
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        solved(name, "rotations", StrictDevice())
    solved(name, "rotations", HOST)
