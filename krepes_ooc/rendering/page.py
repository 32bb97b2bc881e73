"""The whole page: panels in reading order, one style sheet, one script, no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from krepes_ooc.rendering.check_data import check_audit
from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.markup import DASH, Markup, element, join, to_plain, user_text
from krepes_ooc.rendering.panels.alignment import alignment_panel
from krepes_ooc.rendering.panels.concepts import concepts_panel
from krepes_ooc.rendering.panels.discovered import discovered_panel
from krepes_ooc.rendering.panels.embedding_map import map_panel
from krepes_ooc.rendering.panels.fidelity import fidelity_panel
from krepes_ooc.rendering.panels.findings import findings_panel
from krepes_ooc.rendering.panels.further import further_panel
from krepes_ooc.rendering.panels.group_effects import group_effects_panel
from krepes_ooc.rendering.panels.groups import groups_panel
from krepes_ooc.rendering.panels.landmarks import landmarks_panel
from krepes_ooc.rendering.panels.newton import step_panel
from krepes_ooc.rendering.panels.odd import odd_panel
from krepes_ooc.rendering.panels.panel import Panel
from krepes_ooc.rendering.panels.provenance import provenance_panel, subject_panel, timing_panel
from krepes_ooc.rendering.panels.reliability import reliability_panel
from krepes_ooc.rendering.panels.samples import samples_panel
from krepes_ooc.rendering.panels.spectrum import spectrum_panel
from krepes_ooc.rendering.search_data import script, script_policy

REPORT_FORMAT = 2
APPENDIX_TITLE = "Technical appendix"
# Even a hole in the escaping could load or run nothing.
POLICY = (
    "default-src 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src {script}"
)
PANELS: tuple[Callable[[AuditData], Panel], ...] = (
    findings_panel,
    reliability_panel,
    map_panel,
    discovered_panel,
    alignment_panel,
    groups_panel,
    group_effects_panel,
    samples_panel,
    odd_panel,
)
# Behind one line, closed
APPENDIX: tuple[Callable[[AuditData], Panel], ...] = (
    subject_panel,
    fidelity_panel,
    concepts_panel,
    landmarks_panel,
    further_panel,
    step_panel,
    spectrum_panel,
    timing_panel,
    provenance_panel,
)


@dataclass(frozen=True)
class Report:
    """The finished report: one HTML page and the same figures as JSON values."""

    html: str
    json: dict[str, Any]


def build_report(audit: AuditData) -> Report:
    """Draw the report; the same audit gives the same bytes.

    Raises:
        DataError: parts of the audit do not fit together.
    """
    check_audit(audit)
    # Figures and page come from the same panels, so neither shows what the other lacks
    panels = [panel(audit) for panel in PANELS]
    appendix = [panel(audit) for panel in APPENDIX]
    figures = {panel.key: to_plain(dict(panel.figures)) for panel in (*panels, *appendix)}
    page = _page(audit, panels, appendix)
    return Report(page, {"report_format": REPORT_FORMAT, **figures})


def _page(audit: AuditData, panels: list[Panel], appendix: list[Panel]) -> str:
    style = files("krepes_ooc.rendering").joinpath("report.css").read_text(encoding="utf-8")
    title = f"{audit.subject.recipe} {DASH} krepes audit"
    links = [element("li", element("a", panel.title, href=f"#{panel.key}")) for panel in panels]
    links.append(element("li", element("a", APPENDIX_TITLE, href="#appendix")))
    # The hash lets this one script run and no other
    policy = POLICY.format(script=script_policy())
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        # The style sheet is ours and holds no "<"; it must not be escaped.
        element("style", Markup(style)),
    )
    masthead = element(
        "header",
        element("p", "krepes audit", class_="kicker"),
        element("h1", user_text(audit.subject.recipe)),
        element("p", user_text(audit.subject.about or audit.subject.network), class_="under"),
    )
    body = element(
        "body",
        element("a", "Skip to the report", href="#report", class_="skip"),
        masthead,
        element("nav", element("ol", links), aria_label="Contents"),
        element(
            "main",
            join([join(panel.render(), "\n") for panel in panels]),
            _appendix(appendix),
            id="report",
        ),
        # Ours too; its sha256 is in the policy.
        element("script", Markup(script())),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _appendix(panels: list[Panel]) -> Markup:
    """Panels behind one closed line."""
    links = [element("li", element("a", panel.title, href=f"#{panel.key}")) for panel in panels]
    return element(
        "details",
        element("summary", element("span", APPENDIX_TITLE)),
        element("ol", links, class_="contents"),
        join([join(panel.render(), "\n") for panel in panels]),
        id="appendix",
    )
