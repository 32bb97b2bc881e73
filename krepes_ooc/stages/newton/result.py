"""Result of the newton stage as arrays, attributes and lines of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.settings import to_mapping
from krepes_ooc.stages.newton.conjugate_gradient import Solution
from krepes_ooc.stages.newton.damping import DampingChoice, DampingSweep
from krepes_ooc.stages.newton.levenberg_marquardt import LMResult
from krepes_ooc.stages.newton.problem import NewtonProblem
from krepes_ooc.stages.spectrum.nystrom import spectral_entropy

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NewtonResult:
    """Everything that is sealed.

    Args:
        problem: the objective at the start.
        solver: name of the solver.
        solution: one step for each damping, in the coordinates of the problem.
        sweep: the steps, evaluated.
        choice: the chosen damping, and whether its step is trusted.
        lm_result: Levenberg-Marquardt steps from the start; None: none were taken.
    """

    problem: NewtonProblem
    solver: str
    solution: Solution
    sweep: DampingSweep
    choice: DampingChoice
    lm_result: LMResult | None

    @property
    def products(self) -> dict[str, int]:
        """Products with the curvature by purpose: one for each column of every product."""
        direct = self.solver == "direct"
        return {
            "grid": 0 if direct else int(self.solution.iterations.sum()),
            "preconditioner": 0 if direct else self._preconditioner_products(),
            "residuals": len(self.sweep.damping),
            "descent": self.lm_result.products if self.lm_result else 0,
        }

    def _preconditioner_products(self) -> int:
        """Products that built the preconditioner."""
        settings = self.problem.context.settings
        if settings.preconditioner == "none":
            return 0
        if settings.preconditioner == "nystrom":
            return int(settings.sketch_columns(self.problem.start.size))
        # Kronecker: one product measures the curvature along the rotations, where there are any.
        return int(self.problem.objective.on_device.rotation_invariant)

    def arrays(self) -> dict[str, Float]:
        """The arrays of the store; steps as coefficients, whatever the metric."""
        sweep = self.sweep
        problem = self.problem
        at = self.choice.index
        steps = problem.coefficients(self.solution.step)
        step = np.ascontiguousarray(steps[..., at])
        start = problem.coefficients_start
        # A breakdown of the recursion leaves NaN: no residual of an iteration.
        history = self.solution.residual[:, at]
        # step_norm is relative to |A0|: audits of different scale compare.
        arrays = {
            "step": step,
            "coefficients": start + step,
            "residual": np.ascontiguousarray(history[np.isfinite(history)]),
            "damping": sweep.damping,
            "damping_relative": sweep.damping_relative,
            "loss": sweep.loss,
            "predicted": sweep.predicted,
            "rho": sweep.rho,
            "step_norm": sweep.step_norm / sweep.start_norm,
            "embedding_change": sweep.embedding_change,
            "stability": sweep.stability,
            "relative_residual": self.solution.relative_residual,
            "entropy": _entropies(start, steps),
        }
        # Optional arrays of the contract.
        if self.lm_result is not None:
            arrays["coefficients_lm"] = problem.coefficients(self.lm_result.coefficients)
        predictor = getattr(problem.objective.on_device, "predictor", None)
        if predictor is not None:
            arrays |= {"predictor_weight": predictor.weight, "predictor_bias": predictor.bias}
        return arrays

    def attributes(self) -> dict[str, Any]:
        """The attributes of the store."""
        sweep = self.sweep
        solution = self.solution
        at = self.choice.index
        settings = self.problem.context.settings
        return {
            "objective": settings.objective,
            "objective_settings": to_mapping(settings.objective_constants()),
            "solver": self.solver,
            "damping": sweep.damping[at],
            "damping_relative": sweep.damping_relative[at],
            "metric": settings.metric,
            "tolerance": settings.reached_tolerance,
            "loss_start": sweep.loss_start,
            "loss_step": sweep.loss[at],
            "predicted_decrease": sweep.predicted[at],
            "rho": sweep.rho[at],
            "iterations": 0 if self.solver == "direct" else int(solution.iterations[at]),
            "products": sum(self.products.values()),
            "residual_norm": solution.relative_residual[at],
            "trusted": self.choice.trusted,
            "reason": self.choice.reason,
            "diagnostics": self._diagnostics(),
        }

    def _diagnostics(self) -> dict[str, Any]:
        """Direction, passes, products and advice; hinges and Levenberg-Marquardt steps if any."""
        at_start = self.problem.at_start
        step = self.solution.step[..., self.choice.index]
        # cos(dA, -G).
        size = float(np.linalg.norm(step) * np.linalg.norm(at_start.gradient))
        aligned = float(np.sum(step * at_start.gradient))
        diagnostics: dict[str, Any] = {
            "cosine_to_descent": -aligned / size if size else 0.0,
            "passes": self.problem.stream.passes,
            "products": self.products,
            "advice": self.solution.advice,
        }
        active_hinge = at_start.number("active_hinge")
        if active_hinge is not None:
            diagnostics["active_hinge"] = active_hinge
        if self.lm_result is not None:
            # Public names of the contract.
            diagnostics["descent"] = {
                "loss": self.lm_result.loss,
                "damping_relative": self.lm_result.damping_relative,
                "rho": self.lm_result.rho,
                "trials": self.lm_result.trials,
                "why": self.lm_result.reason,
            }
        return diagnostics

    def lines(self) -> list[str]:
        """Summary of the result for people."""
        sweep = self.sweep
        at = self.choice.index
        products = self.products
        objective = self.problem.context.settings.objective
        passes = self.problem.stream.passes
        solved = (
            f"{objective}: {len(sweep.damping)} dampings solved by {products['grid']} products, "
            f"{products['preconditioner']} more for the preconditioner"
            if products["grid"]
            else f"{objective}: {len(sweep.damping)} dampings solved directly"
        )
        lines = [
            f"{solved}; {passes} passes over the kernel" if passes else solved,
            f"damping {sweep.damping_relative[at]:g}: loss {sweep.loss_start:.4g} -> "
            f"{sweep.loss[at]:.4g}, rho {sweep.rho[at]:.2f}, "
            f"|step| {sweep.step_norm[at] / sweep.start_norm:.2g} of the start, residual "
            f"{self.solution.relative_residual[at]:.1e}; {self.choice.reason}",
        ]
        if not self.choice.trusted:
            lines.append("this step is NOT to be trusted")
        if self.lm_result is not None:
            lines.append(_lm_line(self.lm_result))
        return lines


def _lm_line(result: LMResult) -> str:
    """Summary of the Levenberg-Marquardt steps."""
    return (
        f"{len(result.rho)} Levenberg-Marquardt steps: loss {result.loss[-1]:.4g} after "
        f"{result.trials} trials and {result.products} products; {result.reason}"
    )


def _entropies(start: Float, steps: Float) -> Float:
    """Spectral entropy of A0 + dA at every damping [damping]."""
    return np.array([spectral_entropy(start + steps[..., i]) for i in range(steps.shape[-1])])
