"""Coefficients without each group: re-solved from moments, or to first order from the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.array_columns import BlockFunction
from krepes_ooc.engine.device import HOST
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.base.writing import partial_path, read_partial, write_partial
from krepes_ooc.stages.group_influence.effects import Embedding, effects
from krepes_ooc.stages.group_influence.group_gradients import BYOLGroups, SimCLRGroups
from krepes_ooc.stages.group_influence.group_problem import BlockMembers, GroupProblem
from krepes_ooc.stages.group_moments.group_sums import GroupMoments
from krepes_ooc.stages.minimiser.minimise import MinimiserResult, minimise
from krepes_ooc.stages.newton.conjugate_gradient import CGState, conjugate_gradient
from krepes_ooc.stages.newton.objectives.byol import Predictor
from krepes_ooc.stages.newton.objectives.families import SampleObjective
from krepes_ooc.stages.newton.objectives.simclr import SimCLR
from krepes_ooc.stages.newton.preconditioners import Kronecker, KroneckerPath
from krepes_ooc.stages.newton.problem import to_host_arrays

# Right-hand sides of one block solve.
COLUMN_BYTES = 2**24
FIRST_ORDER_TOLERANCE, FIRST_ORDER_ITERATIONS = 1e-3, 100
WITHOUT, FULL = "without", "full"
# The minimum of all samples: its tolerance is divided, and its evaluations are multiplied.
TIGHTER, LONGER = 10.0, 4
Float = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Resolver:
    """Re-solves a moment objective on the moments of all samples but a group.

    Args:
        problem: the objective and the groups.
    """

    problem: GroupProblem
    method = "re-solve"

    @property
    def context(self) -> StageContext:
        """The stage."""
        return self.problem.context

    @cached_property
    def _model(self) -> tuple[float, KroneckerPath]:
        """Mean diagonal and Kronecker models of the curvature, S that of all samples."""
        total = self.problem.moments.total().full()
        at_start = self.problem.objective(total).linearise(self.problem.start)
        return float(at_start.mean_diagonal), KroneckerPath.build(at_start, total)

    @property
    def mean_diagonal(self) -> float:
        """tr(H) / (m h) at the start."""
        return self._model[0]

    @property
    def damping(self) -> float:
        """Lambda."""
        return self.problem.damping_relative * self.mean_diagonal

    def solve(
        self,
        moments: GroupMoments,
        point: Float | None = None,
        *,
        tighter: float = 1.0,
        longer: int = 1,
    ) -> MinimiserResult:
        """The damped minimiser on some moments.

        S of all samples serves every group, so that it is decomposed once: a group changes the
        moments a little, and what it changes is learned from the gradients.

        Args:
            moments: of the samples.
            point: coefficients that the iteration begins at; None: the start.
            tighter: the tolerance is divided by it.
            longer: the evaluations are multiplied by it.
        """
        settings, problem = self.context.settings, self.problem
        return minimise(
            problem.objective(moments.full()),
            problem.start,
            self.damping,
            model=self._model[1],
            point=point,
            tolerance=settings.tolerance / tighter,
            max_evaluations=settings.max_evaluations * longer,
            check=self.context.stop.check,
        )

    def full(self) -> Arrays:
        """Coefficients of all samples; kept.

        They are solved more exactly: what is left of their own gradient would enter the effect of
        every group.
        """
        path = self.context.record.partials / f"{FULL}.npz"
        known = read_partial(self.context, path)
        if known is None:
            found = self.solve(self.problem.moments.total(), tighter=TIGHTER, longer=LONGER)
            reached = found.gradient <= self.context.settings.tolerance
            known = _record(replace(found, converged=reached))
            known["floor"] = np.array(self._floor(found.coefficients))
            write_partial(self.context, path, known)
        return known

    def _floor(self, full: Float) -> float:
        """Mean effect of solving on with all samples: what the solves leave of any effect.

        NaN without anchors.
        """
        problem, total = self.problem, self.problem.moments.total()
        if not len(problem.anchors):
            return float("nan")
        on = self.solve(total, full, tighter=TIGHTER**2).coefficients
        before, after = (problem.embedding(A, total) for A in (full, on))
        rows = problem.rows.astype(np.float64)
        mean = float(np.mean(effects(rows, rows[problem.anchors], before, after)))
        # One minus a correlation: rounding may take it below 0.
        return max(0.0, mean)

    def without(self, groups: Sequence[int]) -> None:
        """Coefficients without each group, and their effects; kept group by group."""
        full = self.full()
        baseline = self.problem.embedding(full["coefficients"], self.problem.moments.total())
        rows, damping = self.problem.rows, self.damping
        assert rows.size
        assert damping > 0

        def task(group: int) -> None:
            rest = self.problem.moments.rest(group)
            # From the minimum of all samples: of several minima the one beside it.
            known = _record(self.solve(rest, full["coefficients"]))
            embedding = self.problem.embedding(known["coefficients"], rest)
            save_group(self.problem, group, known, baseline, embedding)

        self.context.executor().run(task, groups)


@dataclass(frozen=True)
class FirstOrder:
    """First-order change of the newton stage's coefficients, for an objective that streams.

    Args:
        problem: the objective and the groups.
    """

    problem: GroupProblem
    method = "first-order"

    @property
    def context(self) -> StageContext:
        """The stage."""
        return self.problem.context

    @cached_property
    def objective(self) -> SampleObjective:
        """The objective on the stored kernel."""
        total = self.problem.moments.total().full()
        objective: SampleObjective = self.problem.objective(total)
        return objective

    @cached_property
    def coefficients(self) -> Float:
        """A of all samples, as the newton stage left them [landmark, component]."""
        return self.problem.inputs.newton.array("coefficients")

    @cached_property
    def _curvature(self) -> Any:
        """Value, gradient and curvature at A; one pass."""
        arrays = self.problem.stream.cached(
            "curvature", lambda: self.objective.linearise(self.coefficients).arrays()
        )
        return self.objective.restore(self.coefficients, arrays)

    @property
    def mean_diagonal(self) -> float:
        """tr(H) / (m h) at A."""
        return float(self._curvature.mean_diagonal)

    @property
    def damping(self) -> float:
        """Lambda of the newton step; in units of the mean diagonal if that used another metric."""
        newton = self.problem.inputs.newton.attributes
        if newton["metric"] == "euclidean":
            return float(newton["damping"])
        return float(newton["damping_relative"]) * self.mean_diagonal

    def full(self) -> Arrays:
        """Coefficients of all samples."""
        newton = self.problem.inputs.newton.attributes
        return {
            "coefficients": self.coefficients,
            "steps": np.array(int(newton["iterations"])),
            "gradient_norm": np.array(float(newton["residual_norm"])),
            "converged": np.array(bool(newton["trusted"])),
            "floor": np.array(np.nan),
        }

    def without(self, groups: Sequence[int]) -> None:
        """All groups as right-hand sides of one block solve, as many as fit at a time."""
        full = self.full()
        baseline = self.problem.embedding(full["coefficients"], self.problem.moments.total())
        columns = max(1, COLUMN_BYTES // self.coefficients.nbytes)
        for start in range(0, len(groups), columns):
            chosen = tuple(groups[start : start + columns])
            step, solved = self._solve(chosen)
            for index, group in enumerate(chosen):
                known = {name: values[index] for name, values in solved.items()}
                known["coefficients"] = self.coefficients + step[..., index]
                rest = self.problem.moments.rest(group)
                embedding = self.problem.embedding(known["coefficients"], rest)
                save_group(self.problem, group, known, baseline, embedding)

    def _solve(self, groups: tuple[int, ...]) -> tuple[Float, dict[str, npt.NDArray[Any]]]:
        """(H + lambda)^(-1) times the gradients of the groups' own terms, resumable by pass."""
        stream, name = self.problem.stream, f"solve-{groups[0]:06d}-{groups[-1]:06d}"
        gradients = stream.cached(f"{name}-gradients", lambda: {"rhs": self._gradients(groups)})
        moments = self.problem.moments.total().full()
        kept = stream.load_checkpoint(name)
        solution = conjugate_gradient(
            self._curvature.product,
            gradients["rhs"],
            self.damping,
            preconditioner=Kronecker.build(self._curvature, moments),
            tolerance=FIRST_ORDER_TOLERANCE,
            max_iterations=FIRST_ORDER_ITERATIONS,
            state=None if kept is None else CGState(**kept),
            checkpoint=lambda state: stream.checkpoint(name, lambda: to_host_arrays(state, HOST)),
        )
        solved = {
            "steps": solution.iterations,
            "gradient_norm": solution.relative_residual,
            "converged": solution.converged,
        }
        return solution.step, solved

    def _gradients(self, groups: tuple[int, ...]) -> Float:
        """Gradients of the groups' own terms [landmark, component, group]; one pass."""
        problem, members = self.problem, BlockMembers(self.problem.groups, groups)
        settings, A = problem.objective_settings, self.coefficients
        function: BlockFunction
        if isinstance(self.objective, SimCLR):
            function = SimCLRGroups(
                A, problem.offset, settings.temperature, settings.batch, members
            )
            scale = 1.0 / self.objective.anchors
        else:
            h = problem.start.shape[1]
            predictor = problem.predictor or Predictor(np.eye(h), np.zeros(h))
            function = BYOLGroups(A, problem.start, problem.offset, predictor, members)
            # The mean over samples and pairs of views, as the objective has it.
            scale = 2.0 / (problem.moments.n_samples * len(problem.moments.total().mean))
        (total,) = problem.stream.reduce(function)
        return np.asarray(np.ascontiguousarray(np.moveaxis(total, 0, -1)) * scale)


def save_group(
    problem: GroupProblem,
    group: int,
    known: Mapping[str, npt.NDArray[Any]],
    full: Embedding,
    rest: Embedding,
) -> None:
    """Effects of leaving out a group on every audited sample, kept with its coefficients."""
    outside = problem.anchors[~problem.members[group, problem.anchors]]
    rows = problem.rows.astype(np.float64)
    effect = effects(rows, rows[outside], full, rest)
    path = partial_path(problem.context, WITHOUT, group)
    write_partial(problem.context, path, {**known, "effect": effect})
    problem.context.progress.advance(1)


def _record(found: MinimiserResult) -> Arrays:
    return {
        "coefficients": found.coefficients,
        "steps": np.array(found.evaluations),
        "gradient_norm": np.array(found.gradient),
        "converged": np.array(found.converged),
    }
