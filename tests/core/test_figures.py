"""Figures and controls are looked up by key: a label means nothing to the code."""

from __future__ import annotations

import math

import numpy as np
import pytest

from krepes_ooc.core.figure_specs import (
    AGAINST_INPUTS,
    CURVES,
    FIGURES,
    STEP_AGAINST_KERNEL,
    VALUE,
)
from krepes_ooc.core.figures import (
    Curve,
    Figure,
    FigureKeyError,
    check_figure,
    curve,
    figure,
    reading_order,
    undefined_figure,
)
from krepes_ooc.errors import KrepesError
from tests.figures import complete

DROP = ("kernel_only", "kernel_times_coefficients")


@pytest.mark.parametrize("key", FIGURES)
def test_a_figure_survives_its_store(key: str):
    found = complete(key, 0.5, (0.4, 0.6))
    again = Figure.from_attributes(key, found.to_attributes())
    assert again.to_attributes() == found.to_attributes()
    assert again.label == FIGURES[key].label
    assert list(again.controls) == list(found.controls)
    assert again.note == FIGURES[key].note


@pytest.mark.parametrize("key", FIGURES)
def test_every_key_is_a_short_field_word(key: str):
    for name in (key, *FIGURES[key].controls):
        assert name.isidentifier()
        assert name == name.lower()
        assert len(name) < 32 or name.startswith("ranked_by_")
    assert FIGURES[key].optional <= set(FIGURES[key].controls)


@pytest.mark.parametrize("key", FIGURES)
def test_what_is_subtracted_and_the_ceiling_are_keys_of_the_figure(key: str):
    spec = FIGURES[key]
    known = {VALUE, *spec.controls}
    assert {name for pair in spec.paired.values() for name in pair} <= known
    assert set(spec.paired) <= {STEP_AGAINST_KERNEL, AGAINST_INPUTS}
    assert not spec.ceiling or spec.ceiling in spec.controls


def test_paired_differences_survive_their_store_and_may_be_missing():
    pairs = {STEP_AGAINST_KERNEL: (0.1, (-0.1, 0.3)), AGAINST_INPUTS: (0.2, None)}
    found = figure(
        "cka", 0.5, {"start": 0.4, "step": 0.4, "kernel_rows": 0.4, "raw_inputs": 0.3}, paired=pairs
    )
    assert found.paired[STEP_AGAINST_KERNEL].label == "the figure minus kernel rows, paired"
    stored = found.to_attributes()
    again = Figure.from_attributes("cka", stored)
    assert again.to_attributes() == stored
    assert again.paired[STEP_AGAINST_KERNEL].interval == (-0.1, 0.3)
    assert again.paired[AGAINST_INPUTS].interval is None
    # One sample: both ends are open
    alone = {STEP_AGAINST_KERNEL: (0.1, (-math.inf, math.inf))}
    stored_alone = figure("drop_ratio", 2.0, dict.fromkeys(DROP), paired=alone).to_attributes()
    assert stored_alone["paired"][STEP_AGAINST_KERNEL]["interval"] == [None, None]
    again = Figure.from_attributes("drop_ratio", stored_alone)
    assert again.paired[STEP_AGAINST_KERNEL].interval == (-math.inf, math.inf)
    # A store of an earlier version has none
    for name in ("paired", "at_ceiling"):
        del stored[name]
    assert Figure.from_attributes("cka", stored).paired == {}
    with pytest.raises(FigureKeyError, match="paired differences of figure coverage: unknown key"):
        figure("coverage", 0.5, {"random": 0.1}, paired=pairs)


def test_a_figure_is_at_its_ceiling_from_the_ceiling_on():
    ceilings = {"noise_ceiling": 0.8}
    assert complete("kendall_tau", 0.8, **ceilings).at_ceiling is True
    assert complete("kendall_tau", 0.79, **ceilings).at_ceiling is False
    assert complete("kendall_tau", 0.79).at_ceiling is None
    assert complete("cka", 0.9).at_ceiling is None
    assert undefined_figure("kendall_tau", "few samples").at_ceiling is None
    assert complete("kendall_tau", 0.8, **ceilings).to_attributes()["at_ceiling"] is True


