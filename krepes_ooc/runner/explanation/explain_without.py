"""Nearest landmarks of samples with and without a group of samples.

Both sides are solved in the same way by stage group_influence; embeddings are centred by the mean
view row of the samples that they were solved on, and compared by cosine, as the effects are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block, BlockPlan
from krepes_ooc.errors import UsageError
from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.sample_view import LandmarkSamples
from krepes_ooc.rendering.explanation_without import ExplainedWithout, neighbours
from krepes_ooc.runner.explanation.explain_names import nearest_name
from krepes_ooc.runner.explanation.explain_stores import (
    NEEDED,
    AuditStores,
    Samples,
    chosen_samples,
)
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.stages.group_influence.effects import Embedding, effects, standardise
from krepes_ooc.stages.group_influence.group_problem import SCALE_FREE
from krepes_ooc.stages.group_influence.solutions import FirstOrder
from krepes_ooc.stages.group_moments.group_sums import GroupMoments
from krepes_ooc.stages.group_moments.stored_groups import StoredGroupMoments, StoredGroups
from krepes_ooc.stages.groups.partitions import range_codes
from krepes_ooc.storage.workspace import Workspace

DEFAULT_TOP = 10
OPTION = "--without"
STORE = "group_influence"
Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def explain_without(
    workspace: Path | str,
    *,
    group: str,
    sample: int | Sequence[int] | None = None,
    file: Path | str | None = None,
    top: int | None = None,
    recipe: Recipe | str | None = None,
) -> list[ExplainedWithout]:
    """Explain what leaving out a group changes for samples: effect, neighbours before and after.

    Args:
        workspace: folder of the audit.
        group: its name in the store groups.
        sample: position in the source, or several.
        file: new samples instead, in the form of the source.
        top: nearest landmarks on either side; default 10.
        recipe: the recipe, its name or its file, if it names code that a new sample needs.

    Raises:
        UsageError: no such group, one that cannot be left out, no such sample, or neither or both
            of sample and file.
        WorkspaceError: the audit has no group influence, or its recipe is stale.
    """
    stores = AuditStores(Workspace(workspace), recipe, (*NEEDED, STORE))
    without = GroupLeftOut(stores, find_group(stores, group))
    samples = chosen_samples(stores, sample, file)
    # A re-solve starts from A0; only a first-order change starts from the step.
    method = stores.reader(STORE).attributes["method"]
    audit = stores.data(
        samples.columns, uses_step=method == FirstOrder.method, warnings=samples.warnings
    )
    count = DEFAULT_TOP if top is None else top
    return [without.explained(audit, samples, i, count) for i in range(len(samples))]


def find_group(stores: AuditStores, name: str) -> int:
    """Index of a group that can be left out.

    Raises:
        UsageError: no such group, several of this name, or one that cannot be left out.
    """
    attributes = stores.reader(STORE).attributes
    names = [str(text) for text in attributes["names"]]
    found = [index for index, text in enumerate(names) if text == name]
    if not found:
        raise nearest_name("group", name, names, OPTION)
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} groups are named {name!r}",
            where=OPTION,
            expected="a name that one group has",
            advice="name the group of the file stages.groups.file otherwise",
        )
    if name in attributes["reasons"]:
        raise UsageError(
            f"group {name!r} cannot be left out: {attributes['reasons'][name]}",
            where=OPTION,
            expected="another group",
        )
    return found[0]


@dataclass(frozen=True)
class GroupLeftOut:
    """Embeddings of all samples and of all but one group, on landmarks and samples.

    Args:
        stores: of the audit.
        group: index of the group.
    """

    stores: AuditStores
    group: int

    @cached_property
    def groups(self) -> StoredGroups:
        """Names and partitions of the groups."""
        return StoredGroups(self.stores.reader("groups"))

    @cached_property
    def name(self) -> str:
        """Name of the group."""
        return self.groups.names[self.group]

    @cached_property
    def full(self) -> Embedding:
        """The embedding of all samples."""
        moments = StoredGroupMoments(self.stores.reader("group_moments"), self.groups)
        return self._embedding(
            self.stores.reader(STORE).array("coefficients_full"), moments.total()
        )

    @cached_property
    def rest(self) -> Embedding:
        """The embedding without the group."""
        block = Block(self.group, self.group, self.group + 1)
        coefficients = self.stores.reader(STORE).block("coefficients", block)[0]
        return self._embedding(coefficients, self._moments.rest(self.group))

    @cached_property
    def _moments(self) -> StoredGroupMoments:
        return StoredGroupMoments(self.stores.reader("group_moments"), self.groups)

    def _embedding(self, coefficients: Float, moments: GroupMoments) -> Embedding:
        # As the stage centres and scales it, so that cosines are those of the stored effects.
        if self.stores.reader(STORE).attributes["objective"] in SCALE_FREE:
            coefficients = standardise(coefficients, moments.full())
        return Embedding(np.asarray(coefficients), moments.mean.mean(axis=0))

    @cached_property
    def landmark_directions(self) -> tuple[Float, Float]:
        """Unit embeddings of the landmarks with all samples and without the group."""
        landmarks = self.stores.reader("landmarks")
        rows = self.stores.landmark_kernel.rows(
            landmarks.array("features"), landmarks.array("self_kernel")
        ).astype(np.float64)
        return self.full.directions(rows), self.rest.directions(rows)

    def explained(self, audit: AuditData, samples: Samples, i: int, top: int) -> ExplainedWithout:
        """One sample's effect and nearest landmarks on either side."""
        assert audit.landmarks is not None
        first = LandmarkSamples(audit.landmarks).first_row
        row = samples.kernel[i : i + 1]
        before, after = (
            (embedding.directions(row) @ directions[first].T)[0]
            for embedding, directions in zip(
                (self.full, self.rest), self.landmark_directions, strict=True
            )
        )
        # A landmark is no neighbour of itself.
        same = audit.landmarks.sample_id[first] == samples.columns["sample_id"][i]
        before[same] = after[same] = -np.inf
        member = [self.landmark_members[place] for place in first]
        effect = self.effect(samples, i)
        stored = self.stores.reader(STORE).array("effect")[self.group]
        known = stored[np.isfinite(stored)]
        quantile = float(np.mean(known < effect)) if effect is not None and known.size else None
        return ExplainedWithout(
            audit,
            i,
            self.record(),
            effect,
            quantile,
            self._members(samples.columns)[i],
            neighbours(before, after, first, member, top),
            neighbours(after, before, first, member, top),
        )

    def effect(self, samples: Samples, i: int) -> float | None:
        """Effect on one sample: stored for an audited one, else computed; None: not defined."""
        if samples.row[i] >= 0:
            found = self.stores.reader(STORE).array("effect")[self.group, samples.row[i]]
        else:
            kernel = samples.kernel[i : i + 1]
            found = effects(kernel, self._anchor_rows, self.full, self.rest)[0]
        return float(found) if np.isfinite(found) else None

    @cached_property
    def _anchor_rows(self) -> Float:
        """Kernel rows of the anchors outside the group [anchor, landmark]."""
        anchor = self.stores.reader(STORE).array("anchor")
        ids = self.stores.reader("audited").array("sample_id")[anchor]
        # Only here every sample's codes are read, a few bytes a sample.
        info = self.groups.reader.info("level")
        rows = info.chunks[0]
        levels = self.groups.levels_of(ids, BlockPlan(info.shape[0], rows, rows, rows, 1))
        outside = anchor[~self.groups.members(levels, self.group)]
        return self.stores.stored([int(row) for row in outside]).kernel

    def record(self) -> dict[str, Any]:
        """The group as JSON values."""
        store = self.stores.reader(STORE)
        partition = self._partition
        return {
            "name": self.name,
            "partition": f"{partition['kind']} {partition['name']}",
            "samples": int(store.array("count")[self.group]),
            "mean_effect": _number(store.array("mean_effect")[self.group]),
            "mean_effect_stderr": _number(store.array("mean_effect_stderr")[self.group]),
            "method": store.attributes["method"],
            "gradient": _number(store.array("gradient_norm")[self.group]),
            "damping_relative": float(store.attributes["damping_relative"]),
        }

    @cached_property
    def _partition(self) -> dict[str, str]:
        declared = self.groups.reader.attributes["partitions"]
        return dict(declared[int(self.groups.partition[self.group])])

    @cached_property
    def landmark_members(self) -> list[bool | None]:
        """Whether each landmark belongs to the group, None where small stores do not say.

        Of a cluster of landmarks: whether the landmark is in the cluster.
        """
        if self._partition["kind"] == "landmarks":
            clusters = self.groups.reader.array("landmark_cluster")
            return [bool(c == self.groups.code[self.group]) for c in clusters]
        landmarks = self.stores.reader("landmarks")
        columns: dict[str, Any] = {"label": landmarks.array("label")}
        if landmarks.has("values"):
            columns["values"] = landmarks.array("values")
        return self._members(columns)

    def _members(self, columns: dict[str, Any]) -> list[bool | None]:
        """Whether samples belong to the group by their label or their table cells."""
        unknown: list[bool | None] = [None] * len(columns["label"])
        kind, column = self._partition["kind"], self._partition["name"]
        if kind == "label":
            classes = self.stores.reader("audited").info("label").attributes["categories"]
            codes = columns["label"]
            return _equal_to(codes, classes, self.name.removeprefix(f"{column} = ")) or unknown
        if kind not in ("column", "range") or columns.get("values") is None:
            return unknown
        known = self.stores.reader("landmarks").attributes["columns"]
        place = [str(one["name"]) for one in known].index(column)
        values = columns["values"][:, place]
        if kind == "column":
            levels = known[place]["categories"]
            return _equal_to(values, levels, self.name.removeprefix(f"{column} = ")) or unknown
        settings = dict(
            (self.stores.workspace.record("groups", "groups").begun() or {})["settings"]
        )
        codes = range_codes(values, settings["ranges"][column])
        return [bool(code == self.groups.code[self.group]) for code in codes]


def _equal_to(
    codes: npt.NDArray[Any], levels: Sequence[Any], level: str
) -> list[bool | None] | None:
    """Whether codes are those of a level; None if there is no such level."""
    texts = [str(text) for text in levels]
    if level not in texts:
        return None
    return [bool(code == texts.index(level)) for code in codes]


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
