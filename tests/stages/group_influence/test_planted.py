"""Groups whose effect is known: a copy changes nothing, the owner of a direction is named."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.group_influence.effects import Embedding, effects, standardise, summarise
from krepes_ooc.stages.group_moments.group_sums import rest_of
from krepes_ooc.stages.minimiser.minimise import minimise
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.preconditioners import KroneckerPath
from tests.stages.group_audits import dense

M, H, EACH, GROUPS = 12, 4, 80, 5
NAMES = ("barlow-twins", "vicreg")


def views(shared: np.ndarray, seed: int = 1) -> np.ndarray:
    """Two noisy views [view, sample, landmark]."""
    draw = np.random.default_rng(seed)
    return np.stack([shared + 0.1 * draw.normal(size=shared.shape) for _ in range(2)])


def effects_of(name: str, K: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Effect of leaving out every group on every sample [group, sample]."""
    total = dense(K)
    centred = K[0] - K[0].mean(axis=0)
    _, _, vectors = np.linalg.svd(centred, full_matrices=False)
    start = vectors[:H].T / 3

    def objective(moments):
        settings = registry.settings_type(name)()
        return registry.create(
            name, settings, moments=moments.full(), start=start, offset=np.zeros(H)
        )

    at_start = objective(total).linearise(start)
    damping = float(at_start.mean_diagonal)
    model = KroneckerPath.build(at_start, total.full())

    def solve(moments):
        found = minimise(
            objective(moments),
            start,
            damping,
            model=model,
            tolerance=1e-6,
            max_evaluations=1000,
        )
        A = found.coefficients
        if name == "barlow-twins":
            A = standardise(A, moments.full())
        return Embedding(A, moments.mean.mean(axis=0))

    full, anchors = solve(total), K[0][::3]
    outside = [code[::3] != group for group in range(code.max() + 1)]
    rests = [rest_of(total, dense(K[:, code == group])) for group in range(code.max() + 1)]
    return np.array(
        [
            effects(K[0], anchors[kept], full, solve(rest))
            for kept, rest in zip(outside, rests, strict=True)
        ]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_everything_has_no_effect(name: str):
    draw = np.random.default_rng(0)
    once = views(draw.normal(size=(200, M)) @ draw.normal(size=(M, M)) / 4)
    code = np.repeat([0, 1], 200)
    found = effects_of(name, np.concatenate([once, once], axis=1), code)
    # VICReg's variances are unbiased: n / (n - 1) knows that samples are fewer.
    assert np.abs(found).max() < (1e-4 if name == "vicreg" else 1e-6)
    alone = effects_of(name, np.concatenate([once, views(once[0] @ _turned(), 3)], axis=1), code)
    assert np.abs(alone).mean() > 100 * np.abs(found).mean()


def _turned() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(7).normal(size=(M, M)))[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_group_that_owns_a_direction_is_named(name: str):
    draw = np.random.default_rng(0)
    code = np.repeat(np.arange(GROUPS), EACH)
    shared = draw.normal(size=(len(code), 6)) @ draw.normal(size=(6, M)) / 3
    owner = 3
    axis = draw.normal(size=M)
    shared[code == owner] += 2 * draw.normal(size=(EACH, 1)) * axis
    found = effects_of(name, views(shared), code)
    members = code == np.arange(GROUPS)[:, None]
    summary = summarise(found, members, np.full(GROUPS, EACH))
    assert int(np.argmax(summary.mean_effect)) == owner
    others = np.delete(summary.mean_effect, owner)
    assert summary.mean_effect[owner] > 2 * others.max()
    assert int(np.argmax(summary.effect_by_group[owner])) == owner
    assert int(np.argmax(summary.residual_on_size)) == owner
