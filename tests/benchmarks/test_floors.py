"""Floors of the stages: arrays that they read, products that they count."""

from __future__ import annotations

from benchmarks.floors import DOUBLE, EVALUATIONS, minimised_floor
from krepes_ooc.engine.calibration import Rates
from krepes_ooc.stages.registry import BY_NAME
from krepes_ooc.storage.contracts import load_contract


def test_evaluations_are_arrays_of_the_stores() -> None:
    """A name that no store has would count as no evaluation, and give a floor of 0."""
    for stage, array in EVALUATIONS.items():
        assert array in load_contract(stage).arrays, stage
    assert set(DOUBLE) <= BY_NAME.keys()


def test_a_minimiser_multiplies_the_moments_of_every_pair_of_views() -> None:
    shape = {"n_landmarks": 10, "n_views": 2, "n_components": 3}
    rates = Rates(single=1.0, double=2.0, read=1.0, write=1.0, disk=1.0)
    # Three pairs of views, 2 x 10 x 10 x 3 operations each, at 2 operations a second
    assert minimised_floor(4, rates, shape) == 4 * 3 * 600 / 2
