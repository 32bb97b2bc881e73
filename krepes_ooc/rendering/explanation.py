"""One audited sample and its landmarks, ready to be drawn by page, terminal or picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from importlib import import_module
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from krepes_ooc.core.kernel_values import FAR
from krepes_ooc.errors import UsageError
from krepes_ooc.rendering.data import Array, AuditData, Audited, Influence, Landmarks
from krepes_ooc.rendering.drawing.markup import to_plain
from krepes_ooc.rendering.drawing.sample_view import (
    AGREES_FROM,
    SampleView,
    agreement,
    column_spans,
)
from krepes_ooc.rendering.landmark_links import LandmarkLink, links_of
from krepes_ooc.rendering.sample_concepts import SampleConcepts

# Landmarks of a table that fit beside each other without scrolling on a wide screen
MAX_LANDMARKS = 8
MAX_REPELLING = 2


@dataclass(frozen=True, eq=False, repr=False)
class Explained:
    """Explanation of one sample.

    Args:
        audit: what the sample is a row of.
        row: its row among the audited samples.
        links: its ranked landmarks.
        spans: range of each table column [column].
        repelling_only: the most repelling landmarks that are not ranked; None: not measured.
        other: row of a sample that it is compared with, drawn beside it.
        concepts: concepts of the sample; None: not measured.
    """

    audit: AuditData
    row: int
    links: Sequence[LandmarkLink]
    spans: Array
    repelling_only: Sequence[LandmarkLink] | None = None
    other: int | None = None
    concepts: SampleConcepts | None = None

    def __repr__(self) -> str:
        """One line; the page's data that it is drawn from are left out."""
        counts = self.counts
        return (
            f"Explained(sample {self.sample.name(self.row)}: {counts['attract']} of "
            f"{len(self.links)} landmarks attract, {counts['repel']} repel)"
        )

    def _repr_html_(self) -> str:
        """Its landmarks as a table, for notebooks."""
        columns = ("rank", "score", "contribution", "kernel", "class", "name")
        head = "".join(f"<th>{column}</th>" for column in columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{_cell(one.get(column))}</td>" for column in columns) + "</tr>"
            for one in self.record()["landmarks"]
        )
        return f"<p>{escape(repr(self))}</p><table><tr>{head}</tr>{rows}</table>"

    @property
    def displayed(self) -> list[LandmarkLink]:
        """The ranked landmarks, then those that repel without being ranked."""
        return [*self.links, *(self.repelling_only or ())]

    @property
    def nothing_repels(self) -> bool:
        """True if it is known that no landmark at all repels it."""
        return self.repelling_only is not None and all(
            link.kind != "repel" for link in self.displayed
        )

    @property
    def is_far(self) -> bool:
        """True if it is known that no landmark is near it: all kernel values are rounding."""
        kernels = [link.kernel for link in self.displayed]
        return bool(kernels) and all(abs(value) < FAR for value in kernels)

    def beside(self, ranked: int, repelling: int) -> list[tuple[int, LandmarkLink]]:
        """Places in ``shown`` and links: the first ranked ones, then the first others that repel.

        Args:
            ranked: how many of the ranked ones.
            repelling: how many of those that repel and are not among these.
        """
        # Places in ``displayed``, so that agreements can be looked up by them
        places = list(enumerate(self.displayed))
        first = places[: min(ranked, len(self.links))]
        repelling_links = [
            (place, link) for place, link in places[len(first) :] if link.kind == "repel"
        ]
        return first + repelling_links[:repelling]

    @property
    def sample(self) -> SampleView:
        """The audited samples as people see them."""
        assert self.audit.audited is not None
        return SampleView(self.audit.audited, self.audit)

    @property
    def landmarks(self) -> SampleView:
        """The landmarks as people see them."""
        assert self.audit.landmarks is not None
        return SampleView(self.audit.landmarks, self.audit)

    @cached_property
    def agreement(self) -> Array | None:
        """Agreement of landmarks with the sample [shown, column]; None without table rows."""
        # Agreement is defined for table rows, cell by cell
        sample_values = self.sample.samples.values
        landmark_values = self.landmarks.samples.values
        if sample_values is None or landmark_values is None:
            return None
        agreements = [
            agreement(
                sample_values[self.row], landmark_values[link.row], self.audit.columns, self.spans
            )
            for link in self.displayed
        ]
        return np.array(agreements).reshape(len(agreements), len(self.audit.columns))

    @property
    def agrees(self) -> Array | None:
        """Mask of the cells that are marked [shown, column]."""
        return None if self.agreement is None else self.agreement >= AGREES_FROM

    @property
    def drawn(self) -> list[tuple[int, LandmarkLink]]:
        """Places in ``displayed`` and links that a card draws: of a table as many as fit."""
        places = list(enumerate(self.displayed))
        if not self.is_table_row:
            return places
        # A stable sort: attracting landmarks first, each side by rank
        return sorted(
            self.beside(MAX_LANDMARKS, MAX_REPELLING), key=lambda pair: pair[1].kind == "repel"
        )

    @property
    def is_table_row(self) -> bool:
        """True if its card is a table of its row and those of its landmarks."""
        samples = self.sample.samples
        return self.agreement is not None and samples.image is None and samples.text is None

    @property
    def drawn_counts(self) -> dict[str, int]:
        """Numbers of landmarks on its card that attract and that repel."""
        return {
            kind: sum(link.kind == kind for _, link in self.drawn) for kind in ("attract", "repel")
        }

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of ranked landmarks that attract and that repel."""
        return {
            kind: sum(link.kind == kind for link in self.links) for kind in ("attract", "repel")
        }

    @property
    def same_class(self) -> int | None:
        """Number of ranked landmarks with the sample's class; None without labels."""
        code = self.sample.code(self.row)
        if code < 0 or self.landmarks.samples.label is None:
            return None
        return sum(self.landmarks.code(link.row) == code for link in self.links)

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """The card as a picture: sample, attracting and repelling landmarks with their scores.

        Args:
            path: PNG file that is written as well.

        Returns:
            A ``PIL.Image.Image``, which notebooks show.

        Raises:
            UsageError: the file cannot be written.
        """
        from PIL import Image

        # By name: the card is drawn from this class, and imports it
        card = import_module("krepes_ooc.rendering.explanation_card").draw_card(self)
        if path is not None:
            try:
                Path(path).write_bytes(card)
            except OSError as error:
                raise UsageError(
                    error.strerror or str(error), where=str(path), expected="a file to write"
                ) from error
        return Image.open(BytesIO(card))

    def to_dataframe(self) -> Any:
        """Landmarks as a pandas frame, one row each: ranked ones first, then repelling ones."""
        import pyarrow as pa

        record = self.record()
        rows = [*record["landmarks"], *(record["repelling"] or ())]
        # Lists and mappings, such as the values of a table's row, stay in the record
        keys = dict.fromkeys(
            key for one in rows for key, value in one.items() if not isinstance(value, dict | list)
        )
        return pa.table({key: [one.get(key) for one in rows] for key in keys}).to_pandas()

    def record(self) -> dict[str, Any]:
        """The same as JSON values."""
        landmarks = [
            {**self.landmarks.record(link.row), **link.record(), **self._agreeing(place)}
            for place, link in enumerate(self.displayed)
        ]
        # Ranked landmarks first in ``displayed``, then the repelling ones
        n_ranked = len(self.links)
        return {
            **self.sample.record(self.row),
            **self.counts,
            "same_class": self.same_class,
            "ranked": n_ranked,
            "landmarks": landmarks[:n_ranked],
            "further_repel": None if self.repelling_only is None else len(self.repelling_only),
            "repelling": None if self.repelling_only is None else landmarks[n_ranked:],
            **self._concepts(),
        }

    def _concepts(self) -> dict[str, Any]:
        if self.concepts is None:
            return {}
        records = [
            {key: to_plain(value) for key, value in vars(each).items()}
            for each in self.concepts.scores
        ]
        return {"concepts": records}

    def _agreeing(self, place: int) -> dict[str, list[str]]:
        if self.agrees is None:
            return {}
        marks = zip(self.audit.columns, self.agrees[place], strict=True)
        return {"agrees": [column.name for column, mark in marks if mark]}


