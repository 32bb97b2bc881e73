"""Whole audits on a foreign device: every block goes there, small results come back, bits stay.

The device is array-api-strict's second one, on which a host array, a host number or a default
device is an error. No GPU is needed, and none is proven: what is proven is that the blocks' path
holds no hidden transfer and nothing beyond the array API.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from krepes_ooc.core import array_columns
from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.errors import DataError, PlanRefused, Stopped, WorkspaceError
from krepes_ooc.stages.features.featurizer import Featurizer
from krepes_ooc.stages.kernel import stream
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.crash.compare import differences
from tests.foreign import StrictDevice

AUDITS: dict[str, tuple[str, ...]] = {
    "digits": (),
    "simclr": (
        "stages.newton.objective=simclr",
        "stages.newton.objective_settings.batch=64",
        "stages.newton.max_iterations=3",
        "stages.landmarks.sampler=leverage",
    ),
    "byol": (
        "stages.newton.objective=byol",
        "stages.newton.metric=rkhs",
        "stages.newton.max_iterations=3",
        "stages.landmarks.sampler=kmeans++",
        "stages.influence.measure=unique",
    ),
    "vicreg": (
        "stages.newton.objective=vicreg",
        "stages.newton.solver=krylov",
        "stages.features.persist=never",
        "stages.influence.measure=is",
    ),
    "spectral": (
        "stages.newton.objective=spectral-contrastive",
        "stages.newton.metric=rkhs",
        "stages.newton.preconditioner=nystrom",
        "stages.newton.preconditioner_rank=20",
        "stages.kernel.normalise=none",
        "stages.spectrum.solver=subspace",
        "stages.influence.measure=kernel",
    ),
    "sketch": ("stages.features.kind=sketch", "stages.features.sketch=64"),
}


@pytest.fixture
def one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of iterates by the calls of the array API on the host, too: bits can be compared."""
    monkeypatch.setattr(array_columns, "is_numpy_array", lambda values: False)


@pytest.mark.slow
@pytest.mark.usefixtures("one_way")
@pytest.mark.parametrize("name", AUDITS)
def test_an_audit_on_a_foreign_device_has_the_bits_of_threads(tmp_path: Path, name: str):
    device = StrictDevice()
    small.audit(tmp_path / "threads", *AUDITS[name])
    small.audit(tmp_path / "device", *AUDITS[name], device=device)
    assert differences(tmp_path / "threads", tmp_path / "device") == []
    assert device.moved > 100
    assert device.came > 30
    assert not device.kept
    assert small.seals(tmp_path / "threads") == small.seals(tmp_path / "device")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "byol"])
def test_products_over_all_rows_at_hand_differ_by_rounding_alone(tmp_path: Path, name: str):
    threads = small.finished()
    if AUDITS[name]:
        small.audit(threads := tmp_path / "threads", *AUDITS[name])
    small.audit(tmp_path / "device", *AUDITS[name], device=StrictDevice(whole=True))
    stores = [Workspace(one) for one in (threads, tmp_path / "device")]
    for store, array in (("kernel", "values"), ("moments", "second"), ("newton", "step")):
        wanted, found = (space.reader(store).array(array) for space in stores)
        size = float(np.abs(wanted.astype(float)).max())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3 * size)


def test_the_numerics_of_a_run_name_its_device(tmp_path: Path):
    small.audit(tmp_path, device=StrictDevice(), until="kernel")
    for stage in ("features", "kernel"):
        folder = tmp_path / ".krepes" / "stages" / stage
        assert str(_body(folder / "begun.json")["numerics"]).endswith("; array-api-strict")
        assert str(_body(folder / "seal.json")["numerics"]).endswith("; array-api-strict")


def _body(path: Path) -> Any:
    return json.loads(path.read_text())["body"]


def test_a_stage_begun_on_another_device_waits_for_a_word(tmp_path: Path):
    class Stops(StrictDevice):
        def to_host(self, values: Any) -> Any:
            if self.came > 3:
                raise ValueError("planted")
            return super().to_host(values)

    small.audit(tmp_path, until="landmarks")
    with pytest.raises(ValueError, match="planted"):
        small.audit(tmp_path, device=Stops(), until="moments")
    with pytest.raises(WorkspaceError, match="--allow-mixed-numerics") as caught:
        small.audit(tmp_path)
    assert "array-api-strict" in str(caught.value)
    small.audit(tmp_path, mixed_numerics=True)


@pytest.mark.parametrize("function", ["block_shift", "moment_sums"])
def test_a_planted_transfer_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
):
    from krepes_ooc.stages.moments import stage

    right = getattr(stage, function)

    def wrong(views: Any, *more: Any) -> Any:
        return right([np.asarray(K) for K in views], *more)

    monkeypatch.setattr(stage, function, wrong)
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        small.audit(tmp_path / "device", device=StrictDevice(), until="moments")
    small.audit(tmp_path / "threads", until="moments")


MOMENTS = {
    "barlow-twins": (),
    "barlow-twins by products": ("solver=krylov", "objective=barlow-twins"),
    "vicreg": ("objective=vicreg", "metric=rkhs"),
    "spectral-contrastive": ("objective=spectral-contrastive",),
}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upstream") / "w"
    small.audit(folder, until="spectrum")
    return folder


