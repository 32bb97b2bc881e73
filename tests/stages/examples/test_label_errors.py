"""Arrays that tools for wrong labels read: shapes, types, and cleanlab where it is there."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stages import audits


def test_the_arrays_are_those_that_the_documents_promise():
    audited = audits.finished().reader("audited")
    features, labels = audited.array("network_embedding"), audited.array("label")
    assert (features.dtype, labels.dtype) == (np.float32, np.int64)
    assert features.ndim == 2
    assert labels.shape == audited.array("sample_id").shape == (len(features),)
    assert set(np.unique(labels)) <= {-1, 0, 1}
    assert np.isfinite(features).all()


def test_cleanlab_reads_them():
    classification = pytest.importorskip("cleanlab.classification")
    audited = audits.finished().reader("audited")
    features, labels = audited.array("network_embedding"), audited.array("label")
    found = classification.CleanLearning(seed=0).find_label_issues(features, labels)
    assert len(found) == len(labels)
    assert found["is_label_issue"].dtype == bool
