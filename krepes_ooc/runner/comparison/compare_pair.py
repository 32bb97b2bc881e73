"""The first audit against another one, over the samples that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import StageFailed
from krepes_ooc.rendering import comparison
from krepes_ooc.rendering.drawing.sample_view import SampleView
from krepes_ooc.runner.comparison.compared_audit import NO_LANDMARK, ComparedAudit
from krepes_ooc.runner.comparison.comparison_measures import (
    match_concepts,
    paired_difference,
    profile_change,
    top_overlap,
)
from krepes_ooc.stages.alignment.gap import agreement, sample_gaps
from krepes_ooc.stages.alignment.groups import landmark_mass
from krepes_ooc.stages.alignment.stage import AlignedColumn, read_columns

# Samples and landmarks of largest change that are listed, and landmarks of either audit that are
# shown with each.
LISTED = 12
SHOWN = 6
# Landmarks that are compared, and common ones below which their overlap says nothing.
TOP = 10
FEWEST_LANDMARKS = 20
QUANTILES = {"median": 0.5, "quantile_90": 0.9, "largest": 1.0}
# Kinds of partitions whose groups mean the same in every audit of a source.
SAME_GROUPS = ("label", "column", "range", "file")
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ComparedPair:
    """Two audits and their common samples.

    Args:
        first: the audit that the other one is compared with.
        other: the other audit.
        entries: of the common samples, in the first and in the other audit [sample] each.
        landmarks: clean landmarks that both have, in either audit [landmark] each.
    """

    first: ComparedAudit
    other: ComparedAudit
    entries: tuple[Index, Index]
    landmarks: tuple[Index, Index]

    @property
    def sides(self) -> tuple[tuple[ComparedAudit, Index], tuple[ComparedAudit, Index]]:
        """Either audit with its entries."""
        return (self.first, self.entries[0]), (self.other, self.entries[1])

    @cached_property
    def explained(self) -> Index:
        """Common samples that are audited in both, to be explained or to fit probes."""
        both = [audit.explained[entries] for audit, entries in self.sides]
        return np.flatnonzero(both[0] & both[1])

    @cached_property
    def change(self) -> Float:
        """Change of the explanation of every common sample."""
        rows = [audit.embedding[entries] for audit, entries in self.sides]
        return profile_change(*rows)

    @cached_property
    def overlap(self) -> Float:
        """Share of the first landmarks, of those in both audits, that both rank first [sample]."""
        if len(self.landmarks[0]) < FEWEST_LANDMARKS:
            return np.full(len(self.entries[0]), np.nan)
        scores = [
            audit.scores(entries, landmarks)
            for (audit, entries), landmarks in zip(self.sides, self.landmarks, strict=True)
        ]
        return top_overlap(scores[0], scores[1], TOP)

    def floor(self, seeds: Sequence[ComparedPair]) -> Float:
        """Mean change of every sample from the first audit to its other seeds; NaN: none has it.

        Args:
            seeds: the first audit against each audit that differs by its seed alone.
        """
        total, count = np.zeros((2, len(self.entries[0])))
        for pair in seeds:
            place = {int(entry): row for row, entry in enumerate(pair.entries[0])}
            rows = np.array([place.get(int(entry), -1) for entry in self.entries[0]])
            known = rows >= 0
            total[known] += pair.change[rows[known]]
            count[known] += 1
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def result(self, index: int, floor: Float) -> comparison.PairOfAudits:
        """Everything that is compared.

        Args:
            index: of the other audit.
            floor: of the common samples.
        """
        known = self.overlap[np.isfinite(self.overlap)]
        return comparison.PairOfAudits(
            other=index,
            counts={
                "samples": len(self.entries[0]),
                "explained": len(self.explained),
                "landmarks": len(self.landmarks[0]),
            },
            change={name: float(np.quantile(self.change, q)) for name, q in QUANTILES.items()},
            overlap=float(known.mean()) if known.size else float("nan"),
            gaps=self.gaps(),
            groups=self.groups(),
            effects=self.effects(),
            concepts=self.concepts(),
            concept_sets=self.concept_sets(),
            samples=self._changed(self.explained, floor, with_landmarks=True),
            landmarks=self._changed(self._landmark_samples, floor, with_landmarks=False),
        )

    def gaps(self) -> list[comparison.Difference]:
        """Alignment gaps of the columns that both audits have, over samples audited in both."""
        columns = [self._columns(side) for side in (0, 1)]
        found = []
        for name, column in columns[0].items():
            if name not in columns[1]:
                continue
            try:
                first = sample_gaps(agreement(column.values), self._top(0)[0])
                other = sample_gaps(agreement(columns[1][name].values), self._top(1)[0])
            except StageFailed as error:
                found.append(_difference(name, np.empty(0), np.empty(0), error.what))
                continue
            found.append(_difference(name, first, other))
        return found

    def groups(self) -> list[comparison.GroupDifferences]:
        """Group tables that both audits have, over samples audited in both."""
        if not all(audit.has("alignment") for audit, _ in self.sides):
            return []
        tables = [audit.stores.reader("alignment").attributes["groups"] for audit, _ in self.sides]
        columns = [self._columns(side) for side in (0, 1)]
        return [
            self._group_table(columns[0][name], columns[1][name])
            for name in tables[0]
            if name in tables[1] and all(name in known for known in columns)
        ]

    def _group_table(
        self, first: AlignedColumn, other: AlignedColumn
    ) -> comparison.GroupDifferences:
        """One group table in both audits, with the intervals of its change."""
        shared = [text for text in first.categories if text in other.categories]
        mass = []
        for side, column in enumerate((first, other)):
            top, score = self._top(side)
            landmark_group = column.group_codes(column.values.landmark)
            by_code = landmark_mass(landmark_group[top], np.abs(score), len(column.categories))
            mass.append(by_code[:, [column.categories.index(text) for text in shared]])
        # The sample's own group, by its text in the first audit
        codes = first.group_codes(first.values.audited)
        shape = (len(shared), len(shared))
        found = {key: np.full(shape, np.nan) for key in ("first", "other", "low", "high")}
        for place, text in enumerate(shared):
            rows = codes == first.categories.index(text)
            rows &= (mass[0].sum(axis=1) > 0) & (mass[1].sum(axis=1) > 0)
            for column_place in range(len(shared)):
                change = paired_difference(*(each[rows, column_place] for each in mass))
                for key, values in found.items():
                    values[place, column_place] = getattr(change, key)
        return comparison.GroupDifferences(first.name, tuple(shared), **found)

    def effects(self) -> list[comparison.Difference]:
        """Mean effects of leaving out groups that mean the same in both audits."""
        if not all(audit.has("group_influence") for audit, _ in self.sides):
            return []
        effects = [_group_effects(audit) for audit, _ in self.sides]
        rows = [np.flatnonzero(entries < audit.n_audited) for audit, entries in self.sides]
        both = np.intersect1d(rows[0], rows[1])
        first, other = (entries[both] for entries in self.entries)
        return [
            _difference(name, effect[first], effects[1][name][other])
            for name, effect in effects[0].items()
            if name in effects[1]
        ]

    def concepts(self) -> comparison.ConceptMatches:
        """Discovered concepts, matched one to one by their activations."""
        activations = []
        for audit, entries in self.sides:
            if audit.activation is None:
                return comparison.ConceptMatches(note="not every audit has discovered concepts")
            activations.append(audit.activation[entries])
        match = match_concepts(*activations)
        share, stable = (
            [audit.stores.reader("discovery").array(name) for audit, _ in self.sides]
            for name in ("share", "stable")
        )
        pairs = [
            comparison.ConceptPair(
                int(i),
                int(j),
                float(match.correlation[place]),
                float(match.shared[place]),
                float(share[0][i]),
                float(share[1][j]),
                bool(stable[0][i] and stable[1][j]),
            )
            for place, (i, j) in enumerate(zip(match.first, match.other, strict=True))
        ]
        known = match.correlation[np.isfinite(match.correlation)]
        unmatched = [
            sorted(set(range(each.shape[1])) - set(matched.tolist()))
            for each, matched in zip(activations, (match.first, match.other), strict=True)
        ]
        return comparison.ConceptMatches(
            pairs,
            float(known.mean()) if known.size else float("nan"),
            match.chance,
            unmatched[0],
            unmatched[1],
        )

    def concept_sets(self) -> list[comparison.Difference]:
        """Held-out accuracies of given concepts; their samples are those of each audit."""
        if not all(audit.has("concepts") for audit, _ in self.sides):
            return []
        known: list[dict[str, float]] = []
        for audit, _ in self.sides:
            store = audit.stores.reader("concepts")
            names = [str(name) for name in store.attributes["names"]]
            known.append(dict(zip(names, store.array("accuracy").tolist(), strict=True)))
        nan = float("nan")
        return [
            comparison.Difference(
                name, value, known[1][name], known[1][name] - value, nan, nan, 0,
                "held-out accuracy; no interval",
            )
            for name, value in known[0].items()
            if name in known[1]
        ]  # fmt: skip

    def _changed(
        self, samples: Index, floor: Float, *, with_landmarks: bool
    ) -> list[comparison.ChangedSample]:
        """The samples of largest change, as people see them in the first audit."""
        order = samples[np.argsort(-self.change[samples], kind="stable")][:LISTED]
        explanations = [
            audit.explanations(entries[order].tolist(), SHOWN) if with_landmarks else []
            for audit, entries in self.sides
        ]
        found = []
        for place, sample in enumerate(order):
            entry = int(self.entries[0][sample])
            sides = [each[place] for each in explanations] if with_landmarks else []
            data, row = self.first.visible(entry)
            found.append(
                comparison.ChangedSample(
                    SampleView(data, self.first.landmark_data),
                    row,
                    float(self.change[sample]),
                    float(floor[sample]),
                    float(self.overlap[sample]),
                    sides,
                )
            )
        return found

    @cached_property
    def _landmark_samples(self) -> Index:
        """Common samples that are a landmark of either audit."""
        is_landmark = [
            np.array([audit.landmark_of(int(entry)) != NO_LANDMARK for entry in entries])
            for audit, entries in self.sides
        ]
        return np.flatnonzero(is_landmark[0] | is_landmark[1])

    def _columns(self, side: int) -> Mapping[str, AlignedColumn]:
        """Columns of the samples that are audited in both, by name."""
        audit, entries = self.sides[side]
        rows = entries[self.explained]
        stores = audit.stores
        columns = read_columns(stores.reader("audited"), stores.reader("landmarks"), rows)
        return {column.name: column for column in columns} if len(rows) else {}

    def _top(self, side: int) -> tuple[Index, Float]:
        """Ranked landmarks of the samples that are audited in both, and their scores."""
        audit, entries = self.sides[side]
        influence = audit.stores.reader("influence")
        rows = entries[self.explained]
        return influence.array("top_landmark")[rows], influence.array("score")[rows]


def _group_effects(audit: ComparedAudit) -> dict[str, Float]:
    """Effect of leaving out every group that means the same in all audits [audited]."""
    store = audit.stores.reader("group_influence")
    groups = audit.stores.reader("groups")
    kinds = [each["kind"] for each in groups.attributes["partitions"]]
    partition = groups.array("partition")
    effect = store.array("effect")
    return {
        str(name): effect[place]
        for place, name in enumerate(store.attributes["names"])
        if kinds[partition[place]] in SAME_GROUPS
    }


def _difference(name: str, first: Float, other: Float, note: str = "") -> comparison.Difference:
    """A paired difference under its name."""
    found = paired_difference(first, other)
    if not found.samples and not note:
        note = "no common sample where it is defined"
    return comparison.Difference(name, **vars(found), note=note)
