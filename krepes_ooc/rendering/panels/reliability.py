"""Reliability of an audit: its verdict, and every check with its criterion."""

from __future__ import annotations

import re

from krepes_ooc.core.verdict import Check
from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.markup import (
    DASH,
    Child,
    Markup,
    element,
    join,
    number,
    table,
    user_text,
)
from krepes_ooc.rendering.panels.panel import Panel

KEY = "reliability"
TITLE = "Reliability checks"
MISSING = "No verdict: the stage verdict has not run."
SIGNS = {"pass": ("✓", "passed"), "fail": ("!", "reservation"), "unknown": (DASH, "not measured")}
BLOCKED = ("✗", "failed")
# Classes of the style sheet.
CLASSES = {"pass": "good", "fail": "care", "unknown": "unknown"}
ORDER = ("bad", "care", "unknown", "good")
# Passed checks up to this number stand open
UNFOLDED = 4
_FIGURE = re.compile(r"\{(\w+)\}")


def reliability_panel(audit: AuditData) -> Panel:
    """The verdict, its checks, and the warnings of the run."""
    verdict = audit.verdict
    warnings = {"warnings": list(audit.warnings)}
    if verdict is None:
        return Panel(
            KEY, TITLE, MISSING, _warnings(audit.warnings), {"missing": MISSING, **warnings}
        )
    head: list[Child] = ["result", "check", "measured", "criterion"]
    # What limits the use of the audit comes before what passed
    order = sorted(verdict.checks, key=lambda check: ORDER.index(_kind(check)))
    passed = [_row(check) for check in order if check.outcome == "pass"]
    others = [_row(check) for check in order if check.outcome != "pass"]
    caption = "Checks with their criteria"
    body = join(
        table(head, others, caption=caption, class_="checks") if others else None,
        _passed(head, passed),
        _warnings(audit.warnings),
    )
    counts = {"passed": len(passed), "checks": len(verdict.checks)}
    lead = join(
        number(len(passed)), " of ", number(len(verdict.checks)), " checks passed. A failed check "
        "makes the audit unusable; a reservation limits what it may be used for.",
    )  # fmt: skip
    return Panel(KEY, TITLE, lead, body, {"verdict": verdict.to_json(), **counts, **warnings})


def _passed(head: list[Child], rows: list[list[Child]]) -> Markup | None:
    """Checks that passed, behind one line."""
    if not rows:
        return None
    return element(
        "details",
        element("summary", number(len(rows)), " checks passed"),
        table(head, rows, caption="Checks that passed", class_="checks"),
        open="" if len(rows) <= UNFOLDED else None,
    )


def _kind(check: Check) -> str:
    return "bad" if check.blocking and check.outcome == "fail" else CLASSES[check.outcome]


def _row(check: Check) -> list[Child]:
    blocked = check.blocking and check.outcome == "fail"
    sign, words = BLOCKED if blocked else SIGNS[check.outcome]
    kind = "bad" if blocked else CLASSES[check.outcome]
    mark = element("span", sign, class_="sign", aria_hidden="true")
    return [
        element("span", mark, " ", words, class_=f"outcome {kind}"),
        element("b", check.title),
        _sentence(check),
        check.criterion,
    ]


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
