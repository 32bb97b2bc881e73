"""Names of classes on the map do not cover each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from krepes_ooc.rendering.drawing.scatter import LETTER, NAME_LINE, separate_names


def touching(words: list[str], places: list[tuple[float, float]]) -> list[tuple[str, str]]:
    pairs = itertools.combinations(range(len(words)), 2)
    return [
        (words[i], words[j])
        for i, j in pairs
        if abs(places[i][0] - places[j][0]) < LETTER * (len(words[i]) + len(words[j])) / 2
        and abs(places[i][1] - places[j][1]) < NAME_LINE - 1e-9
    ]


@pytest.mark.parametrize("seed", range(20))
def test_crowded_names_are_separated(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker"]
    places = [(float(x), float(y)) for x, y in rng.normal((280, 200), (60, 25), (len(words), 2))]
    assert touching(words, places)
    assert touching(words, separate_names(words, places)) == []


def test_names_apart_stay_where_they_are() -> None:
    places = [(100.0, 50.0), (100.0, 80.0), (300.0, 52.0)]
    assert separate_names(["one", "two", "three"], places) == places


def test_equal_places_keep_their_order() -> None:
    found = separate_names(["a", "b", "c"], [(10.0, 10.0)] * 3)
    assert [y for _, y in found] == [10.0, 10.0 + NAME_LINE, 10.0 + 2 * NAME_LINE]
