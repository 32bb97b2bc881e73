"""Digests outlive changes of form: a run that version 0.1 began is the run that is asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from krepes_ooc.core.import_object import code_sha256
from krepes_ooc.core.settings import (
    digest_mapping,
    read_recorded_settings,
    read_settings,
    setting,
    to_mapping,
)
from krepes_ooc.errors import RecipeError
from krepes_ooc.network import zoo
from krepes_ooc.runner import staleness
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.staleness import StalenessChecker
from krepes_ooc.stages.base.stage import digest_of
from krepes_ooc.stages.registry import BY_NAME
from krepes_ooc.views.views import Views

# Digests that the first layout of the code gave, before any key was renamed. They change only with
# the recipe itself; versions are recorded beside them, so that a raised one does not matter here.
RECORDED = json.loads(Path(__file__).with_name("digests.json").read_text())
CHANGES = (
    "seed=3",
    "stages.newton.lm_steps=2",
    "stages.newton.damping_grid=[0.5, 2.0]",
    "stages.newton.preconditioner_rank=50",
    "stages.features.deflated_probes=1",
    "stages.features.probes=2",
    "stages.newton.objective_settings={penalty: 0.01}",
)
RENAMED = [
    ("newton", "steps", "lm_steps"),
    ("newton", "rank", "preconditioner_rank"),
    ("newton", "grid", "damping_grid"),
    ("features", "deflated", "deflated_probes"),
]
FAMILIES = {"digits": "image", "idx": "image", "table": "table"}


def fixed_inputs(recipe: Recipe) -> Any:
    """Inputs of a recipe whose source needs no file."""
    views = SimpleNamespace(
        seed=recipe.seed,
        kind=FAMILIES[recipe.source.kind],
        spec=recipe.views,
        _family=SimpleNamespace(describe=dict),
    )
    return SimpleNamespace(
        seed=recipe.seed,
        network_spec=recipe.network,
        base=recipe.base,
        source=SimpleNamespace(
            fingerprint=lambda: {"rows": 5}, label_fingerprint=lambda: {"classes": ["a", "b"]}
        ),
        views=SimpleNamespace(describe=lambda: Views.describe(views)),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("case", sorted(RECORDED["digests"]))
def test_digests_are_those_of_the_first_version(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, changed = case.partition(" ")
    # These two stated no number of landmarks then.
    then_auto = () if name == "digits" else ("stages.landmarks.count=auto",)
    recipe = Recipe.load(name, (*then_auto, *(CHANGES if changed else ())))
    versions = {stage: v["contract"] for stage, v in RECORDED["versions"].items()}
    monkeypatch.setattr(
        staleness, "load_contract", lambda store: SimpleNamespace(version=versions[store])
    )
    checker = StalenessChecker(None, fixed_inputs(recipe), recipe.settings)  # type: ignore[arg-type]
    digests: dict[str, str] = {}
    for stage in recipe.stages:
        if stage.name in versions:
            recorded = RECORDED["versions"][stage.name]["stage"]
            then = dataclasses.replace(stage, version=recorded)
            digests[stage.name] = digest_of(checker.fingerprint(then, digests))
    assert digests == RECORDED["digests"][case]


@pytest.mark.parametrize("name", sorted(staleness.COVERED))
def test_an_input_that_digests_leave_out_is_covered_by_another(name: str) -> None:
    reads = set(BY_NAME[name].reads)
    for covered in staleness.COVERED[name]:
        assert covered in reads
        others = (BY_NAME[other] for other in reads - {covered} if other in BY_NAME)
        assert any(covered in other.reads for other in others)


@pytest.mark.parametrize(("stage", "old", "new"), RENAMED)
def test_a_renamed_key_is_named_with_its_new_name(stage: str, old: str, new: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load("digits", [f"stages.{stage}.{old}=3"])
    assert str(caught.value) == (
        f"digits.yaml.stages.{stage}: key {old!r} was renamed; expected {new!r}"
    )


@dataclasses.dataclass(frozen=True)
class Before:
    steps: int = setting(3, about="steps")


@dataclasses.dataclass(frozen=True)
class After:
    lm_steps: int = setting(3, about="steps", digest_name="steps")
    draws: int = setting(5, about="a later key", digest_omits=5)


def test_a_renamed_and_a_later_key_leave_no_trace() -> None:
    assert digest_mapping(After()) == digest_mapping(Before()) == {"steps": 3}
    assert digest_mapping({"a": [After(lm_steps=4)]}) == {"a": [{"steps": 4}]}
    assert to_mapping(After()) == {"lm_steps": 3, "draws": 5}


def test_a_later_key_counts_once_it_is_set() -> None:
    assert digest_mapping(After(draws=6)) == {"steps": 3, "draws": 6}
    assert read_settings(After, {"draws": 5}, "f") == After()


@pytest.mark.parametrize("settings", [After(), After(lm_steps=1, draws=7)])
def test_recorded_settings_are_read_back(settings: After) -> None:
    assert read_recorded_settings(After, digest_mapping(settings), "f") == settings


FACTORY = '''"""A module."""


def build(width: int) -> int:
    """Build.

    Args:
        width: width.
    """
    # twice as wide
    return 2 * width
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# twice as wide", "# two times", True),
        ('"""A module."""', '"""Another."""\n# comment', True),
        ("        width: width.\n", "", True),
        ("2 * width", "(2\n        * width)", True),
        ("2 * width", "3 * width", False),
        ("width: int", "width: float", False),
        ('    """Build.', '    text = """Build.', False),
    ],
)
def test_shipped_code_is_digested_without_comments(old: str, new: str, same: bool) -> None:
    assert old in FACTORY
    edited = FACTORY.replace(old, new)
    assert (code_sha256(edited.encode()) == code_sha256(FACTORY.encode())) == same


def test_the_shipped_networks_have_the_digest_of_their_first_file() -> None:
    code = Path(zoo.__file__).read_bytes()
    recorded = "6df8d00edc909ff34ea8cf5c7afa41670051d2ab60d714ad29d665132b702aad"
    assert code_sha256(code) == code_sha256(code + b"\n# a comment\n") == recorded
