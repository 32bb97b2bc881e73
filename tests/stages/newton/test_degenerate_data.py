"""The newton stage on degenerate data: a collapsed network, equal views, one landmark or sample."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from krepes_ooc.core.blocks import BlockPlan
from krepes_ooc.engine.device import HOST
from krepes_ooc.errors import KrepesError, StageFailed, UsageError
from krepes_ooc.stages.kernel import stream
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton import problem
from krepes_ooc.stages.newton import stage as newton
from krepes_ooc.stages.newton.objectives.registry import OBJECTIVES, create, settings_type

STREAMED = ("simclr", "byol")


class Store:
    """A sealed store in memory."""

    def __init__(self, attributes: dict[str, Any], **arrays: Any) -> None:
        self.attributes, self.arrays = attributes, arrays

    def array(self, name: str) -> Any:
        return self.arrays[name]

    whole = info = array

    def block(self, name: str, block: Any, view: int = 0) -> Any:
        return self.arrays[name][view, block.start : block.stop]


class Context:
    """A stage context over stores in memory."""

    def __init__(self, kernels: np.ndarray, objective: str, h: int, folder: Path) -> None:
        from krepes_ooc.engine.executor import Executor
        from krepes_ooc.engine.run_control import StopFlag
        from tests import dense

        rows = kernels.astype(np.float64)
        mean, second = dense.moments(rows)
        m = rows.shape[-1]
        start = np.linalg.qr(np.random.default_rng(0).normal(size=(m, h)))[0]
        offset = -start.T @ rows.mean(axis=(0, 1))
        self.stores = SimpleNamespace(
            kernel=Store({}, values=kernels, landmark_kernel=np.eye(m)),
            moments=Store({"n_samples": rows.shape[1]}, mean=mean, second=second),
            spectrum=Store({"usable_rank": m}, start=start, offset=offset),
            recipe=SimpleNamespace(seed=0),
            features=None,
            landmarks=None,
        )
        options = {"batch": 16} if objective == "simclr" else {}
        self.settings = newton.NewtonSettings(objective=objective, objective_settings=options)
        self.plan = BlockPlan(rows.shape[1], 32, 16, 16, 1)
        self.stop = StopFlag()
        self.executor = lambda: Executor(1, self.stop)
        self.record = type("Record", (), {"partials": folder / "p", "temp": folder / "t"})
        self.device = HOST
        self.binds_partials = False

    def reader(self, name: str) -> Store:
        store: Store = getattr(self.stores, name)
        return store


def opened(context: Context) -> problem.NewtonProblem:
    return problem.open_newton_problem(context.stores, context)  # type: ignore[arg-type]


def cloud(views: int = 2, n: int = 48, m: int = 6, noise: float = 0.3) -> np.ndarray:
    draw = np.random.default_rng(1)
    shared = draw.normal(size=(n, m))
    return (shared + noise * draw.normal(size=(views, n, m))).astype(np.float16)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_an_ordinary_cloud_opens(tmp_path: Path, objective: str) -> None:
    assert opened(Context(cloud(), objective, 3, tmp_path)).at_start.value


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_collapsed_network_is_said(tmp_path: Path, objective: str, value: float) -> None:
    if objective == "spectral-contrastive" and value:
        pytest.skip("un-centred: a constant embedding can still grow or shrink")
    constant = np.full((2, 48, 6), value, dtype=np.float16)
    with pytest.raises(StageFailed, match=r"no curvature|no slope"):
        opened(Context(constant, objective, 3, tmp_path))


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_equal_views_stop_byol_and_nothing_else(tmp_path: Path, objective: str) -> None:
    context = Context(cloud(noise=0.0), objective, 3, tmp_path)
    if objective == "byol":
        with pytest.raises(StageFailed, match=r"no slope .* views of each sample may be equal"):
            opened(context)
    else:
        assert np.isfinite(opened(context).at_start.gradient).all()


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_one_landmark(tmp_path: Path, objective: str) -> None:
    """One component: what has a step solves it, what cannot turn says so."""
    context = Context(cloud(m=1), objective, 1, tmp_path)
    if objective in STREAMED:
        with pytest.raises(UsageError, match=f"1 component of {objective}, which compares"):
            opened(context)
    else:
        assert opened(context).at_start.mean_diagonal > 0


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_one_sample_is_refused_or_finite(objective: str, tmp_path: Path) -> None:
    mean, second = np.ones((2, 3)), np.zeros((2, 2, 3, 3))
    context = Context(cloud(n=1, m=3), objective, 2, tmp_path)
    try:
        found = create(
            objective,
            settings_type(objective)(),
            moments=Moments(mean, second, 1),
            stream=stream.KernelStream(context.stores.kernel, None, None, context),  # type: ignore[arg-type]
            start=context.stores.spectrum.array("start"),
            offset=np.zeros(2),
        )
        assert np.isfinite(found.value(context.stores.spectrum.array("start")))
    except KrepesError as error:
        assert "samples" in str(error)  # noqa: PT017
