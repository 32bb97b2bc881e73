"""What the newton stage found, as the arrays, attributes and lines of text that it leaves."""

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
        sweep: the steps, judged.
        choice: the damping that was chosen, and whether to believe its step.
        lm_result: several steps, if asked for.
    """

    problem: NewtonProblem
    solver: str
    solution: Solution
    sweep: DampingSweep
    choice: DampingChoice
    lm_result: LMResult | None

    @property
    def products(self) -> dict[str, int]:
        """Products with the curvature: one for each column of every look at it."""
        grid = 0 if self.solver == "direct" else int(self.solution.iterations.sum())
        asked = self.problem.context.settings.preconditioner
        built = 0
        if self.solver != "direct" and asked != "none":
            size = self.problem.start.size
            rank = min(self.problem.context.settings.preconditioner_rank, size)
            built = (
                rank
                if asked == "nystrom"
                else int(self.problem.objective.on_device.rotation_invariant)
            )
        return {
            "grid": grid,
            "preconditioner": built,
            "residuals": len(self.sweep.damping),
            "descent": self.lm_result.products if self.lm_result else 0,
        }

    def arrays(self) -> dict[str, Float]:
        """The arrays of the store, in coefficients whatever the metric."""
        sweep, problem, at = self.sweep, self.problem, self.choice.index
        steps = problem.coefficients(self.solution.step)
        step = np.ascontiguousarray(steps[..., at])
        start = problem.context.reader("spectrum").array("start")
        history = self.solution.residual[:, at]
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
        if self.lm_result is not None:
            arrays["coefficients_lm"] = problem.coefficients(self.lm_result.coefficients)
        predictor = getattr(problem.objective.on_device, "predictor", None)
        if predictor is not None:
            arrays |= {"predictor_weight": predictor.weight, "predictor_bias": predictor.bias}
        return arrays

    def attributes(self) -> dict[str, Any]:
        """The attributes of the store."""
        sweep, solution, at = self.sweep, self.solution, self.choice.index
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
        """What else says how the step went."""
        at_start, step = self.problem.at_start, self.solution.step[..., self.choice.index]
        size = float(np.linalg.norm(step) * np.linalg.norm(at_start.gradient))
        aligned = float(np.sum(step * at_start.gradient))
        found: dict[str, Any] = {
            "cosine_to_descent": -aligned / size if size else 0.0,
            "passes": self.problem.stream.passes,
            "products": self.products,
            "advice": self.solution.advice,
        }
        active_hinge = at_start.number("active_hinge")
        if active_hinge is not None:
            found["active_hinge"] = active_hinge
        if self.lm_result is not None:
            found["descent"] = {
                "loss": self.lm_result.loss,
                "damping_relative": self.lm_result.damping_relative,
                "rho": self.lm_result.rho,
                "trials": self.lm_result.trials,
                "why": self.lm_result.reason,
            }
        return found

    def lines(self) -> list[str]:
        """The outcome for people."""
        sweep, at, products = self.sweep, self.choice.index, self.products
        name, passes = self.problem.context.settings.objective, self.problem.stream.passes
        lines = [
            f"{name}: {products['grid']} products over {len(sweep.damping)} dampings, "
            f"{products['preconditioner']} for the preconditioner, {products['residuals']} to "
            f"check residuals; {passes} passes over the kernel in all",
            f"damping {sweep.damping_relative[at]:g}: loss {sweep.loss_start:.4g} -> "
            f"{sweep.loss[at]:.4g}, rho {sweep.rho[at]:.2f}, "
            f"|step| {sweep.step_norm[at] / sweep.start_norm:.2g} of the start, residual "
            f"{self.solution.relative_residual[at]:.1e}; {self.choice.reason}",
        ]
        if not self.choice.trusted:
            lines.append("this step is NOT to be trusted")
        if self.lm_result is not None:
            lines.append(
                f"{len(self.lm_result.rho)} further steps: loss {self.lm_result.loss[-1]:.4g} after "
                f"{self.lm_result.trials} trials and {products['descent']} products; "
                f"{self.lm_result.reason}"
            )
        return lines


def _entropies(start: Float, steps: Float) -> Float:
    """Spectral entropy of the coefficients at every damping."""
    return np.array([spectral_entropy(start + steps[..., i]) for i in range(steps.shape[-1])])
