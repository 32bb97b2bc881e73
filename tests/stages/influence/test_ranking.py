"""One ranking: what the stage stores and what explaining recomputes are the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.runner.explanation.explain import _Explainer
from krepes_ooc.stages.influence.ranking import RankedLandmarks
from krepes_ooc.stages.influence.stage import ROWS
from krepes_ooc.storage.workspace import Workspace
from tests.stages import audits


@pytest.mark.parametrize("measure", ["aligned", "is", "unique", "kernel"])
def test_explaining_gives_the_bits_of_the_store(measure: str, tmp_path: Path) -> None:
    space = audits.audit(tmp_path, "influence", influence={"measure": measure})
    store = space.reader("influence")
    kernel, count = store.array("kernel"), store.info("top_landmark").shape[1]
    assert len(kernel) <= ROWS  # one row range, so that products have the same shape
    ranked = _Explainer(Workspace(space.root))._ranked(kernel, count)
    for name in (*RankedLandmarks._fields[1:], "kernel"):
        np.testing.assert_array_equal(ranked[name], store.array(name), err_msg=name)


def test_a_single_sample_differs_by_rounding_only() -> None:
    space = audits.finished()
    store = space.reader("influence")
    kernel, count = store.array("kernel"), store.info("top_landmark").shape[1]
    explainer = _Explainer(Workspace(space.root))
    for row in range(0, len(kernel), 29):
        ranked = explainer._ranked(kernel[row : row + 1], count)
        assert ranked["top_landmark"][0].tolist() == store.array("top_landmark")[row].tolist()
        for name in ("score", "contribution", "repelling"):
            np.testing.assert_allclose(
                ranked[name][0], store.array(name)[row], rtol=1e-12, atol=1e-12
            )
