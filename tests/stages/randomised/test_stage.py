"""The randomisation control on whole audits: stored figures, verdicts, resuming."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student_t

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.randomised import drawn_network
from krepes_ooc.stages.randomised import stage as module
from krepes_ooc.stages.randomised.control_figures import FIGURES
from krepes_ooc.stages.randomised.fidelity_controls import CONTROLLED
from krepes_ooc.stages.randomised.stage import summary_lines
from krepes_ooc.stages.verdict.criteria import random_weights
from krepes_ooc.storage.workspace import Workspace
from tests import dense, small
from tests.crash.compare import differences
from tests.stages import audits
from tests.stages.test_killed_audits import KILL

DRAWS = "stages.randomised.draws=10"
NEEDED = (
    *("pretrain", "features", "landmarks", "audited", "kernel", "moments", "spectrum"),
    *("newton", "minimiser", "influence", "randomised"),
)


def until_control(workspace: Path, recipe: Recipe, **options: object) -> Workspace:
    """Run the stages that the control reads, then the control."""
    known = {stage.name for stage in recipe.stages}
    for name in NEEDED:
        if name in known:
            run(recipe, workspace, Options(workers=2, only=name, **options))
    return Workspace(workspace)


@pytest.fixture(scope="module")
def store():
    return audits.finished().reader("randomised")


def test_the_trained_column_is_the_audit_on_fewer_rows(store) -> None:
    """Same rows as the audit but for the moments and the centre, which come from fit samples."""
    space = audits.finished()
    role, influence = space.reader("audited").array("role"), space.reader("influence")
    audit = influence.array("top_landmark")[role == 0]
    own = store.array("top_landmark")[0]
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(audit, own, strict=True)]
    assert np.mean(shared) > 0.8
    fidelity = space.reader("fidelity").attributes["figures"]
    figures = store.attributes["figures"]
    assert figures["ridge_r_squared"]["value"] == pytest.approx(
        fidelity["ridge_ceiling"]["value"], abs=0.03
    )


def test_overlaps_follow_from_the_stored_rankings(store) -> None:
    tops = store.array("top_landmark")
    count, rank = len(tops), tops.shape[2]
    assert count == store.attributes["draws"] + 1 == 11
    for i in range(count):
        for j in range(count):
            pairs = zip(tops[i].tolist(), tops[j].tolist(), strict=True)
            expected = np.mean([len(set(a) & set(b)) / rank for a, b in pairs])
            assert store.array("overlap")[i, j] == pytest.approx(expected)
    ranking, overlap = store.attributes["ranking"], store.array("overlap")
    assert ranking["with_draws"] == pytest.approx(overlap[0, 1:].mean())
    assert ranking["among_draws"] == pytest.approx(overlap[1:, 1:][np.triu_indices(10, 1)].mean())
    assert store.attributes["distinguishable"] == (ranking["interval"][1] < 0)


def test_gaps_are_those_of_the_naive_formula(store) -> None:
    space = audits.finished()
    audited, landmarks = space.reader("audited"), space.reader("landmarks")
    here, at = audited.array("role") == 0, store.attributes["columns"].index("town")
    x, y = audited.array("values")[here, at], landmarks.array("values")[:, at]
    for network, top in enumerate(store.array("top_landmark")):
        score = np.zeros((len(top), len(y)))
        np.put_along_axis(score, top, np.arange(top.shape[1], 0, -1.0)[None], axis=1)
        expected = dense.alignment_gap(score, x, y, None)
        assert store.array("gap")[at, network] == pytest.approx(expected, abs=1e-12)
    flat = store.attributes["columns"].index("flat")
    assert not store.array("gap_defined")[flat].any()
    assert store.attributes["gaps"]["flat"]["learned"] is None
    assert store.attributes["columns"][-1] == "label"


def test_figures_and_health_are_there_for_every_network(store) -> None:
    assert store.attributes["figure_names"] == list(FIGURES)
    assert store.array("figure_defined").all()
    for row, name in zip(store.array("figure"), FIGURES, strict=True):
        figure = store.attributes["figures"][name]
        assert figure["value"] == row[0]
        assert figure["draws"] == row[1:].tolist()
        assert figure["learned"] == (row[0] > figure["most"])
    health = store.attributes["health"]
    assert not health["collapsed"]
    embedding = audits.finished().reader("audited").array("network_embedding").astype(float)
    mean = embedding.mean(axis=0)
    share = mean @ mean / np.mean(np.sum(embedding**2, axis=1))
    assert health["mean_share"] == pytest.approx(share, rel=1e-5)
    assert store.attributes["notes"] == {}


@pytest.mark.parametrize("key", CONTROLLED)
def test_every_fidelity_figure_stands_beside_random_weights(store, key: str) -> None:
    found = store.attributes["fidelity"][key]
    draws = np.array(found["draws"])
    assert len(draws) == store.attributes["draws"]
    assert found["low"] < draws.mean() < found["high"]
    half = student_t.ppf(0.975, len(draws) - 1) * draws.std(ddof=1) * np.sqrt(1 + 1 / len(draws))
    assert found["high"] - draws.mean() == pytest.approx(half, rel=1e-6)
    # The audited network on the rows of the comparison is near its own figure on all rows, where
    # the kernel decides it; the others follow from coefficients, which few rows determine less.
    figure = audits.finished().reader("fidelity").attributes["figures"][key]["value"]
    if key in ("nystrom_error", "neighbour_overlap", "spectral_entropy"):
        assert found["value"] == pytest.approx(figure, abs=0.15)


def test_page_and_json_show_random_weights_beside_every_figure(store) -> None:
    folder = audits.finished().root
    figures = json.loads((folder / "report.json").read_text())["fidelity"]["figures"]
    missing = {key for key, figure in figures.items() if figure["random_weights"] is None}
    # A sweep of dampings has no figure for one damping.
    assert missing == {"stability"}
    tau = store.attributes["figures"]["kendall_tau"]
    assert figures["kendall_tau"]["random_weights"]["draws"] == tau["draws"]
    assert figures["kendall_tau"]["random_weights"]["high"] == pytest.approx(tau["most"])
    ridge = store.attributes["figures"]["ridge_r_squared"]
    assert figures["ridge_ceiling"]["random_weights"]["value"] == ridge["value"]
    page = (folder / "report.html").read_text()
    assert page.count("this network on the same rows") == len(figures) - 1


def test_without_labels_the_other_figures_stay(tmp_path: Path) -> None:
    path = small.own_recipe(tmp_path)
    text = path.read_text().replace("label: kind", "audit_only: [kind]")
    path.write_text(text)
    space = until_control(tmp_path / "w", Recipe.load(str(path)))
    store = space.reader("randomised")
    defined = dict(zip(FIGURES, store.array("figure_defined").all(axis=1), strict=True))
    assert {key for key, known in defined.items() if known} == {"ridge_r_squared", "cka", "rank_me"}
    assert store.attributes["figures"]["kendall_tau"]["learned"] is None
    assert "label" not in store.attributes["columns"]
    assert store.attributes["ranking"]["decided"]
    known = {key for key, each in store.attributes["fidelity"].items() if each["value"] is not None}
    assert known == {"neighbour_overlap", "spectral_entropy", "nystrom_error"}
    assert small.floats_that_are_not_finite(tmp_path / "w") == []


def test_without_fit_samples_it_says_why_it_cannot_decide(tmp_path: Path) -> None:
    space = until_control(tmp_path / "w", small.recipe("stages.audited.fit=0", DRAWS))
    attributes = space.reader("randomised").attributes
    assert not attributes["distinguishable"]
    assert not attributes["ranking"]["decided"]
    assert "0 fit samples; expected at least 2" in attributes["notes"]["network"]
    assert len(attributes["notes"]) == 11


def test_draws_that_overflow_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from krepes_ooc.network import permuted

    whole = permuted.permuted_network

    def broken(network, seed: int, draw: int):
        copied = whole(network, seed, draw)
        if draw not in (4, 9):
            copied.inner[1].weight[0, 0] = float("inf")
        return copied

    monkeypatch.setattr(permuted, "permuted_network", broken)
    attributes = until_control(tmp_path / "w", small.recipe(DRAWS)).reader("randomised").attributes
    assert set(attributes["notes"]) == {f"draw {i}" for i in range(1, 11)} - {"draw 4", "draw 9"}
    assert "2 networks with random weights could be audited" in attributes["ranking"]["reason"]
    assert any("draw 2: " in line for line in summary_lines(attributes))


def test_a_collapsed_network_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = small.own_recipe(tmp_path)
    state = load_file(tmp_path / "weights.safetensors")
    state["2.weight"] *= 1e-3
    state["2.bias"] = state["2.bias"] * 0 + 1.0
    save_file(state, tmp_path / "weights.safetensors")
    attributes = (
        until_control(tmp_path / "w", Recipe.load(str(path))).reader("randomised").attributes
    )
    assert attributes["health"]["collapsed"]
    assert "effective rank (RankMe) of 1." in attributes["health"]["reason"]
    assert any("the network has collapsed" in line for line in summary_lines(attributes))


# Digits as the shipped recipe has them, with fewer epochs, landmarks and samples.
DIGITS = (
    "stages.landmarks.count=128",
    "stages.audited.audit=300",
    "stages.audited.fit=800",
    "stages.spectrum.components=16",
)
# Rankings of one Newton step; those of the minimum are more alike (docs/verdict.md).
STEP = "stages.minimiser.solution=step"
TRAINED = ("stages.pretrain.epochs=40",)
NEVER = ("stages.pretrain.epochs=1", "stages.pretrain.learning_rate=1e-12")


@pytest.fixture(scope="module")
def by_step(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Workspace]:
    """Whole controls of the rankings of one step, each computed once."""
    folder = tmp_path_factory.mktemp("step")

    @functools.cache
    def control(*changes: str) -> Workspace:
        recipe = Recipe.load("digits", (*DIGITS, STEP, *changes))
        return until_control(folder / str(len(list(folder.iterdir()))), recipe)

    return control


@pytest.mark.slow
def test_a_trained_network_is_told_apart_and_a_never_trained_one_is_not(
    by_step: Callable[..., Workspace],
) -> None:
    found = by_step(*TRAINED).reader("randomised").attributes
    assert found["distinguishable"], found["ranking"]["reason"]
    assert not found["health"]["collapsed"]
    for seed in (1, 2):
        found = by_step(*NEVER, f"seed={seed}").reader("randomised").attributes
        assert found["ranking"]["decided"]
        assert not found["distinguishable"], found["ranking"]["reason"]
        assert any("is NOT distinguishable" in line for line in summary_lines(found))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_check_tells_both_apart_with_the_default_solution(
    by_step: Callable[..., Workspace], tmp_path: Path
) -> None:
    """The solution that a run chooses by itself, where the ranking alone need not differ."""
    for name, changes, outcome in (
        ("trained", TRAINED, "pass"),
        ("never", (*NEVER, "seed=1"), "fail"),
    ):
        # All but the solution, and what is ranked by it, is as above.
        shutil.copytree(by_step(*changes).root, tmp_path / name)
        recipe = Recipe.load("digits", (*DIGITS, *changes))
        space = until_control(tmp_path / name, recipe, restart_stale=True)
        found = space.reader("randomised").attributes
        check = random_weights(found["ranking"], found["figures"]["cka"])
        assert check.outcome == outcome, (name, check.words())
        assert check.blocking
        if name == "trained":
            assert space.reader("influence").attributes["solution"] == "minimiser"


def test_rows_of_a_second_pass_are_those_that_were_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small.finished()
    passes: list[int] = []
    original = drawn_network.DrawnNetwork.passed
    monkeypatch.setattr(
        drawn_network.DrawnNetwork,
        "passed",
        lambda self, part: passes.append(self.draw) or original(self, part),
    )
    for kept in (drawn_network.KEPT_BYTES, 0):
        monkeypatch.setattr(drawn_network, "KEPT_BYTES", kept)
        folder = small.copy_before(whole, tmp_path / str(kept), "randomised")
        run(small.recipe(), folder, Options(workers=2, only="randomised"))
        assert [name for name in differences(whole, folder) if "randomised/" in name] == []
    # Kept: the views once and, for draws, landmarks and clean rows; then the views twice.
    assert passes.count(0) > 0
    assert passes.count(0) % 3 == 0
    assert passes.count(1) > passes.count(0)


def test_a_killed_control_ends_in_the_same_bits(tmp_path: Path) -> None:
    recipe = small.recipe(DRAWS)
    whole = until_control(tmp_path / "whole", recipe)
    killed = tmp_path / "killed"
    for name in NEEDED[:-1]:
        run(recipe, killed, Options(workers=2, only=name))
    path = tmp_path / "digits.yaml"
    path.write_text(recipe.text)
    ended = subprocess.run(
        [sys.executable, "-c", KILL, str(path), str(killed), "randomised", "4"],
        cwd=small.ROOT,
        env=os.environ | {"PYTHONPATH": str(small.ROOT)},
        check=False,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    partials = list((killed / ".krepes/stages/randomised").rglob("network-*.npz"))
    assert 1 <= len(partials) < 11
    ran = []
    original = module._audit_network
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "_audit_network", lambda *given: ran.append(given[0].draw) or original(*given)
        )
        run(recipe, killed, Options(workers=2, only="randomised"))
    assert len(ran) == 11 - len(partials)  # finished networks are not computed again
    found = differences(whole.root, killed)
    assert [name for name in found if "randomised/" in name] == []