def step(upstream: Path, folder: Path, name: str, **options: Any) -> dict[str, Any]:
    """What the stage newton seals in a copy of a workspace, or goes on with in that copy."""
    if not folder.exists():
        shutil.copytree(upstream, folder)
    small.audit(folder, *(f"stages.newton.{text}" for text in MOMENTS[name]), **options)
    reader = Workspace(folder).reader("newton")
    return {array: reader.array(array) for array in reader.names()}


@pytest.mark.parametrize("name", MOMENTS)
def test_a_step_by_moments_is_solved_there_and_differs_by_rounding_alone(
    tmp_path: Path, upstream: Path, name: str
):
    device = Counted()
    wanted = step(upstream, tmp_path / "threads", name, only="newton")
    found = step(upstream, tmp_path / "device", name, only="newton", device=device)
    for array in ("step", "loss", "damping", "predicted", "embedding_change", "coefficients_lm"):
        size = float(np.abs(wanted[array]).max())
        np.testing.assert_allclose(found[array], wanted[array], rtol=0, atol=1e-5 * size)
    # Moments go there once, and iterations send nothing back, however many there are.
    assert device.large == 1
    assert device.came < 90


class Counted(StrictDevice):
    """A device that counts how often moments go there."""

    large = 0

    def to_device(self, values: Any) -> Any:
        self.large += values.size >= 2 * 2 * 24 * 24
        return super().to_device(values)


@pytest.mark.parametrize("name", MOMENTS)
def test_a_step_that_was_stopped_goes_on_there(
    tmp_path: Path, upstream: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    there: dict[str, Any] = {"only": "newton", "device": StrictDevice()}
    wanted = step(upstream, tmp_path / "whole", name, **there)
    checkpoint, stops, places = stream.KernelStream.checkpoint, 0, [0]

    def stopping(self: Any, name: str, arrays: Any) -> None:
        places[0] += 1
        if places[0] == 2**stops:
            self.context.stop.request("the test says so")
        checkpoint(self, name, arrays)

    monkeypatch.setattr(stream.KernelStream, "checkpoint", stopping)
    while True:
        try:
            found = step(upstream, tmp_path / "stopped", name, **there)
            break
        except Stopped:
            stops, places[0] = stops + 1, 0
    assert stops >= 2
    for array, value in wanted.items():
        np.testing.assert_array_equal(found[array], value, err_msg=array)


class RowsStay(StrictDevice):
    """A device to which no block of feature rows may go: torch has made them there."""

    width, taking = 0, False

    def to_device(self, values: Any) -> Any:
        block = values.ndim == 2 and values.shape[1] == self.width and len(values) > 24
        assert self.taking or not block, f"{values.shape} went through the host"
        return super().to_device(values)

    def from_torch(self, tensor: Any) -> Any:
        assert tensor.dtype == torch.float16
        self.taking = True
        there = super().from_torch(tensor)
        self.taking = False
        return there


@pytest.mark.parametrize("kind", ["factors", "sketch"])
@pytest.mark.parametrize("persist", ["always", "never"])
def test_rows_that_torch_makes_there_do_not_pass_through_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, persist: str, kind: str
):
    changes = (f"stages.features={{persist: {persist}, kind: {kind}, sketch: 64}}",)
    device, views, blocks = RowsStay(tasks=1), 2, 2
    small.audit(tmp_path / "threads", *changes, until="kernel")
    layout = Workspace(tmp_path / "threads").reader("features").attributes["layout"]
    device.width = FeatureLayout.from_attributes(layout).n_features
    small.audit(tmp_path / "device", *changes, device=device, until="features")
    assert device.taken == views * blocks
    plain = StrictDevice()
    small.audit(tmp_path / "device", *changes, device=plain, until="audited")
    if persist == "never":
        monkeypatch.setattr(Featurizer, "rows", None)  # the way through the host is closed
        small.audit(tmp_path / "device", *changes, device=device, until="kernel")
        assert device.taken == 2 * views * blocks
    small.audit(tmp_path / "device", *changes, device=plain, until="kernel")
    assert differences(tmp_path / "threads", tmp_path / "device") == []


def test_a_row_that_is_not_finite_is_named_where_torch_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from krepes_ooc.jacobian.exact_features import FactorFeatures

    right, seen = FactorFeatures.tensors, []

    def wrong(self: Any, inputs: Any) -> Any:
        features, embedding = right(self, inputs)
        seen.append(len(inputs))
        if len(inputs) == 256 and seen.count(256) == 2:  # the first only fixes the scales
            features[7, 3] = float("nan")
        return features, embedding

    monkeypatch.setattr(FactorFeatures, "tensors", wrong)
    with pytest.raises(DataError, match=r"sample 218, position .*feature row is nan"):
        small.audit(tmp_path, device=StrictDevice(tasks=1), until="features")


def test_a_device_too_small_for_the_moments_is_refused_at_the_door(tmp_path: Path, upstream: Path):
    tiny = StrictDevice(memory=2**14)
    with pytest.raises(PlanRefused, match=r"stage newton: .* --device cpu") as caught:
        step(upstream, tmp_path / "w", "vicreg", only="newton", device=tiny)
    assert caught.value.exit_code == 3
