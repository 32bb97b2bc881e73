"""A page of aggregates holds nothing of a single sample."""

import dataclasses
import json
import re

import numpy as np
import pytest

from krepes_ooc.rendering.hidden import LEAST_SAMPLES, hide_samples
from krepes_ooc.rendering.page import build_report
from krepes_ooc.rendering.sample_concepts import ConceptScore, SampleConcepts
from tests.rendering.samples import N_LANDMARKS, Page, full_audit, numbers_in, table_audit


def secret_audit(make):
    """An audit in which everything of a sample can be told from everything else."""
    audit = make()
    changes = {}
    for kind in ("audited", "landmarks"):
        samples = getattr(audit, kind)
        n = len(samples.sample_id)
        names = np.array([f"SECRET-{kind}-{i}" for i in range(n)], dtype=object)
        values = samples.values
        if values is not None:
            values = 7_000_000.0 + np.arange(values.size).reshape(values.shape)
        ids = 8_000_000 + np.arange(n)
        changes[kind] = dataclasses.replace(
            samples, sample_name=names, sample_id=ids, values=values
        )
    scores = [ConceptScore("given", "given", (), True, 7_000_000.0, 8_000_000.0, True)]
    return dataclasses.replace(
        audit,
        **changes,
        sample_concepts=(SampleConcepts(scores, {}),),
        recipe_text="path: /home/SECRET/data.csv",
        warnings=("Source: row SECRET is bad", "The step is not trusted."),
        record={"table encoding": "/home/SECRET.json", "seed": "0"},
        subject=dataclasses.replace(
            audit.subject, source="table /home/SECRET/people.csv, 3 columns"
        ),
    )


@pytest.mark.parametrize("make", [full_audit, table_audit])
def test_no_name_row_position_or_picture_is_in_the_page(make):
    audit = secret_audit(make)
    shown = build_report(audit)
    assert "SECRET-audited-0" in shown.html
    report = build_report(hide_samples(audit))
    page = Page(report.html)
    for text in (report.html, json.dumps(report.json)):
        assert "SECRET" not in text
        # Values and positions of single samples
        assert not re.search(r"\b[78]00000\d\b|\b[78],000,\d{3}\b", text)
        assert "data:image" not in text
        assert '"sample-' not in text
        assert '"#sample-' not in text
    assert not page.all("img")
    assert not [tag for tag in page.all("script") if tag.get("id")]
    assert "people.csv" in page.text
    assert "The step is not trusted." in page.text
    known = numbers_in(report.json)
    assert all(float(d["data-value"]) in known for d in page.all("data"))


def test_aggregates_stay_and_small_groups_go():
    audit = table_audit()
    groups = dataclasses.replace(
        audit.groups["colour"], samples=np.array([LEAST_SAMPLES, LEAST_SAMPLES - 1, 0, 0])
    )
    hidden = hide_samples(dataclasses.replace(audit, groups={"colour": groups}))
    assert np.array_equal(hidden.groups["colour"].share[0], groups.share[0])
    assert np.isnan(hidden.groups["colour"].share[1]).all()
    assert np.isnan(hidden.group_effects.mean).tolist() == [False, True, False]
    assert np.isnan(hidden.group_effects.by_group[:, 1]).all()
    assert hidden.class_figures.samples.tolist() == [40, 15, 0]
    assert np.array_equal(hidden.alignment.gap, audit.alignment.gap, equal_nan=True)
    page = build_report(hidden)
    assert page.json["concepts"]["mean_score"][0] == pytest.approx(
        audit.concepts.score[:, 0].mean()
    )
    assert "Feature alignment" in page.html
    assert len(audit.landmarks.sample_id) == N_LANDMARKS
