"""Training sets: groups, seeds, samples that are left without a group, rows to embed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.settings import read_recorded_settings
from krepes_ooc.errors import UsageError
from krepes_ooc.network.pretrain import PretrainSettings
from krepes_ooc.network.spec import PRETRAIN
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.group_moments.stored_groups import StoredGroupMoments, StoredGroups
from krepes_ooc.stages.groups.declared import HALF
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.views.spec import CLEAN

ALL = -1
CENTRE_ROWS = 8192
COMPONENT_ROWS = 16_384
_CENTRE_STREAM = 551
_COMPONENT_STREAM = 552
Int64 = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RetrainingInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    audited: StoreReader
    newton: StoreReader
    influence: StoreReader
    groups: StoreReader
    group_moments: StoreReader
    group_influence: StoreReader
    recipe: RecipeInputs = recipe_parts("source", "views", "factory")


@dataclass(frozen=True)
class Unit:
    """One training.

    Args:
        index: of the partial result.
        group: left out; ``ALL``: none.
        seed: of the training.
        text: group and seed in words.
    """

    index: int
    group: int
    seed: int
    text: str


@dataclass(frozen=True)
class RetrainingProblem:
    """Groups and samples of one stage.

    Args:
        inputs: of the stage.
        context: the stage.
    """

    inputs: RetrainingInputs
    context: StageContext
    _left: dict[int, str] = field(default_factory=dict)

    @cached_property
    def groups(self) -> StoredGroups:
        """Membership of samples."""
        return StoredGroups(self.inputs.groups)

    @cached_property
    def moments(self) -> StoredGroupMoments:
        """Moments of the kernel rows of groups."""
        return StoredGroupMoments(self.inputs.group_moments, self.groups)

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Reasons that groups are not left out, by name.

        Raises:
            UsageError: a group that the recipe names does not exist.
        """
        chosen: tuple[str, ...] = self.context.settings.groups
        check_group_names(chosen, self.groups.names)
        unasked = {name: "not asked for" for name in self.groups.names if chosen}
        found = {name: text for name, text in unasked.items() if name not in chosen}
        return found | dict(self.inputs.group_influence.attributes["reasons"])

    @cached_property
    def chosen(self) -> list[int]:
        """Groups that are left out."""
        return [g for g, name in enumerate(self.groups.names) if name not in self.reasons]

    @cached_property
    def halves(self) -> npt.NDArray[np.bool_]:
        """Whether a group is a random half of the samples [group]."""
        kinds = [part["kind"] for part in self.inputs.groups.attributes["partitions"]]
        return np.array([kinds[p] == HALF for p in self.groups.partition], dtype=bool)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the trainings; the first is that of the recipe."""
        return [self.inputs.recipe.seed + i for i in range(self.context.settings.seeds)]

    @cached_property
    def units(self) -> list[Unit]:
        """All trainings: for every seed that of all samples, then those without a group."""
        units: list[Unit] = []
        for seed in self.seeds:
            for group in (ALL, *self.chosen):
                left = "all samples" if group == ALL else f"without {self.groups.names[group]!r}"
                units.append(Unit(len(units), group, seed, f"{left}, seed {seed}"))
        return units

    @cached_property
    def explained(self) -> Int64:
        """Audited samples of role audit."""
        return np.flatnonzero(self.inputs.audited.array("role") == ROLES["audit"])

    @cached_property
    def anchors(self) -> Int64:
        """Audited samples that profiles are taken against."""
        return self.inputs.group_influence.array("anchor")

    @cached_property
    def sample_id(self) -> Int64:
        """Positions of the explained samples, then of the anchors."""
        sample_id = self.inputs.audited.array("sample_id")
        return np.concatenate([sample_id[self.explained], sample_id[self.anchors]])

    def members(self, sample_id: Int64) -> npt.NDArray[np.bool_]:
        """Whether samples belong to each group [group, sample]."""
        levels = self.groups.levels_of(sample_id, self.context.plan)
        chosen = [self.groups.members(levels, group) for group in range(len(self.groups.names))]
        return np.array(chosen, dtype=bool).reshape(len(chosen), len(sample_id))

    @cached_property
    def outside(self) -> npt.NDArray[np.bool_]:
        """Whether an anchor does not belong to each group [group, anchor]."""
        return ~self.members(self.sample_id[len(self.explained) :])

    def left(self, group: int) -> Int64:
        """Positions of the samples that are left without a group, ascending."""
        if group == ALL:
            return np.arange(self.context.plan.n_samples)
        partition = self.groups.partition[group]
        code = self.groups.code[group]
        found = []
        for block in self.context.plan.blocks():
            level = self.inputs.groups.block("level", block)[:, partition]
            found.append(self.inputs.groups.block("sample_id", block)[level != code])
        return np.sort(np.concatenate(found)).astype(np.int64)

    def left_sha256(self, group: int) -> str:
        """sha256 of the positions that are left without a group; computed once."""
        if group not in self._left:
            self._left[group] = array_sha256(self.left(group))
        return self._left[group]

    @cached_property
    def outputs(self) -> Int64:
        """Indices of the audited outputs."""
        return np.array(self.inputs.features.attributes["network"]["outputs"], dtype=np.int64)

    @cached_property
    def pretrain_settings(self) -> PretrainSettings:
        """Settings of the demo trainer as the stage pretrain was begun with."""
        begun = self.context.workspace.record(PRETRAIN, None).begun() or {}
        return read_recorded_settings(PretrainSettings, begun.get("settings"), PRETRAIN)

    def clean_rows(self, sample_id: Int64) -> Iterator[Rows]:
        """Network inputs of clean samples, a forward batch at a time."""
        return self.view_rows(sample_id, CLEAN)

    def view_rows(self, sample_id: Int64, view: int) -> Iterator[Rows]:
        """Network inputs of one view of samples, a forward batch at a time."""
        batch = self.context.plan.forward_batch
        for start in range(0, len(sample_id), batch):
            self.context.stop.check()
            yield self.inputs.recipe.encode(sample_id[start : start + batch], view)[0]

    def centre_sample(self, positions: Int64) -> Int64:
        """The samples that the mean embedding is taken over: all, or a keyed draw of many."""
        return self._drawn(positions, CENTRE_ROWS, _CENTRE_STREAM)

    def component_sample(self) -> Int64:
        """The samples whose inputs the principal components are solved on."""
        n_samples = self.context.plan.n_samples
        return self._drawn(np.arange(n_samples), COMPONENT_ROWS, _COMPONENT_STREAM)

    def _drawn(self, positions: Int64, most: int, stream: int) -> Int64:
        if len(positions) <= most:
            return positions
        keyed = int(counter_rng.bits(self.inputs.recipe.seed, stream))
        chosen = counter_rng.Bijection(len(positions), keyed)(np.arange(most))
        return np.sort(positions[chosen])


def array_sha256(values: Int64) -> str:
    """sha256 of the bytes of an array of positions."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<i8").tobytes()).hexdigest()


def check_group_names(asked: tuple[str, ...], known: Any) -> None:
    """Check the groups that a recipe names.

    Raises:
        UsageError: one of them does not exist.
    """
    for name in asked:
        if name not in known:
            names = ", ".join(list(known)[:20]) + (", ..." if len(known) > 20 else "")
            raise UsageError(
                f"no group {name!r}", where="stages.retraining.groups", expected=f"one of {names}"
            )
