"""View of one sample: its name, its class, its picture or text, its table cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData, Audited, Column, Samples
from krepes_ooc.rendering.drawing.markup import Child, Markup, element, to_plain, user_text
from krepes_ooc.rendering.drawing.thumbnails import data_uri

# Agreement from which a table cell is marked
AGREES_FROM = 0.9
NAME_LIMIT = 40


@dataclass(frozen=True, eq=False)
class SampleView:
    """The visible side of all samples of one kind (landmarks or audited)."""

    samples: Samples
    audit: AuditData

    def name(self, row: int) -> str:
        """The user's name of a sample, or ``#`` and its position in the source."""
        names = self.samples.sample_name
        # A name that only repeats the position says nothing
        given = "" if names is None else str(names[row]).strip()
        position = str(int(self.samples.sample_id[row]))
        return f"#{position}" if given in ("", position) else given

    def code(self, row: int) -> int:
        """The class code; -1: no label."""
        return -1 if self.samples.label is None else int(self.samples.label[row])

    def class_name(self, row: int) -> str:
        """The class in words; empty without a label."""
        return class_name(self.code(row), self.audit.classes)

    def picture(self, row: int) -> Markup | None:
        """The image or the beginning of the text; None for table rows."""
        if self.samples.image is not None:
            image = self.samples.image[row]
            alt = f"{self.name(row)}, {self.class_name(row) or 'no label'}"
            # Small pictures are enlarged without smoothing
            coarse = "pixels" if max(image.shape[:2]) <= 48 else None
            return element("img", src=data_uri(image), alt=alt, class_=coarse)
        if self.samples.text is not None:
            return element("q", user_text(str(self.samples.text[row])))
        return None

    def caption(self, row: int, beside: int = -1) -> Markup:
        """Class first, because it is what people compare; then the name.

        Args:
            row: which sample.
            beside: class code of the sample it explains; the same class stands out.
        """
        words = self.class_name(row)
        name = self.name(row)
        same = beside >= 0 and beside == self.code(row)
        return element(
            "span",
            element("b", user_text(words, NAME_LIMIT), title=words) if words else None,
            " " if words else None,
            element("span", user_text(name, NAME_LIMIT), class_="name", title=name),
            class_="caption same" if same else "caption",
        )

    def record(self, row: int) -> dict[str, Any]:
        """The same as JSON."""
        # A new sample has no position in the source
        position = int(self.samples.sample_id[row])
        known: dict[str, Any] = {
            "sample_id": None if position < 0 else position,
            "name": self.name(row),
            "label": self.code(row),
            "class": self.class_name(row) or None,
        }
        if self.samples.values is not None:
            cells = zip(self.audit.columns, self.samples.values[row], strict=True)
            known["values"] = {column.name: to_plain(value) for column, value in cells}
        return known


@dataclass(frozen=True, eq=False)
class LandmarkSamples:
    """Landmark samples: rows of one sample's views taken together, in order of first appearance."""

    landmarks: Samples

    @cached_property
    def _index(self) -> tuple[Array, Array]:
        # np.unique sorts by value; landmark samples are numbered by first appearance
        _, first, inverse = np.unique(
            self.landmarks.sample_id, return_index=True, return_inverse=True
        )
        order = np.argsort(first, kind="stable")
        return first[order], np.argsort(order, kind="stable")[inverse.reshape(-1)]

    @property
    def first_row(self) -> Array:
        """The first landmark row of each landmark sample, [landmark sample]."""
        return self._index[0]

    @property
    def sample_of_row(self) -> Array:
        """The landmark sample of each landmark row, [landmark]."""
        return self._index[1]

    def total(self, values: Array) -> Array:
        """Sum [..., landmark] over the rows of each sample, [..., landmark sample]."""
        summed = np.zeros((len(self.first_row), *values.T.shape[1:]))
        # Rows of one sample may repeat, which plain indexing would add once
        np.add.at(summed, self.sample_of_row, values.T)
        return summed.T

    def mean(self, values: Array) -> Array:
        """Mean of [..., landmark] over the rows of each sample, [..., landmark sample]."""
        return np.asarray(self.total(values) / np.bincount(self.sample_of_row))


def class_name(code: int, classes: tuple[str, ...]) -> str:
    """The class in words; its code if it has no name, nothing if it is unknown."""
    if code < 0:
        return ""
    return classes[code] if code < len(classes) else f"class {code}"


def explained_rows(audited: Audited) -> list[int]:
    """Rows of the samples that are explained."""
    rows = np.arange(len(audited.sample_id))
    return [int(i) for i in (rows if audited.role is None else rows[audited.role == 0])]


def column_spans(audit: AuditData) -> Array:
    """The 1-99 % range of each column over landmarks and audited samples, [column]."""
    # One range for landmarks and samples, so that agreement is symmetric
    parts = [s.values for s in (audit.landmarks, audit.audited) if s is not None]
    stacked = [p for p in parts if p is not None and len(p)]
    if not stacked:
        return np.zeros(len(audit.columns))
    values = np.concatenate(stacked)
    spans = np.zeros(values.shape[1])
    for column in range(values.shape[1]):
        known = values[np.isfinite(values[:, column]), column]
        if known.size:
            # Not the extremes: one outlier would make all others agree
            low, high = np.quantile(known, [0.01, 0.99])
            spans[column] = high - low
    return spans


def agreement(one: Array, other: Array, columns: tuple[Column, ...], spans: Array) -> Array:
    """Agreement of two rows [column] in [0, 1]: the v of the alignment gap."""
    # Missing values give NaN here, and count as disagreement below
    difference = np.abs(np.asarray(one, dtype=np.float64) - other)
    number = 1.0 - np.minimum(difference / np.where(spans > 0, spans, 1.0), 1.0)
    # A category, or a number without range, agrees only if it is the same
    category = (difference == 0).astype(np.float64)
    kinds = np.array([column.kind == "category" for column in columns], dtype=bool)
    return np.where(np.isfinite(difference), np.where(kinds | (spans <= 0), category, number), 0.0)


def cell(value: float, column: Column) -> Child:
    """One table value as HTML."""
    if not np.isfinite(value):
        return element("span", "missing", class_="none")
    words = plain_cell(value, column)
    is_text = column.kind == "category" or column.words
    return user_text(words, NAME_LIMIT) if is_text else words


def plain_cell(value: float, column: Column) -> str:
    """One table value in words."""
    if not np.isfinite(value):
        return "missing"
    if column.kind == "category":
        # Codes without a name occur in tables that were coded before
        code = int(value)
        return column.categories[code] if 0 <= code < len(column.categories) else f"code {code}"
    if value in column.words:
        return column.words[value]
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"
