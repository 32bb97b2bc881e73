from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.core import landmark_rows


@pytest.mark.parametrize(("ids", "expected"), [([3, 5, 9], 1), ([3, 5, 3, 5], 2), ([7, 7, 7], 3)])
def test_rows_of_each_landmark(ids: list[int], expected: int) -> None:
    assert landmark_rows.rows_of_each(np.array(ids)) == expected


def test_sums_and_means_over_the_rows_of_a_landmark() -> None:
    values = np.arange(12.0).reshape(2, 6)
    summed = [[0 + 3, 1 + 4, 2 + 5], [6 + 9, 7 + 10, 8 + 11]]
    assert landmark_rows.sum_views(values, 2).tolist() == summed
    assert landmark_rows.sum_views(values.T, 2, axis=0).T.tolist() == summed
    assert landmark_rows.mean_views(values, 2).tolist() == (np.array(summed) / 2).tolist()
    assert landmark_rows.mean_views(values, 1) is values


def test_the_strongest_row_of_a_landmark_keeps_its_sign() -> None:
    values = np.array([[0.5, -0.9, 0.0, -0.6, 0.8, 0.0]])
    assert landmark_rows.strongest_view(values, 2).tolist() == [[-0.6, -0.9, 0.0]]
    assert landmark_rows.strongest_view(values, 1).tolist() == values.tolist()


def test_a_landmark_has_all_of_its_rows() -> None:
    chosen = np.array([[0, 2], [1, 0]])
    assert landmark_rows.rows_of(chosen, 3, 2).tolist() == [[0, 2, 3, 5], [1, 0, 4, 3]]
    assert landmark_rows.rows_of(chosen, 3, 1) is chosen
    # The rows lie where sums look for them.
    ids = np.tile([30, 50, 90], 2)
    for sample in chosen[0]:
        rows = landmark_rows.rows_of(np.array([[sample]]), 3, 2)[0]
        assert len(set(ids[rows])) == 1
