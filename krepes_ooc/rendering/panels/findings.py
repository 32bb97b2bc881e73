"""Findings: the verdict and about five sentences, each with a link to its panel."""

from __future__ import annotations

from typing import Any

from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.markup import Child, Markup, element, join, number, user_text
from krepes_ooc.rendering.drawing.sample_view import explained_rows
from krepes_ooc.rendering.drawing.sentence import fill
from krepes_ooc.rendering.panels.finding import Finding
from krepes_ooc.rendering.panels.finding_sentences import make_findings
from krepes_ooc.rendering.panels.panel import Panel

KEY = "findings"
TITLE = "Findings"
NO_VERDICT = "No verdict: the stage verdict has not run."
# Counts of the subject that a reader needs before the findings
COUNTS = {
    "samples": "samples",
    "landmarks": "landmarks",
    "components": "components",
}
# The same where the page shows no sample, so that the two kinds cannot be told from each other
UNDIVIDED = "audited or to fit probes"


def findings_panel(audit: AuditData) -> Panel:
    """The verdict, the sentences, and one line about the subject."""
    found = make_findings(audit)
    verdict = audit.verdict
    status = "unknown" if verdict is None else verdict.status.replace(" ", "-")
    sentence = element(
        "p",
        element("strong", NO_VERDICT if verdict is None else verdict.sentence, class_=status),
        " ",
        element("a", "Reliability checks", href="#reliability"),
        class_="verdict",
    )
    items = [_item(finding) for finding in found]
    body = join(
        sentence,
        element("ul", items, class_="sentences")
        if items
        else element("p", "Nothing else was measured.", class_="quiet"),
    )
    figures: dict[str, Any] = {
        "verdict": None if verdict is None else verdict.sentence,
        "counts": dict(audit.subject.counts),
        "audited": dict(zip(("explained", "fit_probes"), _audited(audit), strict=True)),
        "findings": {
            finding.key: {
                "title": finding.title,
                "sentence": finding.sentence,
                "figures": dict(finding.figures),
                "words": dict(finding.words),
            }
            for finding in found
        },
    }
    return Panel(KEY, TITLE, _subject(audit), body, figures)


def _audited(audit: AuditData) -> tuple[int | None, int | None]:
    """Numbers of samples that are explained, and of those that only fit probes."""
    total = audit.subject.counts.get("audited")
    if audit.audited is None or total is None:
        return None, None
    explained = len(explained_rows(audit.audited))
    return explained, int(total) - explained


def _subject(audit: AuditData) -> Markup:
    """Network, data and objective in one line."""
    subject = audit.subject
    counts: list[Child] = []
    for key, words in COUNTS.items():
        if key in subject.counts:
            counts.append(join(", ", number(subject.counts[key]), f" {words}"))
    explained, fitted = _audited(audit)
    if explained is not None and fitted is not None:
        counts.append(join(", ", number(explained), " audited samples"))
        counts.append(join(", ", number(fitted), " others to fit probes") if fitted else None)
    elif "audited" in subject.counts:
        counts.append(join(", ", number(subject.counts["audited"]), f" {UNDIVIDED}"))
    return join(
        user_text(subject.objective), " audit of ", user_text(subject.network), "; data: ",
        user_text(subject.source), counts, ". The network is approximated by a kernel model on the "
        "landmarks; all scores are attributions inside that model.",
    )  # fmt: skip


def _item(finding: Finding) -> Markup:
    sentence = fill(finding.sentence, finding.figures, finding.words)
    link = element("a", element("b", finding.title), href=f"#{finding.panel}")
    return element("li", link, element("span", sentence))
