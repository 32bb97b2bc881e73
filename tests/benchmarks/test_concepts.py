"""The benchmark of concepts: figures of planted scores, and an entry of a finished audit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import concepts
from tests.stages import audits


def test_auroc_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    draw = np.random.default_rng(0)
    positive, negative = draw.integers(0, 9, 40) + 1.0, draw.integers(0, 9, 60) + 0.0
    scores = np.concatenate([positive, negative])
    expected = roc_auc_score([1] * 40 + [0] * 60, scores)
    assert concepts.auroc(positive, negative) == pytest.approx(expected)


def test_idx_files_are_read_as_they_were_written(tmp_path):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    concepts.write_idx(tmp_path / "a", images)
    np.testing.assert_array_equal(concepts.read_idx(tmp_path / "a"), images)


def test_planted_samples_do_not_overlap():
    where = concepts.planted()
    parts = [where.originals, where.twins, where.digits, where.others]
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
    assert len(where.twins) == len(where.originals) == concepts.TWINS


@pytest.mark.timeout(600)
def test_an_entry_is_json_and_what_the_stores_say():
    space = audits.finished()
    found = concepts.entry(audits.recipe_of(space), space)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["stability"] == pytest.approx(space.reader("discovery").array("stability").mean())
    assert found["cards_cpu_seconds"] > 0
