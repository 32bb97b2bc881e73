"""Overview of an audit: map, discovered concepts, group influence, per-class figures, odd samples.

Arrays are plain; ``explained`` counts the audited samples that get a card, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from krepes_ooc.rendering.measured import Array


@dataclass(frozen=True, eq=False)
class Plane:
    """An embedding on its first two principal components.

    Args:
        samples: [explained, 2].
        landmarks: [landmark, 2].
        variance: share of the embedding's variance on each of the two.
    """

    samples: Array
    landmarks: Array
    variance: tuple[float, float]


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Embeddings of network and audit, the audit's turned onto the network's.

    Args:
        network: embedding of the network.
        audit: embedding of the audit.
        likeness: share of the network's plane that the turned plane of the audit reproduces.
    """

    network: Plane
    audit: Plane
    likeness: float


@dataclass(frozen=True, eq=False)
class ColumnDifference:
    """One column in which the samples of a concept differ from all samples.

    Args:
        column: name of the column.
        level: level of a category that differs most; empty for a number.
        difference: in standard deviations.
        value: mean of the concept, or its share of the level.
        overall: the same of all samples.
    """

    column: str
    level: str
    difference: float
    value: float
    overall: float


@dataclass(frozen=True, eq=False)
class DiscoveredConcepts:
    """Concepts found without labels.

    Args:
        names: [concept].
        share: of all samples [concept].
        stability: mean cosine with the matched concept of fits on half samples [concept].
        stable: whether it reaches ``stable_above`` [concept].
        view_agreement: share of samples whose other views show it too [concept].
        best_class: class of largest average precision [concept]; -1: no labels.
        precision: that average precision [concept]; NaN: no labels.
        top_samples: explained samples of largest activation [concept, rank]; -1: no further one.
        top_landmark: landmarks of largest activation [concept, rank].
        differences: columns that differ most, largest first [concept].
        stable_above: stability from which a concept counts as stable.
        figures: by name, each of concepts and of its controls.
        reason: why there are no concepts.
    """

    names: tuple[str, ...] = ()
    share: Array | None = None
    stability: Array | None = None
    stable: Array | None = None
    view_agreement: Array | None = None
    best_class: Array | None = None
    precision: Array | None = None
    top_samples: Array | None = None
    top_landmark: Array | None = None
    differences: tuple[tuple[ColumnDifference, ...], ...] = ()
    stable_above: float = 0.8
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, eq=False)
class GroupEffects:
    """Change of the embedding when one group of samples is left out.

    Args:
        names: of the groups [group].
        partition: name of the partition of every group [group].
        count: samples of every group [group].
        mean: mean effect on the audited samples [group].
        stderr: its standard error over samples [group].
        residual: mean effect beyond what the group's size gives [group].
        by_group: mean effect on the samples of each group [group, group_].
        effect: on every explained sample [group, explained]; None: not shown.
        reasons: name of a group that was not left out -> why.
        converged: whether every solution reached the tolerance.
        left_out: levels of every column that could be groups and is none, by name.
        gradient_norm: gradient at the end over that at the start [group]; None: not known.
        tolerance: what a solution was to reach; NaN: not known.
        floor: mean effect of solving on with all samples; NaN: not known.
    """

    names: tuple[str, ...]
    partition: tuple[str, ...]
    count: Array
    mean: Array
    stderr: Array
    residual: Array
    by_group: Array
    effect: Array | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    converged: bool = True
    left_out: Mapping[str, int] = field(default_factory=dict)
    gradient_norm: Array | None = None
    tolerance: float = math.nan
    floor: float = math.nan

    @property
    def display_names(self) -> list[str]:
        """Names of the groups; clusters are called after the landmarks that they divide."""
        return [
            f"landmark {name}" if partition == "landmarks" else name
            for name, partition in zip(self.names, self.partition, strict=True)
        ]

    @property
    def above_tolerance(self) -> list[int]:
        """Groups whose solution did not reach the tolerance, the farthest from it first."""
        if self.gradient_norm is None or not math.isfinite(self.tolerance):
            return []
        order = np.argsort(-np.nan_to_num(self.gradient_norm), kind="stable")
        return [int(g) for g in order if self.gradient_norm[g] > self.tolerance]


@dataclass(frozen=True, eq=False)
class ClassFigures:
    """Landmarks of every class of samples.

    Args:
        samples: explained samples [class].
        first_same: of them with a first landmark of their class [class].
        prototypes: landmarks of the class with the most score over its samples
            [class, rank]; -1: no further one.
        confusing: landmarks of other classes, likewise [class, rank].
    """

    samples: Array
    first_same: Array
    prototypes: Array | None = None
    confusing: Array | None = None


@dataclass(frozen=True, eq=False)
class SampleFigures:
    """Figures of the explained samples, each [explained].

    Args:
        closeness: mean of the ten largest kernel values to other landmarks; small is novel.
        mixing: share of the weights outside the main class or concept of the landmarks.
        concept: number of the concept that it shows; -1: none.
        own_landmark: landmark that is the sample itself; -1: none.
    """

    closeness: Array
    mixing: Array
    concept: Array
    own_landmark: Array


@dataclass(frozen=True, eq=False)
class OddTable:
    """Odd samples of one kind, the oddest first.

    Args:
        rows: among ``OddSamples.samples`` [row, 1], or of a pair [row, 2].
        values: what makes them odd [row].
    """

    rows: Array
    values: Array
