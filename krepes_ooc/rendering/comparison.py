"""Two or more audits side by side: plain values, for page, terminal and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from krepes_ooc.core.figures import Control
from krepes_ooc.rendering.data import Array
from krepes_ooc.rendering.drawing.markup import to_plain
from krepes_ooc.rendering.drawing.sample_view import SampleView
from krepes_ooc.rendering.explanation import Explained

COMPARISON_FORMAT = 1
# How an audit differs from the first one.
FIRST, SAME, SEED, OTHER = "first", "same", "seed", "other"
RELATIONS = {
    FIRST: "the others are compared with it",
    SAME: "the same audit",
    SEED: "another seed: the variation by seed",
    OTHER: "",
}
SPACES = {
    "network": "the network's own embedding",
    "embedding": "the audit's embedding",
    "kernel": "the kernel",
}


@dataclass(frozen=True, eq=False)
class AuditSummary:
    """One audit.

    Args:
        label: A, B, C ...
        folder: name of its workspace.
        recipe: name of its recipe.
        objective: of the Newton step.
        relation: one of ``RELATIONS``.
        differs: recipe key or part -> its value in the first audit and here.
        trusted: whether its step is trusted.
        verdict: its status; empty: not measured.
        figures: by key, in reading order.
    """

    label: str
    folder: str
    recipe: str
    objective: str
    relation: str
    differs: Mapping[str, tuple[Any, Any]]
    trusted: bool
    verdict: str
    figures: Mapping[str, Control]

    def record(self) -> dict[str, Any]:
        """The same as JSON values, without the figures."""
        differs = {key: {"first": a, "here": b} for key, (a, b) in self.differs.items()}
        return {
            "label": self.label,
            "folder": self.folder,
            "recipe": self.recipe,
            "objective": self.objective,
            "relation": self.relation,
            "differs": to_plain(differs),
            "trusted": self.trusted,
            "verdict": self.verdict or None,
        }


@dataclass(frozen=True, eq=False)
class Difference:
    """A quantity in two audits, over the same samples.

    Args:
        name: of the column or group.
        first: in the first audit; NaN: not defined.
        other: in the other audit.
        difference: other - first.
        low: end of its 95 % interval, paired over samples.
        high: the other end.
        samples: number of them.
        note: why it is not defined.
    """

    name: str
    first: float
    other: float
    difference: float
    low: float
    high: float
    samples: int
    note: str = ""

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def record(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "name": self.name,
            "first": to_plain(self.first),
            "other": to_plain(self.other),
            "difference": to_plain(self.difference),
            "interval": [to_plain(self.low), to_plain(self.high)],
            "samples": self.samples,
            "note": self.note or None,
        }


@dataclass(frozen=True, eq=False)
class GroupDifferences:
    """Change of one group table.

    Args:
        column: of the table.
        categories: groups that both audits have.
        first: share of the landmarks' mass [group, group_], NaN: no sample.
        other: the same in the other audit.
        low: end of the 95 % interval of other - first [group, group_].
        high: the other end.
    """

    column: str
    categories: tuple[str, ...]
    first: Array
    other: Array
    low: Array
    high: Array

    def record(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "column": self.column,
            "categories": list(self.categories),
            **{key: to_plain(getattr(self, key)) for key in ("first", "other", "low", "high")},
            "difference": to_plain(self.other - self.first),
        }


@dataclass(frozen=True, eq=False)
class ConceptPair:
    """Two discovered concepts that were matched.

    Args:
        first: number in the first audit.
        other: number in the other one.
        correlation: of their activations.
        shared: samples that show both over samples that show either.
        share_first: of the samples of the first audit that show it.
        share_other: likewise.
        stable: whether both are stable.
    """

    first: int
    other: int
    correlation: float
    shared: float
    share_first: float
    share_other: float
    stable: bool

    def record(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {key: to_plain(value) for key, value in vars(self).items()}


@dataclass(frozen=True, eq=False)
class ConceptMatches:
    """Discovered concepts of two audits.

    Args:
        pairs: matched ones, in the order of the first audit.
        mean_correlation: over the pairs.
        chance: the same with the samples of one audit shuffled.
        unmatched_first: concepts without a match.
        unmatched_other: likewise.
        note: why there are none.
    """

    pairs: Sequence[ConceptPair] = ()
    mean_correlation: float = float("nan")
    chance: float = float("nan")
    unmatched_first: Sequence[int] = ()
    unmatched_other: Sequence[int] = ()
    note: str = ""

    def record(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "pairs": [pair.record() for pair in self.pairs],
            "mean_correlation": to_plain(self.mean_correlation),
            "chance": to_plain(self.chance),
            "unmatched_first": list(self.unmatched_first),
            "unmatched_other": list(self.unmatched_other),
            "note": self.note or None,
        }


@dataclass(frozen=True, eq=False)
class ChangedSample:
    """A sample whose explanation changed.

    Args:
        view: the samples that it is one of.
        row: its row among them.
        change: 1 - correlation of its profiles in the two audits.
        floor: the same between the first audit and its other seeds; NaN: there is none.
        overlap: share of its ten first landmarks, of those in both audits; NaN: too few.
        explanations: its landmarks in the first and in the other audit; empty for a landmark that
            is not an audited sample.
    """

    view: SampleView
    row: int
    change: float
    floor: float
    overlap: float
    explanations: Sequence[Explained] = ()

    def record(self) -> dict[str, Any]:
        """The same as JSON values."""
        sides = [
            [{**one.landmarks.record(link.row), **link.record()} for link in one.links]
            for one in self.explanations
        ]
        found = {
            **self.view.record(self.row),
            "change": to_plain(self.change),
            "floor": to_plain(self.floor),
            "overlap": to_plain(self.overlap),
        }
        return found | dict(zip(("landmarks_first", "landmarks_other"), sides, strict=False))


@dataclass(frozen=True, eq=False)
class PairOfAudits:
    """The first audit against another one.

    Args:
        other: index of the other audit.
        counts: what both have.
        change: quantile in words -> change of the explanations of the common samples.
        overlap: mean share of the ten first landmarks of those in both audits; NaN: too few.
        gaps: alignment gaps.
        groups: group tables.
        effects: mean effects of leaving a group out.
        concepts: discovered ones.
        concept_sets: held-out accuracies of given concepts.
        samples: explained samples of largest change.
        landmarks: landmarks of largest change.
    """

    other: int
    counts: Mapping[str, int]
    change: Mapping[str, float]
    overlap: float
    gaps: Sequence[Difference] = ()
    groups: Sequence[GroupDifferences] = ()
    effects: Sequence[Difference] = ()
    concepts: ConceptMatches = field(default_factory=ConceptMatches)
    concept_sets: Sequence[Difference] = ()
    samples: Sequence[ChangedSample] = ()
    landmarks: Sequence[ChangedSample] = ()

    def record(self) -> dict[str, Any]:
        """The same as JSON values."""
        lists = ("gaps", "groups", "effects", "concept_sets", "samples", "landmarks")
        return {
            "common": dict(self.counts),
            "change": to_plain(dict(self.change)),
            "overlap": to_plain(self.overlap),
            "concepts": self.concepts.record(),
            **{key: [one.record() for one in getattr(self, key)] for key in lists},
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Audits side by side.

    Args:
        audits: the first one is what the others are compared with.
        matched_by: ``position`` in one source, or ``name``.
        samples: number of those that all audits have.
        similarity: key of ``SPACES`` -> debiased CKA over the samples of each two [audit, audit].
        pairs: the first audit against each other one.
        warnings: sentences.
    """

    audits: Sequence[AuditSummary]
    matched_by: str
    samples: int
    similarity: Mapping[str, Array]
    pairs: Sequence[PairOfAudits]
    warnings: tuple[str, ...] = ()

    def figures(self) -> dict[str, list[Control]]:
        """Figures that any audit has: key -> the figure of every audit, NaN where it has none."""
        known = {key: figure for audit in self.audits for key, figure in audit.figures.items()}
        return {
            key: [
                audit.figures.get(key, Control(key, figure.label, float("nan")))
                for audit in self.audits
            ]
            for key, figure in known.items()
        }

    def record(self) -> dict[str, Any]:
        """The same as JSON values with stable keys."""
        figures = {
            key: {
                "label": values[0].label,
                "values": [to_plain(each.value) for each in values],
                "intervals": [to_plain(each.interval) for each in values],
            }
            for key, values in self.figures().items()
        }
        pairs = [
            {"first": self.audits[0].label, "other": self.audits[pair.other].label, **pair.record()}
            for pair in self.pairs
        ]
        return {
            "comparison_format": COMPARISON_FORMAT,
            "audits": [audit.record() for audit in self.audits],
            "matched_by": self.matched_by,
            "samples": self.samples,
            "figures": figures,
            "similarity": to_plain(dict(self.similarity)),
            "pairs": pairs,
            "warnings": list(self.warnings),
        }
