"""The map of embeddings in a real browser: places, pointer, keyboard, colours, names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from krepes_ooc.rendering.page import Report
from tests.browser.chromium import NEEDS_CHROMIUM

pytestmark = NEEDS_CHROMIUM


def centre(page: Any, selector: str, place: int = 0) -> tuple[float, float]:
    page.locator(selector).nth(place).scroll_into_view_if_needed()
    box = page.locator(selector).nth(place).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_the_map_shows_every_sample_at_its_place(digits: Report, show: Any) -> None:
    page, figures = show(digits.html).page, digits.json["map"]
    for side in ("network", "audit"):
        plane = f".plane[data-side={side}]"
        for kind, name in (("dots", "samples"), ("rings", "landmarks")):
            drawn = page.eval_on_selector_all(
                f"{plane} .{kind} circle",
                "all => all.map((c) => [Number(c.getAttribute('cx')), "
                "Number(c.getAttribute('cy'))])",
            )
            known = np.array(figures[side][name])
            assert len(drawn) == len(known)
            # Equal lengths on both axes; y grows upwards
            drawn_x, drawn_y = np.array(drawn).T
            slope, start = np.polyfit(known[:, 0], drawn_x, 1)
            assert np.allclose(slope * known[:, 0] + start, drawn_x, atol=0.06)
            down, top = np.polyfit(known[:, 1], drawn_y, 1)
            assert np.allclose(down * known[:, 1] + top, drawn_y, atol=0.06)
            assert down == pytest.approx(-slope, rel=1e-2)


def test_the_map_by_pointer(digits: Report, show: Any) -> None:
    opened = show(digits.html)
    page, deck = opened.page, digits.json["samples"]["deck"]
    # The last dot lies on top of all others
    last = len(deck["samples"]) - 1
    page.mouse.move(*centre(page, ".plane[data-side=audit] .dots circle", last))
    assert page.is_visible("#map-tip")
    assert deck["samples"][last]["name"] in page.inner_text("#map-tip")
    assert page.locator(".plane .dots circle.on").count() == 2
    page.mouse.click(*centre(page, ".plane[data-side=audit] .dots circle", last))
    page.wait_for_url(f"**#sample-{deck['samples'][last]['id']}")
    assert page.locator(f"#sample-{deck['samples'][last]['id']}[open]").count() == 1
    page.uncheck("[name=rings]")
    assert not page.locator(".rings").first.is_visible()
    assert opened.complaints == []


def test_the_map_by_keyboard(digits: Report, show: Any) -> None:
    page, deck = show(digits.html).page, digits.json["samples"]["deck"]
    page.focus(".plane[data-side=network]")
    places = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        on = page.locator(".plane[data-side=network] .dots circle.on")
        assert on.count() == 1
        places.append(float(on.get_attribute("cx")))
        assert page.text_content("#map-said").startswith("sample ")
    assert places[1] > places[0]
    assert places[2] < places[1]
    said = page.text_content("#map-said")
    page.keyboard.press("Enter")
    sample = int(page.url.rpartition("-")[2])
    named = {s["id"]: s["name"] for s in deck["samples"]}
    assert named[sample] in said
    assert page.locator(f"#sample-{sample}[open]").count() == 1


def test_the_map_is_coloured_by_columns_concepts_and_effects(digits: Report, show: Any) -> None:
    opened = show(digits.html)
    page, deck = opened.page, digits.json["samples"]["deck"]
    colours = "all => all.map((c) => c.getAttribute('class'))"
    dots = ".plane[data-side=network] .dots circle"
    start = page.eval_on_selector_all(dots, colours)
    options = page.eval_on_selector_all("#map-form option", "all => all.map((o) => o.value)")
    assert {"", "label", "concept", "near", "agree", "effect-0"} <= set(options)
    for option in options[1:]:
        page.select_option("[name=colour]", option)
        found = page.eval_on_selector_all(dots, colours)
        assert len(set(found)) > 1 or option in ("mix", "agree"), option
        assert page.inner_text("#map-legend").strip()
    page.select_option("[name=colour]", "near")
    near = np.array([sample["near"] for sample in deck["samples"]])
    step = [int(c[1:]) for c in page.eval_on_selector_all(dots, colours)]
    assert (np.diff(np.array(step)[np.argsort(near)]) >= 0).all()
    page.select_option("[name=colour]", "")
    assert page.eval_on_selector_all(dots, colours) == start
    assert opened.complaints == []


def test_names_on_the_map_do_not_cover_each_other(digits: Report, show: Any) -> None:
    page = show(digits.html).page
    for choice in ("", "label", "concept"):
        page.select_option("#map-form select", choice)
        for plane in page.query_selector_all(".plane"):
            boxes = plane.evaluate(
                """(plane) => [...plane.querySelectorAll(".names text")].map((name) => {
                    const { x, y, width, height } = name.getBBox();
                    return { x, y, width, height };
                })"""
            )
            assert len(boxes) > 2
            for i, a in enumerate(boxes):
                for b in boxes[:i]:
                    apart_x = max(a["x"] - b["x"] - b["width"], b["x"] - a["x"] - a["width"])
                    apart_y = max(a["y"] - b["y"] - b["height"], b["y"] - a["y"] - a["height"])
                    # Boxes of lines are a little higher than their letters
                    assert apart_x > -1 or apart_y > -2, (choice, a, b)
