"""Every criterion on both sides of its threshold, and where nothing was measured."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from krepes_ooc.core.figures import Control, Figure, undefined_figure
from krepes_ooc.core.verdict import Check
from krepes_ooc.stages.verdict import criteria
from tests.figures import complete

NEWTON = {
    "trusted": True,
    "loss_start": 20.0,
    "loss_step": 8.0,
    "predicted_decrease": 13.0,
    "rho": 0.9,
}
RANKING = {
    "decided": True,
    "distinguishable": True,
    "with_draws": 0.6,
    "among_draws": 0.7,
    "difference": -0.1,
    "interval": [-0.15, -0.05],
    "reason": "",
}
SAME = RANKING | {"distinguishable": False, "interval": [-0.1, 0.05]}
UNDECIDED = {"decided": False, "reason": "2 {draws}"}
HEALTH = {
    "rank_me": 6.0,
    "n_outputs": 64,
    "dead_dimensions": 0,
    "mean_share": 0.5,
    "collapsed": False,
    "reason": "",
}


def agreement(learned: bool | None) -> dict[str, Any]:
    """The figure cka beside random weights."""
    known = learned is not None
    return {"learned": learned, "value": 0.8 if known else None, "most": 0.7 if known else None}


def paired(key: str, difference: str, low: float, high: float) -> Figure:
    """A figure with one paired difference."""
    pair = Control(difference, "words", (low + high) / 2, (low, high))
    return dataclasses.replace(complete(key, 0.5), paired={difference: pair})


@pytest.mark.parametrize(
    ("found", "outcome", "blocking"),
    [
        (criteria.random_weights(RANKING, agreement(None)), "pass", True),
        (criteria.random_weights(RANKING, agreement(False)), "pass", True),
        (criteria.random_weights(SAME, agreement(True)), "pass", True),
        (criteria.random_weights(SAME, agreement(False)), "fail", True),
        (criteria.random_weights(SAME, agreement(None)), "fail", True),
        (criteria.random_weights(UNDECIDED, agreement(True)), "pass", True),
        (criteria.random_weights(UNDECIDED, agreement(False)), "fail", True),
        (criteria.random_weights(UNDECIDED, agreement(None)), "unknown", True),
        (criteria.learned_ranking(RANKING), "pass", False),
        (criteria.learned_ranking(SAME), "fail", False),
        (criteria.learned_ranking(UNDECIDED), "unknown", False),
        (criteria.collapse(HEALTH), "pass", True),
        (criteria.collapse(HEALTH | {"collapsed": True, "rank_me": 1.2}), "fail", True),
        (criteria.collapse({"collapsed": False, "reason": "no rows"}), "unknown", True),
        (criteria.kernel_rows(complete("ridge_ceiling", 0.5)), "pass", True),
        (criteria.kernel_rows(complete("ridge_ceiling", 0.499)), "fail", True),
        (criteria.kernel_rows(complete("ridge_ceiling", -3.0)), "fail", True),
        (criteria.kernel_rows(undefined_figure("ridge_ceiling", "no {fit}")), "unknown", True),
        (criteria.objective("vicreg", "vicreg"), "pass", True),
        (criteria.objective("byol", "vicreg"), "fail", True),
        (criteria.objective("dino", "vicreg"), "fail", True),
        (criteria.objective("", "vicreg"), "unknown", True),
        (criteria.step(NEWTON), "pass", True),
        (criteria.step(NEWTON | {"trusted": False, "rho": None}), "fail", True),
        (criteria.solver(1e-9, 1e-8), "pass", True),
        (criteria.solver(2e-8, 1e-8), "fail", True),
        (criteria.solver(math.nan, 1e-8), "unknown", True),
        (criteria.self_check(1e-9), "pass", True),
        (criteria.self_check(math.nan), "fail", True),
        (criteria.encoding(learned_here=False), "pass", False),
        (criteria.encoding(learned_here=True), "fail", False),
        (criteria.nystrom(0.2), "pass", False),
        (criteria.nystrom(0.21), "fail", False),
        (criteria.nystrom(math.nan), "unknown", False),
        (criteria.landmarks(50), "pass", False),
        (criteria.landmarks(49), "fail", False),
    ],
)
def test_both_sides_of_every_threshold(found: Check, outcome: str, blocking: bool) -> None:
    assert (found.outcome, found.blocking) == (outcome, blocking)
    assert "{" not in found.words()


def test_the_criterion_of_the_ranking_names_both_overlaps() -> None:
    for found in (criteria.learned_ranking(SAME), criteria.random_weights(SAME, agreement(None))):
        assert "these" not in found.criterion
        assert "two random-weight networks overlap with each other" in found.criterion


@pytest.mark.parametrize(("low", "outcome"), [(0.01, "pass"), (0.0, "fail"), (-0.2, "fail")])
def test_a_paired_interval_decides(low: float, outcome: str) -> None:
    figures = {"cka": paired("cka", "against_inputs", low, 0.3)}
    assert criteria.raw_inputs(figures).outcome == outcome
    figures = {"neighbour_overlap": paired("neighbour_overlap", "step_against_kernel", low, 0.3)}
    assert criteria.plain_kernel(figures).outcome == outcome


def test_figures_of_probes_come_before_those_without_labels() -> None:
    figures = {
        "cka": paired("cka", "against_inputs", 0.1, 0.3),
        "kendall_tau": paired("kendall_tau", "against_inputs", -0.1, 0.3),
    }
    assert criteria.raw_inputs(figures).outcome == "fail"
    figures["kendall_tau"] = undefined_figure("kendall_tau", "one class")
    assert criteria.raw_inputs(figures).outcome == "pass"
    assert criteria.raw_inputs({}).outcome == "unknown"


def tau(value: float, ceiling: float, interval: tuple[float, float] | None) -> dict[str, Figure]:
    return {"kendall_tau": complete("kendall_tau", value, interval, noise_ceiling=ceiling)}


def test_the_ceiling_is_reached_within_the_interval() -> None:
    assert criteria.noise_ceiling(tau(0.7, 0.75, (0.6, 0.76))).outcome == "pass"
    assert criteria.noise_ceiling(tau(0.7, 0.77, (0.6, 0.76))).outcome == "fail"
    assert criteria.noise_ceiling(tau(0.7, 0.77, None)).outcome == "fail"
    assert criteria.noise_ceiling(tau(0.7, math.nan, None)).outcome == "unknown"
    assert criteria.noise_ceiling({}).outcome == "unknown"


def test_figures_that_random_weights_reach_are_named() -> None:
    def one(learned: bool | None) -> dict[str, Any]:
        return {"label": "likeness {x}", "value": 0.5, "most": 0.6, "learned": learned}

    assert criteria.learned_figures({"cka": one(True), "rank_me": one(None)}).outcome == "pass"
    found = criteria.learned_figures({"cka": one(False), "rank_me": one(True)})
    assert found.outcome == "fail"
    assert found.title == "Random weights do as well in 1 of 2 figures"
    assert found.words() == "likeness (x): 0.5, random weights up to 0.6."
    assert criteria.learned_figures({"rank_me": one(None)}).outcome == "unknown"
