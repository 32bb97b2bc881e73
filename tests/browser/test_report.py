"""The report in a real browser: numbers, search, keyboard, print, dark mode, hostile text.

    make browser

needs a Chromium on the path; playwright brings none of its own here.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from krepes_ooc.rendering.hidden import hide_samples
from krepes_ooc.rendering.overview import EmbeddingMap, Plane, SampleFigures
from krepes_ooc.rendering.page import Report, build_report
from tests import small
from tests.rendering.samples import HOSTILE, full_audit, numbers_in, table_audit

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: make browser")
pytestmark = [
    pytest.mark.browser,
    # One whole audit, minutes on a busy machine
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium"),
]
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0}
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
Panels = dict[str, list[tuple[str, str]]]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclasses.dataclass
class Opened:
    """A page, what it asked for, and what it complained of."""

    page: Any
    requests: list[str]
    complaints: list[str]


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    contexts = []

    def opened(html: str, **options: Any) -> Opened:
        path = tmp_path / "report.html"
        path.write_text(html, encoding="utf-8")
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        page, requests, complaints = context.new_page(), [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
        page.goto(path.as_uri())
        return Opened(page, requests, complaints)

    yield opened
    for context in contexts:
        context.close()


def text_audit() -> Any:
    audit = full_audit()
    words = np.array([f"Sentence number {i}, which says nothing." for i in range(9)], dtype=object)
    return dataclasses.replace(
        audit,
        landmarks=dataclasses.replace(audit.landmarks, image=None, text=words),
        audited=dataclasses.replace(audit.audited, image=None, text=words[:7]),
    )


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A whole audit, from the network to the page."""
    folder = tmp_path_factory.mktemp("browser")
    small.audit(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    return Report(html, json.loads((folder / "report.json").read_text()))


REPORTS = ("digits", "images", "table", "text")


@pytest.fixture(params=REPORTS)
def report(request: pytest.FixtureRequest) -> Report:
    if request.param == "digits":
        found: Report = request.getfixturevalue("digits")
        return found
    made = {"images": full_audit, "table": table_audit, "text": text_audit}[request.param]()
    return build_report(made)


# --- numbers -------------------------------------------------------------------------------------


def read_numbers(page: Any) -> Panels:
    """Visible words and full value of every figure, by panel."""
    found: Panels = page.evaluate(
        """() => Object.fromEntries(
        [...document.querySelectorAll("main section")].map((section) => [
            section.id,
            [...section.querySelectorAll("data")].map((d) => [d.textContent, d.dataset.value]),
        ]))"""
    )
    return found


def value_of(words: str) -> float:
    """The number that people read."""
    plain = words.replace("−", "-").replace(",", "").replace("+", "").strip()
    if power := re.fullmatch(r"(-?)(?:([\d.]+)×)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", plain):
        sign, mantissa, exponent = power.groups()
        return float(f"{sign}{mantissa or 1}e{exponent.translate(SUPERSCRIPTS)}")
    if plain.endswith("%"):
        return float(plain[:-1]) / 100
    parts = plain.split()
    units = UNITS | TIMES
    if len(parts) > 1 and all(unit in units for unit in parts[1::2]):
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return sum(float(number) * units[unit] for number, unit in pairs)
    return float(plain)


def half_place(words: str) -> float:
    """Half a unit of the last digit that is shown: how far the full value may lie from it."""
    said = abs(value_of(words))
    if "×" in words or words.replace("−", "").startswith("10⁻"):
        mantissa = words.replace("−", "").partition("×")[0]
        return float(0.06 * said if "." in mantissa else 0.5 * said)
    parts = words.split()
    unit = (UNITS | TIMES).get(parts[-1], 0.01 if parts[-1] == "%" else 1.0)
    decimals = len(parts[-2 if len(parts) > 1 else 0].partition(".")[2])
    return 0.51 * unit * 10.0**-decimals


def wrong_numbers(panels: Panels, figures: dict[str, Any]) -> list[str]:
    """Figures that are not in report.json, or whose words say something else than their value."""
    wrong = []
    for panel, pairs in panels.items():
        known = numbers_in(figures[panel])
        for words, text in pairs:
            value, said = float(text), value_of(words)
            # A control in brackets is in percent like the figure before it; a difference of
            # shares in percentage points
            scales = (1.0, 0.01) if panel in ("groups", "findings") else (1.0,)
            if value not in known:
                wrong.append(f"{panel}: {text} is not in report.json")
            if all(abs(said * s - value) > s * half_place(words) for s in scales):
                wrong.append(f"{panel}: {words!r} stands for {text}")
    return wrong


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


# --- the search ----------------------------------------------------------------------------------


def shown_ids(page: Any) -> list[int]:
    return [int(card.get_attribute("data-id")) for card in page.query_selector_all("#found .card")]


def test_search_by_position_class_and_sign(digits: Report, show: Any) -> None:
    page, deck = show(digits.html).page, digits.json["samples"]["deck"]
    wanted = deck["samples"][5]
    page.fill("[name=query]", str(wanted["id"]))
    assert shown_ids(page) == [wanted["id"]]
    assert page.inner_text("#matched") == f"1 of {len(deck['samples'])} samples, 1 shown"
    assert page.query_selector("#cards") is None
    read = "all => all.map((d) => Number(d.dataset.value))"
    numbers = page.eval_on_selector_all("#found data", read)
    links = [*wanted["links"], *wanted["repelling"]]
    assert set(numbers) == {
        *(v for link in links for v in link[1:] if v is not None),
        *(wanted[key] for key in ("top", "agree", "near", "mix")),
    }
    assert page.locator("#found .contributions:has(.repel) li").count() == sum(
        link[2] < 0 for link in links
    )
    page.fill("[name=query]", "")
    assert page.is_visible("#cards")
    page.select_option("[name=label]", str(wanted["label"]))
    same = [s["id"] for s in deck["samples"] if s["label"] == wanted["label"]]
    assert shown_ids(page) == same[:24]
    page.select_option("[name=sign]", "repel")
    repelled = [
        s["id"]
        for s in deck["samples"]
        if s["label"] == wanted["label"] and any(link[2] < 0 for link in s["links"])
    ]
    assert shown_ids(page) == repelled[:24]
    page.fill("[name=query]", "no such sample")
    assert page.inner_text("#matched").startswith("No match among the 30 audited samples.")
    page.click("button[type=reset]")
    page.wait_for_selector("#cards", state="visible")
    assert shown_ids(page) == []


def test_search_by_column_marks_what_the_static_cards_mark(show: Any) -> None:
    audit = table_audit()
    report = build_report(audit)
    page = show(report.html).page
    page.select_option("[name=column]", label="colour")
    page.fill("[name=value]", "RED")
    red = [card for card in report.json["samples"]["samples"] if card["values"]["colour"] == 0]
    assert shown_ids(page) == [card["sample_id"] for card in red]
    for card in red:
        rows = page.query_selector_all(f"#found [data-id='{card['sample_id']}'] tbody tr")
        further = card["repelling"][:2]
        order = sorted(
            [*card["landmarks"], *further], key=lambda landmark: landmark["contribution"] < 0
        )
        for row in rows:
            name = row.query_selector("th").text_content()
            name = name.removesuffix(" audited")
            marks = [cell.get_attribute("class") for cell in row.query_selector_all("td")][2:]
            assert marks == ["agrees" if name in one["agrees"] else None for one in order]


def test_what_is_found_says_what_repels_as_the_static_card_does(show: Any) -> None:
    for audit in (full_audit(), table_audit()):
        signed = abs(audit.influence.contribution)
        influence = dataclasses.replace(audit.influence, contribution=signed)
        report = build_report(dataclasses.replace(audit, influence=influence))
        page = show(report.html).page
        for card in report.json["samples"]["samples"]:
            page.fill("[name=query]", str(card["sample_id"]))
            shown = page.text_content("#found")
            assert ("No landmark repels it." in shown) == (not card["repelling"])
            drawn = card["drawn"]
            assert f"{drawn['attract']} attract, {drawn['repel']} repel" in shown
            heads = "#found :is(.strip li, thead th.attract, thead th.repel)"
            assert page.locator(heads).count() == drawn["attract"] + drawn["repel"]


def test_show_more_by_keyboard(show: Any) -> None:
    audit = full_audit()
    rows = np.arange(60) % 7
    many = dataclasses.replace(
        audit.audited,
        **{name: getattr(audit.audited, name)[rows] for name in ("sample_name", "label", "image")},
        sample_id=np.arange(60),
        role=np.zeros(60, dtype=np.int64),
    )
    influence = dataclasses.replace(
        audit.influence,
        **{
            name: getattr(audit.influence, name)[rows]
            for name in (
                *("top_landmark", "score", "contribution", "kernel"),
                *("repelling_landmark", "repelling"),
            )
        },
    )
    html = build_report(
        dataclasses.replace(
            audit, audited=many, influence=influence, embedding_map=None, sample_figures=None
        )
    ).html
    page = show(html).page
    page.focus("[name=query]")
    page.keyboard.type("name")
    assert len(shown_ids(page)) == 24
    page.focus("#more")
    page.keyboard.press("Enter")
    assert len(shown_ids(page)) == 48
    page.keyboard.press("Enter")
    assert shown_ids(page) == list(range(60))
    assert not page.is_visible("#more")


# --- for everybody -------------------------------------------------------------------------------


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


def test_hostile_text_stays_text(show: Any) -> None:
    audit = table_audit()
    evil = HOSTILE + "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    hostile = dataclasses.replace(
        audit,
        classes=(evil,) * 3,
        audited=dataclasses.replace(audit.audited, sample_name=np.array([evil] * 7)),
        landmarks=dataclasses.replace(audit.landmarks, sample_name=np.array([evil] * 9)),
        columns=tuple(
            dataclasses.replace(c, name=f"{i}{evil}", categories=(evil, "b"))
            for i, c in enumerate(audit.columns)
        ),
    )
    opened = show(build_report(hostile).html)
    page = opened.page
    page.fill("[name=query]", "<img src=x")
    assert len(shown_ids(page)) == 5
    assert "<img src=x onerror=alert(1)>" in page.text_content("#found")
    assert page.locator("#found img, .tip img, main script:not(#deck)").count() == 0
    assert opened.complaints == []
    assert opened.requests == [page.url]


