"""Labels are for people: rewording all of them changes no verdict, key or stored attribute."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from krepes_ooc import rendering
from krepes_ooc.core import figure_specs
from krepes_ooc.rendering import measured
from krepes_ooc.stages.fidelity.stored_figures import read_curves, read_fidelity
from tests.figures import complete
from tests.rendering.samples import full_audit, table_audit
from tests.stages import audits

FIDELITY = ("ridge_ceiling", "kendall_tau", "cka", "confidence_drop")


def reworded(labels: Mapping[str, str]) -> dict[str, str]:
    return {key: f"said otherwise, {label[::-1]}" for key, label in labels.items()}


@pytest.fixture
def other_labels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every label of every figure, control, curve and line in other words."""
    with monkeypatch.context() as patch:
        for table, name in ((figure_specs.FIGURES, "controls"), (figure_specs.CURVES, "lines")):
            for key, spec in table.items():
                labels = {name: reworded(getattr(spec, name)), "label": f"other {key}"}
                patch.setitem(table, key, dataclasses.replace(spec, **labels))
        for labels in (figure_specs.SPACES, figure_specs.MEASURES, measured.CONCEPT_CONTROLS):
            for key, label in reworded(labels).items():
                patch.setitem(labels, key, label)
        yield


def audit(**controls: float) -> rendering.AuditData:
    fidelity = {key: complete(key, 0.5) for key in FIDELITY}
    fidelity["confidence_drop"] = complete("confidence_drop", 0.5, (0.4, 0.6), **controls)
    return table_audit(fidelity=fidelity, curves=full_audit().curves, warnings=())


def keys_and_numbers(value: Any, at: str = "") -> dict[str, Any]:
    """Every path of a JSON value whose end is no text."""
    if isinstance(value, dict):
        return {
            k: v for key in value for k, v in keys_and_numbers(value[key], f"{at}/{key}").items()
        }
    if isinstance(value, list):
        pairs = enumerate(value)
        return {k: v for i, one in pairs for k, v in keys_and_numbers(one, f"{at}/{i}").items()}
    return {at: None if isinstance(value, str) else value}


def test_rewording_changes_no_key_and_no_number(request: Any) -> None:
    before = rendering.build_report(audit(random=0.01, kernel_only=0.1))
    request.getfixturevalue("other_labels")
    after = rendering.build_report(audit(random=0.01, kernel_only=0.1))
    assert keys_and_numbers(after.json) == keys_and_numbers(before.json)
    assert after.json["reliability"] == before.json["reliability"]
    assert "said otherwise" in after.html
    assert "largest |k| (no step)" not in after.html


def test_rewording_changes_no_stored_attribute(request: Any) -> None:
    store = audits.finished().reader("fidelity")

    def stored() -> str:
        figures = {key: one.to_attributes() for key, one in read_fidelity(store).items()}
        curves = {key: one.to_attributes() for key, one in read_curves(store).items()}
        return json.dumps({"figures": figures, "curves": curves}, sort_keys=True)

    before = stored()
    expected = {key: store.attributes[key] for key in ("figures", "curves")}
    assert json.loads(before) == json.loads(json.dumps(expected))
    request.getfixturevalue("other_labels")
    assert stored() == before
