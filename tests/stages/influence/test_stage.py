from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.stages.influence.ranking import ranking_score
from krepes_ooc.stages.influence.scores import scorer
from tests.stages import audits


def test_aligned_scores_are_zero_where_the_kernel_is_negative() -> None:
    draw = np.random.default_rng(0)
    kernel, step, mm = draw.normal(size=(6, 5)), draw.normal(size=(5, 3)), np.eye(5)
    plain = scorer("aligned", step, mm, mm)(kernel)
    shown = ranking_score("aligned", step, mm @ step, mm)(kernel)
    assert (shown[kernel <= 0] == 0).all()
    assert shown[kernel > 0] == pytest.approx(plain[kernel > 0])
    for measure in ("is", "unique", "kernel"):
        same = ranking_score(measure, step, mm @ step, mm)(kernel)
        assert same == pytest.approx(scorer(measure, step, mm, mm)(kernel))


def test_the_store_ranks_by_the_formula() -> None:
    space = audits.finished()
    influence = space.reader("influence")
    K, step = influence.array("kernel"), influence.array("step")
    moved = K @ step
    landmark = space.reader("kernel").array("landmark_kernel") @ step
    for t in range(0, len(K), 17):
        cosine = [
            moved[t] @ row / np.linalg.norm(moved[t]) / np.linalg.norm(row) for row in landmark
        ]
        score = np.maximum(K[t], 0) * cosine
        order = np.argsort(-np.abs(score), kind="stable")[:10]
        assert influence.array("top_landmark")[t].tolist() == order.tolist()
        assert influence.array("score")[t] == pytest.approx(score[order])
        f = influence.array("embedding")[t]
        pull = K[t] * (step @ f) / np.linalg.norm(f)
        assert influence.array("contribution")[t] == pytest.approx(pull[order])
        pushing = sorted(np.flatnonzero(pull < 0), key=lambda landmark: pull[landmark])[:3]
        known = influence.array("repelling_landmark")[t]
        assert known.tolist() == [*pushing, *[-1] * (3 - len(pushing))]
        padded = [*pull[pushing], *[0.0] * (3 - len(pushing))]
        assert influence.array("repelling")[t] == pytest.approx(padded)


def test_some_samples_are_pushed_and_few_pushes_are_ranked() -> None:
    influence = audits.finished().reader("influence")
    pushing, pulls = influence.array("repelling_landmark"), influence.array("repelling")
    assert ((pulls < 0) == (pushing >= 0)).all()
    assert (np.diff(pulls, axis=1) >= 0).all()
    assert (pulls < 0).any()


def test_every_measure_runs(tmp_path: Path) -> None:
    for measure in ("is", "unique", "kernel"):
        space = audits.audit(tmp_path, "influence", influence={"measure": measure, "top": 40})
        influence = space.reader("influence")
        assert influence.attributes["measure"] == measure
        assert influence.info("score").shape == (210, 24)
        sizes = np.abs(influence.array("score"))
        assert (np.diff(sizes, axis=1) <= 1e-12).all()
