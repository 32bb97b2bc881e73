"""Cards of samples in a real browser: search, order, links, hostile text, many samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.rendering.overview import EmbeddingMap, Plane, SampleFigures
from krepes_ooc.rendering.page import Report, build_report
from tests.browser.chromium import NEEDS_CHROMIUM
from tests.browser.page_reading import shown_ids
from tests.rendering.samples import HOSTILE, full_audit, table_audit

pytestmark = NEEDS_CHROMIUM


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
