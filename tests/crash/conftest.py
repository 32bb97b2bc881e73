"""One table of all campaigns at the end of ``make crash``.

With ``CRASH_RESULTS=FILE.json`` the rows are written there too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.share import SHARE

# Processor time of the workers of xdist, in seconds.
OF_WORKERS: list[float] = []
HEAD = ("campaign", "cases", "silent", "not repaired", "seconds")


@pytest.fixture
def campaign_row(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Figures of a campaign for the table: its cases, those that were silent, not repaired."""

    def record(*, cases: int, silent: int = 0, not_repaired: int = 0) -> None:
        record_property("campaign", (cases, silent, not_repaired))

    return record


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the rows of the table: reports have names of folders among their keywords too."""
    for item in items:
        if item.get_closest_marker("crash") is not None:
            item.user_properties.append(("row", True))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print a row for every test with the marker ``crash``."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        if report.when == "call" and dict(report.user_properties).get("row")
    ]
    if not reports:
        return
    rows = [HEAD, *(row_of(report) for report in reports)]
    if place := os.environ.get("CRASH_RESULTS"):
        Path(place).write_text(json.dumps(results(reports), indent=1) + "\n")
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    terminalreporter.section("campaigns")
    for row in rows:
        texts = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        terminalreporter.write_line("  ".join(texts))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the processor time of a worker of xdist to the process that prints the table."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cpu_seconds"] = _cpu_seconds()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it over."""
    OF_WORKERS.append(getattr(node, "workeroutput", {}).get("cpu_seconds", 0.0))


def results(reports: list[Any]) -> dict[str, Any]:
    """Share, rows and further figures of the campaigns, and what they took."""
    rows = []
    for report in reports:
        known = dict(report.user_properties)
        row = dict(zip(HEAD, row_of(report), strict=True))
        rows.append(row | {"figures": known["figures"]} if "figures" in known else row)
    whole = {"seconds": sum(report.duration for report in reports), "cpu_seconds": _cpu_seconds()}
    return {"share": SHARE, **whole, "campaigns": rows}


def _cpu_seconds() -> float:
    """Processor time of this process, of its children and of the workers of xdist."""
    times = os.times()
    # Workers that have been waited for are among the children.
    children = max(times.children_user + times.children_system, sum(OF_WORKERS))
    return times.user + times.system + children


def row_of(report: Any) -> tuple[str, ...]:
    """Name, figures and seconds of one test; one without figures is a single case."""
    figures = dict(report.user_properties).get("campaign", (1, 0, 0))
    # What failed before it had figures is shown as such.
    texts = ["failed"] * 3 if report.failed and not any(figures[1:]) else map(str, figures)
    name = report.nodeid.removeprefix("tests/").replace("::", " ")
    return (name, *texts, f"{report.duration:.0f}")