def _cell(value: Any) -> str:
    """A value of a table of a notebook; numbers with three digits."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else escape(str(value))


def explain_rows(
    audit: AuditData, rows: Sequence[int], concepts: Sequence[SampleConcepts | None] | None = None
) -> list[Explained]:
    """Explain some rows of an audit that has landmarks, audited samples and influence.

    Args:
        audit: what the samples are rows of.
        rows: among the audited samples.
        concepts: of every row; None: not measured.
    """
    landmarks = audit.landmarks
    audited = audit.audited
    influence = audit.influence
    assert isinstance(landmarks, Landmarks)
    assert isinstance(audited, Audited)
    assert isinstance(influence, Influence)
    # Ranges are those of the whole page, so that all samples are compared alike
    spans = column_spans(audit)
    found = []
    for i, links in enumerate(links_of(landmarks, influence, list(rows))):
        shown = None if concepts is None else concepts[i]
        repelling = links.repelling_only
        if shown is not None:
            links = links._replace(ranked=_with_concepts(links.ranked, shown))
            repelling = None if repelling is None else _with_concepts(repelling, shown)
        found.append(Explained(audit, rows[i], links.ranked, spans, repelling, None, shown))
    return found


def _with_concepts(links: Sequence[LandmarkLink], shown: SampleConcepts) -> list[LandmarkLink]:
    """Links with the concepts that their landmarks move the sample along."""
    return [replace(link, concepts=shown.by_landmark.get(link.row, {})) for link in links]
