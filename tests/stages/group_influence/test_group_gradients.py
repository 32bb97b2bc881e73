"""Gradients of a group's own terms against differences of losses on fewer samples."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.core.blocks import Block
from krepes_ooc.stages.group_influence.group_gradients import BYOLGroups, SimCLRGroups
from krepes_ooc.stages.newton.objectives.byol import BYOL, Predictor
from krepes_ooc.stages.newton.objectives.simclr import SimCLR, SimCLRSettings

N, M, H, BATCH = 20, 5, 3, 8
MEMBERS = np.zeros((4, N), dtype=bool)
MEMBERS[0, ::3] = True
MEMBERS[1, 8:16] = True
MEMBERS[2, 17:] = True


class Rows:
    """A stream of one block."""

    def __init__(self, kernels):
        self.kernels, self.n_views, self.n_samples = kernels, len(kernels), kernels.shape[1]

    def reduce(self, function):
        return function(tuple(self.kernels), Block(0, 0, self.n_samples))


@pytest.fixture(params=[2, 3])
def kernels(request) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(request.param, N, M))


def coefficients(seed: int = 1):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(M, H)), draw.normal(size=H) / 3


def slope(loss, A: np.ndarray) -> np.ndarray:
    """Central differences of a loss."""
    found = np.empty_like(A)
    for at in np.ndindex(*A.shape):
        step = np.zeros_like(A)
        step[at] = 1e-5
        found[at] = (loss(A + step) - loss(A - step)) / 2e-5
    return found


def simclr_loss(kernels, offset, kept):
    """The summed loss over batches, of the samples that are kept."""

    def loss(A):
        total = 0.0
        for start in range(0, N - 1, BATCH):
            chosen = np.flatnonzero(kept[start : start + BATCH]) + start
            if len(chosen) < 2:
                continue
            objective = SimCLR(Rows(kernels[:, chosen]), offset, SimCLRSettings(batch=BATCH))
            total += float(objective.value(A)) * objective.anchors
        return total

    return loss


def test_simclr_leaves_samples_out_of_their_batches(kernels):
    A, offset = coefficients()
    function = SimCLRGroups(A, offset, 0.5, BATCH, lambda block: MEMBERS)
    (found,) = function(tuple(kernels), Block(0, 0, N))
    everything = slope(simclr_loss(kernels, offset, np.ones(N, dtype=bool)), A)
    for group in range(3):
        without = slope(simclr_loss(kernels, offset, ~MEMBERS[group]), A)
        np.testing.assert_allclose(found[group], everything - without, atol=1e-6)
    assert not found[3].any()


@pytest.mark.parametrize("predicted", [False, True])
def test_byol_sums_the_gradients_of_the_samples(kernels, predicted: bool):
    A, offset = coefficients()
    start, bias = coefficients(2)
    weight = np.random.default_rng(5).normal(size=(H, H)) if predicted else np.eye(H)
    predictor = Predictor(weight, bias if predicted else np.zeros(H))
    function = BYOLGroups(A, start, offset, predictor, lambda block: MEMBERS)
    (found,) = function(tuple(kernels), Block(0, 0, N))
    for group in range(3):
        few = kernels[:, MEMBERS[group]]
        objective = BYOL(Rows(few), offset, start, predictor)
        wanted = objective.linearise(A).gradient * few.shape[1] * len(kernels) / 2
        np.testing.assert_allclose(found[group], wanted, atol=1e-10)
    everything = BYOLGroups(A, start, offset, predictor, lambda block: np.ones((1, N), dtype=bool))
    (total,) = everything(tuple(kernels), Block(0, 0, N))
    gradient = BYOL(Rows(kernels), offset, start, predictor).linearise(A).gradient
    wanted = gradient * N * len(kernels) / 2
    np.testing.assert_allclose(total[0], wanted, atol=1e-10)
