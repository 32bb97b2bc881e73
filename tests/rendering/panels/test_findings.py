"""Sentences of the findings follow from the figures, and say what the controls do."""

import dataclasses

import numpy as np
import pytest

from krepes_ooc.rendering.panels.bias import ORIGINS, Bias, bias_findings, read_bias
from krepes_ooc.rendering.panels.finding_sentences import confused_pairs, make_findings
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


def test_findings_read_as_sentences():
    page = Page(findings_panel(table_audit()).render())
    assert "Usable with reservations: Nystrom error." in page.text
    assert "1 of 2 discovered concepts are stable" in page.text
    assert (
        "The average precision of the best class is 0.67 , for k-means on inputs 0.71" in page.text
    )
    assert "which is no less." in page.text
    assert "Leaving out label = cat ( 30 samples) changes the embedding most" in page.text
    assert "{" not in page.text
