"""Whole audits on a foreign device: every block goes there, small results come back, bits stay.

The device is array-api-strict's second one, on which a host array, a host number or a default
device is an error. No GPU is needed, and none is proven: what is proven is that the blocks' path
holds no hidden transfer and nothing beyond the array API.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.errors import WorkspaceError
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
        "stages.kernel.normalise=none",
        "stages.spectrum.solver=subspace",
        "stages.influence.measure=kernel",
    ),
    "sketch": ("stages.features.kind=sketch", "stages.features.sketch=64"),
}


@pytest.mark.slow
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
    small.audit(tmp_path / "threads", *AUDITS[name])
    small.audit(tmp_path / "device", *AUDITS[name], device=StrictDevice(whole=True))
    stores = [Workspace(tmp_path / one) for one in ("threads", "device")]
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
        def back(self, values: Any) -> Any:
            if self.came > 3:
                raise MemoryError("planted")
            return super().back(values)

    small.audit(tmp_path, until="landmarks")
    with pytest.raises(MemoryError, match="planted"):
        small.audit(tmp_path, device=Stops(), until="moments")
    with pytest.raises(WorkspaceError, match="--allow-mixed-numerics") as caught:
        small.audit(tmp_path)
    assert "array-api-strict" in str(caught.value)
    small.audit(tmp_path, mixed_numerics=True)


@pytest.mark.parametrize("function", ["block_shift", "moment_sums"])
def test_a_planted_transfer_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
):
    from krepes_ooc.stages import moments as stage

    right = getattr(stage, function)

    def wrong(views: Any, *more: Any) -> Any:
        return right([np.asarray(K) for K in views], *more)

    monkeypatch.setattr(stage, function, wrong)
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        small.audit(tmp_path / "device", device=StrictDevice(), until="moments")
    small.audit(tmp_path / "threads", until="moments")
