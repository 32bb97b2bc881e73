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
NO_WARNING = "No warning was raised during the run."
MISSING = "No verdict: the stage verdict has not run."
SIGNS = {"pass": ("✓", "passed"), "fail": ("!", "reservation"), "unknown": (DASH, "not measured")}
BLOCKED = ("✗", "failed")
# Classes of the style sheet.
CLASSES = {"pass": "good", "fail": "care", "unknown": "unknown"}
ORDER = ("bad", "care", "unknown", "good")
# Checks of several figures, a line each
LISTED = ("learned_figures",)
# What an audit is not to be used for where a check did not pass
LIMITS = {
    "random_weights": "Attribute no figure to the training.",
    "collapse": "Read no embedding or influence before the rank is known.",
    "kernel_rows": "Do not take the kernel model for the network.",
    "objective": "Attribute the influence to the audited objective, not to the training.",
    "raw_inputs": "Do not claim that the audit shows more of the network than its inputs do.",
    "plain_kernel": "Do not attribute the choice of landmarks to the objective.",
    "noise_ceiling": "Do not use the audit's embedding in place of the network's.",
    "learned_ranking": "Do not present a sample's landmarks as learned: architecture and inputs "
    "give as similar ones.",
    "learned_figures": "Do not quote these figures as effects of the training.",
    "encoding": "Do not transfer figures to the deployed network: its inputs may differ.",
    "nystrom": "Do not read differences of small scores: the landmarks miss part of the kernel; "
    "use more.",
    "landmarks": "Do not read ranks: the top ten are a large part of all landmarks; use more.",
}
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
        _warnings(audit.warnings) if audit.warnings else None,
    )
    counts = {"passed": len(passed), "checks": len(verdict.checks)}
    lead = join(
        number(len(passed)), " of ", number(len(verdict.checks)), " checks passed. A failed check "
        "makes the audit unusable; a reservation limits its use as stated below it.",
        None if audit.warnings else f" {NO_WARNING}",
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
    limit = None if check.outcome == "pass" else LIMITS.get(check.key)
    return [
        element("span", mark, " ", words, class_=f"outcome {kind}"),
        join(element("b", check.title), element("span", limit, class_="limit") if limit else None),
        _sentence(check),
        check.criterion,
    ]


def _sentence(check: Check) -> Markup:
    """The sentence of a check, each of its figures as a number of the page; parts as a list."""
    if check.key not in LISTED or "; " not in check.sentence:
        return _filled(check.sentence, check)
    parts = check.sentence.removesuffix(".").split("; ")
    return element("ul", [element("li", _filled(part, check)) for part in parts], class_="plain")


def _filled(words: str, check: Check) -> Markup:
    parts: list[Child] = []
    at = 0
    for found in _FIGURE.finditer(words):
        value = check.figures[found[1]]
        parts += [words[at : found.start()], number(float("nan") if value is None else value)]
        at = found.end()
    return join(parts, words[at:])


def _warnings(warnings: tuple[str, ...]) -> Markup:
    if not warnings:
        return element("p", NO_WARNING, class_="quiet")
    return element(
        "aside",
        element("h3", "Warnings"),
        element("ul", [element("li", user_text(words, 600)) for words in warnings]),
        class_="warnings",
    )
