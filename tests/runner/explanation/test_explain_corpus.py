"""Ranking of all samples of the source, against kernels that are computed one by one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.core.blocks import BlockPlan
from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.rendering.explanation_card import draw_card
from krepes_ooc.runner.explanation import explain_corpus as explain_corpus_module
from krepes_ooc.runner.explanation.explain_corpus import explain_corpus, nearest_samples
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.small import krepes

# Whole audits in the fixtures.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits up to influence, in several blocks."""
    folder = tmp_path_factory.mktemp("corpus")
    small.audit(folder, "stages.features.block_rows=256", until="influence")
    return folder


def dense_kernel(space: Workspace, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions, and the largest kernel over views [query, sample], by inner products of rows.

    A feature row holds factors of layers; with the centre of stored rows subtracted this is a
    cosine of expanded features, here through the landmark kernel's own definition on one row at a
    time.
    """
    from krepes_ooc.runner.explanation.explain_stores import AuditStores
    from krepes_ooc.stages.features.featurizer import unscale_rows
    from krepes_ooc.stages.features.inner_products import centre_kernel, gram, self_kernel

    stores = AuditStores(space)
    kernel_map, layout = stores.landmark_kernel.kernel_map, stores.landmark_kernel.layout
    features = space.reader("features")
    values, ids = features.array("values"), features.array("sample_id")
    centre = np.asarray(kernel_map.centre, dtype=np.float64)
    c0 = kernel_map.normalisation.centre_self
    q = unscale_rows(query, layout)

    def raw(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.asarray(gram(x.astype(np.float64), y.astype(np.float64), layout))

    def to_centre(x: np.ndarray) -> np.ndarray:
        return np.asarray(centre_kernel(x.astype(np.float64), centre, layout))

    best = np.full((len(q), len(ids)), -np.inf)
    own = np.asarray(self_kernel(q, layout)) - 2 * to_centre(q) + c0
    for view in range(values.shape[0]):
        x = unscale_rows(values[view], layout)
        k = raw(q, x) - to_centre(q)[:, None] - to_centre(x)[None] + c0
        size = np.asarray(self_kernel(x, layout)) - 2 * to_centre(x) + c0
        best = np.maximum(best, k / np.sqrt(own[:, None] * size[None]))
    return ids, best


def test_all_samples_are_ranked_by_the_audits_own_kernel(digits: Path):
    space = Workspace(digits)
    audited = space.reader("audited")
    chosen = audited.array("sample_id")[:3]
    found = explain_corpus(digits, sample=chosen.tolist(), top=12)
    ids, best = dense_kernel(space, audited.array("features")[:3])
    for i, one in enumerate(found):
        value = best[i].copy()
        value[ids == chosen[i]] = -np.inf
        order = np.lexsort((ids, -value))[:12]
        landmarks = one.audit.landmarks
        assert landmarks is not None
        scores = [link.score for link in one.links]
        np.testing.assert_allclose(scores, value[order], rtol=1e-4, atol=1e-4)
        assert len(set(ids[order]) & set(landmarks.sample_id.tolist())) >= 11
        assert chosen[i] not in landmarks.sample_id
        assert scores == sorted(scores, reverse=True)


def test_a_sample_that_was_not_audited_and_a_new_one_are_ranked(digits: Path, tmp_path: Path):
    from sklearn.datasets import load_digits

    audited = set(Workspace(digits).reader("audited").array("sample_id").tolist())
    other = next(i for i in range(small.ROWS) if i not in audited)
    (one,) = explain_corpus(digits, sample=other, top=5)
    np.save(tmp_path / "new.npy", load_digits().images[other])
    (new,) = explain_corpus(digits, file=tmp_path / "new.npy", top=6)
    assert one.audit.landmarks is not None
    assert new.audit.landmarks is not None
    # The new one has itself in the source, then the same neighbours.
    known = new.audit.landmarks.sample_id.tolist()
    assert other in known
    assert set(one.audit.landmarks.sample_id.tolist()) <= set(known) | {other}


def test_text_json_and_card(digits: Path, capsys: Any):
    sample = str(Workspace(digits).reader("audited").array("sample_id")[0])
    given = ("explain", "-w", str(digits), "--sample", sample, "--corpus", "--top", "4")
    shown = krepes(capsys, *given)
    assert shown.code == 0, shown.err
    assert "of 4 share its class" in shown.out
    (document,) = json.loads(krepes(capsys, *given, "--json").out)
    assert document["measure"] == "corpus"
    assert [one["rank"] for one in document["sample"]["landmarks"]] == [1, 2, 3, 4]
    (one,) = explain_corpus(digits, sample=int(sample), top=4)
    assert draw_card(one).startswith(b"\x89PNG")


def test_fewer_samples_than_asked_for_are_all_listed(digits: Path):
    sample = int(Workspace(digits).reader("audited").array("sample_id")[0])
    (one,) = explain_corpus(digits, sample=sample, top=900)
    assert len(one.links) == small.ROWS - 1


def test_bad_input_is_refused(digits: Path, tmp_path: Path, capsys: Any):
    with pytest.raises(UsageError, match="at most 1000"):
        explain_corpus(digits, sample=0, top=5000)
    both = krepes(
        capsys, "explain", "-w", str(digits), "--sample", "0", "--corpus", "--against", "1"
    )
    assert both.code == 2
    assert "--against and --corpus were given" in both.line
    shutil.copytree(digits, tmp_path / "w")
    shutil.rmtree(tmp_path / "w" / "audit.zarr" / "features")
    with pytest.raises(WorkspaceError, match="no feature rows of all samples"):
        explain_corpus(tmp_path / "w", sample=0)


class RepeatedBlocks:
    """The store features with its first block a number of times, positions counted on."""

    def __init__(self, store: Any, times: int) -> None:
        plan = BlockPlan.from_attributes(store.attributes["block_plan"])
        self.store, self.rows = store, plan.block(0).rows
        long = dataclasses.replace(plan, n_samples=self.rows * times)
        self.attributes = {**store.attributes, "block_plan": long.to_attributes()}
        self.first = plan.block(0)

    def info(self, name: str) -> Any:
        return self.store.info(name)

    def block(self, name: str, block: Any, view: int | None = None) -> Any:
        if name == "sample_id":
            return np.arange(block.start, block.start + self.rows)
        return np.array(self.store.block(name, self.first, view))


def test_memory_is_that_of_one_block_and_the_explained_rows(
    digits: Path, monkeypatch: pytest.MonkeyPatch
):
    """The bytes that the document counts, whatever the number of samples and of explained ones."""
    from krepes_ooc.runner.explanation.explain_stores import AuditStores, Samples

    stores = AuditStores(Workspace(digits))
    store = stores.reader("features")
    landmark_kernel, audited = stores.landmark_kernel, stores.reader("audited")
    n_features = store.info("values").shape[2]
    peaks = {}
    for times, n_explained in ((2, 1), (2, 30), (40, 1), (40, 30)):
        repeated = RepeatedBlocks(store, times)
        monkeypatch.setattr(explain_corpus_module, "_features", lambda _, r=repeated: r)
        ids = audited.array("sample_id")[:n_explained]
        rows = np.arange(n_explained)
        empty = np.zeros((n_explained, 1))
        samples = Samples({"sample_id": ids}, empty, empty, rows)
        tracemalloc.start()
        found, value = nearest_samples(stores, samples, 10)
        peaks[times, n_explained] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.shape == value.shape == (n_explained, 10)
        block = repeated.rows * n_features * 2
        products = landmark_kernel.sub_rows * (12 * n_explained + 8 * n_features)
        candidates = 48 * n_explained * (repeated.rows + 10)
        explained = 32 * n_explained * n_features
        # A tenth and 1 MiB for small objects and the centre
        assert peaks[times, n_explained] < 1.1 * (
            2 * block + products + candidates + explained + 2**20
        )
    for n_explained in (1, 30):
        assert peaks[40, n_explained] < 1.1 * peaks[2, n_explained]