def test_two_thousand_samples_stay_small(show: Any) -> None:
    audit, rng = full_audit(), np.random.default_rng(3)
    n, m, ranks = 2000, 500, 10
    ramp = np.linspace(0, 255, 28)[None, :, None, None] * np.ones((1, 1, 28, 1))
    bumps = (ramp * rng.random((n, 1, 1, 1))).astype(np.uint8) // 16 * 16
    planes = [Plane(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), (0.5, 0.2)) for _ in range(2)]
    many = dataclasses.replace(
        audit,
        audited=dataclasses.replace(
            audit.audited, sample_id=np.arange(n), sample_name=None, label=np.arange(n) % 3,
            image=bumps, role=np.zeros(n, dtype=np.int64),
        ),
        landmarks=dataclasses.replace(
            audit.landmarks, sample_id=np.arange(m), label=np.arange(m) % 3, image=bumps[:m],
            weight=None, view=None,
        ),
        influence=dataclasses.replace(
            audit.influence, top_landmark=rng.integers(0, m, (n, ranks)),
            score=rng.random((n, ranks)), contribution=rng.normal(size=(n, ranks)),
            kernel=rng.random((n, m)), repelling_landmark=rng.integers(0, m, (n, 3)),
            repelling=-rng.random((n, 3)),
        ),
        newton=None,
        embedding_map=EmbeddingMap(*planes, likeness=0.5),
        sample_figures=SampleFigures(
            rng.random(n), rng.random(n), rng.integers(0, 2, n), np.full(n, -1)
        ),
        group_effects=None,
    )  # fmt: skip
    report = build_report(many)
    assert len(report.html.encode()) < 6_000_000
    page = show(report.html).page
    page.fill("[name=query]", "1999")
    assert shown_ids(page) == [1999]


