"""The report in a real browser for everybody: keyboard, words, dark mode, print, phone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from krepes_ooc.rendering.page import Report
from tests.browser.chromium import NEEDS_CHROMIUM

pytestmark = NEEDS_CHROMIUM


def test_reached_by_keyboard_alone(report: Report, show: Any) -> None:
    page = show(report.html).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#report")
    seen = set()
    for _ in range(160):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.name || document.activeElement.tagName"))
    assert {"query", "sign", "SUMMARY"} <= seen
    wide = "(all) => all.filter((e) => e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0).length"
    assert page.eval_on_selector_all(".scroll", wide) == 0


def test_charts_and_pictures_have_words(report: Report, show: Any) -> None:
    page = show(report.html).page
    for drawing in page.query_selector_all("svg"):
        if drawing.get_attribute("aria-hidden") == "true":
            continue
        assert drawing.get_attribute("role") == "img"
        assert drawing.query_selector("title").text_content()
        assert drawing.query_selector("desc").text_content()
    assert page.eval_on_selector_all("img", "all => all.filter((i) => !i.alt.trim()).length") == 0
    assert page.locator(".plane[aria-label]").count() == 2
    nameless = "all => all.filter((i) => i.type !== 'hidden' && !i.closest('label')).length"
    assert page.eval_on_selector_all("input, select", nameless) == 0


def lightness(page: Any, what: str, of: str = "body") -> float:
    colour = page.eval_on_selector(of, f"node => getComputedStyle(node).{what}")
    return float(np.mean([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]))


def test_dark_mode_and_print(report: Report, show: Any) -> None:
    light = show(report.html, color_scheme="light").page
    assert lightness(light, "backgroundColor") > 200
    assert lightness(light, "color") < 80
    dark = show(report.html, color_scheme="dark").page
    assert lightness(dark, "backgroundColor") < 50
    assert lightness(dark, "color") > 180
    dark.emulate_media(media="print")
    assert lightness(dark, "backgroundColor", "html") in (0.0, 255.0)
    assert lightness(dark, "color") < 40
    assert not dark.is_visible("nav")
    assert not dark.is_visible("#find")
    assert dark.pdf()[:4] == b"%PDF"


def test_readable_without_a_script(digits: Report, show: Any) -> None:
    page = show(digits.html, java_script_enabled=False).page
    assert not page.is_visible("#find")
    assert page.locator("#cards .card").count() == digits.json["samples"]["shown"]


def test_fits_a_phone(report: Report, show: Any) -> None:
    page = show(report.html).page
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 376
    # Cards and the appendix scroll in themselves
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 376
