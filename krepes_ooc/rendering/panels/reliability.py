"""Reliability of an audit: its verdict, and every check with its criterion."""

from __future__ import annotations

import re

from krepes_ooc.core.verdict import Check, Verdict
from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.markup import (
    DASH,
    Child,
    Markup,
    element,
    join,
    number,
    user_text,
)
from krepes_ooc.rendering.panels.panel import Panel

KEY, TITLE = "reliability", "Reliability"
MISSING = "No verdict: the stage verdict has not run."
SIGNS = {"pass": ("✓", "passes"), "fail": ("!", "reservation"), "unknown": (DASH, "not measured")}
BLOCKED = ("✗", "fails")
# Classes of the style sheet.
CLASSES = {"pass": "good", "fail": "care", "unknown": "unknown"}
_FIGURE = re.compile(r"\{(\w+)\}")


def reliability_panel(audit: AuditData) -> Panel:
    """The verdict, its checks, and the warnings of the run."""
    verdict = audit.verdict
    warnings = {"warnings": list(audit.warnings)}
    if verdict is None:
        lead: Child = MISSING
        return Panel(KEY, TITLE, lead, _warnings(audit.warnings), {"missing": MISSING, **warnings})
    body = join(
        element("ul", [_item(check) for check in verdict.checks], class_="findings"),
        _warnings(audit.warnings),
    )
    figures = {"verdict": verdict.to_json(), **warnings}
    return Panel(KEY, TITLE, _lead(verdict), body, figures)


def _lead(verdict: Verdict) -> Markup:
    """The status; titles hold numbers that the verdict's JSON has in words."""
    return element("strong", verdict.sentence, class_=verdict.status.replace(" ", "-"))


def _item(check: Check) -> Markup:
    blocked = check.blocking and check.outcome == "fail"
    sign, words = BLOCKED if blocked else SIGNS[check.outcome]
    return element(
        "li",
        element("span", sign, class_="sign", aria_hidden="true"),
        element(
            "div",
            element("h3", check.title, element("span", f" ({words})", class_="unseen")),
            element("p", _sentence(check)),
            element("p", f"Criterion: {check.criterion}.", class_="quiet"),
        ),
        class_="bad" if blocked else CLASSES[check.outcome],
    )


def _sentence(check: Check) -> Markup:
    """The sentence of a check, each of its figures as a number of the page."""
    parts: list[Child] = []
    at = 0
    for found in _FIGURE.finditer(check.sentence):
        value = check.figures[found[1]]
        parts += [
            check.sentence[at : found.start()],
            number(float("nan") if value is None else value),
        ]
        at = found.end()
    return join(parts, check.sentence[at:])


def _warnings(warnings: tuple[str, ...]) -> Markup:
    if not warnings:
        return element("p", "No warning was raised during the run.", class_="quiet")
    return element(
        "aside",
        element("h3", "Warnings"),
        element("ul", [element("li", user_text(words, 600)) for words in warnings]),
        class_="warnings",
    )
