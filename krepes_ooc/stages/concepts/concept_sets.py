"""Concept sets: samples that show a concept, declared in the recipe, found by one source scan.

    women: {positive: {column: gender, equals: Female}, negative: {column: gender, equals: Male}}

A set is given by ``ids``, by a ``column`` with ``equals``, ``in``, ``above`` or ``below``, or by a
``label``. Without ``negative`` the other samples are the negative set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.settings import unknown_key
from krepes_ooc.errors import RecipeError, UsageError
from krepes_ooc.sources.base import Column, Source, check_samples, sample_positions
from krepes_ooc.stages.landmarks.sampling import top_m

MIN_SAMPLES = 10
# Rows of the source that are read at a time
SCAN_ROWS = 4096
TESTS = ("equals", "in", "above", "below")
_CHOICE_STREAM = 411
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Selector:
    """Condition for a sample set: exactly one of ids, column with a test, or label.

    Args:
        ids: positions in the source.
        column: name of a table column.
        test: ``equals``, ``in``, ``above`` or ``below``.
        value: what the column is tested against; for ``equals`` and ``in`` a tuple.
        label: name of a class.
    """

    ids: tuple[int, ...] = ()
    column: str = ""
    test: str = ""
    value: Any = None
    label: str = ""


@dataclass(frozen=True)
class ConceptSets:
    """The declared sets of one concept; ``negative`` None means all other samples."""

    name: str
    positive: Selector
    negative: Selector | None


def read_sets(declared: Mapping[str, Any], where: str) -> tuple[ConceptSets, ...]:
    """Parse the recipe's sets.

    Raises:
        RecipeError: an unknown or missing key, or a value of the wrong kind.
    """
    sets = []
    for name, parts in declared.items():
        key_path = f"{where}.{name}"
        if not isinstance(parts, Mapping):
            raise RecipeError(
                f"{parts!r} is no mapping", where=key_path, expected="positive, negative"
            )
        for key in parts:
            if key not in ("positive", "negative"):
                raise unknown_key(str(key), ["positive", "negative"], key_path)
        if "positive" not in parts:
            raise RecipeError(
                "key 'positive' is missing", where=key_path, expected="a set of samples"
            )
        # No negative set: all other samples
        negative = parts.get("negative")
        sets.append(
            ConceptSets(
                str(name),
                read_selector(parts["positive"], f"{key_path}.positive"),
                None if negative is None else read_selector(negative, f"{key_path}.negative"),
            )
        )
    return tuple(sets)


def read_selector(given: Any, where: str) -> Selector:
    """Parse one set.

    Raises:
        RecipeError: an unknown key, or not exactly one way to say the set.
    """
    if not isinstance(given, Mapping):
        raise RecipeError(f"{given!r} is no mapping", where=where, expected="ids, column or label")
    for key in given:
        if key not in ("ids", "column", "label", *TESTS):
            raise unknown_key(str(key), ["ids", "column", "label", *TESTS], where)
    # Exactly one way to say the set, and a test with a column only
    ways = [key for key in ("ids", "column", "label") if key in given]
    tests = [key for key in TESTS if key in given]
    if len(ways) != 1 or len(tests) != int(ways == ["column"]):
        raise RecipeError(
            f"{dict(given)!r} does not say one set",
            where=where,
            expected="ids, or label, or column with one of " + ", ".join(TESTS),
        )
    if ways == ["ids"]:
        return Selector(ids=_ids(given["ids"], where))
    if ways == ["label"]:
        return Selector(label=str(given["label"]))
    test = tests[0]
    return Selector(column=str(given["column"]), test=test, value=_value(given, test, where))


def choose_concept_samples(
    source: Source, concepts: tuple[ConceptSets, ...], count: int, seed: int
) -> list[tuple[Ids, Ids]]:
    """Positive and negative positions of every concept, sorted; at most ``count`` of either.

    Where more samples match, those with the largest keyed random number are taken: one pass over
    the source, a bounded number kept.

    Raises:
        UsageError: an unknown column, category, label or sample; sets that overlap or are
            too small.
    """
    # Names are resolved before the scan, so that a typing error costs no pass
    matchers = [
        (_matcher(source, c.positive, c.name), _matcher(source, c.negative, c.name))
        for c in concepts
    ]
    # Positions and labels need no row, and reading rows is what takes time
    rows_needed = any(
        selector is not None and selector.column
        for concept in concepts
        for selector in (concept.positive, concept.negative)
    )
    # Random numbers and positions of the largest so far, of either side of every concept
    chosen: list[list[tuple[npt.NDArray[np.float64], Ids]]] = [
        [(np.empty(0), np.empty(0, dtype=np.int64)) for _ in range(2)] for _ in concepts
    ]
    for start in range(0, source.n_samples if concepts else 0, SCAN_ROWS):
        indices = np.arange(start, min(start + SCAN_ROWS, source.n_samples))
        positions = sample_positions(source, indices)
        rows = np.asarray(source.read(positions), dtype=np.float64) if rows_needed else None
        labels = source.labels(positions)
        keys = counter_rng.uniform(seed, _CHOICE_STREAM, positions)
        for concept, pair, best in zip(concepts, matchers, chosen, strict=True):
            for side, mask in enumerate(_masks(concept, pair, positions, rows, labels)):
                best_keys, ids = best[side]
                all_keys = np.append(best_keys, keys[mask])
                best[side] = top_m(all_keys, np.append(ids, positions[mask]), count)
    return [_checked(concept, best) for concept, best in zip(concepts, chosen, strict=True)]


def _masks(
    concept: ConceptSets, pair: tuple[Any, Any], positions: Ids, rows: Any, labels: Ids
) -> tuple[Mask, Mask]:
    positive = pair[0](positions, rows, labels)
    negative = ~positive if pair[1] is None else pair[1](positions, rows, labels)
    # An ambiguous sample would stand on both sides of the classifier
    both = positions[positive & negative]
    if both.size:
        raise UsageError(
            f"sample {both[0]} is in both sets",
            where=f"stages.concepts.sets.{concept.name}",
            expected="positive and negative sets without common samples",
        )
    return positive, negative


def _checked(concept: ConceptSets, best: list[tuple[Any, Ids]]) -> tuple[Ids, Ids]:
    for (_, ids), side in zip(best, ("positive", "negative"), strict=True):
        if len(ids) < MIN_SAMPLES:
            raise UsageError(
                f"{len(ids)} {side} samples",
                where=f"stages.concepts.sets.{concept.name}",
                expected=f"at least {MIN_SAMPLES}, to fit and to hold out",
                advice="widen the set",
            )
    return np.sort(best[0][1]), np.sort(best[1][1])


def _matcher(source: Source, selector: Selector | None, name: str) -> Any:
    """The function (positions, rows, labels) -> which samples belong to the set."""
    where = f"stages.concepts.sets.{name}"
    if selector is None:
        return None
    if selector.ids:
        # Positions are those of the source, not of the shuffled store
        check_samples(source, selector.ids, where)
        wanted = np.array(selector.ids, dtype=np.int64)
        return lambda positions, rows, labels: np.isin(positions, wanted)
    if selector.label:
        code = _code(selector.label, source.classes, "label", where)
        return lambda positions, rows, labels: labels == code
    names = [column.name for column in source.columns]
    at = _code(selector.column, tuple(names), "column", where)
    return _column_test(at, source.columns[at], selector, where)


def _column_test(at: int, column: Column, selector: Selector, where: str) -> Any:
    # An order makes sense for numbers only
    if selector.test in ("above", "below"):
        if column.kind != "numeric":
            raise UsageError(
                f"column {column.name!r} holds categories", where=where, expected="equals or in"
            )
        limit = float(selector.value)
        if selector.test == "above":
            return lambda positions, rows, labels: rows[:, at] > limit
        return lambda positions, rows, labels: rows[:, at] < limit
    if column.kind == "categorical":
        what = f"value of {column.name}"
        codes = [_category(str(value), column, what, where) for value in selector.value]
        wanted = np.array(codes, dtype=np.float64)
    else:
        # A word of source.decode stands for its code.
        coded = {word: code for code, word in column.words}
        wanted = np.array([_number(coded.get(str(v), v), where) for v in selector.value])
    return lambda positions, rows, labels: np.isin(rows[:, at], wanted)


def _category(name: str, column: Column, what: str, where: str) -> int:
    """Code of a category, which is named as the table spells it or by its word."""
    spelled = name in column.categories
    return _code(name, column.categories if spelled else column.category_names, what, where)


def _code(name: str, known: tuple[str, ...], what: str, where: str) -> int:
    if name not in known:
        # A column may have thousands of categories
        shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        raise UsageError(f"no {what} {name!r}", where=where, expected=f"one of {shown or 'none'}")
    return known.index(name)


def _value(given: Mapping[str, Any], test: str, where: str) -> Any:
    value = given[test]
    if test == "equals":
        return (value,)
    if test == "in":
        if not isinstance(value, list | tuple) or not value:
            raise RecipeError(
                f"{value!r} is no list", where=f"{where}.in", expected="a list of values"
            )
        return tuple(value)
    return _number(value, f"{where}.{test}")


def _number(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise RecipeError(f"{value!r} is no number", where=where, expected="a number") from None


def _ids(given: Any, where: str) -> tuple[int, ...]:
    # bool is an int in Python, and no position
    whole = isinstance(given, list | tuple) and all(
        isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in given
    )
    if not whole or not given:
        raise RecipeError(
            f"{given!r} is no list of samples", where=f"{where}.ids", expected="positions from 0"
        )
    return tuple(given)
