"""What the report shows of the last stages is what lies in their stores."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from krepes_ooc.stages.fidelity.stored_figures import read_curves, read_fidelity
from tests.stages import audits


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    return json.loads((audits.finished().root / "report.json").read_text())


def test_alignment_with_every_control_and_the_label(shown):
    store = audits.finished().reader("alignment")
    panel, defined = shown["alignment"], store.array("defined") == 1
    assert panel["columns"] == store.attributes["columns"]
    assert panel["columns"][-1] == "label"
    for name in ("gap", "stderr", "chance", "kernel_only", "difference_stderr", "weighted",
                 "repelling", "network_gap", "input_gap"):  # fmt: skip
        values = np.array(panel[name], dtype=float)
        assert values[defined].tolist() == store.array(name)[defined].tolist(), name
        assert np.isnan(values[~defined]).all(), name
    assert panel["notes"] == {"flat": "the column is constant"}


def test_group_tables(shown):
    for name, table in audits.finished().reader("alignment").attributes["groups"].items():
        assert shown["groups"][name].items() >= table.items()


def test_concepts_with_their_controls(shown):
    store, panel = audits.finished().reader("concepts"), shown["concepts"]
    for name in ("chance", "accuracy_network", "p_value", "accuracy_start", "accuracy_inputs"):
        assert panel["controls"][name] == store.array(name).tolist()
    assert panel["trusted"] == (store.array("trusted") == 1).tolist()
    assert sorted(panel["landmarks"]) == ["east", "kind", "old"]
    role = audits.finished().reader("audited").array("role")
    east = store.attributes["names"].index("east")
    mean = store.array("score")[role == 0, east].mean()
    assert panel["mean_score"][east] == pytest.approx(mean)


def test_all_audit_samples_are_handed_over_and_some_get_a_card(shown):
    assert (shown["samples"]["shown"], shown["samples"]["total"]) == (24, 60)


def test_figures_and_curves_come_in_reading_order(shown):
    store = audits.finished().reader("fidelity")
    figures, curves = read_fidelity(store), read_curves(store)
    assert list(figures)[:3] == ["ridge_ceiling", "kendall_tau", "accuracy_gap"]
    assert next(iter(figures["confidence_drop"].controls)) == "random"
    assert next(iter(curves)) == "tau_over_components"
    lines = ["start", "step", "lm_steps"]
    assert list(curves["tau_over_components"].lines) == lines
    for name, kept in store.attributes["figures"].items():
        assert shown["fidelity"]["figures"][name]["controls"] == kept["controls"]
    for name, kept in store.attributes["curves"].items():
        assert shown["fidelity"]["curves"][name]["lines"] == kept["lines"]


def test_cards_have_the_concept_scores_of_their_samples(shown):
    space = audits.finished()
    concepts, examples = space.reader("concepts"), space.reader("examples")
    rows = np.flatnonzero(space.reader("audited").array("role") == 0)
    names = list(concepts.attributes["names"])
    for card, row in zip(shown["samples"]["samples"], rows, strict=False):
        given = [each for each in card["concepts"] if each["kind"] == "given"]
        assert [each["name"] for each in given] == names
        stored = concepts.array("score")[row].tolist()
        assert [each["score"] for each in given] == pytest.approx(stored, abs=1e-12)
        found = [each for each in card["concepts"] if each["kind"] == "discovered"]
        assert [each["shows"] for each in found].index(True) == examples.array("concept")[row]
