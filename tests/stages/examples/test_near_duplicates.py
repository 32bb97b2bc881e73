"""Near duplicates against all distances; planted copies, also moved and in groups, are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from krepes_ooc.stages.examples import near_duplicates
from krepes_ooc.stages.examples.near_duplicates import (
    NearPairs,
    near_pairs,
    nearest_neighbours,
    reduce_images,
    shifted_distances,
)


@pytest.fixture(params=[7, 256])
def row_range(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(near_duplicates, "ROWS", request.param)


def listed(pairs: NearPairs) -> list[tuple[int, int]]:
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """An image [channel, y, x] whose content is moved; what moves in is 0."""
    padded = np.pad(image, ((0, 0), (3, 3), (3, 3)))
    height, width = image.shape[1:]
    return padded[:, 3 - down : 3 - down + height, 3 - right : 3 - right + width]


@pytest.mark.usefixtures("row_range")
@pytest.mark.parametrize("count", [1, 10, 5000])
def test_neighbours_are_those_of_all_distances(count: int) -> None:
    rows = np.random.default_rng(1).normal(size=(50, 4)) + 100.0
    spread = np.sqrt(np.mean(np.sum((rows - rows.mean(axis=0)) ** 2, axis=1)))
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2) / spread
    np.fill_diagonal(distance, np.inf)
    found = nearest_neighbours(rows, count)
    expected = np.argsort(distance, axis=1)[:, : min(count, 49)]
    assert np.array_equal(found.index, expected)
    np.testing.assert_allclose(
        found.distance, np.take_along_axis(distance, expected, axis=1), atol=1e-7
    )


@pytest.mark.parametrize("count", [1, 30, 5000])
def test_ratios_are_those_of_the_definition(count: int) -> None:
    rows = np.random.default_rng(1).normal(size=(50, 4))
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    scale = np.sort(distance, axis=1)[:, near_duplicates.SCALE_RANK - 1]
    ratio = distance / np.sqrt(scale[:, None] * scale)
    upper = np.triu_indices(50, 1)
    order = np.argsort(ratio[upper], kind="stable")[:count]
    near = nearest_neighbours(rows)
    found = near_pairs(near.index, near.distance, count)
    assert listed(found) == list(zip(upper[0][order], upper[1][order], strict=True))
    np.testing.assert_allclose(found.ratio, ratio[upper][order], rtol=1e-6)


def test_planted_copies_are_found_first() -> None:
    """Copies of samples that lie far apart, beside a dense region of many near pairs."""
    draw = np.random.default_rng(2)
    rows = draw.normal(size=(1500, 16))
    rows[:300] *= 0.02
    copies = draw.choice(np.arange(300, 1300), 200, replace=False)
    rows[1300:] = rows[copies] + 0.05 * draw.normal(size=(200, 16))
    near = nearest_neighbours(rows)
    planted = {(int(a), 1300 + i) for i, a in enumerate(copies)}
    assert set(listed(near_pairs(near.index, near.distance, 200))) == planted
    # The distance alone finds the dense region.
    nearest = near_pairs(near.index, near.distance, 10**6)
    by_distance = np.argsort(nearest.distance)[:200]
    assert len(planted & {listed(nearest)[i] for i in by_distance}) < 20


def test_planted_shifted_images_are_found_by_their_inputs() -> None:
    """An embedding that keeps a coarse part of an image, as one that ignores shifts does."""
    draw = np.random.default_rng(3)
    images = draw.normal(size=(600, 2, 9, 9))
    copies = draw.choice(500, 100, replace=False)
    shifts = [(0, 1), (1, 0), (-1, 2), (-2, -2)]
    for i, original in enumerate(copies):
        images[500 + i] = moved(images[original], *shifts[i % 4])
    images[500:] += 0.1 * draw.normal(size=images[500:].shape)
    coarse = draw.normal(size=(600, 4))
    coarse[500:] = coarse[copies] + 0.2 * draw.normal(size=(100, 4))
    near = nearest_neighbours(coarse)
    planted = {(int(a), 500 + i) for i, a in enumerate(copies)}
    by_network = set(listed(near_pairs(near.index, near.distance, 100)))
    by_inputs = near_pairs(near.index, shifted_distances(images, near.index), 100)
    assert len(planted & by_network) < 60
    assert len(planted & set(listed(by_inputs))) >= 98
    # Without shifts nothing is found.
    unmoved = shifted_distances(images.reshape(600, -1), near.index)
    assert len(planted & set(listed(near_pairs(near.index, unmoved, 100)))) < 10


def test_shifted_distances_are_the_least_over_the_overlap() -> None:
    draw = np.random.default_rng(4)
    images = draw.normal(size=(5, 2, 4, 6))
    index = np.array([[1, 2], [0, 4], [3, 1], [0, 1], [2, 3]])
    found = shifted_distances(images, index)
    for sample, others in enumerate(index):
        for place, other in enumerate(others):
            least = np.inf
            for down in range(-2, 3):
                for right in range(-2, 3):
                    one = images[sample][:, max(0, -down) : 4 - max(0, down)]
                    one = one[:, :, max(0, -right) : 6 - max(0, right)]
                    two = images[other][:, max(0, down) : 4 - max(0, -down)]
                    two = two[:, :, max(0, right) : 6 - max(0, -right)]
                    least = min(least, float(np.sqrt(np.mean((one - two) ** 2))))
            assert found[sample, place] == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (3, 1, 2, 1), (3, 4), (1, 3, 5, 5)])
def test_shifts_leave_an_overlap(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(5).normal(size=shape)
    n = len(images)
    index = np.array([[j for j in range(n) if j != i] for i in range(n)], dtype=np.int64)
    found = shifted_distances(images, index.reshape(n, n - 1))
    assert found.shape == (n, n - 1)
    assert np.isfinite(found).all()
    for sample in range(n):
        plain = np.sqrt(np.mean((images[index[sample]] - images[sample]) ** 2)) if n == 2 else 9e9
        assert (found[sample] <= plain + 1e-9).all()


@pytest.mark.parametrize("size", [2, 3, 5, 12])
def test_equal_samples_come_first_in_groups_of_any_size(size: int) -> None:
    rows = np.random.default_rng(6).normal(size=(60, 5)).astype(np.float32).astype(float) + 50.0
    rows[:size] = rows[0]
    near = nearest_neighbours(rows)
    found = near_pairs(near.index, near.distance, size * (size - 1) // 2)
    assert set(listed(found)) == {(a, b) for a in range(size) for b in range(a + 1, size)}
    assert (found.ratio == 0).all()
    assert (found.distance == 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 80])
def test_pairs_of_samples_that_are_all_equal(n: int) -> None:
    near = nearest_neighbours(np.ones((n, 3)))
    found = near_pairs(near.index, near.distance, 10)
    assert len(found.ratio) == min(10, n * (n - 1) // 2)
    assert near.index.shape == (n, min(n - 1, near_duplicates.NEIGHBOURS))
    assert (found.ratio == 0).all()


def test_a_sample_beside_equal_ones_has_no_ratio_of_0() -> None:
    """Five equal samples and one beside them: its distance is not 0, their scale is."""
    rows = np.zeros((8, 2))
    rows[7] = [1.0, 0.0]
    near = nearest_neighbours(rows)
    found = near_pairs(near.index, near.distance, 100)
    assert all(7 not in pair for pair in listed(found))
    assert np.isfinite(found.ratio).all()


@pytest.mark.parametrize(
    ("shape", "most", "expected"),
    [
        ((3, 32, 32), 4096, (3, 32, 32)),
        ((3, 64, 64), 4096, (3, 32, 32)),
        ((1, 9, 7), 8, (1, 3, 2)),
        ((5, 2, 2), 1, (5, 1, 1)),
    ],
)
def test_long_images_are_reduced_to_block_means(
    shape: tuple[int, ...], most: int, expected: Any
) -> None:
    images = np.random.default_rng(7).normal(size=(4, *shape)).astype(np.float32)
    found = reduce_images(images, most)
    assert found.shape == (4, *expected)
    factor = shape[1] // expected[1]
    np.testing.assert_allclose(
        found[:, :, 0, 0], images[:, :, :factor, :factor].mean(axis=(2, 3)), rtol=1e-5, atol=1e-6
    )
