"""Chromium, pages opened in it, and the reports that are shown.

    make browser

needs a Chromium on the path; playwright brings none of its own here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.rendering.page import Report, build_report
from tests import small
from tests.browser.chromium import CHROMIUM
from tests.rendering.samples import full_audit, table_audit


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    from playwright import sync_api

    with sync_api.sync_playwright() as started:
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
