"""Whether to believe the audit: one verdict, then each check in words with its figures."""

from __future__ import annotations

from krepes_ooc.report.data import AuditData
from krepes_ooc.report.doubts import CHECKS, Finding, Mark
from krepes_ooc.report.markup import DASH, Markup, element, join, to_plain, user_text
from krepes_ooc.report.panel import Panel

SIGNS: dict[Mark, tuple[str, str]] = {
    "good": ("✓", "holds"),
    "care": ("!", "take care"),
    "bad": ("✗", "fails"),
    "unknown": (DASH, "not measured"),
}


def trust_panel(audit: AuditData) -> Panel:
    """The trust panel: verdict, findings and warnings."""
    findings = [check(audit) for check in CHECKS]
    verdict = _verdict(findings, audit.warnings)
    body = join(
        element("ul", [_item(finding) for finding in findings], class_="findings"),
        _warnings(audit.warnings),
    )
    figures = {
        "verdict": verdict,
        "checks": {f.key: {"mark": f.mark, **to_plain(f.figures)} for f in findings},
        "warnings": list(audit.warnings),
    }
    return Panel("trust", "Can it be believed?", element("strong", verdict), body, figures)


def _verdict(findings: list[Finding], warnings: tuple[str, ...]) -> str:
    marks = {finding.key: finding.mark for finding in findings}
    if marks["self_check"] == "bad":
        return "Do not rely on this audit: the network's Jacobian rows failed their self-check."
    if marks["step"] == "bad":
        return "Read with caution: the step is not trusted, so rankings that use it may mislead."
    if "care" in marks.values() or "bad" in marks.values() or warnings:
        return "Usable, with the reservations below."
    if "good" not in marks.values():
        return "Nothing was measured by which this audit could be judged."
    return "Nothing that was measured speaks against this audit."


def _item(finding: Finding) -> Markup:
    sign, words = SIGNS[finding.mark]
    return element(
        "li",
        element("span", sign, class_="sign", aria_hidden="true"),
        element(
            "div",
            element("h3", finding.title, element("span", f" ({words})", class_="unseen")),
            element("p", finding.words),
        ),
        class_=finding.mark,
    )


def _warnings(warnings: tuple[str, ...]) -> Markup:
    if not warnings:
        return element("p", "No warning was raised during the run.", class_="quiet")
    return element(
        "aside",
        element("h3", "Warnings"),
        element("ul", [element("li", user_text(words, 600)) for words in warnings]),
        class_="warnings",
    )
