from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import RecipeError, UsageError
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.stages.concepts.concept_sets import choose_concept_samples, read_sets
from krepes_ooc.stages.concepts.stage import ConceptsSettings
from tests.stages import audits

WHERE = "stages.concepts.sets"


@pytest.fixture(scope="module")
def store():
    return audits.finished().reader("concepts")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("source")
    recipe = Recipe.load(str(audits.write_recipe(folder)))
    inputs = AuditInputs(
        recipe.source, recipe.network, recipe.views, recipe.seed, recipe.base, folder
    )
    return inputs.source


def chosen(source: Any, sets: dict[str, Any], count: int = 200, seed: int = 0):
    return choose_concept_samples(source, read_sets({"c": sets}, WHERE), count, seed)[0]


def test_scores_are_influence_along_the_concept(store):
    space = audits.finished()
    influence = space.reader("influence")
    kernel, step = influence.array("kernel"), influence.array("step")
    for c, vector in enumerate(store.array("vector")):
        by_landmark = kernel * (step @ vector)
        assert store.array("score")[:, c] == pytest.approx(by_landmark.sum(axis=1))
        audit = space.reader("audited").array("role") == 0
        expected = np.abs(kernel[audit]).mean(axis=0) * (step @ vector)
        assert store.array("landmark_score")[c] == pytest.approx(expected)


def test_a_planted_concept_is_recognised_and_noise_is_not_scored(store):
    names = store.attributes["names"]
    trusted = dict(zip(names, store.array("trusted").tolist(), strict=True))
    assert trusted == {"east": 1, "kind": 1, "noise": 0, "old": 1}
    noise = names.index("noise")
    assert (store.array("vector")[noise] == 0).all()
    assert (store.array("score")[:, noise] == 0).all()
    assert "nothing is scored" in store.attributes["words"]["noise"]
    assert store.array("accuracy")[names.index("east")] > store.array("chance_high").max()
    assert np.linalg.norm(store.array("vector"), axis=1)[[0, 1, 3]] == pytest.approx(np.ones(3))


def test_sets_are_the_matching_rows(source):
    rows = np.asarray(source.read(np.arange(audits.ROWS)))
    labels = source.labels(np.arange(audits.ROWS))
    names = [column.name for column in source.columns]
    code = source.columns[names.index("town")].categories.index("x")
    positive, negative = chosen(source, {"positive": {"column": "town", "equals": "x"}}, 1000)
    assert positive.tolist() == np.flatnonzero(rows[:, names.index("town")] == code).tolist()
    assert sorted([*positive, *negative]) == list(range(audits.ROWS))
    below = chosen(source, {"positive": {"column": "a", "below": 4}}, 1000)[0]
    assert below.tolist() == np.flatnonzero(rows[:, names.index("a")] < 4).tolist()
    both = chosen(source, {"positive": {"column": "town", "in": ["x", "y"]}}, 1000)[0]
    assert set(positive) < set(both)
    label = chosen(source, {"positive": {"label": "p"}}, 1000)[0]
    assert label.tolist() == np.flatnonzero(labels == source.classes.index("p")).tolist()
    ids = chosen(source, {"positive": {"ids": list(range(30, 10, -1))}}, 1000)[0]
    assert ids.tolist() == list(range(11, 31))


def test_large_sets_are_cut_to_a_keyed_draw(source):
    sets = {"positive": {"label": "p"}, "negative": {"label": "q"}}
    few, whole = chosen(source, sets, 20), chosen(source, sets, 1000)
    assert [len(part) for part in few] == [20, 20]
    assert set(few[0]) < set(whole[0])
    assert chosen(source, sets, 20)[0].tolist() == few[0].tolist()
    assert chosen(source, sets, 20, seed=1)[0].tolist() != few[0].tolist()


@pytest.mark.parametrize(
    ("sets", "line"),
    [
        (
            {"positive": {"ids": [1, 2, 3]}},
            f"{WHERE}.c: 3 positive samples; expected at least 10, to fit and to hold out; "
            "widen the set",
        ),
        (
            {"positive": {"column": "flat", "above": 1}},
            f"{WHERE}.c: 0 positive samples; expected at least 10, to fit and to hold out; "
            "widen the set",
        ),
        (
            {"positive": {"ids": list(range(20))}, "negative": {"ids": list(range(19, 40))}},
            f"{WHERE}.c: sample 19 is in both sets; expected positive and negative sets without "
            "common samples",
        ),
        (
            {"positive": {"column": "a", "above": 2}, "negative": {"column": "a", "below": 8}},
            "is in both sets",
        ),
        ({"positive": {"ids": [400]}}, f"{WHERE}.c: no sample 400; expected 0 to 319"),
        ({"positive": {"label": "r"}}, f"{WHERE}.c: no label 'r'; expected one of p, q"),
        (
            {"positive": {"column": "city", "equals": "x"}},
            f"{WHERE}.c: no column 'city'; expected one of a, b, c, town, coin, flat",
        ),
        (
            {"positive": {"column": "town", "equals": "w"}},
            f"{WHERE}.c: no value of town 'w'; expected one of x, y, z",
        ),
        (
            {"positive": {"column": "town", "above": 1}},
            f"{WHERE}.c: column 'town' holds categories; expected equals or in",
        ),
    ],
)
def test_unusable_sets_are_refused(source, sets: dict[str, Any], line: str):
    with pytest.raises(UsageError) as caught:
        chosen(source, sets)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("sets", "line"),
    [
        ({"c": 3}, f"{WHERE}.c: 3 is no mapping; expected positive, negative"),
        ({"c": {"negative": {"label": "q"}}}, f"{WHERE}.c: key 'positive' is missing"),
        ({"c": {"postive": {}}}, "did you mean 'positive'?"),
        ({"c": {"positive": ["p"]}}, f"{WHERE}.c.positive: ['p'] is no mapping"),
        ({"c": {"positive": {"labels": "p"}}}, "did you mean 'label'?"),
        ({"c": {"positive": {}}}, "{} does not say one set; expected ids, or label, or column"),
        ({"c": {"positive": {"column": "a"}}}, "does not say one set"),
        ({"c": {"positive": {"label": "p", "ids": [1]}}}, "does not say one set"),
        ({"c": {"positive": {"ids": []}}}, "[] is no list of samples; expected positions from 0"),
        ({"c": {"positive": {"ids": [1, -2]}}}, "[1, -2] is no list of samples"),
        ({"c": {"positive": {"column": "a", "in": "x"}}}, "'x' is no list; expected a list"),
        ({"c": {"positive": {"column": "a", "above": "x"}}}, "'x' is no number"),
    ],
)
def test_unreadable_sets_are_refused_when_the_recipe_is_read(sets: dict[str, Any], line: str):
    with pytest.raises(RecipeError) as caught:
        read_settings(ConceptsSettings, {"sets": sets}, "mine.yaml.stages.concepts")
    assert line in str(caught.value)


def test_one_more_concept_makes_nothing_else_stale(tmp_path: Path):
    from krepes_ooc.runner.audit import Options
    from krepes_ooc.runner.run import run

    space = audits.audit(tmp_path)
    assert space.reader("concepts").attributes["names"] == []
    recipe = Recipe.load(str(audits.write_recipe(tmp_path, concepts={"sets": audits.CONCEPTS})))
    summary = run(recipe, space.root, Options(workers=2, restart_stale=True))
    assert summary.ran == ["concepts", "report"]
