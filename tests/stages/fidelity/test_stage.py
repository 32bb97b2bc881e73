from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from krepes_ooc.core import counter_rng
from krepes_ooc.core.figure_specs import AGAINST_INPUTS, FIGURES, STEP_AGAINST_KERNEL, VALUE
from krepes_ooc.core.figures import Figure, figure
from krepes_ooc.engine.device import HOST
from krepes_ooc.engine.run_control import StopFlag
from krepes_ooc.errors import StageFailed
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.fidelity.component_sweep import component_sweep
from krepes_ooc.stages.fidelity.regressions import REFITS
from krepes_ooc.stages.fidelity.rows import control_or_none, figure_or_reason, powers_of_two
from krepes_ooc.stages.fidelity.summary import fidelity_lines, summary_lines
from krepes_ooc.storage.workspace import Workspace
from tests.crash.compare import differences
from tests.figures import complete
from tests.stages import audits


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return audits.finished().reader("fidelity").attributes["figures"]


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    """Arrays of the audit, cut into fit and audit samples."""
    space = audits.finished()
    audited, influence = space.reader("audited"), space.reader("influence")
    role, label = audited.array("role"), audited.array("label")
    K, f = influence.array("kernel"), influence.array("embedding")
    net = audited.array("network_embedding").astype(float)
    cut = {
        "label": label,
        "kernel": K,
        "step": f,
        "network": net,
        "top": influence.array("top_landmark"),
    }
    return {
        name: {key: value[role == code] for key, value in cut.items()}
        for name, code in (("fit", 1), ("held", 0))
    }


