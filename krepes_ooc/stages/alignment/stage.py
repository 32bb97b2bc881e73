"""Stage alignment: alignment gaps of all columns, and influence between groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.landmark_rows import rows_of_each, strongest_view, sum_views
from krepes_ooc.core.settings import setting
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
from krepes_ooc.stages.base.cost import ROW_PASSES, Cost, Quantity, Term, f64
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
# Tables of more groups are drawn only if they are named
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
    "paper",
    "repelling",
    "repelling_kernel",
    "network_gap",
)
INPUT_GAP = "input_gap"


@dataclass(frozen=True)
class AlignmentSettings:
    """Recipe key ``stages.alignment``."""

    groups: tuple[str, ...] = setting(
        (),
        about="categorical columns, or label, that get a group table; none named: all with at most "
        f"{MAX_GROUPS} categories",
    )


@dataclass(frozen=True)
class AlignedColumn:
    """One column or the label.

    Args:
        name: of the column.
        values: of audited samples and landmarks.
        categories: names of its groups.
        codes: values that stand for these groups; None: their indices 0, 1 ...
    """

    name: str
    values: ColumnValues
    categories: tuple[str, ...]
    codes: tuple[float, ...] | None = None

    def group_codes(self, values: Float) -> Index:
        """Index of the group of each value; -1 where it belongs to none."""
        if self.codes is None:
            # NaN is missing: code -1, left out of the table
            return np.nan_to_num(values, nan=-1.0).astype(np.int64)
        same = values[:, None] == np.asarray(self.codes)
        return np.where(same.any(axis=1), same.argmax(axis=1), -1)


@dataclass(frozen=True)
class _Rankings:
    """Kernel rows of the audit samples and rankings of their landmarks.

    Args:
        kernel: [audited, landmark].
        top: by the audit's measure [audited, rank].
        score: of ``top`` [audited, rank].
        kernel_only: by |k|, and these values, both [audited, rank].
        repelling: by contribution, most negative first [audited, rank].
        least_kernel: by the kernel, smallest first [audited, rank].
        network: by the centred cosine of network embeddings [audited, rank].
        inputs: by the cosine of inputs [audited, rank]; None if they are very long.
    """

    kernel: Float
    top: Index
    score: Float
    kernel_only: tuple[Index, Float]
    repelling: Index
    least_kernel: Index
    network: Index
    inputs: Index | None


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
    audit = np.flatnonzero(inputs.audited.array("role") == ROLES["audit"])
    columns = read_columns(inputs.audited, inputs.landmarks, audit)
    rankings = _rankings(inputs, context, audit)
    context.progress.begin("alignment", len(columns) + 1, 0)
    grouped = _grouped(context.settings.groups, columns)
    # Inputs that are very long have no control
    names = ARRAYS if rankings.inputs is None else (*ARRAYS, INPUT_GAP)
    arrays = {name: np.zeros(len(columns)) for name in names}
    notes = {}
    for i, column in enumerate(columns):
        context.stop.check()
        try:
            for name, value in _measure(column.values, rankings).items():
                arrays[name][i] = value
        except StageFailed as error:
            notes[column.name] = error.what
        context.progress.advance(1)
    groups = {column.name: _table(column, rankings) for column in grouped}
    attributes = {
        "columns": [column.name for column in columns],
        "notes": notes,
        "measure": inputs.influence.attributes["measure"],
        "top": rankings.top.shape[1],
        "groups": groups,
    }
    for line in [*alignment_lines(arrays, attributes), *group_lines(groups)]:
        context.progress.note(line)
    defined = np.array([column.name not in notes for column in columns], dtype=np.int64)
    spec = StoreSpec(
        load_contract("alignment"), {"column": len(columns)}, arrays=(*arrays, "defined")
    )
    write_whole(context, spec, {**arrays, "defined": defined}, attributes)


def read_columns(audited: StoreReader, landmarks: StoreReader, audit: Index) -> list[AlignedColumn]:
    """All table columns, then the label where there is one.

    Args:
        audited: store.
        landmarks: store.
        audit: rows of the audit samples among the audited ones.
    """
    columns = []
    # A landmark with several rows is one landmark: its first row shows it.
    ids = landmarks.array("sample_id")
    n_landmarks = len(ids) // rows_of_each(ids)
    if audited.has("values"):
        sample_values = audited.array("values")[audit]
        landmark_values = landmarks.array("values")[:n_landmarks]
        for i, column in enumerate(audited.attributes["columns"]):
            # Agreement of numbers falls from 1 to 0 within this range
            is_numeric = column["kind"] == "numeric"
            span = float(column["high"] - column["low"]) if is_numeric else None
            values = ColumnValues(sample_values[:, i], landmark_values[:, i], span)
            # Numbers that are codes have groups as well, with the words of the recipe.
            words = column.get("words", {})
            categories = tuple(column["categories"] or words.values())
            codes = tuple(float(code) for code in words) or None
            columns.append(AlignedColumn(column["name"], values, categories, codes))
    label = audited.array("label")[audit]
    classes = tuple(audited.info("label").attributes["categories"])
    if (label >= 0).any() and classes:
        landmark_label = landmarks.array("label")[:n_landmarks].astype(np.float64)
        values = ColumnValues(label.astype(np.float64), landmark_label)
        columns.append(AlignedColumn(LABEL, values, classes))
    return columns


def _rankings(inputs: AlignmentInputs, context: StageContext, audit: Index) -> _Rankings:
    """The audit's ranking, and those of the controls.

    Args:
        inputs: of the stage.
        context: of the stage.
        audit: rows of the audit samples among the audited ones.
    """
    influence = inputs.influence
    by_row = influence.whole("kernel")[audit]
    n_views = rows_of_each(inputs.landmarks.array("sample_id"))
    kernel = strongest_view(by_row, n_views)
    top = influence.array("top_landmark")[audit]
    count = top.shape[1]
    # Most negative contributions first: the other end of the ranking
    signed = contribution(by_row, influence.array("step"), influence.array("embedding")[audit])
    signed = sum_views(signed, n_views)
    repelling = np.argsort(signed, axis=1, kind="stable")[:, :count]
    # Controls without the step: likeness in the network's embedding and in the inputs
    samples = audited_rows(inputs, "audit")
    landmarks = landmark_rows(inputs, context).first(kernel.shape[1])
    # Centred by the same mean, so that the angle is about differences
    mean = samples.network.mean(axis=0)
    by_inputs = None
    if samples.inputs is not None and landmarks.inputs is not None:
        by_inputs = _most_similar(samples.inputs, landmarks.inputs, count)
    return _Rankings(
        kernel,
        top,
        influence.array("score")[audit],
        top_k(np.abs(kernel), count),
        repelling,
        np.argsort(kernel, axis=1, kind="stable")[:, :count],
        _most_similar(samples.network - mean, landmarks.network - mean, count),
        by_inputs,
    )


def _most_similar(samples: Float, landmarks: Float, count: int) -> Index:
    """Landmarks of largest cosine [audited, rank]."""
    order = np.argsort(-cosine(samples, landmarks), axis=1, kind="stable")
    return order[:, :count]


def _measure(values: ColumnValues, rankings: _Rankings) -> dict[str, float]:
    """Alignment gap of one column with its controls."""
    agreed = agreement(values)
    measured = alignment_gap(agreed, rankings.top, rankings.kernel)
    kernel_only = sample_gaps(agreed, rankings.kernel_only[0])
    gaps = {
        "gap": measured.gap,
        "stderr": measured.stderr,
        "chance": measured.chance,
        "kernel_only": float(kernel_only.mean()),
        # Paired over samples, so that the error is that of the difference
        "difference_stderr": bootstrap_error(sample_gaps(agreed, rankings.top) - kernel_only),
        "weighted": measured.weighted,
        "paper": measured.paper,
        "repelling": float(sample_gaps(agreed, rankings.repelling).mean()),
        # The control: landmarks least alike in the kernel, without the objective
        "repelling_kernel": float(sample_gaps(agreed, rankings.least_kernel).mean()),
        "network_gap": float(sample_gaps(agreed, rankings.network).mean()),
    }
    if rankings.inputs is not None:
        gaps[INPUT_GAP] = float(sample_gaps(agreed, rankings.inputs).mean())
    return gaps


def _grouped(names: tuple[str, ...], columns: list[AlignedColumn]) -> list[AlignedColumn]:
    """The columns that get a group table.

    Raises:
        UsageError: a name that is no categorical column.
    """
    # A numeric column has no groups
    categorical = {column.name: column for column in columns if column.categories}
    for name in names:
        if name not in categorical:
            known = ", ".join(categorical) or "none: the source has no categories"
            raise UsageError(
                f"{name!r} is no column of groups",
                where="stages.alignment.groups",
                expected=f"one of {known}",
            )
    if names:
        return [categorical[name] for name in names]
    return [column for column in categorical.values() if 1 < len(column.categories) <= MAX_GROUPS]


def _table(column: AlignedColumn, rankings: _Rankings) -> dict[str, Any]:
    """One group table as JSON; what is not defined is null."""
    both = (column.values.audited, column.values.landmark)
    codes = [column.group_codes(values) for values in both]

    def table(top: Index, score: Float) -> GroupTable:
        return group_table(codes[0], codes[1], top, score, len(column.categories))

    try:
        measured = table(rankings.top, rankings.score)
        control = table(*rankings.kernel_only)
    except StageFailed as error:
        return {"note": error.what}
    # Landmarks nearest in inputs or network embedding have no score: all weigh the same
    orders = {"by_network": rankings.network, "by_inputs": rankings.inputs}
    alike = {
        name: to_json(table(order, np.ones(order.shape)).share)
        for name, order in orders.items()
        if order is not None
    }
    return {
        "note": group_note(measured),
        "categories": list(column.categories),
        "samples": measured.samples.tolist(),
        "landmarks": measured.landmarks.tolist(),
        "share": to_json(measured.share),
        "stderr": to_json(measured.stderr),
        "kernel_only": to_json(control.share),
        "chance": to_json(measured.chance),
        **alike,
    }


def group_note(table: GroupTable) -> str:
    """Note of a table with groups that no landmark belongs to; else empty."""
    unseen = int(np.sum((table.samples > 0) & (table.landmarks == 0)))
    if not unseen:
        return ""
    return (
        f"{unseen} of {int(np.sum(table.samples > 0))} groups have no landmark, so that their own "
        "share is 0; take more landmarks"
    )


def to_json(values: Float) -> list[Any]:
    """Nested lists with null where a value is not finite."""
    return [
        to_json(value) if np.ndim(value) else float(value) if np.isfinite(value) else None
        for value in values
    ]


def estimate_cost(sizes: AuditSizes, settings: AlignmentSettings) -> Cost:
    """Agreement of every audit sample with every landmark, one column at a time."""
    n = sizes.n_explained
    m = sizes.n_landmarks
    rows = computing_bytes(sizes, sizes.plan.sub_rows)
    memory = Quantity(
        {
            "rankings": (
                Term("kernel rows, agreement, rankings and what sorting takes", f64(n, m), 13),
                Term("feature rows of one product and one batch", rows),
            ),
            "columns": (
                Term("kernel rows, agreement and rankings", f64(n, m), 8),
                Term("products of all landmarks, for the shuffles", f64(m, m), 4),
            ),
        }
    )
    return Cost(
        disk=Quantity.of(Term("gaps of all columns, group tables", 2**16)),
        memory=memory,
        flops=Quantity.of(
            Term(ROW_PASSES, sizes.row_operations * m / 3),
            Term("products of rankings and agreement", 2.0 * n * m * m),
        ),
    )


STAGE = Stage(
    name="alignment",
    version=4,
    inputs=AlignmentInputs,
    store="alignment",
    settings=AlignmentSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="columns and groups that the influence follows",
)
