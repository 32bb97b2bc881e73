"""The verdict: status from outcomes, JSON that its schema describes, sentences with figures."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core.verdict import SCHEMA, Check, Outcome, Verdict, VerdictFormatError


def check(key: str, outcome: Outcome, *, blocking: bool = False) -> Check:
    return Check(key, f"title of {key}", "a criterion", outcome, "It is {x}.", {"x": 1.5}, blocking)


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ((), "usable"),
        ((check("a", "pass", blocking=True), check("b", "pass")), "usable"),
        ((check("b", "unknown"),), "usable"),
        ((check("b", "fail"),), "usable with reservations"),
        ((check("a", "unknown", blocking=True),), "usable with reservations"),
        ((check("a", "fail", blocking=True), check("b", "pass")), "not usable"),
        ((check("b", "fail"), check("a", "fail", blocking=True)), "not usable"),
    ],
)
def test_one_blocking_failure_decides(checks: tuple[Check, ...], status: str) -> None:
    verdict = Verdict(checks)
    assert verdict.status == status
    assert verdict.sentence.startswith(status.capitalize())


@given(
    st.lists(
        st.builds(
            check, st.sampled_from("abc"), st.sampled_from(["pass", "fail", "unknown"]),
            blocking=st.booleans(),
        ),
        max_size=6,
    )
)  # fmt: skip
def test_json_and_back(checks: list[Check]) -> None:
    verdict = Verdict(tuple(checks))
    text = json.dumps(verdict.to_json(), allow_nan=False)
    again = Verdict.from_json(json.loads(text))
    assert again == verdict
    assert again.status == json.loads(text)["status"]


def test_figures_stand_in_the_sentence() -> None:
    one = Check("k", "t", "c", "pass", "From {low} to {high}.", {"low": 0.12345, "high": None})
    assert one.words() == "From 0.123 to not defined."


@pytest.mark.parametrize("value", [None, [], {}, {"format": "krepes-verdict/9"}])
def test_another_format_is_refused(value: Any) -> None:
    with pytest.raises(VerdictFormatError, match="expected krepes-verdict/1"):
        Verdict.from_json(value)


def test_a_damaged_verdict_is_refused() -> None:
    value = Verdict((check("a", "pass"),)).to_json()
    damaged = copy.deepcopy(value)
    del damaged["checks"][0]["outcome"]
    with pytest.raises(VerdictFormatError, match="damaged"):
        Verdict.from_json(damaged)


def test_schema_names_exactly_the_keys_that_are_written() -> None:
    value = Verdict((check("a", "pass"),)).to_json()
    assert set(value) == set(SCHEMA["required"]) == set(SCHEMA["properties"])
    items = SCHEMA["properties"]["checks"]["items"]
    assert set(value["checks"][0]) == set(items["required"]) == set(items["properties"])
    assert value["status"] in SCHEMA["properties"]["status"]["enum"]
