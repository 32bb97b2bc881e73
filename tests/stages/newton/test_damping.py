"""The damping rule on made-up sweeps and on a small objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.damping import (
    RELATIVE_GRID,
    DampingSweep,
    absolute_damping,
    check_fixed_damping,
    choose_damping,
    evaluate_sweep,
    top_landmark_overlap,
)
from krepes_ooc.stages.newton.objectives.barlow_twins import BarlowTwins
from krepes_ooc.stages.newton.solvers import DirectSolver
from tests import cases, dense
from tests.stages.newton.objectives.test_objectives import sample_objective


def sweep(**changes: object) -> DampingSweep:
    """Four dampings: the first two move too far, the third lowers the loss most."""
    plain = DampingSweep(
        damping=np.array([1.0, 2.0, 3.0, 4.0]),
        damping_relative=np.array([0.1, 1.0, 10.0, 100.0]),
        loss=np.array([1.0, 2.0, 5.0, 7.0]),
        predicted=np.array([9.0, 8.0, 5.0, 3.0]),
        rho=np.array([1.0, 1.0, 0.9, 0.8]),
        step_norm=np.array([20.0, 5.0, 4.0, 1.0]),
        embedding_change=np.array([0.5, 1.5, 0.5, 0.1]),
        solved=np.ones(4, dtype=bool),
        loss_start=10.0,
        start_norm=6.0,
    )
    return replace(plain, **changes)


def test_lowest_actual_loss_among_admissible_steps() -> None:
    chosen = choose_damping(sweep())
    assert (chosen.index, chosen.trusted) == (2, True)
    assert "lowest loss of 2 admissible" in chosen.reason


@pytest.mark.parametrize(
    ("changes", "index"),
    [
        ({"loss": np.array([1.0, 2.0, 9.0, 8.0])}, 3),
        ({"loss": np.array([1.0, 2.0, np.nan, 8.0])}, 3),
        ({"start_norm": 30.0}, 0),
        ({"embedding_change": np.array([0.5, 1.0, 0.5, 0.1])}, 1),
        ({"solved": np.array([True, True, False, True])}, 3),
    ],
)
def test_every_condition_counts(changes: dict[str, object], index: int) -> None:
    assert choose_damping(sweep(**changes)).index == index
    assert choose_damping(sweep(**changes)).trusted


def test_no_step_lowers_the_loss() -> None:
    chosen = choose_damping(sweep(loss=np.full(4, 10.0), rho=np.array([5.0, 4.0, -0.2, -0.1])))
    assert (chosen.index, chosen.trusted) == (3, False)
    assert "no admissible damping lowers the loss" in chosen.reason


def test_nothing_is_admissible() -> None:
    chosen = choose_damping(sweep(start_norm=0.0, rho=np.array([0.1, 0.4, np.nan, 0.2])))
    assert (chosen.index, chosen.trusted) == (1, False)


def test_unsolved_steps_come_last() -> None:
    solved = np.array([False, False, False, True])
    chosen = choose_damping(sweep(loss=np.full(4, 11.0), solved=solved))
    assert (chosen.index, chosen.trusted) == (3, False)


@pytest.mark.parametrize(
    ("index", "changes", "words"),
    [
        (2, {}, "the step lowers the loss"),
        (2, {"loss": np.full(4, 11.0)}, "does not lower the loss"),
        (2, {"loss": np.full(4, np.nan)}, "does not lower the loss"),
        (2, {"solved": np.zeros(4, dtype=bool)}, "does not reach the tolerance"),
        (0, {}, "longer than the start"),
        (1, {}, "moves the embedding by more than its size"),
    ],
)
def test_a_fixed_damping_is_judged_in_words(
    index: int, changes: dict[str, object], words: str
) -> None:
    found = check_fixed_damping(sweep(**changes), index)
    assert found.index == index
    assert found.reason.startswith("damping fixed by the recipe; ")
    assert words in found.reason
    assert found.trusted == (words == "the step lowers the loss")


def test_judge_measures_what_it_says() -> None:
    case = cases.case("two-views")
    A0, moments = case.start, Moments(*dense.moments(case.kernels), case.kernels.shape[1])
    objective = BarlowTwins(moments)
    linearisation = objective.linearise(A0)
    dampings = absolute_damping(RELATIVE_GRID, linearisation, A0)
    solution = DirectSolver(linearisation).solve(dampings)
    losses = objective.values(A0[..., None] + solution.step)
    found = evaluate_sweep(losses, linearisation, A0, solution, RELATIVE_GRID, moments, case.offset)
    H = np.asarray(dense.ggn("barlow-twins", A0, case.kernels, case.offset))
    G = np.asarray(dense.gradient("barlow-twins", A0, case.kernels, case.offset))
    for column in range(len(RELATIVE_GRID)):
        dA = solution.step[..., column]
        loss = float(dense.loss("barlow-twins", A0 + dA, case.kernels, case.offset))
        predicted = -(np.sum(G * dA) + dA.ravel() @ H @ dA.ravel() / 2)
        assert found.loss[column] == pytest.approx(loss, 1e-8)
        assert found.predicted[column] == pytest.approx(predicted, 1e-8)
        rho = (found.loss_start - loss) / predicted
        assert found.rho[column] == pytest.approx(rho, rel=1e-6, abs=1e-9)
        f, df = case.kernels @ A0 + case.offset, case.kernels @ dA
        assert found.embedding_change[column] == pytest.approx(
            np.linalg.norm(df) / np.linalg.norm(f), 1e-8
        )
        assert found.step_norm[column] == pytest.approx(np.linalg.norm(dA))
    assert found.loss_start == pytest.approx(linearisation.value)
    assert (np.diff(found.step_norm) < 0).all()
    assert found.rho[-1] == pytest.approx(1.0, abs=0.05)  # a tiny step meets the model
    assert choose_damping(found).trusted


@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_no_curvature_is_said_in_words(name: str) -> None:
    case = cases.case("one-component")  # a unit vector of one component cannot turn
    linearisation = sample_objective(name, case).linearise(case.start)
    with pytest.raises(StageFailed, match=r"no curvature at the start .* at least 2 components"):
        absolute_damping(RELATIVE_GRID, linearisation, case.start)


def test_the_overlap_counts_shared_landmarks() -> None:
    kernel = np.array([[1.0, -0.9, 0.8, 0.1], [0.1, 0.2, 0.3, -0.4]])
    step = np.ones((4, 2))
    other = step * np.array([1.0, 1.0, 1e-3, 1.0])[:, None]
    assert top_landmark_overlap(kernel, step, step, count=2) == 1.0
    assert top_landmark_overlap(kernel, step, other, count=2) == pytest.approx((1.0 + 0.5) / 2)
