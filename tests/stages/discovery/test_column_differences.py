"""Differences of columns against their definition, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest

from krepes_ooc.stages.discovery.column_differences import (
    ColumnCodes,
    ColumnSums,
    column_differences,
    columns_of_levels,
)

CODES = ColumnCodes((0, 3, 0, 0), (1e6, 0.0, 0.0, 0.0))


def rows(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A large number, a category of three levels, a constant, a number with missing values."""
    draw = np.random.default_rng(0)
    winners = draw.integers(0, 3, count)
    values = np.stack(
        [
            1e6 + winners + draw.normal(size=count),
            np.where(draw.uniform(size=count) < 0.5, winners, draw.integers(0, 3, count)),
            np.full(count, 7.0),
            np.where(draw.uniform(size=count) < 0.3, np.nan, draw.normal(size=count)),
        ],
        axis=1,
    )
    values[:4, 1] = [np.nan, -1, -1, np.nan]
    return values, winners


def test_against_the_definition() -> None:
    values, winners = rows()
    sums = ColumnSums.zeros(3, CODES)
    for start in range(0, len(values), 33):
        sums.add_rows(values[start : start + 33], winners[start : start + 33], CODES)
    found = column_differences(sums, CODES)
    for concept in range(3):
        mine = values[winners == concept]
        for column in (0, 3):
            scaled = (np.nanmean(mine[:, column]) - np.nanmean(values[:, column])) / np.nanstd(
                values[:, column]
            )
            assert found.difference[concept, column] == pytest.approx(scaled, abs=1e-9)
            assert found.value[concept, column] == pytest.approx(np.nanmean(mine[:, column]))
            assert found.overall[concept, column] == pytest.approx(np.nanmean(values[:, column]))
        told = mine[:, 1][mine[:, 1] >= 0]
        all_told = values[:, 1][values[:, 1] >= 0]
        share = np.array([np.mean(told == level) for level in range(3)])
        overall = np.array([np.mean(all_told == level) for level in range(3)])
        scaled = (share - overall) / np.sqrt(overall * (1 - overall))
        most = int(np.argmax(np.abs(scaled)))
        assert found.level[concept, 1] == most
        assert found.difference[concept, 1] == pytest.approx(scaled[most])
        assert (found.value[concept, 1], found.overall[concept, 1]) == pytest.approx(
            (share[most], overall[most])
        )
    assert (found.difference[:, 2] == 0).all()
    assert (found.level[:, [0, 2, 3]] == -1).all()


def test_a_concept_without_values_differs_in_nothing() -> None:
    sums = ColumnSums.zeros(2, CODES)
    values, _ = rows()
    sums.add_rows(values, np.zeros(len(values), dtype=np.int64), CODES)
    found = column_differences(sums, CODES)
    assert (found.difference[1] == 0).all()
    assert np.isfinite(found.value).all()
    np.testing.assert_allclose(found.difference[0], 0.0, atol=1e-9)


def test_names_and_single_levels_are_left_out() -> None:
    levels, compared = columns_of_levels(
        ["numeric", "categorical", "categorical", "categorical"], [0, 3, 51, 1], 50
    )
    assert levels == (0, 3, 0, 0)
    assert compared.tolist() == [True, True, False, False]
