from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.landmarks import count_rule, samplers
from krepes_ooc.stages.landmarks.sampling import gumbel_keys
from krepes_ooc.storage.workspace import Workspace
from tests.stages import audits

SAMPLERS = ("kmeans-parallel", "kmeans++", "leverage", "uniform")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose features are sealed, in two blocks."""
    folder = tmp_path_factory.mktemp("landmarks")
    audits.audit(folder, "features")
    return folder


def landmarks(folder: Path, sampler: str, workers: int = 2, **more: Any) -> dict[str, np.ndarray]:
    recipe = audits.write_recipe(folder, landmarks={"count": 24, "sampler": sampler, **more})
    options = Options(workers=workers, until="landmarks", restart_stale=True)
    run(Recipe.load(str(recipe)), folder / "w", options)
    reader = Workspace(folder / "w").reader("landmarks")
    assert reader.attributes["sampler"] == sampler
    return {name: reader.array(name) for name in ("sample_id", "weight", "features", "view")}


def rows(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Centred cosine kernel of view 0 among all samples, densely, and the sample ids."""
    from krepes_ooc.core.feature_layout import FeatureLayout
    from krepes_ooc.stages.features.inner_products import centre_self, unscale
    from krepes_ooc.stages.kernel.kernel_map import landmark_kernel
    from krepes_ooc.stages.kernel.normalisation import Normalisation

    reader = Workspace(folder / "w").reader("features")
    layout = FeatureLayout.from_attributes(reader.attributes["layout"])
    stored = reader.array("values")[0].astype(np.float64)
    centre = reader.array("centre")
    normalisation = Normalisation("ccos", centre_self(centre))
    K = landmark_kernel(unscale(stored, layout), layout, centre, normalisation)
    return np.asarray(K), reader.array("sample_id")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_landmarks_are_distinct_samples_and_weights_count_all(folder: Path, sampler: str):
    found = landmarks(folder, sampler)
    assert len(np.unique(found["sample_id"])) == 24
    assert (np.diff(found["sample_id"]) > 0).all()
    assert found["weight"].sum() == pytest.approx(audits.ROWS)


@pytest.mark.parametrize("sampler", ["kmeans++", "leverage"])
def test_the_choice_does_not_depend_on_workers(folder: Path, sampler: str):
    two = landmarks(folder, sampler)
    landmarks(folder, "uniform")
    one = landmarks(folder, sampler, workers=1)
    assert one["sample_id"].tolist() == two["sample_id"].tolist()
    assert one["weight"].tolist() == two["weight"].tolist()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_weights_are_the_samples_nearest_to_a_landmark(folder: Path, sampler: str):
    found, (K, ids) = landmarks(folder, sampler), rows(folder)
    position = [int(np.flatnonzero(ids == one)[0]) for one in found["sample_id"]]
    nearest = np.argmax(K[:, position], axis=1)
    assert found["weight"].tolist() == np.bincount(nearest, minlength=24).tolist()


