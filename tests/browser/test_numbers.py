"""Every number of the report in a real browser against those of report.json."""

from __future__ import annotations

import re
from typing import Any

import pytest

from krepes_ooc.rendering.hidden import hide_samples
from krepes_ooc.rendering.page import Report, build_report
from tests.browser.chromium import NEEDS_CHROMIUM
from tests.browser.page_reading import read_numbers, saved, wrong_numbers
from tests.rendering.samples import table_audit

pytestmark = NEEDS_CHROMIUM


def test_every_panel_and_every_number(report: Report, show: Any) -> None:
    opened = show(report.html)
    panels = read_numbers(opened.page)
    assert list(panels) == [*panels]
    assert set(panels) == set(report.json) - {"report_format"}
    assert sum(map(len, panels.values())) > 100
    assert wrong_numbers(panels, report.json) == []
    for section in opened.page.query_selector_all("main > section"):
        assert section.is_visible()
        assert section.query_selector("h2").inner_text().strip()
    appendix = opened.page.query_selector_all("#appendix section")
    assert not any(section.is_visible() for section in appendix)
    opened.page.click("#appendix > summary")
    for section in appendix:
        assert section.is_visible()
        assert section.query_selector("h2").inner_text().strip()
    assert opened.complaints == []
    assert opened.requests == [opened.page.url]


PANELS = ("findings", "reliability", "discovered", "groups", "group_influence", "samples", "odd")


@pytest.mark.parametrize("panel", [*PANELS, "alignment", "fidelity", "spectrum", "timing"])
def test_a_number_changed_by_hand_is_found(panel: str, digits: Report, show: Any) -> None:
    start = digits.html.index(f'<section id="{panel}"')
    figure = re.compile(r'<data class="num" value="([^"]+)" data-value="\1">([^<]+)</data>')
    found = figure.search(digits.html, start)
    assert found is not None
    value, words = found.groups()
    forged = "7.77e+33"
    for changed in (
        found[0].replace(f">{words}<", ">987,654<"),
        found[0].replace(f'"{value}"', f'"{forged}"'),
    ):
        html = digits.html[: found.start()] + changed + digits.html[found.end() :]
        assert len(wrong_numbers(read_numbers(show(html).page), digits.json)) > 0


def test_a_page_without_samples_works(show: Any) -> None:
    report = build_report(hide_samples(table_audit()))
    opened = show(report.html)
    assert wrong_numbers(read_numbers(opened.page), report.json) == []
    assert opened.page.locator("img, .card, #deck").count() == 0
    assert "colour" in saved(opened.page, "Save Alignment gaps as CSV")
    assert opened.complaints == []
