"""The Python door to a workspace computes nothing until it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import dask
import numpy as np
import pytest

from krepes_ooc import Workspace
from krepes_ooc.engine.executor import Executor
from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.runner import plan as plan_module
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.plan import make_plan
from tests import small


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opened")
    small.audit(folder, until="influence")
    return folder


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("something computes")


def test_opening_computes_nothing(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Executor, "map", refuse)
    monkeypatch.setattr(Executor, "reduce", refuse)
    with dask.config.set(scheduler=refuse):
        space = Workspace(sealed)
        kernel, spectrum = space["kernel"], space.spectrum()
        f, scores = space.embedding(), space.influence([3, 299, 3])
        assert kernel["values"].chunks == ((1, 1), (256, 44), (24,))
        assert f.shape == (2, 300, 4)
        assert scores.shape == (2, 3, 24)
        assert all(array.chunks is not None for array in spectrum.data_vars.values())
        with pytest.raises(AssertionError, match="something computes"):
            f.compute()


def test_planning_computes_nothing(
    tmp_path: Path, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(plan_module, "base_bytes", lambda: 2**28)  # it runs a trial task
    monkeypatch.setattr(Executor, "map", refuse)
    monkeypatch.setattr(Executor, "reduce", refuse)
    assert make_plan(small.recipe(), sealed, Options())["stages"]
    assert make_plan(small.recipe(), tmp_path / "none", Options())["stages"]


def test_embedding_is_kernel_times_coefficients(sealed: Path) -> None:
    space = Workspace(sealed)
    K = space["kernel"]["values"].values.astype(np.float64)
    A, gamma = space["influence"]["coefficients"].values, space["spectrum"]["offset"].values
    assert np.allclose(space.embedding().values, K @ A + gamma, atol=1e-12)


def test_influence_is_that_of_the_samples(sealed: Path) -> None:
    space = Workspace(sealed)
    scores = space.influence([7, 0, 7], measure="is")
    row = {int(i): r for r, i in enumerate(space["kernel"]["sample_id"].values)}
    step = np.linalg.norm(space["influence"]["step"].values, axis=1)
    for place, sample in enumerate([7, 0, 7]):
        K = space["kernel"]["values"].values[:, row[sample]].astype(np.float64)
        assert np.allclose(scores.values[:, place], np.abs(K) * step)
    assert scores["sample"].values.tolist() == [7, 0, 7]


@pytest.mark.parametrize("sample", [-1, 300])
def test_no_such_sample(sealed: Path, sample: int) -> None:
    with pytest.raises(UsageError, match=rf"no sample {sample}; expected 0 to 299"):
        Workspace(sealed).influence([sample]).compute()


def test_nothing_there_yet(tmp_path: Path) -> None:
    small.audit(tmp_path, until="pretrain")
    with pytest.raises((KeyError, WorkspaceError), match="kernel"):
        Workspace(tmp_path).embedding()
