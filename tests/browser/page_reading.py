"""Readings of a shown report: its numbers, the samples that it lists, what it saves."""

from __future__ import annotations

import re
from typing import Any

from tests.rendering.samples import numbers_in

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0}
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
Panels = dict[str, list[tuple[str, str]]]


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


def shown_ids(page: Any) -> list[int]:
    return [int(card.get_attribute("data-id")) for card in page.query_selector_all("#found .card")]


def saved(page: Any, label: str) -> str:
    with page.expect_download() as waiting:
        page.get_by_label(label, exact=True).click()
    return str(waiting.value.path().read_bytes().decode("utf-8"))
