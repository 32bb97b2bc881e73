"""Verdict of an audit: checks with a criterion each, and the status that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from krepes_ooc.errors import KrepesError

Outcome = Literal["pass", "fail", "unknown"]
Status = Literal["usable", "usable with reservations", "not usable"]
FORMAT = "krepes-verdict/1"


class VerdictFormatError(KrepesError):
    """A recorded verdict that is none, or of another version."""


@dataclass(frozen=True)
class Check:
    """One check of an audit.

    Args:
        key: stable name.
        title: subject, in words.
        criterion: the condition, in words, with its threshold.
        outcome: whether the condition holds; ``unknown``: it was not measured.
        sentence: the measurement in words, with ``{figure}`` where a figure belongs.
        figures: values by name; None where one is not defined.
        blocking: whether a failure alone makes the audit not usable.
    """

    key: str
    title: str
    criterion: str
    outcome: Outcome
    sentence: str
    figures: Mapping[str, float | None] = field(default_factory=dict)
    blocking: bool = False

    def words(self, show: Callable[[float], str] = "{:.3g}".format) -> str:
        """The sentence with its figures.

        Args:
            show: how a number is written.
        """
        shown = {
            name: "not defined" if value is None else show(value)
            for name, value in self.figures.items()
        }
        return self.sentence.format(**shown)


@dataclass(frozen=True)
class Verdict:
    """Checks in reading order.

    Args:
        checks: blocking ones first.
    """

    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """Not usable if a blocking check fails; with reservations if any other does not pass."""
        if self.reasons:
            return "not usable"
        return "usable with reservations" if self.reservations else "usable"

    @property
    def reasons(self) -> tuple[Check, ...]:
        """Blocking checks that failed."""
        return tuple(check for check in self.checks if check.blocking and check.outcome == "fail")

    @property
    def reservations(self) -> tuple[Check, ...]:
        """Checks that failed without blocking, and blocking ones that were not measured."""
        return tuple(
            check
            for check in self.checks
            if (check.outcome == "fail" and not check.blocking)
            or (check.outcome == "unknown" and check.blocking)
        )

    @property
    def sentence(self) -> str:
        """The status in one sentence, with its reasons."""
        if self.reasons:
            return f"Not usable: {'; '.join(check.title for check in self.reasons)}."
        if self.reservations:
            titles = "; ".join(check.title for check in self.reservations)
            return f"Usable with reservations: {titles}."
        return "Usable: every check that was made passed."

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON; see ``SCHEMA``."""
        return {
            "format": FORMAT,
            "status": self.status,
            "sentence": self.sentence,
            "reasons": [check.key for check in self.reasons],
            "reservations": [check.key for check in self.reservations],
            "checks": [
                {
                    "key": check.key,
                    "title": check.title,
                    "criterion": check.criterion,
                    "blocking": check.blocking,
                    "outcome": check.outcome,
                    "sentence": check.sentence,
                    "words": check.words(),
                    "figures": dict(check.figures),
                }
                for check in self.checks
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> Verdict:
        """A verdict as ``to_json`` gives it.

        Raises:
            VerdictFormatError: it is none, or of another version.
        """
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise VerdictFormatError("no verdict of this version", expected=FORMAT)
        names = ("key", "title", "criterion", "outcome", "sentence", "figures", "blocking")
        try:
            return cls(tuple(Check(**{n: check[n] for n in names}) for check in value["checks"]))
        except (KeyError, TypeError) as error:
            raise VerdictFormatError(f"a damaged verdict ({error})", expected=FORMAT) from error


_TEXT = {"type": "string"}
_KEYS = {"type": "array", "items": _TEXT}
_CHECK = {
    "key": _TEXT,
    "title": _TEXT,
    "criterion": _TEXT,
    "blocking": {"type": "boolean"},
    "outcome": {"enum": ["pass", "fail", "unknown"]},
    "sentence": _TEXT,
    "words": _TEXT,
    "figures": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
}
_VERDICT = {
    "format": {"const": FORMAT},
    "status": {"enum": ["usable", "usable with reservations", "not usable"]},
    "sentence": _TEXT,
    "reasons": _KEYS,
    "reservations": _KEYS,
    "checks": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": _CHECK,
            "required": list(_CHECK),
            "additionalProperties": False,
        },
    },
}
# JSON schema of ``verdict.json``; keys are only added within a version.
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "krepes verdict",
    "type": "object",
    "properties": _VERDICT,
    "required": list(_VERDICT),
    "additionalProperties": False,
}
