"""Checks of text columns: numbers that were read as texts, and labels that are no classes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from krepes_ooc.errors import SourceError
from krepes_ooc.sources.tables.arrow_columns import MISSING
from krepes_ooc.sources.tables.csv_batches import NULL_WORDS, NUMBER

# Numbers with a currency, percent sign, decimal comma, separated thousands or typographic minus.
_FORMATTED = re.compile(
    r"[-+(\u2212\u2013]?[$€£¥₹]?\s?[-+\u2212\u2013]?"
    r"(\d{1,3}([ .,_'’\u00a0\u202f]\d{3})+|\d+)([.,]\d+)?"
    r"([eE][-+]?\d+)?\s?[%‰$€£¥₹]?\)?"
)
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")
# May be either: a decimal comma, or one that separates thousands.
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
# Days as most countries write them; those of ISO 8601 are known to Arrow.
_DATE = re.compile(r"\d{1,2}([./-])\d{1,2}\1(\d{4}|\d{2})([ T]\d{1,2}:\d{2}(:\d{2})?)?")
# What people write for a missing value, beside the words that Arrow knows.
_MISSING_WORDS = {
    *(word.lower() for word in NULL_WORDS),
    *("?", "??", "-", "--", "---", ".", "..", "*", "n.a.", "n.a", "none", "nil", "missing"),
    *("unknown", "not available", "#div/0!", "#value!", "#ref!", "#num!", "#n/a!", "inf", "-inf"),
}
# Up to so many different numbers a column may well hold codes of categories.
CODES = 20
CLASSES = 20


@dataclass
class TextCounts:
    """Different texts of one column, missing ones included, in the order of first appearance.

    Args:
        rows: number of rows that hold each text.
        first: position of the first of them.
        decimal: decimal mark of the file.
    """

    rows: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    decimal: str = "."

    def known(self) -> list[str]:
        """The texts without the mark of missing ones."""
        return [text for text in self.rows if text != MISSING]

    def is_number(self, text: str) -> bool:
        """Whether a text is a number with the decimal mark of the file."""
        # With a decimal comma, points separate thousands.
        plain = text if self.decimal == "." else text.replace(".", " ").replace(",", ".")
        return NUMBER.fullmatch(plain) is not None

    def total(self, texts: Iterable[str]) -> int:
        """Number of rows that hold one of these texts."""
        return sum(self.rows[text] for text in texts)

    def place(self, text: str) -> str:
        """The text and where it stands first, for messages."""
        return f"{text!r:.40} in row {self.first[text] + 1} (sample {self.first[text]})"


def is_null_word(text: str) -> bool:
    """Whether Arrow takes the text for a missing number."""
    return text in NULL_WORDS


def all_numbers(texts: Iterable[str]) -> bool:
    """Whether there are texts, and all are numbers or missing."""
    known = [text for text in texts if text != MISSING]
    return bool(known) and all(NUMBER.fullmatch(text) for text in known)


def null_words(categories: Iterable[str]) -> tuple[str, ...]:
    """Texts that are missing values beside these categories: none, unless all are numbers."""
    return NULL_WORDS if all_numbers(categories) else ()


def check_numbers(name: str, texts: TextCounts, where: str, *, from_csv: bool) -> list[str]:
    """Warnings about a column of numbers that was read as texts.

    Args:
        name: the column, which the recipe does not declare.
        texts: its texts.
        where: its file, for messages.
        from_csv: whether the types of the file are a guess.

    Raises:
        SourceError: the column holds numbers, but for entries that are spelled as missing ones.
    """
    known = texts.known()
    numbers = [text for text in known if texts.is_number(text)]
    others = [text for text in known if not texts.is_number(text)]
    warnings = _line_breaks(name, texts, known)
    # Mostly numbers: the rest is what made them texts.
    if others and 2 * texts.total(numbers) >= texts.total(known):
        found = f"column {name!r} holds numbers, but {texts.place(others[0])}"
        absent = [text for text in others if text.lower() in _MISSING_WORDS]
        if len(absent) == len(others) and len(numbers) > CODES:
            raise SourceError(
                found,
                where=where,
                expected="numbers, or a list of what stands for a missing one",
                advice=f"set source.missing: {absent[:5]}, or list it under source.categorical",
            )
        return [f"{found}: its values are taken as {len(known)} categories", *warnings]
    if from_csv and known and not others:
        # Blanks that Arrow does not take for missing numbers.
        return [
            f"column {name!r} holds numbers that were read as texts, taken as {len(known)} "
            "categories: list it under source.numeric or categorical",
            *warnings,
        ]
    if known and all(_DATE.fullmatch(text) for text in known):
        dates = (
            f"column {name!r} holds what look like dates, such as {texts.place(known[0])}, taken "
            f"as {len(known)} categories: list it under source.categorical or exclude"
        )
        return [dates, *warnings]
    formatted = [text for text in known if _FORMATTED.fullmatch(text)]
    if others and formatted and 10 * texts.total(formatted) >= 9 * texts.total(known):
        return [_formatted_warning(name, texts, formatted), *warnings]
    return warnings


def too_many_categories(
    name: str, texts: TextCounts, where: str, limit: int, *, label: bool
) -> SourceError:
    """The error for a column with more different texts than can be categories."""
    known = texts.known()
    numbers = sum(map(texts.is_number, known))
    if label:
        advice = "divide it into classes, or list it under source.exclude in place of source.label"
        if numbers == len(known):
            advice = (
                f"divide it into classes, or leave out source.label and set "
                f"source.audit_only: [{name}], which audits its numbers"
            )
        return SourceError(
            f"label {name!r} has more than {limit} different values: a label needs classes",
            where=where,
            expected=f"at most {limit} classes",
            advice=advice,
        )
    advice = "list it under source.exclude, or under source.numeric if it holds numbers"
    others = [text for text in known if not texts.is_number(text)]
    if others and numbers > len(known) / 2:
        advice = (
            f"it holds numbers, but {texts.place(others[0])}: if that is a missing value, set "
            f"source.missing: [{others[0]!r:.40}], else list the column under source.exclude"
        )
    elif others and all(_FORMATTED.fullmatch(text) for text in known):
        advice = _formatted_warning(name, texts, known)
    elif others:
        advice = "list it under source.exclude, or under source.name if it names the samples"
    return SourceError(
        f"column {name!r} has more than {limit} categories",
        where=where,
        expected=f"at most {limit}",
        advice=advice,
    )


def check_label(name: str, texts: TextCounts) -> list[str]:
    """Warning about a label with a fraction in nearly every row."""
    known = texts.known()
    plain = [text.replace(texts.decimal, ".") for text in known if texts.is_number(text)]
    fractions = [text for text in plain if not float(text).is_integer()]
    many = len(known) > CLASSES and 2 * len(known) > texts.total(known)
    if not (many and 2 * len(fractions) > len(known)):
        return []
    return [
        f"label {name!r} has {len(known)} different values in {texts.total(known)} rows, such as "
        f"{fractions[0]}: a label needs classes"
    ]


def _line_breaks(name: str, texts: TextCounts, known: list[str]) -> list[str]:
    broken = [text for text in known if "\n" in text]
    if not broken:
        return []
    return [
        f"column {name!r} holds text over several lines, first in row {texts.first[broken[0]] + 1} "
        f"(sample {texts.first[broken[0]]}): a quote that is not closed takes in what follows"
    ]


def _formatted_warning(name: str, texts: TextCounts, formatted: list[str]) -> str:
    comma = all(_DECIMAL_COMMA.fullmatch(t) or NUMBER.fullmatch(t) for t in formatted)
    comma = comma and texts.decimal == "."
    first = next(text for text in formatted if not texts.is_number(text))
    advice = 'set source.decimal: ","' if comma else "write them as plain numbers"
    if comma and all(_THOUSANDS.fullmatch(t) or NUMBER.fullmatch(t) for t in formatted):
        advice = f"{advice} if the comma is a decimal one, else write them without it"
    return (
        f"column {name!r} holds what look like numbers, such as {texts.place(first)}, taken as "
        f"{len(formatted)} categories: {advice}, or list it under source.categorical"
    )
