"""Lists of a sum over landmarks, and its words for people."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from krepes_ooc.cli.explanation_tables import print_sum, print_without
from krepes_ooc.rendering.explanation_card import draw_card
from krepes_ooc.rendering.explanation_sum import BY_EMBEDDING, BY_TERM, ExplainedSum
from krepes_ooc.rendering.explanation_without import HEADINGS, ExplainedWithout, neighbours
from tests.rendering.samples import HOSTILE, N_LANDMARKS, full_audit

TERMS = np.array([0.5, -0.2, 0.0, 2.0, -1.0, 0.25, 0.0, 0.25, -0.3])


def summed(**changes: Any) -> ExplainedSum:
    figures = {
        "value": TERMS.sum() + 0.1,
        "terms_sum": TERMS.sum(),
        "constant": 0.1,
        "residual": 0.0,
        "attracting_sum": TERMS[TERMS > 0].sum(),
        "repelling_sum": TERMS[TERMS < 0].sum(),
        "cancelled": 0.5,
    }
    used = {"asked": "auto", "used": "step", "words": "one Newton step"}
    parts: dict[str, Any] = {
        "audit": full_audit(),
        "row": 1,
        "other": 2,
        "terms": TERMS,
        "ranking": TERMS,
        "ranked_by": BY_TERM,
        "kernel": np.linspace(-1, 1, N_LANDMARKS),
        "figures": figures,
        "coefficients": used | {"likeness": 0.5, "r_squared": None},
        "details": {"cosine": 0.25},
        "top": 2,
    }
    return ExplainedSum(**(parts | changes))


def test_listed_terms_and_the_others_add_up() -> None:
    one = summed()
    assert [link.row for link in one.attracting] == [3, 0]
    assert [link.row for link in one.repelling] == [4, 8]
    assert one.others(one.attracting) == (2, pytest.approx(0.5))
    assert one.others(one.repelling) == (1, pytest.approx(-0.2))
    assert one.share(one.attracting[0]) == pytest.approx(2 / 3)
    assert one.share(one.repelling[0]) == pytest.approx(1 / 1.5)
    # A term of 0 stands on neither side.
    everything = summed(top=20)
    assert len(everything.attracting) + len(everything.repelling) == 7
    assert everything.others(everything.attracting) == (0, pytest.approx(0.0))


def test_another_ranking_keeps_the_sides() -> None:
    ranking = np.array([0.1, -5.0, 9.0, -1.0, 4.0, 3.0, 0.0, 2.0, 0.0])
    one = summed(ranking=ranking, ranked_by=BY_EMBEDDING)
    assert [link.row for link in one.attracting] == [5, 7]
    assert [link.row for link in one.repelling] == [1, 8]
    # A card shows terms, whatever ranks them.
    drawn = one.explained()
    assert [link.score for link in drawn.links] == [0.25, 0.25]


def test_names_of_users_cannot_steer_a_terminal(capsys: Any) -> None:
    audit = replace(full_audit(), classes=(HOSTILE, "\x1b[2Jb", "c"))
    print_sum(summed(audit=audit))
    near = neighbours(np.arange(4.0), -np.arange(4.0), np.arange(4), [None] * 4, 2)
    group = {"name": "\x1b[2Jg", "samples": 3, "mean_effect": 0.1, "mean_effect_stderr": 0.0}
    group |= {"method": "re-solve", "damping_relative": 1.0}
    print_without(ExplainedWithout(audit, 1, group, 0.5, 0.9, None, near, near[::-1]))
    shown = capsys.readouterr().out
    assert "\\u001b[2J" in shown
    assert "\x1b" not in shown
    assert "\x00" not in shown


def test_neighbours_know_their_rank_on_the_other_side() -> None:
    cosine, other = np.array([0.1, 0.9, -np.inf, 0.5]), np.array([0.8, 0.2, -np.inf, 0.5])
    near = neighbours(cosine, other, np.array([7, 5, 3, 1]), [True, False, None, None], 9)
    assert [(n.row, n.rank, n.other_rank) for n in near] == [(5, 1, 3), (1, 2, 2), (7, 3, 1)]
    assert [n.in_group for n in near] == [False, None, True]
    one = ExplainedWithout(full_audit(), 0, {}, None, None, None, near[:1], near[1:])
    assert ([n.row for n in one.left], [n.row for n in one.entered]) == ([5], [1, 7])
    kinds = [link.kind for link in one.explained().links]
    assert kinds == ["repel", "neutral", "neutral"]
    assert draw_card(one.explained(), [], HEADINGS).startswith(b"\x89PNG")
