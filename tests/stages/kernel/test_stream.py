"""How kernel rows come to a device: the rule in numbers, and the same bits whichever way."""

from __future__ import annotations

from pathlib import Path

import pytest

from krepes_ooc.engine.device import HOST, Speed
from krepes_ooc.errors import PlanRefused
from krepes_ooc.stages.kernel import stream
from krepes_ooc.stages.kernel.stream import choose_placement, recompute_pays
from tests import small
from tests.crash.compare import differences
from tests.foreign import StrictDevice

H200 = Speed(flops=40e12, bandwidth=20e9)
SLOW_WIRE = Speed(flops=40e12, bandwidth=2e9)
GIB = 2**30


@pytest.mark.parametrize(
    ("speed", "width", "landmarks", "itemsize", "pays"),
    [
        (H200, 3999, 10_000, 4, True),  # 2 D / F < 4 / B up to D = 4000
        (H200, 4001, 10_000, 4, False),
        (H200, 1999, 10_000, 2, True),  # float16 is read in half the time
        (H200, 2001, 10_000, 2, False),
        (SLOW_WIRE, 39_999, 100_000, 4, True),
        (SLOW_WIRE, 40_001, 100_000, 4, False),
        (H200, 512, 257, 4, True),  # the feature row is read too, two bytes a number
        (H200, 512, 255, 4, False),
    ],
)
def test_rows_are_computed_again_where_that_is_sooner_than_reading_them(
    speed: Speed, width: int, landmarks: int, itemsize: int, pays: bool
):
    assert recompute_pays(width, landmarks, itemsize, speed) == pays


def test_a_kernel_that_fits_stays_on_the_device():
    device = StrictDevice(memory=8 * GIB, speed=H200)
    million = 2 * 10**6 * 1000
    assert choose_placement(device, million, 1000, 2, 512) == "resident"
    assert choose_placement(device, 10 * million, 10_000, 2, 512) == "recomputed"
    assert choose_placement(device, 10 * million, 10_000, 2, 4096) == "streamed"
    assert choose_placement(device, 10 * million, 10_000, 2, 0) == "streamed"
    assert choose_placement(HOST, 1, 1, 2, 512) == "streamed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resident", "flops", "way"),
    [(0.5, 1.0, "resident"), (0.0, 1e18, "recomputed"), (0.0, 1.0, "streamed")],
)
def test_each_way_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: float, flops: float, way: str
):
    changes = (
        "stages.newton.objective=byol",
        "stages.newton.max_iterations=3",
        "stages.features.kind=sketch",
        "stages.features.sketch=16",
    )
    small.audit(tmp_path / "threads", *changes)
    monkeypatch.setattr(stream, "RESIDENT", resident)
    chosen, right = [], stream.choose_placement
    monkeypatch.setattr(
        stream, "choose_placement", lambda *given: chosen.append(right(*given)) or chosen[-1]
    )
    device = StrictDevice(speed=Speed(flops, 1e9))
    small.audit(tmp_path / "device", *changes, device=device)
    assert set(chosen) == {way}
    assert differences(tmp_path / "threads", tmp_path / "device") == []


def test_too_little_device_memory_is_refused_before_the_first_block(tmp_path: Path):
    with pytest.raises(PlanRefused, match=r"stage \w+: .* of device memory needed, 1\.0 KiB free"):
        small.audit(tmp_path, device=StrictDevice(memory=1024))
    assert not (tmp_path / "audit.zarr" / "features").exists()


def test_tasks_follow_from_the_memory_of_the_device(tmp_path: Path):
    needed = small_need(tmp_path)
    small.audit(tmp_path, device=StrictDevice(memory=needed))


def small_need(folder: Path) -> int:
    """What the largest stage of the tiny recipe takes on a device."""
    from krepes_ooc.runner.audit import Audit
    from krepes_ooc.storage.workspace import Workspace

    audit = Audit(small.recipe(), Workspace(folder / "plan"))
    costs = audit.costs(list(audit.states().values()), audit.sizes(anew=True)).values()
    return max(cost.device.fixed + cost.device.per_worker for cost in costs)
