"""Stage alignment: which columns the influence follows, and which groups hold up which groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.settings import setting
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.stages.alignment.gap import (
    ColumnValues,
    agreement,
    alignment_gap,
    bootstrap_error,
    sample_gaps,
)
from krepes_ooc.stages.alignment.groups import GroupTable, group_table
from krepes_ooc.stages.alignment.summary import alignment_lines, group_lines
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.features.featurizer import computing_bytes
from krepes_ooc.stages.fidelity.baselines import cosine
from krepes_ooc.stages.fidelity.rows import audited_rows, landmark_rows
from krepes_ooc.stages.influence.scores import contribution, top_k
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader

LABEL = "label"
MAX_GROUPS = 12
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
ARRAYS = (
    "gap",
    "stderr",
    "chance",
    "kernel_only",
    "difference_stderr",
    "weighted",
    "repelling",
    "by_network",
)


@dataclass(frozen=True)
class AlignmentSettings:
    """Recipe key ``stages.alignment``."""

    groups: tuple[str, ...] = setting(
        (),
        about="categorical columns, or label, that get a group table; none named: all with at most "
        f"{MAX_GROUPS} categories",
    )


@dataclass(frozen=True)
class _Column:
    """One column or the label: what is compared, and the names of its categories."""

    name: str
    values: ColumnValues
    categories: tuple[str, ...]


@dataclass(frozen=True)
class _Rankings:
    """Kernel rows of the audit samples and three rankings of their landmarks."""

    kernel: Float
    top: Index
    score: Float
    by_kernel: tuple[Index, Float]
    repelling: Index
    by_network: Index
    by_inputs: Index | None


@dataclass(frozen=True)
class AlignmentInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    audited: StoreReader
    kernel: StoreReader
    spectrum: StoreReader
    newton: StoreReader
    influence: StoreReader
    recipe: RecipeInputs = recipe_parts("source", "network")


def run(inputs: AlignmentInputs, context: StageContext) -> None:
    """Measure every column, draw up the group tables, seal."""
    audited, landmarks = context.reader("audited"), context.reader("landmarks")
    here = np.flatnonzero(audited.array("role") == ROLES["audit"])
    columns, rankings = _columns(audited, landmarks, here), _rankings(context, here)
    context.progress.begin("alignment", len(columns) + 1, 0)
    asked = _groups(context.settings.groups, columns)
    kept = ARRAYS if rankings.by_inputs is None else (*ARRAYS, "by_inputs")
    arrays, notes = {name: np.zeros(len(columns)) for name in kept}, {}
    for i, column in enumerate(columns):
        context.stop.check()
        try:
            for name, value in _measure(column.values, rankings).items():
                arrays[name][i] = value
        except StageFailed as error:
            notes[column.name] = error.what
        context.progress.advance(1)
    groups = {column.name: _table(column, rankings) for column in asked}
    attributes = {
        "columns": [column.name for column in columns],
        "notes": notes,
        "measure": context.reader("influence").attributes["measure"],
        "top": rankings.top.shape[1],
        "groups": groups,
    }
    for line in [*alignment_lines(arrays, attributes), *group_lines(groups)]:
        context.progress.note(line)
    spec = StoreSpec(
        load_contract("alignment"), {"column": len(columns)}, arrays=(*arrays, "defined")
    )
    defined = np.array([column.name not in notes for column in columns], dtype=np.int64)
    write_whole(context, spec, {**arrays, "defined": defined}, attributes)


def _columns(audited: StoreReader, landmarks: StoreReader, here: Index) -> list[_Column]:
    """All table columns, then the label where there is one."""
    found = []
    if audited.has("values"):
        rows, marks = audited.array("values")[here], landmarks.array("values")
        for i, column in enumerate(audited.attributes["columns"]):
            numeric = column["kind"] == "numeric"
            span = float(column["high"] - column["low"]) if numeric else None
            values = ColumnValues(rows[:, i], marks[:, i], span)
            found.append(_Column(column["name"], values, tuple(column["categories"])))
    label = audited.array("label")[here]
    classes = tuple(audited.info("label").attributes["categories"])
    if (label >= 0).any() and classes:
        values = ColumnValues(label.astype(np.float64), landmarks.array("label").astype(np.float64))
        found.append(_Column(LABEL, values, classes))
    return found


def _rankings(context: StageContext, here: Index) -> _Rankings:
    influence, step = context.reader("influence"), context.reader("newton").array("step")
    kernel = influence.whole("kernel")[here]
    top = influence.array("top_landmark")[here]
    signed = contribution(kernel, step, influence.array("embedding")[here])
    against = np.argsort(signed, axis=1, kind="stable")[:, : top.shape[1]]
    held, landmarks = audited_rows(context, "audit"), landmark_rows(context)
    mean = held.network.mean(axis=0)
    inputs = None
    if held.inputs is not None and landmarks.inputs is not None:
        inputs = _nearest(held.inputs, landmarks.inputs, top.shape[1])
    return _Rankings(
        kernel,
        top,
        influence.array("score")[here],
        top_k(np.abs(kernel), top.shape[1]),
        against,
        _nearest(held.network - mean, landmarks.network - mean, top.shape[1]),
        inputs,
    )


def _nearest(held: Float, landmarks: Float, count: int) -> Index:
    """Landmarks of largest cosine [audited, rank]."""
    order = np.argsort(-cosine(held, landmarks), axis=1, kind="stable")
    return order[:, :count]


def _measure(values: ColumnValues, rankings: _Rankings) -> dict[str, float]:
    agreed = agreement(values)
    measured = alignment_gap(agreed, rankings.top, rankings.kernel)
    by_kernel = sample_gaps(agreed, rankings.by_kernel[0])
    found = {
        "gap": measured.gap,
        "stderr": measured.stderr,
        "chance": measured.chance,
        "kernel_only": float(by_kernel.mean()),
        "difference_stderr": bootstrap_error(sample_gaps(agreed, rankings.top) - by_kernel),
        "weighted": measured.weighted,
        "repelling": float(sample_gaps(agreed, rankings.repelling).mean()),
        "by_network": float(sample_gaps(agreed, rankings.by_network).mean()),
    }
    if rankings.by_inputs is not None:
        found["by_inputs"] = float(sample_gaps(agreed, rankings.by_inputs).mean())
    return found


def _groups(names: tuple[str, ...], columns: list[_Column]) -> list[_Column]:
    """The columns that get a group table.

    Raises:
        UsageError: a name that is no categorical column.
    """
    able = {column.name: column for column in columns if column.categories}
    for name in names:
        if name not in able:
            raise UsageError(
                f"{name!r} is no column of groups",
                where="stages.alignment.groups",
                expected="one of " + (", ".join(able) or "none: the source has no categories"),
            )
    if names:
        return [able[name] for name in names]
    return [column for column in able.values() if 1 < len(column.categories) <= MAX_GROUPS]


def _table(column: _Column, rankings: _Rankings) -> dict[str, Any]:
    """One group table as JSON; what is not defined is null."""
    codes = [
        np.nan_to_num(values, nan=-1.0).astype(np.int64)
        for values in (column.values.audited, column.values.landmark)
    ]

    def table(top: Index, score: Float) -> GroupTable:
        return group_table(codes[0], codes[1], top, score, len(column.categories))

    try:
        found, control = table(rankings.top, rankings.score), table(*rankings.by_kernel)
    except StageFailed as error:
        return {"note": error.what}
    return {
        "note": group_note(found),
        "categories": list(column.categories),
        "samples": found.samples.tolist(),
        "landmarks": found.landmarks.tolist(),
        "share": to_json(found.share),
        "stderr": to_json(found.stderr),
        "kernel_only": to_json(control.share),
        "chance": to_json(found.chance),
    }


def group_note(found: GroupTable) -> str:
    """What a reader of the table must know: groups that no landmark belongs to."""
    unseen = int(np.sum((found.samples > 0) & (found.landmarks == 0)))
    if not unseen:
        return ""
    return (
        f"{unseen} of {int(np.sum(found.samples > 0))} groups have no landmark, so that nothing of "
        "their own can hold them up: take more landmarks"
    )


def to_json(values: Float) -> list[Any]:
    """Nested lists with null where a value is not finite."""
    return [
        to_json(value) if np.ndim(value) else float(value) if np.isfinite(value) else None
        for value in values
    ]


def predict(shape: AuditSizes, settings: AlignmentSettings) -> Cost:
    """Agreement of every audit sample with every landmark, one column at a time."""
    n, m = shape.n_explained, shape.n_landmarks
    need = 64 * n * m + computing_bytes(shape, shape.plan.sub_rows)
    return plain_cost(1, 2**16, MemoryNeed(need), 2.0 * n * m * m)


STAGE = Stage(
    name="alignment",
    version=1,
    inputs=AlignmentInputs,
    store="alignment",
    settings=AlignmentSettings,
    run=run,
    estimate_cost=predict,
    about="columns and groups that the influence follows",
)
