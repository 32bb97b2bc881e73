from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.alignment.groups import group_table

RNG = np.random.default_rng(4)


def example(n: int = 30, m: int = 12, groups: int = 3, seed: int = 0) -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(seed)
    top = np.argsort(draw.random((n, m)), axis=1)[:, :4]
    return (
        draw.integers(groups, size=n),
        draw.integers(groups, size=m),
        top,
        draw.normal(size=(n, 4)),
    )


def test_shares_are_the_formula() -> None:
    group, landmark_group, top, score = example()
    found = group_table(group, landmark_group, top, score, 3)
    for g in range(3):
        rows = []
        for t in np.flatnonzero(group == g):
            size = np.abs(score[t])
            rows.append(
                [size[landmark_group[top[t]] == other].sum() / size.sum() for other in range(3)]
            )
        assert found.share[g] == pytest.approx(np.mean(rows, axis=0))
        assert found.stderr[g] == pytest.approx(np.std(rows, axis=0) / np.sqrt(len(rows)))
    assert found.chance == pytest.approx(np.bincount(landmark_group, minlength=3) / 12)
    assert found.samples.tolist() == np.bincount(group, minlength=3).tolist()


@given(st.integers(0, 10**6))
def test_rows_are_shares_and_scale_does_not_matter(seed: int) -> None:
    group, landmark_group, top, score = example(seed=seed)
    found = group_table(group, landmark_group, top, score, 3)
    known = np.isfinite(found.share).all(axis=1)
    assert found.share[known].sum(axis=1) == pytest.approx(np.ones(known.sum()))
    assert (found.share[known] >= 0).all()
    scaled = group_table(group, landmark_group, top, -7.0 * score, 3)
    assert scaled.share[known] == pytest.approx(found.share[known])
    codes = np.random.default_rng(seed).permutation(3)
    renamed = group_table(codes[group], codes[landmark_group], top, score, 3)
    assert renamed.share[np.ix_(codes, codes)] == pytest.approx(found.share, nan_ok=True)


def test_random_top_landmarks_give_the_chance_level() -> None:
    draw = np.random.default_rng(1)
    landmark_group = np.repeat([0, 1, 2], [10, 20, 30])
    top = np.argsort(draw.random((20_000, 60)), axis=1)[:, :5]
    found = group_table(draw.integers(3, size=20_000), landmark_group, top, np.ones(top.shape), 3)
    assert np.abs(found.share - found.chance).max() < 4 * found.stderr.max()


def test_a_group_unseen_among_landmarks_has_no_share() -> None:
    group, landmark_group, top, score = example(groups=2)
    found = group_table(np.append(group[1:], 2), landmark_group, top, score, 3)
    assert found.landmarks[2] == 0
    assert found.share[2, 2] == 0
    assert found.chance[2] == 0


def test_unknown_groups_are_left_out() -> None:
    group, landmark_group, top, score = example()
    group[:10], landmark_group[:3] = -1, -1
    found = group_table(group, landmark_group, top, score, 4)
    assert found.samples.sum() == 20
    assert found.landmarks.sum() == 9
    assert np.isnan(found.share[3]).all()


def test_more_groups_than_landmarks_is_fine() -> None:
    found = group_table(np.arange(9), np.array([0, 1]), np.tile([0, 1], (9, 1)), np.ones((9, 2)), 9)
    assert found.share[:, :2] == pytest.approx(np.full((9, 2), 0.5))


@pytest.mark.parametrize("which", [0, 1])
def test_no_known_group_is_not_defined(which: int) -> None:
    codes = [np.array([0, 1]), np.array([0, 1])]
    codes[which] = np.array([-1, -1])
    with pytest.raises(StageFailed, match="no group is known; expected audited samples and"):
        group_table(codes[0], codes[1], np.array([[0], [1]]), np.ones((2, 1)), 2)