def test_leverage_draws_the_largest_keys_of_the_dense_scores(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """With all samples as the pilot the scores are exact ridge leverage scores."""
    landmarks(folder, "uniform")
    monkeypatch.setattr(samplers, "PILOT", audits.ROWS)
    found, (K, ids) = landmarks(folder, "leverage"), rows(folder)
    values = np.linalg.eigvalsh(K)
    tail = max(float(np.sort(np.maximum(values, 0))[::-1][24:].sum()), 1e-10 * np.trace(K))
    damping = tail / 24
    # (k_ii - k_i (K + damping I)^-1 k_i) / damping = [K (K + damping I)^-1]_ii
    scores = np.diag(K @ np.linalg.inv(K + damping * np.eye(len(K))))
    keys = gumbel_keys(np.log(np.clip(scores, 2.0**-52, 1)), ids, seed=0)
    expected = set(ids[np.argsort(-keys)[:24]].tolist())
    assert expected == set(found["sample_id"].tolist())


def test_kmeans_plus_plus_resumes_after_any_round(folder: Path, monkeypatch: pytest.MonkeyPatch):
    whole = landmarks(folder, "kmeans++")
    landmarks(folder, "uniform")
    monkeypatch.setattr(samplers, "ROUND", 5)
    calls = 0

    def stop_later(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return extend(*args, **kwargs)

    extend = samplers.extend_seeding
    monkeypatch.setattr(samplers, "extend_seeding", stop_later)
    with pytest.raises(KeyboardInterrupt):
        landmarks(folder, "kmeans++")
    again = landmarks(folder, "kmeans++")
    assert calls == 6  # two rounds were on disk, three were left
    assert again["sample_id"].tolist() == whole["sample_id"].tolist()
    assert again["features"].tobytes() == whole["features"].tobytes()


def test_kmeans_spreads_more_than_uniform(folder: Path):
    K, ids = rows(folder)

    def error(sampler: str) -> float:
        at = np.isin(ids, landmarks(folder, sampler)["sample_id"])
        explained = K[:, at] @ np.linalg.pinv(K[np.ix_(at, at)]) @ K[at]
        return float(np.trace(K - explained))

    assert error("kmeans++") < error("uniform")
    assert error("kmeans-parallel") < error("uniform")


@pytest.mark.parametrize("sampler", ["kmeans-parallel", "uniform"])
def test_rows_of_the_view_that_landmarks_were_chosen_by(folder: Path, sampler: str):
    clean = landmarks(folder, sampler)
    found = landmarks(folder, sampler, rows="views")
    # The choice and its weights do not depend on the rows that stand for the landmarks.
    assert found["sample_id"].tolist() == clean["sample_id"].tolist()
    assert found["weight"].tolist() == clean["weight"].tolist()
    assert set(found["view"]) == {0}
    assert set(clean["view"]) == {-1}
    reader = Workspace(folder / "w").reader("features")
    ids = reader.array("sample_id")
    at = [int(np.flatnonzero(ids == one)[0]) for one in found["sample_id"]]
    stored = reader.array("values")[0, at]
    assert np.array_equal(found["features"], stored)
    assert not np.array_equal(clean["features"], stored)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("rows", ["clean", "views"])
def test_auto_takes_the_smallest_number_whose_error_is_low(
    folder: Path, sampler: str, rows: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(count_rule, "FIRST_COUNT", 5)
    found = landmarks(folder, sampler, count="auto", rows=rows)
    curve = Workspace(folder / "w").reader("landmarks").attributes["nystrom_curve"]
    assert [point["landmarks"] for point in curve] == [5, 10, 20, 40, 80, 160]
    errors = [point["error"] for point in curve]
    assert errors == sorted(errors, reverse=True)
    low = [point["landmarks"] for point in curve if point["error"] <= 0.1]
    assert len(found["sample_id"]) == (low[0] if low else 160)
    assert found["weight"].sum() == audits.ROWS
    # The error of these landmarks over all samples and views, without the rank that the spectrum
    # stage cuts for the rounding of the stored kernel.
    change = {"count": "auto", "sampler": sampler, "rows": rows}
    reader = audits.audit(folder, "kernel", landmarks=change).reader("kernel")
    K = np.concatenate(reader.array("values").astype(np.float64))
    inverse = np.linalg.pinv(reader.whole("landmark_kernel"), rcond=1e-6, hermitian=True)
    expected = 1 - np.einsum("xi,ij,xj->", K, inverse, K) / len(K)
    by_count = dict(zip([point["landmarks"] for point in curve], errors, strict=True))
    assert by_count[K.shape[1]] == pytest.approx(expected, abs=0.003)


def test_a_stated_number_has_no_curve(folder: Path):
    landmarks(folder, "uniform")
    assert Workspace(folder / "w").reader("landmarks").attributes["nystrom_curve"] == []
