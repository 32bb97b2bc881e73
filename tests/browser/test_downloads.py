"""Figures and tables that a reader saves from the report in a real browser."""

from __future__ import annotations

import csv
import dataclasses
from typing import Any
from xml.etree import ElementTree

from krepes_ooc.rendering.page import Report, build_report
from tests.browser.chromium import NEEDS_CHROMIUM
from tests.browser.page_reading import saved
from tests.rendering.samples import table_audit

pytestmark = NEEDS_CHROMIUM


def test_figures_are_saved_as_svg_and_csv(digits: Report, show: Any) -> None:
    opened = show(digits.html)
    page, figures = opened.page, digits.json
    picture = ElementTree.fromstring(saved(page, "Save Audit's embedding as SVG"))
    circles = picture.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(figures["map"]["audit"]["samples"]) + 24
    assert all(circle.get("fill") for circle in circles)
    lines = list(csv.reader(saved(page, "Save the figures of Audit's embedding as CSV").split()))
    assert lines[0][0] == "kind"
    page.click("#appendix > summary")
    series = saved(page, "Save the figures of Eigenvalues as CSV")
    rows = list(csv.reader(series.splitlines()))[1:]
    assert [float(row[1]) for row in rows] == figures["spectrum"]["eigenvalues"]
    table = list(csv.reader(saved(page, "Save Alignment gaps as CSV").splitlines()))
    gaps = figures["alignment"]["gap"]
    assert [float(row[2].partition(" ")[0]) for row in table[1:]] == gaps
    assert opened.complaints == []
    assert opened.requests == [opened.page.url]


def test_a_formula_in_a_name_is_quoted(show: Any) -> None:
    audit = table_audit()
    columns = tuple(dataclasses.replace(c, name=f"=cmd(){i}") for i, c in enumerate(audit.columns))
    alignment = dataclasses.replace(audit.alignment, names=(*(c.name for c in columns), "label"))
    html = build_report(dataclasses.replace(audit, columns=columns, alignment=alignment)).html
    text = saved(show(html).page, "Save Alignment gaps as CSV")
    assert "'=cmd()0" in text
    assert "\n=cmd" not in text
