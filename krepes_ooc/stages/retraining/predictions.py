"""Predicted effects of leaving out each group: of the re-solve and of every control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.figure_specs import PREDICTORS
from krepes_ooc.stages.group_influence.effects import effects
from krepes_ooc.stages.influence.scores import influence_score
from krepes_ooc.stages.retraining.controls import (
    input_effects,
    kernel_components,
    landmark_sums,
)
from krepes_ooc.stages.retraining.training_sets import RetrainingProblem

# The strongest of 4, 8, 16 and 32 components on digits, Barlow Twins and VICReg together.
KERNEL_COMPONENTS = 4
INPUT_COMPONENTS = 16
LONGEST_INPUT = 1024
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """Predicted effects of leaving out groups on the explained samples.

    Args:
        problem: groups and samples.
    """

    problem: RetrainingProblem

    def all(self) -> dict[str, Float]:
        """Effects [group, sample] by predictor; NaN where one is not defined."""
        problem = self.problem
        resolved = problem.inputs.group_influence.array("effect")[:, problem.explained]
        size = np.repeat(problem.groups.count[:, None].astype(np.float64), resolved.shape[1], 1)
        own = problem.members(problem.sample_id[: len(problem.explained)])
        scores, kernels = self._landmark_sums()
        found = [
            *(resolved, size, own.astype(np.float64)),
            *(self._kernel_components(), self._input_components()),
            *(scores, kernels),
        ]
        return dict(zip(PREDICTORS, found, strict=True))

    def _empty(self) -> Float:
        return np.full((len(self.problem.groups.names), len(self.problem.explained)), np.nan)

    def _kernel_components(self) -> Float:
        """Principal components of kernel rows on the moments of all other samples."""
        problem = self.problem
        found = self._empty()
        kernel = problem.inputs.influence.whole("kernel")
        rows = kernel[problem.explained]
        anchors = kernel[problem.anchors]
        full = kernel_components(problem.moments.total().full(), KERNEL_COMPONENTS)
        for group in problem.chosen:
            problem.context.stop.check()
            rest = kernel_components(problem.moments.rest(group).full(), KERNEL_COMPONENTS)
            found[group] = effects(rows, anchors[problem.outside[group]], full, rest)
        return found

    def _input_components(self) -> Float:
        """Principal components of inputs; NaN where an input is very long."""
        problem = self.problem
        found = self._empty()
        rows = self._inputs(problem.sample_id)
        if rows is None:
            return found
        sampled = problem.component_sample()
        explained = len(problem.explained)
        inputs = self._inputs(sampled)
        assert inputs is not None
        effect = input_effects(
            rows[:explained].astype(np.float64),
            rows[explained:].astype(np.float64),
            inputs,
            problem.members(sampled)[problem.chosen],
            problem.outside[problem.chosen],
            INPUT_COMPONENTS,
        )
        for group, values in zip(problem.chosen, effect, strict=True):
            problem.context.stop.check()
            found[group] = values
        return found

    def _inputs(self, sample_id: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        """Flat network inputs of clean samples [sample, column]; None if they are very long."""
        found: list[npt.NDArray[np.float32]] = []
        for batch in self.problem.clean_rows(sample_id):
            rows = batch.reshape(len(batch), -1)
            if rows.shape[1] > LONGEST_INPUT:
                return None
            found.append(rows)
        return np.concatenate(found)

    def _landmark_sums(self) -> Iterator[Float]:
        """Sums of the paper's score and of |k| over the landmarks of each group."""
        problem = self.problem
        kernel = problem.inputs.influence.whole("kernel")[problem.explained]
        members = problem.members(problem.inputs.landmarks.array("sample_id"))
        step = problem.inputs.newton.array("step")
        for score in (influence_score(kernel, step), np.abs(kernel)):
            yield landmark_sums(np.asarray(score), members)