# --- links to cards ------------------------------------------------------------------------------


def test_a_link_opens_the_card_of_any_sample(digits: Report, show: Any) -> None:
    opened = show(digits.html)
    page, deck = opened.page, digits.json["samples"]["deck"]
    static, found = deck["samples"][2]["id"], deck["samples"][-1]["id"]
    for sample in (static, found):
        page.goto(f"{page.url.partition('#')[0]}#sample-{sample}")
        card = page.locator(f"#sample-{sample}")
        assert card.count() == 1
        assert card.evaluate("card => card.open")
        assert page.evaluate("document.activeElement.closest('details').id") == f"sample-{sample}"
    page.goto(f"{page.url.partition('#')[0]}#spectrum")
    assert page.is_visible("#spectrum h2")
    assert opened.complaints == []


def test_a_page_opened_at_a_sample_shows_it(digits: Report, chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "linked.html"
    path.write_text(digits.html, encoding="utf-8")
    sample = digits.json["samples"]["deck"]["samples"][-1]["id"]
    page = chromium.new_page()
    page.goto(f"{path.as_uri()}#sample-{sample}")
    assert page.locator(f"#found #sample-{sample}[open]").count() == 1
    page.close()


@pytest.mark.parametrize(
    ("order", "descending"), [("top", True), ("agree", False), ("near", False), ("mix", True)]
)
def test_cards_are_sorted(order: str, descending: bool, digits: Report, show: Any) -> None:
    page, deck = show(digits.html).page, digits.json["samples"]["deck"]
    page.select_option("[name=order]", order)
    value = {sample["id"]: sample[order] for sample in deck["samples"]}
    shown = [value[i] for i in shown_ids(page)]
    assert shown == sorted(value.values(), reverse=descending)[:24]
    assert len(set(shown)) > 1
    page.fill("[name=query]", str(deck["samples"][0]["id"]))
    assert shown_ids(page) == [deck["samples"][0]["id"]]


# --- the map -------------------------------------------------------------------------------------


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


# --- downloads -----------------------------------------------------------------------------------


def saved(page: Any, label: str) -> str:
    with page.expect_download() as waiting:
        page.get_by_label(label, exact=True).click()
    return str(waiting.value.path().read_bytes().decode("utf-8"))


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


# --- a page without samples ----------------------------------------------------------------------


def test_a_page_without_samples_works(show: Any) -> None:
    report = build_report(hide_samples(table_audit()))
    opened = show(report.html)
    assert wrong_numbers(read_numbers(opened.page), report.json) == []
    assert opened.page.locator("img, .card, #deck").count() == 0
    assert "colour" in saved(opened.page, "Save Alignment gaps as CSV")
    assert opened.complaints == []
