"""Structure of the data for the report: map, concepts, groups, classes, odd samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc import rendering
from krepes_ooc.rendering.overview import ColumnDifference, OddTable, Plane
from krepes_ooc.stages.examples.concept_figures import average_precision
from krepes_ooc.stages.groups.declared import LABEL, LEAST_LEVELS, MOST_LEVELS
from krepes_ooc.stages.report.class_landmarks import class_landmarks
from krepes_ooc.stages.report.plane import Projected, principal_plane, turn_onto
from krepes_ooc.storage.store_reader import StoreReader

NONE = -1
# Samples and landmarks beside a concept or a class, and in a table of odd samples.
TOP_SAMPLES = 8
TOP_LANDMARKS = 6
ODD_ROWS = 8
# Columns beside a concept, and their least difference in standard deviations.
TOP_COLUMNS = 3
LEAST_DIFFERENCE = 0.2
# Random halves are groups for the stage retraining alone.
HALF = "half"
Index = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
DisplayColumns = Callable[[StoreReader, Any], dict[str, Any]]


class LandmarkIndex:
    """Landmark samples, numbered by their first row; views of one sample are rows of their own.

    Args:
        landmarks: the store ``landmarks``.
    """

    def __init__(self, landmarks: StoreReader) -> None:
        ids = landmarks.array("sample_id")
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        self.first_row: Index = first[order]
        self.sample_of_row: Index = np.argsort(order, kind="stable")[inverse.reshape(-1)]


def read_map(
    influence: StoreReader,
    spectrum: StoreReader,
    kernel: StoreReader,
    audited: StoreReader,
    examples: StoreReader,
    explained: Index,
) -> rendering.EmbeddingMap | None:
    """Embeddings of the explained samples and of the landmarks; None without samples."""
    if not len(explained):
        return None
    network = principal_plane(
        np.asarray(audited.whole("network_embedding")[explained], dtype=np.float64),
        examples.array("landmark_embedding").astype(np.float64),
    )
    # f = K_mm A + gamma, as the influence stage embeds samples
    landmark_kernel = np.asarray(kernel.whole("landmark_kernel"))
    landmarks = landmark_kernel @ influence.array("coefficients") + spectrum.array("offset")
    audit = principal_plane(influence.array("embedding")[explained], landmarks)
    audit, likeness = turn_onto(audit, network)
    return rendering.EmbeddingMap(_plane(network), _plane(audit), likeness)


def _plane(projected: Projected) -> Plane:
    first, second = (float(share) for share in projected.variance)
    return Plane(projected.samples, projected.landmarks, (first, second))


def read_discovered(
    discovery: StoreReader, examples: StoreReader, audited: StoreReader, explained: Index
) -> rendering.DiscoveredConcepts:
    """Discovered concepts with their best class, top samples and columns that differ."""
    attributes = discovery.attributes
    if not attributes["defined"]:
        return rendering.DiscoveredConcepts(reason=str(attributes["reason"]))
    activation = examples.array("activation")
    best_class, precision = _best_classes(activation, audited.array("label"))
    figures = {
        "view_agreement": attributes["view_agreement"],
        **{key: examples.attributes[key] for key in ("average_precision", "embedding_r_squared")},
    }
    return rendering.DiscoveredConcepts(
        names=tuple(attributes["names"]),
        share=discovery.array("share"),
        stability=discovery.array("stability"),
        stable=discovery.array("stable") == 1,
        view_agreement=discovery.array("view_agreement"),
        best_class=best_class,
        precision=precision,
        top_samples=_top_samples(activation[explained]),
        top_landmark=discovery.array("top_landmark"),
        differences=_differences(discovery, audited.attributes["columns"]),
        stable_above=float(attributes["stable_above"]),
        figures={
            key: {name: float(v) for name, v in values.items() if v is not None}
            for key, values in figures.items()
        },
    )


def _best_classes(activation: Float, label: Index) -> tuple[Index, Float]:
    """Class of largest average precision of every concept [concept], and that precision."""
    known = label >= 0
    classes = np.unique(label[known])
    n_concepts = activation.shape[1]
    if len(classes) < 2:
        return np.full(n_concepts, NONE, dtype=np.int64), np.full(n_concepts, np.nan)
    member = label[known][:, None] == classes
    each = np.array([average_precision(scores, member) for scores in activation[known].T])
    return classes[each.argmax(axis=1)], each.max(axis=1)


def _top_samples(activation: Float) -> Index:
    """Explained samples of the largest activation above 0 [concept, rank]; -1: no further one."""
    order = np.argsort(-activation.T, axis=1, kind="stable")[:, :TOP_SAMPLES]
    values = np.take_along_axis(activation.T, order, axis=1)
    return np.asarray(np.where(values > 0, order, NONE), dtype=np.int64)


def _differences(
    discovery: StoreReader, columns: Sequence[Mapping[str, Any]]
) -> tuple[tuple[ColumnDifference, ...], ...]:
    """Columns in which every concept differs most, largest difference first."""
    n_concepts = len(discovery.attributes["names"])
    if not discovery.has("column_difference") or not columns:
        return ((),) * n_concepts
    size = discovery.array("column_difference")
    value = discovery.array("column_value")
    overall = discovery.array("column_overall")
    level = discovery.array("column_level")

    def described(c: int, i: int) -> ColumnDifference:
        code = int(level[c, i])
        categories = columns[i]["categories"]
        word = str(categories[code]) if 0 <= code < len(categories) else ""
        return ColumnDifference(
            str(columns[i]["name"]), word, *(float(a[c, i]) for a in (size, value, overall))
        )

    found = []
    for c in range(n_concepts):
        order = np.argsort(-np.abs(size[c]), kind="stable")[:TOP_COLUMNS]
        found.append(
            tuple(described(c, int(i)) for i in order if abs(size[c, i]) >= LEAST_DIFFERENCE)
        )
    return tuple(found)


def read_group_effects(
    group_influence: StoreReader,
    groups: StoreReader,
    landmarks: StoreReader,
    explained: Index,
    tolerance: float,
) -> rendering.GroupEffects | None:
    """Effects of leaving out every group but random halves; None without groups."""
    partitions = groups.attributes["partitions"]
    partition = groups.array("partition")
    kept = np.array(
        [g for g, p in enumerate(partition) if partitions[p]["kind"] != HALF], dtype=np.int64
    )
    if not len(kept):
        return None
    names = [str(name) for name in group_influence.attributes["names"]]
    return rendering.GroupEffects(
        names=tuple(names[g] for g in kept),
        partition=tuple(str(partitions[partition[g]]["name"]) for g in kept),
        count=group_influence.array("count")[kept],
        mean=group_influence.array("mean_effect")[kept],
        stderr=group_influence.array("mean_effect_stderr")[kept],
        residual=group_influence.array("residual_on_size")[kept],
        by_group=group_influence.array("effect_by_group")[np.ix_(kept, kept)],
        effect=group_influence.array("effect")[np.ix_(kept, explained)],
        reasons={str(k): str(v) for k, v in group_influence.attributes["reasons"].items()},
        converged=bool(group_influence.attributes["converged"]),
        left_out=_left_out(partitions, landmarks),
        gradient_norm=group_influence.array("gradient_norm")[kept],
        tolerance=tolerance,
        floor=float(group_influence.attributes["floor"].get("mean_effect", math.nan)),
    )


def _left_out(partitions: Sequence[Mapping[str, Any]], landmarks: StoreReader) -> dict[str, int]:
    """Levels of the label and of every categorical column that could be groups and is none."""
    levels = {LABEL: len(landmarks.info("label").attributes["categories"])}
    for column in landmarks.attributes["columns"]:
        if column["kind"] == "categorical":
            levels[str(column["name"])] = len(column["categories"])
    named = {each["name"] for each in partitions if each["kind"] in ("label", "column")}
    return {
        name: count
        for name, count in levels.items()
        if LEAST_LEVELS <= count <= MOST_LEVELS and name not in named
    }


def read_class_figures(
    landmarks: StoreReader, audited: StoreReader, influence: StoreReader, explained: Index
) -> rendering.ClassFigures | None:
    """Prototypes of every class; None without classes."""
    n_classes = len(landmarks.info("label").attributes["categories"])
    label = audited.array("label")[explained]
    if not n_classes or not (label >= 0).any():
        return None
    index = LandmarkIndex(landmarks)
    top = np.array(influence.array("top_landmark")[explained])
    # A landmark that is the sample itself explains nothing
    landmark_id = landmarks.array("sample_id")[index.first_row]
    sample_id = audited.array("sample_id")[explained]
    top[(top >= 0) & (landmark_id[top] == sample_id[:, None])] = NONE
    found = class_landmarks(
        label,
        landmarks.array("label")[index.first_row],
        top,
        influence.array("score")[explained],
        n_classes,
        TOP_LANDMARKS,
    )
    return rendering.ClassFigures(**vars(found))


def read_sample_figures(examples: StoreReader, explained: Index) -> rendering.SampleFigures:
    """Closeness, mixing and concept of the explained samples."""
    return rendering.SampleFigures(
        closeness=examples.array("closeness")[explained],
        mixing=examples.array("mixing"),
        concept=examples.array("concept")[explained],
        own_landmark=examples.array("own_landmark")[explained],
    )


def read_odd(
    examples: StoreReader,
    audited: StoreReader,
    landmarks: StoreReader,
    display: DisplayColumns,
) -> rendering.OddSamples:
    """The oddest samples of every kind, with what is visible of them.

    Args:
        examples: store.
        audited: store.
        landmarks: store.
        display: visible columns of some rows of one of these.
    """
    position = {int(s): i for i, s in reversed(list(enumerate(audited.array("sample_id"))))}

    def few(name: str) -> npt.NDArray[Any]:
        return examples.array(name)[:ODD_ROWS]

    # One table of pairs: of inputs, or of the network's embedding where no inputs are compared.
    key, table = ("copy", "copy") if examples.attributes["copies_by"] else ("duplicate", "pair")
    pairs = [few(f"{table}_first_id"), few(f"{table}_second_id")]
    rows = {
        "novel": few("novel_audited")[:, None],
        key: np.array(
            [[position[int(i)] for i in pair] for pair in zip(*pairs, strict=True)], dtype=np.int64
        ).reshape(-1, 2),
        "mixed": few("mixed_audited")[:, None],
    }
    values = {
        "novel": few("novel_closeness"),
        key: few(f"{table}_ratio"),
        "mixed": few("mixed_share"),
        "lonely": few("lonely_closeness"),
    }
    used = np.unique(np.concatenate([r.reshape(-1) for r in rows.values()])).astype(np.int64)
    lonely = few("lonely_landmark")
    # Audited samples first, then landmarks
    tables = {
        key: OddTable(np.searchsorted(used, r).astype(np.int64), values[key])
        for key, r in rows.items()
    }
    tables["lonely"] = OddTable(len(used) + np.arange(len(lonely))[:, None], values["lonely"])
    parts = [display(audited, used), display(landmarks, lonely)]
    samples: dict[str, Any] = {
        name: None if part is None else np.concatenate([part, parts[1][name]])
        for name, part in parts[0].items()
        if name in parts[1]
    }
    return rendering.OddSamples(rendering.Samples(**samples), tables)