def test_a_missing_key_is_an_error():
    with pytest.raises(FigureKeyError, match="figure cka: key 'kernel_rows' is missing"):
        figure("cka", 0.5, {"start": 0.4})
    stored = complete("confidence_drop", 0.5).to_attributes()
    del stored["controls"]["kernel_only"]
    with pytest.raises(KrepesError, match="confidence_drop: key 'kernel_only' is missing"):
        Figure.from_attributes("confidence_drop", stored)
    with pytest.raises(KeyError):
        check_figure(Figure("cka", "", 0.5))
    with pytest.raises(FigureKeyError, match="no control 'start'; expected none: few samples"):
        undefined_figure("cka", "few samples").control("start")


def test_an_unknown_key_is_an_error():
    with pytest.raises(FigureKeyError, match=r"unknown key 'largest \|k\|'; expected one of"):
        figure("drop_ratio", 1.0, {"kernel_only": 1.0, "largest |k|": 1.0})
    with pytest.raises(FigureKeyError, match="unknown key 'tau'; expected one of ridge_ceiling"):
        undefined_figure("tau", "")
    with pytest.raises(FigureKeyError, match="curve spectral_entropy: unknown key 'step'"):
        curve("spectral_entropy", [1.0], {"step": [0.5]})
    with pytest.raises(FigureKeyError):
        complete("coverage", 0.5).find_control("raw_inputs")


def test_an_optional_control_may_be_absent():
    tau = complete("kendall_tau", 0.5)
    assert tau.find_control("raw_inputs") is None
    assert complete("kendall_tau", 0.5, raw_inputs=0.4).control("raw_inputs").value == 0.4
    with pytest.raises(FigureKeyError):
        tau.control("raw_inputs")


def test_what_is_not_defined_is_null_and_says_why():
    found = undefined_figure("coverage", "no landmark of class 3")
    assert found.to_attributes()["value"] is None
    assert found.note == "no landmark of class 3"
    again = Figure.from_attributes("coverage", found.to_attributes())
    assert (again.reason, again.is_defined) == (found.reason, False)
    control = complete("coverage", 4.0)
    assert control.to_attributes()["controls"] == {"random": None}
    assert math.isnan(Figure.from_attributes("coverage", control.to_attributes()).values["random"])


def test_an_interval_may_be_open():
    ratio = complete("drop_ratio", 4.0, (3.2, math.inf))
    stored = ratio.to_attributes()
    assert stored["interval"] == [3.2, None]
    assert Figure.from_attributes("drop_ratio", stored).interval == (3.2, math.inf)


def test_unconverged_probes_are_named_for_people():
    stopped = figure(
        "accuracy_gap", 1.0, complete("accuracy_gap", 1.0).values, None, ["kernel_rows"]
    )
    assert stopped.note.endswith(" Stopped before they converged: kernel rows.")
    assert stopped.to_attributes()["unconverged"] == ["kernel_rows"]


def test_reading_order_is_that_of_the_table():
    assert reading_order(sorted(FIGURES), FIGURES) == list(FIGURES)
    lines = {"step": [0.2, 0.3], "start": [0.1, 0.2]}
    found = curve("tau_over_components", [1, 2], lines)
    assert list(found.lines) == ["start", "step"]
    again = Curve.from_attributes("tau_over_components", found.to_attributes())
    np.testing.assert_array_equal(again.lines["step"], [0.2, 0.3])
    assert list(again.labelled_lines) == ["start", "after the step"]
    assert again.note == CURVES["tau_over_components"].note


def test_a_streamed_objective_says_that_the_start_is_alone():
    found = curve("ceiling_over_components", [1, 2], {"start": [0.1, 0.2]})
    assert found.note.endswith("The objective streams the kernel, so only the start is shown.")
