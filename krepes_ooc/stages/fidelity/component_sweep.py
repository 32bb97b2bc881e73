"""Audits with fewer components, solved from the moments alone: for curves over h.

The first h columns of the start are the start of an audit with h components, but its step is not
the first h columns of the wide step: the objective couples the components. So the step is solved
anew, with the objective and the relative damping of the audit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.array_columns import Eigh
from krepes_ooc.core.figure_specs import LM_STEPS, START, STEP
from krepes_ooc.core.settings import read_settings
from krepes_ooc.engine.device import eigh_on
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.fidelity.rows import powers_of_two
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.moments.stored_moments import read_moments
from krepes_ooc.stages.newton.basis import Basis
from krepes_ooc.stages.newton.damping import absolute_damping
from krepes_ooc.stages.newton.levenberg_marquardt import levenberg_marquardt
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.objectives.interface import Linearisation
from krepes_ooc.stages.newton.preconditioners import Kronecker
from krepes_ooc.stages.newton.solvers import Solver, choose_solver
from krepes_ooc.stages.newton.stored_basis import read_rkhs_basis
from krepes_ooc.storage.store_reader import StoreReader

Float = npt.NDArray[np.float64]
# Far below the differences that a curve over h can show
TOLERANCE = 1e-6
MAX_ITERATIONS = 2000


class SweepInputs(Protocol):
    """The declared inputs of a stage that sweeps over components."""

    @property
    def kernel(self) -> StoreReader:
        """Store kernel."""
        ...

    @property
    def moments(self) -> StoreReader:
        """Store moments."""
        ...

    @property
    def spectrum(self) -> StoreReader:
        """Store spectrum."""
        ...

    @property
    def newton(self) -> StoreReader:
        """Store newton."""
        ...


@dataclass(frozen=True)
class ComponentSweepPoint:
    """An audit with the first components only.

    Args:
        n_components: h.
        coefficients: A at the start, after the step, after further steps, each
            [landmark, component], by key.
        offset: gamma [component].
    """

    n_components: int
    coefficients: dict[str, Float]
    offset: Float

    def embedding(self, key: str, kernel: Float) -> Float:
        """F = K A + gamma [sample, component] of kernel rows [sample, landmark]."""
        return np.asarray(kernel @ self.coefficients[key] + self.offset)


def component_sweep(inputs: SweepInputs, context: StageContext) -> list[ComponentSweepPoint]:
    """Audits with h = 1, 2, 4, ... components; the last one is the audit itself.

    Objectives that stream the kernel would need passes over it for every h: of those only the start
    is given. A number of components at which the loss has no curvature is left out.
    """
    newton = inputs.newton
    start = inputs.spectrum.array("start")
    offset = inputs.spectrum.array("offset")
    n_components = start.shape[1]
    uses_moments = registry.uses_moments(newton.attributes["objective"])
    whole = {START: start}
    if uses_moments:
        whole[STEP] = newton.array("coefficients")
        if newton.has("coefficients_lm"):
            whole[LM_STEPS] = newton.array("coefficients_lm")
    sweep = _Sweep.open(inputs, context) if uses_moments else None
    points = []
    for h in powers_of_two(n_components):
        # The audit itself is not solved again
        if h == n_components:
            points.append(ComponentSweepPoint(h, whole, offset))
            continue
        # The first columns of the start are the start of the narrower audit
        coefficients = {START: start[:, :h]}
        with contextlib.suppress(StageFailed):
            if sweep is not None:
                coefficients |= sweep.solve(start[:, :h], LM_STEPS in whole)
            context.stop.check()
            points.append(ComponentSweepPoint(h, coefficients, offset[:h]))
    return points


@dataclass(frozen=True)
class _Sweep:
    """An objective of moments, ready to be solved for any number of components.

    Args:
        attributes: those of the store newton.
        moments: of the kernel rows, in ``basis`` if there is one.
        basis: coordinates of the metric ``rkhs``; None: landmarks.
        eigh: eigendecomposition where blocks are computed.
    """

    attributes: Mapping[str, Any]
    moments: Moments
    basis: Basis | None
    eigh: Eigh

    @classmethod
    def open(cls, inputs: SweepInputs, context: StageContext) -> _Sweep:
        """The objective of the audit in the audit's metric."""
        attributes = inputs.newton.attributes
        moments = read_moments(inputs.moments)
        eigh = eigh_on(context.device)
        if attributes["metric"] != "rkhs":
            return cls(attributes, moments, None, eigh)
        # Metric rkhs: a basis of the usable landmark span that is orthonormal in the RKHS
        basis = read_rkhs_basis(inputs.kernel, inputs.spectrum, context.device)
        return cls(attributes, basis.moments(moments), basis, eigh)

    def solve(self, start: Float, with_lm_steps: bool) -> dict[str, Float]:
        """A after one step and, if asked, after as many further steps as the audit took.

        Args:
            start: A at the start [landmark, component].
            with_lm_steps: whether the audit took further steps.
        """
        A = start if self.basis is None else self.basis.to_basis(start)
        objective = self._objective(A)

        def prepare(at: Float, tolerance: float = TOLERANCE) -> tuple[Linearisation, Solver]:
            linearisation = objective.linearise(at)
            solver = choose_solver(
                linearisation,
                lambda: Kronecker.build(linearisation, self.moments, self.eigh),
                tolerance=tolerance,
                max_iterations=MAX_ITERATIONS,
                eigh=self.eigh,
            )
            return linearisation, solver

        # One damped Gauss-Newton step at the audit's relative damping
        relative = float(self.attributes["damping_relative"])
        linearisation, solver = prepare(A)
        damping = absolute_damping(np.array([relative]), linearisation, A)
        solved = {STEP: A + solver.solve(damping).step[..., 0]}
        # As many Levenberg-Marquardt steps as the audit took
        if with_lm_steps:
            taken = max(1, len(self.attributes["diagnostics"]["descent"]["rho"]))
            result = levenberg_marquardt(
                objective, A, prepare, steps=taken, damping_relative=relative
            )
            solved[LM_STEPS] = result.coefficients
        if self.basis is None:
            return solved
        return {key: self.basis.from_basis(value) for key, value in solved.items()}

    def _objective(self, start: Float) -> Any:
        name = str(self.attributes["objective"])
        kind = registry.settings_type(name)
        constants = read_settings(kind, dict(self.attributes["objective_settings"]), "newton")
        offset = np.zeros(start.shape[1])
        return registry.create(name, constants, moments=self.moments, start=start, offset=offset)
