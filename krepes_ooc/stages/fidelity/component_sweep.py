"""The audit again with fewer components, by the moments alone: for curves over h.

The first h columns of the start are the start of an audit with h components, but its step is not
the first h columns of the wide step: the objective couples the components. So the step is solved
anew, with the objective and the relative damping of the audit.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.arrays import Eigh
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
from krepes_ooc.stages.spectrum import nystrom

Float = npt.NDArray[np.float64]
START, STEP, FURTHER = "start", "after the step", "after further steps"
TOLERANCE = 1e-6


@dataclass(frozen=True)
class ComponentSweepPoint:
    """An audit with the first components only.

    Args:
        n_components: h.
        coefficients: name of what was done to A [landmark, component].
        offset: gamma [component].
    """

    n_components: int
    coefficients: dict[str, Float]
    offset: Float

    def embedding(self, name: str, kernel: Float) -> Float:
        """F = K A + gamma [sample, component] of kernel rows [sample, landmark]."""
        return np.asarray(kernel @ self.coefficients[name] + self.offset)


def component_sweep(context: StageContext) -> list[ComponentSweepPoint]:
    """Audits with h = 1, 2, 4, ... components; the last one is the audit itself.

    Objectives that stream the kernel would need passes over it for every h: of those only the start
    is given. A number of components at which the loss has no curvature is left out.
    """
    newton, spectrum = context.reader("newton"), context.reader("spectrum")
    start, offset, facts = spectrum.array("start"), spectrum.array("offset"), newton.attributes
    whole = {START: start}
    moments: Moments | None = None
    if registry.uses_moments(facts["objective"]):
        whole[STEP] = newton.array("coefficients")
        if newton.has("coefficients_lm"):
            whole[FURTHER] = newton.array("coefficients_lm")
        moments = read_moments(context.reader("moments"))
    basis = _basis(context) if moments is not None and facts["metric"] == "rkhs" else None
    if moments is not None and basis is not None:
        moments = basis.moments(moments)
    eigh, found = eigh_on(context.device), []
    for h in powers_of_two(start.shape[1]):
        if h == start.shape[1]:
            found.append(ComponentSweepPoint(h, whole, offset))
            continue
        coefficients = {START: start[:, :h]}
        with contextlib.suppress(StageFailed):
            if moments is not None:
                further = FURTHER in whole
                coefficients |= _solved(facts, moments, basis, start[:, :h], further, eigh)
            context.stop.check()
            found.append(ComponentSweepPoint(h, coefficients, offset[:h]))
    return found


def streaming_note(audits: list[ComponentSweepPoint]) -> str:
    """What the note of a curve over h says where no step can be shown."""
    if len(audits[-1].coefficients) > 1:
        return ""
    return "The objective streams the kernel, so only the start is shown."


def _solved(
    facts: Any, moments: Moments, basis: Basis | None, start: Float, further: bool, eigh: Eigh
) -> dict[str, Float]:
    """A after one step and, if asked, after as many further steps as the audit took."""
    name = str(facts["objective"])
    kind = registry.settings_type(name)
    constants = read_settings(kind, dict(facts["objective_settings"]), "newton")
    A = start if basis is None else basis.to_basis(start)
    zero = np.zeros(start.shape[1])
    objective = registry.create(name, constants, moments=moments, start=A, offset=zero)
    relative = float(facts["damping_relative"])

    def prepare(at: Float, tolerance: float = TOLERANCE) -> tuple[Linearisation, Solver]:
        here = objective.linearise(at)
        chosen = choose_solver(
            here,
            lambda: Kronecker.build(here, moments, eigh),
            tolerance=tolerance,
            max_iterations=2000,
            eigh=eigh,
        )
        return here, chosen

    here, solver = prepare(A)
    damping = absolute_damping(np.array([relative]), here, A)
    reached = {STEP: A + solver.solve(damping).step[..., 0]}
    if further:
        taken = max(1, len(facts["diagnostics"]["descent"]["rho"]))
        descent = levenberg_marquardt(objective, A, prepare, steps=taken, damping_relative=relative)
        reached[FURTHER] = descent.coefficients
    if basis is not None:
        reached = {key: basis.from_basis(value) for key, value in reached.items()}
    return reached


def _basis(context: StageContext) -> Basis:
    K = context.reader("kernel").whole("landmark_kernel")
    values, vectors = nystrom.eigenpairs(K, eigh_on(context.device))
    return Basis.rkhs(values, vectors, int(context.reader("spectrum").attributes["usable_rank"]))
