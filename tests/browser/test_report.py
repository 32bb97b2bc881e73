"""The report in a real browser: numbers, search, keyboard, print, dark mode, hostile text.

    make browser

needs a Chromium on the path; playwright brings none of its own here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.rendering.page import Report, build_report
from tests import small
from tests.rendering.samples import HOSTILE, full_audit, numbers_in, table_audit

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: make browser")
pytestmark = [
    pytest.mark.browser,
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
            # A control in brackets is in percent like the figure before it.
            scales = (1.0, 0.01) if panel == "groups" else (1.0,)
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
    for section in opened.page.query_selector_all("main section"):
        assert section.is_visible()
        assert section.query_selector("h2").inner_text().strip()
    assert opened.complaints == []
    assert opened.requests == [opened.page.url]


@pytest.mark.parametrize("panel", ["reliability", "samples", "fidelity", "spectrum", "timing"])
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


def test_search_by_position_class_and_pull(digits: Report, show: Any) -> None:
    page, deck = show(digits.html).page, digits.json["samples"]["deck"]
    wanted = deck["samples"][5]
    page.fill("[name=query]", str(wanted["id"]))
    assert shown_ids(page) == [wanted["id"]]
    assert page.inner_text("#told") == f"1 of {len(deck['samples'])} samples, 1 shown"
    assert not page.is_visible("#cards")
    read = "all => all.map((d) => Number(d.dataset.value))"
    numbers = page.eval_on_selector_all("#found data", read)
    links = [*wanted["links"], *wanted["push"]]
    assert set(numbers) == {v for link in links for v in link[1:] if v is not None}
    assert page.locator("#found .pull:has(.repel) li").count() == sum(link[2] < 0 for link in links)
    page.fill("[name=query]", "")
    assert page.is_visible("#cards")
    page.select_option("[name=label]", str(wanted["label"]))
    same = [s["id"] for s in deck["samples"] if s["label"] == wanted["label"]]
    assert shown_ids(page) == same[:24]
    page.select_option("[name=pull]", "repel")
    repelled = [
        s["id"]
        for s in deck["samples"]
        if s["label"] == wanted["label"] and any(link[2] < 0 for link in s["links"])
    ]
    assert shown_ids(page) == repelled[:24]
    page.fill("[name=query]", "no such sample")
    assert page.inner_text("#told") == "No sample is like that."
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
            name = row.query_selector("th").inner_text()
            marks = [cell.get_attribute("class") for cell in row.query_selector_all("td")][1:]
            assert marks == ["agrees" if name in one["agrees"] else None for one in order]


def test_what_is_found_says_what_pushes_as_the_static_card_does(show: Any) -> None:
    for audit in (full_audit(), table_audit()):
        signed = abs(audit.influence.contribution)
        influence = dataclasses.replace(audit.influence, contribution=signed)
        report = build_report(dataclasses.replace(audit, influence=influence))
        page = show(report.html).page
        for card in report.json["samples"]["samples"]:
            page.fill("[name=query]", str(card["sample_id"]))
            told = page.inner_text("#found")
            assert ("No landmark pushes it away." in told) == (not card["repelling"])
            assert ("more push it away" in told) == bool(card["repelling"])


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
    html = build_report(dataclasses.replace(audit, audited=many, influence=influence)).html
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
    for _ in range(120):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.name || document.activeElement.tagName"))
    assert {"query", "pull", "SUMMARY"} <= seen
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
    assert "<img src=x onerror=alert(1)>" in page.inner_text("#found")
    assert page.locator("#found img, main script:not(#deck)").count() == 0
    assert opened.complaints == []
    assert opened.requests == [page.url]


def test_two_thousand_samples_stay_small(show: Any) -> None:
    audit, rng = full_audit(), np.random.default_rng(3)
    n, m, ranks = 2000, 500, 10
    ramp = np.linspace(0, 255, 28)[None, :, None, None] * np.ones((1, 1, 28, 1))
    bumps = (ramp * rng.random((n, 1, 1, 1))).astype(np.uint8) // 16 * 16
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
    )  # fmt: skip
    report = build_report(many)
    assert len(report.html.encode()) < 5_000_000
    page = show(report.html).page
    page.fill("[name=query]", "1999")
    assert shown_ids(page) == [1999]
