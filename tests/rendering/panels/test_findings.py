"""Sentences of the findings follow from the figures, and say what the controls do."""

import dataclasses

import numpy as np
import pytest

from krepes_ooc.core.figures import Control
from krepes_ooc.rendering.data import Subject
from krepes_ooc.rendering.panels.bias import ORIGINS, Bias, bias_findings, read_bias
from krepes_ooc.rendering.panels.finding_sentences import (
    confused_pairs,
    is_above_chance,
    make_findings,
)
from krepes_ooc.rendering.panels.findings import findings_panel
from tests.figures import complete
from tests.rendering.samples import Page, full_audit, table_audit

FOUND = Bias(0.3, 0.26, 0.34, 0.01, 0.28, 0.2, 0.25)


@pytest.mark.parametrize(
    ("inputs", "random_most", "origin"),
    [
        (0.2, 0.25, (True, True)),
        (0.2, 0.31, (True, False)),
        (0.28, 0.25, (False, True)),
        (0.28, 0.31, (False, False)),
        (None, 0.25, (None, True)),
        (0.2, None, (True, None)),
        (None, None, (None, None)),
    ],
)
def test_the_origin_follows_from_the_controls(inputs, random_most, origin):
    found = dataclasses.replace(FOUND, inputs=inputs, random_most=random_most)
    assert found.origin == ORIGINS[origin]


@pytest.mark.parametrize(("low", "chance", "found"), [(0.05, 0.01, True), (0.05, 0.03, False)])
def test_a_gap_within_chance_is_no_bias(low, chance, found):
    assert dataclasses.replace(FOUND, low=low, chance=chance).is_found is found


def test_audited_columns_have_a_sentence_each():
    audit = table_audit(audited_columns=("age", "constant"))
    found = list(bias_findings(audit))
    assert [f.words["name"] for f in found] == ["age", "constant"]
    assert found[0].figures["gap"] == 0.3
    assert found[0].figures["low"] == pytest.approx(0.26)
    assert found[0].figures["inputs"] == 0.36
    assert "is grouped by" in found[0].sentence
    assert found[1].words["reason"] == "the column is constant"
    # Without audited columns those of the largest gaps
    assert [f.words["name"] for f in bias_findings(table_audit(audited_columns=()))] == [
        "age", "colour",
    ]  # fmt: skip
    assert read_bias(audit.alignment, 2) is None


def test_the_strongest_baseline_is_named_and_compared():
    figure = complete("cka", 0.6, (0.5, 0.7), start=0.3, kernel_rows=0.55)
    audit = full_audit(fidelity={"cka": figure})
    found = make_findings(audit)[0]
    assert found.words["baseline"] == "kernel rows"
    assert found.figures["baseline"] == 0.55
    assert "no less" not in found.sentence
    most = {"cka": {"label": "cka", "value": 0.6, "most": 0.65, "learned": False}}
    found = make_findings(dataclasses.replace(audit, random_weights=most))[0]
    assert found.words["baseline"] == "random weights, at most"
    assert "no less" in found.sentence


def test_confusions_need_samples_and_error():
    groups = table_audit().groups["colour"]
    share = np.array([[0.6, 0.3, 0.1, 0], [0.2, 0.75, 0.05, 0], *np.full((2, 4), np.nan)])
    large = dataclasses.replace(groups, share=share, samples=np.array([20, 20, 0, 0]))
    assert confused_pairs(large) == [(0, 1), (1, 0)]
    unsure = dataclasses.replace(large, stderr=np.full((4, 4), 0.12))
    assert confused_pairs(unsure) == [(0, 1)]
    assert confused_pairs(dataclasses.replace(large, samples=np.array([9, 20, 0, 0]))) == [(1, 0)]


def test_a_share_at_chance_is_not_called_a_confusion():
    groups = table_audit().groups["colour"]
    share = np.array([[0.6, 0.3, 0.1, 0], [0.2, 0.75, 0.05, 0], *np.full((2, 4), np.nan)])
    chance = np.array([0.1, 0.24, 0.1, 0])
    found = dataclasses.replace(
        groups, categories=("a", "b", "c", "d"), share=share, chance=chance, note="",
        samples=np.array([20, 20, 0, 0]), stderr=np.full((4, 4), 0.03), kernel_only=share,
    )  # fmt: skip
    # 30 % - 6 % is printed like the 24 % of chance, 20 % - 6 % lies above 10 %
    assert [is_above_chance(found, g, other) for g, other in ((0, 1), (1, 0))] == [False, True]
    text = Page(findings_panel(full_audit(groups={"label": found})).render()).text
    assert "a with b : 30 % ± 6 % (not clearly above chance, 24 %" in text
    assert "b with a : 20 % ± 6 % (by chance 10 %" in text


def test_a_concept_is_named_after_a_class_only_if_it_is_precise():
    audit = full_audit()
    found = dataclasses.replace(audit.discovered, differences=((), ()))
    text = Page(findings_panel(dataclasses.replace(audit, discovered=found)).render()).text
    assert "concept 1, like class hen ( 30 % of the samples, average precision 0.93 )" in text
    low = dataclasses.replace(found, precision=np.array([0.41, 0.49]))
    text = Page(findings_panel(dataclasses.replace(audit, discovered=low)).render()).text
    assert "concept 1, no class: the best is hen ( 30 % of the samples, average precision" in text
    assert "like class" not in text


def test_the_two_controls_of_a_gap_are_named():
    page = Page(findings_panel(table_audit(audited_columns=("age",))).render()).text
    assert "The audit's embedding is grouped by age : alignment gap 0.3" in page
    assert "the network's own embedding gives 0.25 ; controls: inputs 0.36 , random weights" in page
    for (inputs, random), words in ORIGINS.items():
        if inputs is not None and inputs == random:
            assert words.startswith(("This exceeds both: ", "Both reach as much: "))


def test_differences_of_shares_are_percentage_points():
    pair = Control("step_against_kernel", "words", 0.056, (-0.0464, 0.0656))
    figure = dataclasses.replace(
        complete("neighbour_overlap", 0.6), paired={"step_against_kernel": pair}
    )
    panel = findings_panel(full_audit(fidelity={"neighbour_overlap": figure}))
    text = Page(panel.render()).text
    assert "difference 5.6 percentage points (95 % interval −4.6 to 6.6 )." in text


def test_audited_samples_and_those_that_fit_probes_are_counted_apart():
    audit = full_audit(subject=Subject("d", "n", "s", "o", {"samples": 1797, "audited": 7}))
    panel = findings_panel(audit)
    assert "5 audited samples, 2 others to fit probes" in Page(panel.render()).text.replace(
        " ,", ","
    )
    assert panel.figures["audited"] == {"explained": 5, "fit_probes": 2}


def test_findings_read_as_sentences():
    page = Page(findings_panel(table_audit()).render())
    assert "Usable with reservations: Nystrom error." in page.text
    assert "1 of 2 discovered concepts are stable" in page.text
    assert (
        "The average precision of the best class is 0.67 , for k-means on inputs 0.71" in page.text
    )
    assert "which is no less." in page.text
    assert "Solved again without label = cat ( 30 samples), the kernel model" in page.text
    assert "{" not in page.text