def probe(rows: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    fit, held = rows["fit"], rows["held"]
    scale = StandardScaler().fit(fit[name])
    model = LogisticRegression(max_iter=1000).fit(scale.transform(fit[name]), fit["label"])
    P = model.predict_proba(scale.transform(held[name]))
    return P[np.arange(len(P)), held["label"]], P.argmax(axis=1) == held["label"]


def test_tau_and_gap_are_those_of_two_probes(figures, rows):
    from scipy.stats import kendalltau

    (step, step_hit), (network, network_hit) = probe(rows, "step"), probe(rows, "network")
    assert figures["kendall_tau"]["value"] == pytest.approx(
        kendalltau(step, network).statistic, abs=0.01
    )
    gap = 100 * (step_hit.mean() - network_hit.mean())
    assert figures["accuracy_gap"]["value"] == pytest.approx(gap, abs=1.7)
    low, high = figures["kendall_tau"]["interval"]
    assert low < figures["kendall_tau"]["value"] < high


def test_every_figure_has_its_controls(figures):
    needed = {
        "kendall_tau": ["raw_inputs", "start", "kernel_rows", "ridge_ceiling",
                        "lm_steps", "uniform_landmarks",
                        "fourier_features",
                        "noise_ceiling"],
        "accuracy_gap": ["raw_inputs", "majority_class"],
        "ridge_ceiling": ["uniform_landmarks", "fourier_features"],
        "nystrom_error": ["uniform_landmarks"],
        "confidence_drop": ["random", "kernel_only", "reference_set_removal",
                            "exact_refit", "exact_refit_random"],
        "coverage": ["random"],
        "precision_at_1": ["kernel", "input_cosine", "random",
                           "paper", "network_cosine",
                           "representer_values",
                           "influence_functions",
                           "majority_class"],
    }  # fmt: skip
    for name, controls in needed.items():
        assert set(controls) <= set(figures[name]["controls"]), name
        for control in controls:
            assert np.isfinite(figures[name]["controls"][control]), (name, control)


def test_precision_is_a_count(figures, rows):
    landmarks = audits.finished().reader("landmarks").array("label")
    held = rows["held"]
    first = landmarks[held["top"][:, 0]]
    controls = figures["precision_at_1"]["controls"]
    assert figures["precision_at_1"]["value"] == pytest.approx(np.mean(first == held["label"]))
    plain = landmarks[held["kernel"].argmax(axis=1)]
    assert controls["kernel"] == pytest.approx(np.mean(plain == held["label"]))
    chance = np.mean([np.mean(landmarks == code) for code in held["label"]])
    assert controls["random"] == pytest.approx(chance)


def vote(query: np.ndarray, bank: np.ndarray, label: np.ndarray) -> np.ndarray:
    shares = np.zeros((len(query), 2))
    for t, f in enumerate(query):
        cosine = bank @ f / np.linalg.norm(bank, axis=1) / np.linalg.norm(f)
        for j in np.argsort(-cosine, kind="stable")[:50]:
            shares[t, label[j]] += np.exp(cosine[j] / 0.1)
    return shares / shares.sum(axis=1, keepdims=True)


def test_the_drop_is_that_of_a_naive_vote(figures, rows):
    A = audits.finished().reader("influence").array("coefficients")
    fit, held = rows["fit"], rows["held"]
    left = held["step"].copy()
    for t, top in enumerate(held["top"]):
        left[t] -= sum(held["kernel"][t, one] * A[one] for one in top)
    before = vote(held["step"], fit["step"], fit["label"])
    after = vote(left, fit["step"], fit["label"])
    each, predicted = np.arange(len(before)), before.argmax(axis=1)
    drop = (before[each, predicted] - after[each, predicted]).mean()
    assert figures["confidence_drop"]["value"] == pytest.approx(drop)


def test_the_curves_are_complete_and_end_at_the_figure(figures):
    curves = audits.finished().reader("fidelity").attributes["curves"]
    assert sorted(curves) == [
        "ceiling_over_components",
        "effective_dimension_over_landmarks",
        "gap_over_components",
        "nystrom_error_over_landmarks",
        "spectral_entropy",
        "tau_over_components",
    ]
    for curve in curves.values():
        assert all(len(line) == len(curve["x"]) for line in curve["lines"].values())
        assert np.isfinite(curve["x"]).all()
    error = curves["nystrom_error_over_landmarks"]
    assert error["x"][-1] == 24
    ends = {name: line[-1] for name, line in error["lines"].items()}
    controls = figures["nystrom_error"]["controls"]
    assert ends == {
        "all_samples": pytest.approx(figures["nystrom_error"]["value"]),
        "audit_samples": pytest.approx(controls["audit_samples"]),
        "uniform_landmarks": pytest.approx(controls["uniform_landmarks"]),
    }
    assert np.all(np.diff(error["lines"]["all_samples"]) < 0.02)
    spread = curves["effective_dimension_over_landmarks"]["lines"]
    assert sorted(spread) == ["all_samples", "uniform_landmarks"]
    for line in spread.values():
        assert (np.diff(line) > 0).all()
    entropy = curves["spectral_entropy"]["lines"]
    assert set(entropy["start"]) == {figures["spectral_entropy"]["controls"]["start"]}


def test_curves_over_components_show_start_step_and_further_steps(figures):
    curves = audits.finished().reader("fidelity").attributes["curves"]
    for figure_name, name in (("kendall_tau", "tau"), ("accuracy_gap", "gap")):
        shown = curves[f"{name}_over_components"]
        assert shown["x"] == [1, 2, 4]
        controls = figures[figure_name]["controls"]
        assert {line: values[-1] for line, values in shown["lines"].items()} == {
            "start": pytest.approx(controls["start"]),
            "step": pytest.approx(controls["step"]),
            "lm_steps": pytest.approx(controls["lm_steps"]),
        }
    ceiling = curves["ceiling_over_components"]["lines"]
    controls = figures["ridge_ceiling"]["controls"]
    assert ceiling["step"][-1] == pytest.approx(controls["step"])


def narrow(folder: Path, h: int, newton: dict[str, Any]) -> list[Any]:
    """Coefficients and offset of a real audit with h components, and its narrower audits."""
    stages = {"spectrum": {"components": h}, "newton": newton}
    space = audits.audit(folder, "newton", **stages)
    context = Readers(space)
    store = space.reader("newton")
    own = {"step": store.array("coefficients")}
    if store.has("coefficients_lm"):
        own["lm_steps"] = store.array("coefficients_lm")
    return [own, space.reader("spectrum").array("offset"), component_sweep(context, context)]


class Readers:
    """As much of a stage's inputs and context as narrower audits need."""

    def __init__(self, space: Any) -> None:
        for name in ("kernel", "moments", "spectrum", "newton"):
            setattr(self, name, space.reader(name))
        self.reader, self.stop, self.device = space.reader, StopFlag(), HOST


@pytest.mark.parametrize(
    "newton",
    [
        {"damping": 10.0, "lm_steps": 2, "damping_grid": [10.0]},
        {
            "objective": "vicreg",
            "damping": 1.0,
            "metric": "rkhs",
            "lm_steps": 0,
            "damping_grid": [1.0],
        },
    ],
)
def test_a_narrower_audit_is_the_audit_with_fewer_components(tmp_path: Path, newton):
    wide = narrow(tmp_path, 4, newton)[2]
    own, offset, _ = narrow(tmp_path, 2, newton)
    found = wide[1]
    assert [audit.n_components for audit in wide] == [1, 2, 4]
    assert found.offset == pytest.approx(offset)
    assert sorted(found.coefficients) == sorted(["start", *own])
    for name, coefficients in own.items():
        scale = np.abs(coefficients).max()
        assert found.coefficients[name] == pytest.approx(coefficients, abs=1e-3 * scale), name
    cut = wide[2].coefficients["step"][:, :2]
    assert np.abs(cut - found.coefficients["step"]).max() > 1e-3 * np.abs(cut).max()


def test_a_streamed_objective_shows_the_start_only(tmp_path: Path):
    found = narrow(tmp_path, 4, {"objective": "byol", "damping": 1.0, "damping_grid": [1.0]})[2]
    assert [list(audit.coefficients) for audit in found] == [["start"]] * 3


def test_every_comparator_is_removed_and_ranked_alike(figures, rows):
    """The same drop and the same Precision@1 for every way to name landmarks."""
    drop, first = (figures[name]["controls"] for name in ("confidence_drop", "precision_at_1"))
    ranked = {name.removeprefix("ranked_by_") for name in drop if name.startswith("ranked_by_")}
    assert ranked == set(first) - {"majority_class", "random"}
    space, held = audits.finished(), rows["held"]
    A = space.reader("influence").array("coefficients")
    influence = np.abs(held["kernel"]) * np.linalg.norm(
        space.reader("influence").array("step"), axis=1
    )
    left = held["step"].copy()
    for t, row in enumerate(influence):
        for one in np.argsort(-row, kind="stable")[:10]:
            left[t] -= held["kernel"][t, one] * A[one]
    fit = rows["fit"]
    before, after = (vote(f, fit["step"], fit["label"]) for f in (held["step"], left))
    each, predicted = np.arange(len(before)), before.argmax(axis=1)
    expected = (before[each, predicted] - after[each, predicted]).mean()
    assert drop["ranked_by_paper"] == pytest.approx(expected)


def test_without_labels_there_are_no_label_figures(tmp_path: Path):
    path = audits.write_recipe(tmp_path)
    path.write_text(path.read_text().replace("label: kind", "exclude: [kind]"))
    figures = run_own(path, tmp_path)
    assert sorted(figures) == [
        "cka",
        "neighbour_overlap",
        "nystrom_error",
        "ridge_ceiling",
        "spectral_entropy",
        "stability",
    ]
    assert sorted(figures["neighbour_overlap"]["paired"]) == [
        "against_inputs",
        "step_against_kernel",
    ]
    assert (
        figures["neighbour_overlap"]["value"] > figures["neighbour_overlap"]["controls"]["random"]
    )


def test_one_class_gives_words_instead_of_figures(tmp_path: Path):
    path = audits.write_recipe(tmp_path)
    table = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(table.replace(",q\n", ",p\n"))
    figures = run_own(path, tmp_path)
    for name in ("kendall_tau", "accuracy_gap"):
        assert figures[name]["value"] is None
        assert "1 classes among 150 fit samples" in figures[name]["reason"]
    assert figures["precision_at_1"]["value"] == 1.0
    assert figures["precision_at_1"]["controls"]["majority_class"] == 1.0
    assert figures["coverage"]["value"] == 1


def test_few_fit_samples_leave_the_uniform_control_out(tmp_path: Path):
    space = audits.audit(tmp_path, "fidelity", audited={"audit": 30, "fit": 30})
    figures = space.reader("fidelity").attributes["figures"]
    assert figures["ridge_ceiling"]["controls"]["uniform_landmarks"] is None
    assert figures["ridge_ceiling"]["value"] is not None


def test_no_fit_samples_leave_most_figures_undefined_in_words(tmp_path: Path):
    space = audits.audit(tmp_path, audited={"audit": 30, "fit": 0})
    store = space.reader("fidelity")
    figures = store.attributes["figures"]
    assert "raise stages.audited.fit" in figures["ridge_ceiling"]["reason"]
    for name in ("ridge_ceiling", "kendall_tau", "accuracy_gap", "confidence_drop", "drop_ratio"):
        assert figures[name]["value"] is None, name
        assert figures[name]["reason"], name
    for name in ("cka", "nystrom_error", "precision_at_1", "coverage"):
        assert figures[name]["value"] is not None, name
    assert "ceiling_over_components" not in store.attributes["curves"]


def test_paired_differences_are_those_of_the_values(figures):
    """What is subtracted from what stands in the table of figures."""
    compared = {}
    for key, found in figures.items():
        for name, (first, second) in FIGURES[key].paired.items():
            values = {VALUE: found["value"], **found["controls"]}
            pair = found["paired"][name]
            assert pair["value"] == pytest.approx(values[first] - values[second], abs=1e-9), key
            low, high = pair["interval"]
            assert low <= pair["value"] <= high
            compared[key, name] = pair
    both = {key for key, name in compared if name == STEP_AGAINST_KERNEL}
    assert both == {"ridge_ceiling", "kendall_tau", "accuracy_gap", "cka", "neighbour_overlap",
                    "precision_at_1", "confidence_drop", "drop_ratio",
                    "decision_flips"}  # fmt: skip
    without_inputs = {"drop_ratio", "decision_flips"}
    assert {key for key, name in compared if name == AGAINST_INPUTS} == both - without_inputs


def test_the_paired_gap_counts_samples_that_one_probe_gets_right(figures, rows):
    difference = probe(rows, "step")[1].astype(float) - probe(rows, "kernel")[1]
    low, high = figures["accuracy_gap"]["paired"]["step_against_kernel"]["interval"]
    width = 2 * 1.96 * 100 * difference.std() / np.sqrt(len(difference))
    assert high - low == pytest.approx(width, rel=0.25)


def test_the_noise_ceilings_are_means_over_splits_of_the_fit_samples(figures):
    store = audits.finished().reader("fidelity")
    taus, gaps = store.array("refit_tau"), store.array("refit_gap")
    assert taus.shape == (REFITS,)
    assert gaps.shape == (REFITS, 2)
    assert len(set(taus.tolist())) == REFITS
    # The network itself, of gap 0, is at the ceiling of the gap
    for key, mean in (("kendall_tau", taus.mean()), ("accuracy_gap", min(0.0, gaps.mean()))):
        ceiling = figures[key]["controls"]["noise_ceiling"]
        assert ceiling == pytest.approx(mean)
        assert figures[key]["at_ceiling"] is (figures[key]["value"] >= ceiling)
    others = {key for key, found in figures.items() if found["at_ceiling"] is None}
    assert others == set(figures) - {"kendall_tau", "accuracy_gap"}


def test_a_refit_is_a_probe_of_one_half(figures, rows):
    """A naive probe on the halves of the first split; its halves are as in earlier versions."""
    from scipy.stats import kendalltau

    fit, held = rows["fit"], rows["held"]
    ids = audits.finished().reader("audited").array("sample_id")
    role = audits.finished().reader("audited").array("role")
    seed = audits.recipe_of(audits.finished()).seed
    half = counter_rng.bits(seed, 421, ids[role == 1]) % np.uint64(2) == 0
    truths = []
    for part in (half, ~half):
        scale = StandardScaler().fit(fit["network"][part])
        model = LogisticRegression(tol=1e-8, max_iter=5000)
        model.fit(scale.transform(fit["network"][part]), fit["label"][part])
        P = model.predict_proba(scale.transform(held["network"]))
        truths.append(P[np.arange(len(P)), held["label"]])
    expected = kendalltau(*truths).statistic
    found = audits.finished().reader("fidelity").array("refit_tau")[0]
    assert found == pytest.approx(expected, abs=0.005)


def test_the_workers_change_no_bit(tmp_path: Path):
    """One worker and three: the same files."""
    finished = audits.finished()
    for workers in (1, 3):
        root = tmp_path / str(workers)
        shutil.copytree(finished.root, root)
        shutil.rmtree(root / ".krepes" / "stages" / "fidelity")
        shutil.rmtree(root / "audit.zarr" / "fidelity")
        run(audits.recipe_of(finished), root, Options(workers=workers, only="fidelity"))
        assert differences(finished.root, root) == []


def run_own(path: Path, folder: Path) -> dict[str, Any]:
    run(Recipe.load(str(path)), folder / "w", Options(workers=2))
    return dict(Workspace(folder / "w").reader("fidelity").attributes["figures"])


def test_powers_of_two_end_at_the_whole():
    assert powers_of_two(1) == [1]
    assert powers_of_two(4) == [1, 2, 4]
    assert powers_of_two(6) == [1, 2, 4, 6]


NEWTON = {"trusted": False, "reason": "r", "loss_start": 1.0, "loss_step": 2.0, "rho": -1.0}


def test_an_undefined_figure_says_why():
    found = figure_or_reason("coverage", nothing)
    assert math.isnan(found.value)
    assert found.reason == "fidelity: nothing there; expected something"
    assert control_or_none(nothing) is None
    lines = fidelity_lines(
        {"a": found, "b": figure("coverage", 0.5, {"random": None}, (0, 1))}, NEWTON
    )
    assert "is NOT trusted (r)" in lines[0]
    title = "Landmarks needed to cover all classes (kappa)"
    assert lines[1] == f"{title}: not defined: fidelity: nothing there; expected something"
    assert lines[2] == "all 2 figures, each beside its controls: report.html, report.json"


def test_the_summary_says_on_which_side_of_its_interval_a_control_lies(figures):
    tau = complete("kendall_tau", 0.8, (0.78, 0.82), start=0.79, raw_inputs=0.5, noise_ceiling=0.9)
    alone = complete("precision_at_1", 0.5)
    missing = figure_or_reason("confidence_drop", nothing)
    lines = summary_lines({"kendall_tau": tau, "precision_at_1": alone, "confidence_drop": missing})
    assert lines == [
        "in short:",
        "    agreement with the network (tau): 0.800, above a probe on raw inputs (0.500); "
        "level with the start (0.790); below the network against itself (0.900)",
        "    first landmarks of the same class: 0.500, without a control",
    ]
    assert summary_lines({"confidence_drop": missing}) == []
    above = complete("kendall_tau", 0.95, (0.9, 1.0), noise_ceiling=0.9)
    assert summary_lines({"kendall_tau": above})[1].startswith(
        "    agreement with the network (tau): 0.950 (at the ceiling), "
    )
    real = summary_lines({key: Figure.from_attributes(key, one) for key, one in figures.items()})
    assert len(real) == 6
    assert real[-1].startswith("    kernel rows explain ")


def nothing() -> Any:
    raise StageFailed("nothing there", where="fidelity", expected="something")
