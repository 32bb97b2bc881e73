"""Sums over landmarks against dense float64 sums from the stores alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.rendering.explanation_card import draw_card
from krepes_ooc.rendering.explanation_sum import ExplainedSum
from krepes_ooc.runner.explanation.explain_sums import explain_decision, explain_pair
from krepes_ooc.runner.explanation.explain_without import explain_without
from krepes_ooc.sources.open import open_source
from krepes_ooc.stages.fidelity.metrics import linear_probe
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.store_reader import StoreReader
from tests import small
from tests.runner.conftest import FinishedAudit

CHOICES = ("step", "minimiser", "distilled")


def stored(audit: FinishedAudit, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A and gamma as the stores hold them."""
    if name == "distilled":
        store = audit.reader("distilled")
        return store.array("distilled"), store.array("offset")
    array = {
        "step": ("newton", "coefficients"),
        "minimiser": ("minimiser", "coefficients_minimiser"),
    }
    store, key = array[name]
    return audit.reader(store).array(key), audit.reader("spectrum").array("offset")


def dense_embedding(k: np.ndarray, A: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    f = gamma.copy()
    for weight, row in zip(k, A, strict=True):
        f = f + weight * row
    return f


def check_sum(one: ExplainedSum, terms: np.ndarray, constant: float, value: float) -> None:
    """Every term, the constant and the value, to 1e-9 of the terms' sizes; and they add up."""
    size = np.abs(terms).sum() + abs(constant)
    np.testing.assert_allclose(one.terms, terms, atol=1e-9 * size, rtol=0)
    record = one.record()
    assert record["value"] == pytest.approx(value, abs=1e-9 * size)
    assert record["constant"] == pytest.approx(constant, abs=1e-9 * size)
    listed = sum(
        sum(term["term"] for term in record[side]) + record[f"other_{side}"]["sum"]
        for side in ("attracting", "repelling")
    )
    assert listed + record["constant"] == pytest.approx(record["value"], abs=1e-9 * size)
    assert abs(record["residual"]) < 1e-12 * size
    for side in ("attracting", "repelling"):
        count = len(record[side]) + record[f"other_{side}"]["landmarks"]
        assert count == np.sum(terms > 0 if side == "attracting" else terms < 0)
        assert sum(term["share"] for term in record[side]) <= 1 + 1e-12


@pytest.mark.parametrize("name", CHOICES)
def test_a_similarity_adds_up(explained_digits: FinishedAudit, name: str) -> None:
    audit = explained_digits
    x, y = audit.audited[0], audit.audited[40]
    one = explain_pair(audit.path, sample=x, against=y, coefficients=name, top=3)[0]
    A, gamma = stored(audit, name)
    K = audit.reader("influence").array("kernel")
    other = dense_embedding(K[40], A, gamma)
    terms = np.array(
        [
            k * sum(a * b for a, b in zip(row, other, strict=True))
            for k, row in zip(K[0], A, strict=True)
        ]
    )
    check_sum(one, terms, float(gamma @ other), float(dense_embedding(K[0], A, gamma) @ other))
    record = one.record()
    assert (record["question"], record["against"]["sample_id"]) == ("similarity", y)
    assert record["coefficients"]["used"] == name
    # Both say how much of the network is in them, each by its own figure.
    figure = "r_squared" if name == "distilled" else "likeness"
    store = audit.reader("distilled" if name == "distilled" else "minimiser").attributes
    known = store["r_squared"] if name == "distilled" else store["likeness"][name]
    assert record["coefficients"][figure] == pytest.approx(known)


@pytest.mark.parametrize("name", CHOICES)
def test_a_logit_adds_up(explained_digits: FinishedAudit, name: str) -> None:
    audit = explained_digits
    one = explain_decision(audit.path, sample=audit.audited[0], probe="3", coefficients=name)[0]
    A, gamma = stored(audit, name)
    audited, K = audit.reader("audited"), audit.reader("influence").array("kernel")
    fit, label = audited.array("role") == 1, audited.array("label")
    rows = audited.array("network_embedding").astype(np.float64)
    if name != "distilled":
        rows = np.array([dense_embedding(k, A, gamma) for k in K])
    w, c, probability = dense_probe(rows[fit], label[fit])
    column = list(np.unique(label[fit])).index(3)
    terms = np.array([k * float(row @ w[:, column]) for k, row in zip(K[0], A, strict=True)])
    f = dense_embedding(K[0], A, gamma)
    # The solver's own tolerance is coarser than rounding: 1e-3 of the terms' sizes.
    size = np.abs(terms).sum()
    np.testing.assert_allclose(one.terms, terms, atol=1e-3 * size, rtol=0)
    assert one.figures["value"] == pytest.approx(f @ w[:, column] + c[column], abs=1e-3 * size)
    assert one.details["probe"]["probability"] == pytest.approx(probability(f)[column], abs=1e-3)
    check_sum(one, one.terms, one.figures["constant"], one.figures["value"])
    if name == "distilled":
        own = rows[0] @ w[:, column] + c[column]
        assert one.details["probe"]["network_logit"] == pytest.approx(own, abs=1e-3 * size)


def dense_probe(rows: np.ndarray, label: np.ndarray) -> Any:
    """Weights, biases and probabilities of the penalised likelihood at its optimum, by Newton."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    X = np.hstack([(rows - mean) / scale, np.ones((len(rows), 1))])
    codes = np.unique(label)
    Y = (label[:, None] == codes).astype(float)
    D, C = X.shape[1], len(codes)
    penalty = np.append(np.ones(D - 1), 0.0)
    V = np.zeros((D, C))

    def softmax(logits: np.ndarray) -> np.ndarray:
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)

    for _ in range(12):
        P = softmax(X @ V)
        gradient = X.T @ (P - Y) + penalty[:, None] * V
        H = np.zeros((D, C, D, C))
        for a in range(C):
            for b in range(C):
                weight = P[:, a] * (float(a == b) - P[:, b])
                H[:, a, :, b] = X.T @ (weight[:, None] * X) + float(a == b) * np.diag(penalty)
        # Equal biases of all classes change nothing: a little of the identity fixes them.
        flat = H.reshape(D * C, D * C) + 1e-9 * np.eye(D * C)
        V -= np.linalg.solve(flat, gradient.ravel()).reshape(D, C)
    w = V[:-1] / scale[:, None]
    c = V[-1] - mean @ w
    return w, c - c.mean(), lambda f: softmax(f @ w + c)


def test_the_probe_is_that_of_the_fidelity_figures(explained_table: FinishedAudit) -> None:
    """Two classes: the logit is the log-odds, and probabilities are those of fidelity's probe."""
    audit = explained_table
    audited, K = audit.reader("audited"), audit.reader("influence").array("kernel")
    label, fit = audited.array("label"), audited.array("role") == 1
    A, gamma = stored(audit, "step")
    rows = K @ A + gamma
    probe = linear_probe(rows[fit], label[fit], rows[:5], label[:5])
    found = explain_decision(audit.path, sample=audit.audited[:5], probe="q", coefficients="step")
    code = list(audited.info("label").attributes["categories"]).index("q")
    for place, one in enumerate(found):
        p = one.details["probe"]["probability"]
        assert p == pytest.approx(probe.probability[place, code], abs=2e-3)
        assert one.figures["value"] == pytest.approx(np.log(p / (1 - p)), abs=1e-9)
        assert "log-odds of class q" in one.sentences()[0]
    other = explain_decision(audit.path, sample=audit.audited[0], probe="p", coefficients="step")
    assert other[0].figures["value"] == pytest.approx(-found[0].figures["value"], abs=1e-9)


def test_auto_is_what_the_audit_explains_with(explained_digits: FinishedAudit) -> None:
    x, y = explained_digits.audited[:2]
    solution = explained_digits.reader("influence").attributes["solution"]
    auto = explain_pair(explained_digits.path, sample=x, against=y)[0]
    asked = explain_pair(
        explained_digits.path, sample=[np.int64(x)], against=y, coefficients=solution
    )[0]
    assert auto.record()["coefficients"]["used"] == solution
    np.testing.assert_array_equal(auto.terms, asked.terms)


def test_distilled_terms_are_ranked_by_the_network(explained_digits: FinishedAudit) -> None:
    audit = explained_digits
    x, y = audit.audited[:2]
    one = explain_pair(audit.path, sample=x, against=y, coefficients="distilled", top=4)[0]
    A, _ = stored(audit, "distilled")
    k = audit.reader("influence").array("kernel")[0]
    z = audit.reader("audited").array("network_embedding")[0].astype(np.float64)
    part = k * (A @ z)
    order = [i for i in np.argsort(-part, kind="stable") if one.terms[i] > 0][:4]
    assert [link.row for link in one.attracting] == order
    against = [i for i in np.argsort(part, kind="stable") if one.terms[i] < 0][:4]
    assert [link.row for link in one.repelling] == against
    assert one.record()["ranked_by"] == "network_embedding"
    assert any("large and cancel" in line for line in one.sentences())
    step = explain_pair(audit.path, sample=x, against=y, coefficients="step")[0]
    assert step.record()["ranked_by"] == "term"
    assert not any("large and cancel" in line for line in step.sentences())


@pytest.mark.parametrize("name", CHOICES)
def test_a_new_sample_gets_the_sum_of_the_stored_one(
    explained_digits: FinishedAudit, tmp_path: Path, name: str
) -> None:
    audit = explained_digits
    x, y = audit.audited[:2]
    source = open_source(small.recipe().source, Path(), tmp_path)
    np.save(tmp_path / "new.npy", source.read(np.array([x]))[0])
    given: dict[str, Any] = {"file": tmp_path / "new.npy", "coefficients": name}
    for known, new in (
        (
            explain_pair(audit.path, sample=x, against=y, coefficients=name)[0],
            explain_pair(audit.path, against=y, **given)[0],
        ),
        (
            explain_decision(audit.path, sample=x, probe="3", coefficients=name)[0],
            explain_decision(audit.path, probe="3", **given)[0],
        ),
    ):
        size = np.abs(known.terms).sum()
        np.testing.assert_allclose(new.terms, known.terms, atol=1e-3 * size, rtol=0)
        assert new.record()["sample"]["sample_id"] is None
        assert draw_card(new.explained(), new.sentences()).startswith(b"\x89PNG")


def test_samples_that_are_not_audited_may_stand_on_either_side(
    explained_digits: FinishedAudit,
) -> None:
    audit = explained_digits
    other = next(i for i in range(small.ROWS) if i not in audit.audited)
    x = audit.audited[0]
    one = explain_pair(audit.path, sample=[x, other], against=other)
    back = explain_pair(audit.path, sample=other, against=x)[0]
    assert [found.record()["sample"]["sample_id"] for found in one] == [x, other]
    # <f_x, f_y> = <f_y, f_x>, by other terms.
    assert one[0].figures["value"] == pytest.approx(back.figures["value"], rel=1e-6)
    assert one[1].details["cosine"] == pytest.approx(1.0, abs=1e-9)


def test_what_cannot_be_summed(explained_digits: FinishedAudit, tmp_path: Path) -> None:
    path, x = explained_digits.path, explained_digits.audited[0]
    with pytest.raises(UsageError, match=r"no class '33'; .*did you mean '3'"):
        explain_decision(path, sample=x, probe="33")
    with pytest.raises(UsageError, match="no coefficients 'newest'; expected one of auto, step"):
        explain_pair(path, sample=x, against=x, coefficients="newest")
    with pytest.raises(UsageError, match="no sample 300; expected 0 to 299"):
        explain_pair(path, sample=x, against=300)
    for none in (None, []):
        with pytest.raises(UsageError, match="no sample was named"):
            explain_pair(path, against=x, sample=none)


def test_stores_of_different_audits_are_not_combined(
    explained_digits: FinishedAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that was solved again after the distilled fit: refused, by the name of the store."""
    begun = StageRecord.begun

    def solved_again(record: StageRecord) -> dict[str, Any] | None:
        known = begun(record)
        return {**(known or {}), "digest": "another"} if record.name == "influence" else known

    x = explained_digits.audited[0]
    monkeypatch.setattr(StageRecord, "begun", solved_again)
    with pytest.raises(WorkspaceError, match="stage distilled was computed from another influence"):
        explain_pair(explained_digits.path, sample=x, against=x, coefficients="distilled")


def test_a_pair_of_table_rows_is_drawn(explained_table: FinishedAudit) -> None:
    x, y = explained_table.audited[:2]
    one = explain_pair(explained_table.path, sample=x, against=y)[0]
    assert one.explained().other == 1
    png = draw_card(one.explained(), one.sentences())
    alone = draw_card(replace(one.explained(), other=None), one.sentences())
    assert png.startswith(b"\x89PNG")
    assert png != alone


def test_a_step_that_is_not_trusted_is_named_where_it_is_used(
    explained_digits: FinishedAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = StoreReader.attributes.func
    said = {"trusted": False, "reason": "the loss rose"}
    monkeypatch.setattr(StoreReader, "attributes", property(lambda self: read(self) | said))
    x, y = explained_digits.audited[:2]
    for name in CHOICES:
        one = explain_pair(explained_digits.path, sample=x, against=y, coefficients=name)[0]
        warned = ("The step is not trusted: the loss rose.",)
        assert one.audit.warnings == (warned if name == "step" else ())
    one = explain_without(explained_digits.path, group="label = 3", sample=x)[0]
    assert one.audit.warnings == ()


# --- an audit without labels, of an objective that streams the kernel --------------------------


def test_without_labels_and_without_a_minimiser(
    explained_streamed: FinishedAudit, capsys: Any
) -> None:
    w = ("explain", "-w", str(explained_streamed.path), "--sample", "0")
    probe = small.krepes(capsys, *w, "--probe", "p")
    assert probe.code == 2
    assert "this audit has no labels to fit a probe on" in probe.line
    streamed = small.krepes(capsys, *w, "--against", "1", "--coefficients", "minimiser")
    assert streamed.code == 2
    assert "simclr has no damped minimiser" in streamed.line
    missing = small.krepes(capsys, *w, "--against", "1", "--coefficients", "distilled")
    assert missing.code == 4
    assert "stage distilled is not sealed; expected a sealed distilled" in missing.line
    assert explained_streamed.recipe is not None
    given = (w[0], explained_streamed.recipe, *w[1:])
    assert small.krepes(capsys, *given, "--against", "1").code == 0


# --- the command ---------------------------------------------------------------------------------


def test_command(capsys: Any, explained_digits: FinishedAudit, tmp_path: Path) -> None:
    x, y = map(str, explained_digits.audited[:2])
    w = ("explain", "-w", str(explained_digits.path), "--sample", x)
    pair = small.krepes(capsys, *w, "--against", y, "--top", "2")
    assert pair.code == 0
    assert f"sample #{x}" in pair.out
    assert "likeness to the network's embedding" in pair.out
    assert pair.out.splitlines()[-1].split()[-1] == "sum"
    both = small.krepes(capsys, *w, "--sample", y, "--probe", "3", "--json")
    documents = json.loads(both.out)
    assert [one["sample"]["sample_id"] for one in documents] == [int(x), int(y)]
    assert {one["probe"]["class"] for one in documents} == {"3"}
    png = tmp_path / "card.png"
    drawn = small.krepes(
        capsys, *w, "--probe", "3", "--coefficients", "distilled", "--png", str(png)
    )
    assert drawn.code == 0
    assert "ranked by <k A, z>" in drawn.out
    assert png.read_bytes().startswith(b"\x89PNG")


def test_command_that_cannot_be(capsys: Any, explained_digits: FinishedAudit) -> None:
    w = ("explain", "-w", str(explained_digits.path), "--sample", "1")
    several = small.krepes(capsys, *w, "--against", "2", "--probe", "3")
    assert (several.code, "--against and --probe were given" in several.line) == (2, True)
    alone = small.krepes(capsys, *w, "--coefficients", "step")
    assert (alone.code, "--coefficients step without a sum" in alone.line) == (2, True)
