"""Objective, start, groups and kernel rows of audited samples, from the stores of the stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.blocks import Block
from krepes_ooc.core.settings import read_settings
from krepes_ooc.engine.device import HOST
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs
from krepes_ooc.stages.base.writing import read_partial, write_partial
from krepes_ooc.stages.group_influence.effects import Embedding, refusal, standardise
from krepes_ooc.stages.group_moments.group_sums import GroupMoments
from krepes_ooc.stages.group_moments.stored_groups import StoredGroupMoments, StoredGroups
from krepes_ooc.stages.kernel.landmark_kernel import read_landmark_kernel
from krepes_ooc.stages.kernel.stream import KernelStream
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.objectives.byol import Predictor
from krepes_ooc.storage.store_reader import StoreReader

_ANCHOR_STREAM = 531
# Losses of standardised components: the scale of a component is not theirs.
SCALE_FREE = ("barlow-twins",)
Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GroupInfluenceInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    audited: StoreReader
    kernel: StoreReader
    moments: StoreReader
    groups: StoreReader
    group_moments: StoreReader
    spectrum: StoreReader
    newton: StoreReader
    minimiser: StoreReader


@dataclass(frozen=True)
class GroupProblem:
    """The objective at its start, and all that a group needs to be left out.

    Args:
        inputs: of the stage.
        context: the stage.
    """

    inputs: GroupInfluenceInputs
    context: StageContext

    @cached_property
    def groups(self) -> StoredGroups:
        """Membership of samples."""
        return StoredGroups(self.inputs.groups)

    @cached_property
    def moments(self) -> StoredGroupMoments:
        """Moments of all samples and of groups."""
        return StoredGroupMoments(self.inputs.group_moments, self.groups)

    @property
    def objective_name(self) -> str:
        """Name of the SSL objective."""
        return str(self.inputs.newton.attributes["objective"])

    @cached_property
    def objective_settings(self) -> Any:
        """Its constants."""
        kind = registry.settings_type(self.objective_name)
        return read_settings(kind, self.inputs.newton.attributes["objective_settings"], "newton")

    @property
    def damping_relative(self) -> float:
        """Damping of the re-solve, as set, or the minimiser's."""
        asked = self.context.settings.damping
        if asked != "auto":
            return float(asked)
        chosen = self.inputs.minimiser.attributes["damping_relative"]
        return 1.0 if chosen is None else float(chosen)

    @cached_property
    def start(self) -> Float:
        """A0 [landmark, component]."""
        return self.inputs.spectrum.array("start")

    @cached_property
    def offset(self) -> Float:
        """Gamma [component]."""
        return self.inputs.spectrum.array("offset")

    def objective(self, moments: Moments) -> Any:
        """The objective on some moments; one that streams reads all of the kernel."""
        stream = None if registry.uses_moments(self.objective_name) else self.stream
        return registry.create(
            self.objective_name,
            self.objective_settings,
            moments=moments,
            stream=stream,
            start=self.start,
            offset=self.offset,
            predictor=self.predictor,
            sub_rows=self.context.plan.sub_rows,
        )

    @cached_property
    def stream(self) -> KernelStream:
        """The kernel as a stream, on the host."""
        inputs, context = self.inputs, replace(self.context, device=HOST)
        return KernelStream(inputs.kernel, inputs.features, inputs.landmarks, context)

    @cached_property
    def predictor(self) -> Predictor | None:
        """BYOL's predictor, as the newton stage used it."""
        newton = self.inputs.newton
        if not newton.has("predictor_weight"):
            return None
        return Predictor(newton.array("predictor_weight"), newton.array("predictor_bias"))

    @cached_property
    def anchors(self) -> npt.NDArray[np.int64]:
        """Audited samples that profiles are taken against: a keyed draw of role fit, ascending."""
        fit = np.flatnonzero(self.inputs.audited.array("role") == ROLES["fit"])
        sample_id = self.inputs.audited.array("sample_id")[fit]
        seed = int(self.context.fingerprint["seed"])
        drawn = np.argsort(counter_rng.bits(seed, _ANCHOR_STREAM, sample_id), kind="stable")
        return np.sort(fit[drawn[: self.context.settings.anchors]]).astype(np.int64)

    @cached_property
    def members(self) -> Mask:
        """Whether audited samples belong to each group [group, audited]."""
        sample_id = self.inputs.audited.array("sample_id")
        levels = self.groups.levels_of(sample_id, self.context.plan)
        chosen = [self.groups.members(levels, group) for group in range(len(self.groups.names))]
        return np.array(chosen, dtype=bool).reshape(len(chosen), len(sample_id))

    def embedding(self, coefficients: Float, moments: GroupMoments) -> Embedding:
        """The embedding that profiles are taken of.

        Args:
            coefficients: A [landmark, component].
            moments: of the samples that it was solved on.
        """
        if self.objective_name in SCALE_FREE:
            coefficients = standardise(coefficients, moments.full())
        return Embedding(coefficients, moments.mean.mean(axis=0))

    def reason(self, group: int) -> str:
        """Reason that a group cannot be left out; empty if it can."""
        left = int((~self.members[group, self.anchors]).sum())
        count, n = int(self.groups.count[group]), self.moments.n_samples
        return refusal(n, count, left, len(self.anchors))

    @cached_property
    def rows(self) -> npt.NDArray[np.float32]:
        """Kernel rows of the clean audited samples [audited, landmark]; computed once."""
        path = self.context.record.partials / "rows.npz"
        known = read_partial(self.context, path)
        if known is None:
            known = {"rows": self._rows()}
            write_partial(self.context, path, known)
        rows: npt.NDArray[np.float32] = known["rows"]
        return rows

    def _rows(self) -> npt.NDArray[np.float32]:
        inputs, kernel = self.inputs, self.inputs.kernel.attributes
        plan = self.context.plan
        landmarks = read_landmark_kernel(
            inputs.landmarks, kernel["normalise"], kernel["scale"], plan.sub_rows
        )
        own = inputs.audited.array("self_kernel")
        found = []
        for block in replace(plan, n_samples=len(own)).blocks():
            self.context.stop.check()
            stored = inputs.audited.block("features", block)
            found.append(landmarks.rows(stored, own[block.start : block.stop]))
        return np.concatenate(found)


@dataclass(frozen=True)
class BlockMembers:
    """Whether the rows of a block belong to each of some groups [group, sample].

    Args:
        groups: membership.
        chosen: the groups.
    """

    groups: StoredGroups
    chosen: tuple[int, ...]

    def __call__(self, block: Block) -> Mask:
        """[group, sample] of one block."""
        level = self.groups.reader.block("level", block)
        partition = self.groups.partition[list(self.chosen)]
        code = self.groups.code[list(self.chosen)]
        return np.asarray(code[:, None] == level[:, partition].T)
