"""Costs of moments, spectrum and newton, against the numbers of the formulas before their terms.

A row of a table: settings | sizes | units, disk, memory, memory of a worker, parallel tasks,
operations, scratch, memory of a device, memory of a task on it.
"""

from __future__ import annotations

from typing import Any

import pytest

from krepes_ooc.core.blocks import BlockPlan
from krepes_ooc.errors import UsageError
from krepes_ooc.stages.base.cost import Cost
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.moments import stage as moments
from krepes_ooc.stages.newton import stage as newton
from krepes_ooc.stages.newton.stage import NewtonSettings
from krepes_ooc.stages.spectrum import stage as spectrum
from krepes_ooc.stages.spectrum.stage import SpectrumSettings

# Samples, block rows, sub-rows, blocks of a shard, views, landmarks, components, outputs, bytes of
# a kernel value.
SIZES = {
    "digits": (1797, 256, 64, 1, 2, 128, 8, 32, 2),
    "one-view": (300, 256, 256, 1, 1, 24, 4, 6, 4),
    "million": (1000000, 4096, 512, 16, 2, 1000, 32, 64, 4),
    "three-views": (60000, 2048, 512, 2, 3, 2048, 16, 16, 2),
    "tiled": (200000, 1024, 256, 12, 2, 5000, 32, 128, 2),
    "tiled-three": (10000, 512, 512, 2, 3, 2100, 12, 12, 4),
}
SETTINGS: dict[str, Any] = {
    "plain": moments.MomentsSettings(),
    "dense": SpectrumSettings(solver="dense"),
    "subspace": SpectrumSettings(solver="subspace"),
    "auto": SpectrumSettings(),
    "barlow-twins": NewtonSettings(),
    "barlow-twins, nystrom": NewtonSettings(solver="krylov", preconditioner="nystrom"),
    "barlow-twins, rkhs": NewtonSettings(metric="rkhs", damping=3.0),
    "vicreg": NewtonSettings(objective="vicreg"),
    "vicreg, rkhs": NewtonSettings(objective="vicreg", metric="rkhs"),
    "spectral, nystrom": NewtonSettings(objective="spectral-contrastive", preconditioner="nystrom"),
    "simclr": NewtonSettings(objective="simclr", objective_settings={"batch": 64}),
    "simclr, nystrom": NewtonSettings(objective="simclr", preconditioner="nystrom"),
    "byol": NewtonSettings(objective="byol", metric="rkhs", damping=5.0),
    "byol, nystrom": NewtonSettings(objective="byol", preconditioner="nystrom"),
}
MOMENTS = """
plain | digits | 8 526336 344064 1228800 8 176652288 3145728 0 1114112
plain | one-view | 2 4800 0 80640 2 345600 9216 0 80640
plain | million | 16 32016000 0 109920000 16 6000000000000 384000000 0 109920000
plain | three-views | 15 302039040 159383552 461373440 15 3019898880000 3019898880 0 436207616
plain | tiled | 102 1208039552 0 436207616 17 30000000000000 13690208256 0 436207616
plain | tiled-three | 30 1208009952 247463936 675282944 10 529200000000 9059696640 0 427819008
"""
SPECTRUM = """
dense | digits | 1 17408 524288 0 - 18874368 0 524288 0
dense | one-view | 1 1728 18432 0 - 124416 0 18432 0
dense | million | 1 520000 32000000 0 - 9000000000 0 32000000 0
dense | three-views | 1 540672 134217728 0 - 77309411328 0 134217728 0
dense | tiled | 1 2600000 800000000 0 - 1125000000000 0 800000000 0
dense | tiled-three | 1 420000 141120000 0 - 83349000000 0 141120000 0
subspace | digits | 1 17408 327680 32768 - 13107200 0 0 2129920
subspace | one-view | 1 1728 46080 4608 - 230400 0 0 397824
subspace | million | 1 520000 6400000 640000 - 3200000000 0 0 17024000
subspace | three-views | 1 540672 7864320 786432 - 6710886400 0 0 34340864
subspace | tiled | 1 2600000 32000000 1310720 - 80000000000 0 0 34865152
subspace | tiled-three | 1 420000 6720000 655360 - 5292000000 0 0 34209792
auto | digits | 1 17408 524288 0 - 18874368 0 524288 0
auto | one-view | 1 1728 18432 0 - 124416 0 18432 0
auto | million | 1 520000 32000000 0 - 9000000000 0 32000000 0
auto | three-views | 1 540672 134217728 0 - 77309411328 0 134217728 0
auto | tiled | 1 2600000 32000000 1310720 - 80000000000 0 0 34865152
auto | tiled-three | 1 420000 141120000 0 - 83349000000 0 141120000 0
"""
NEWTON = """
barlow-twins | digits | 1 557056 1572864 0 - 2883584 0 524288 1572864
barlow-twins | million | 1 17408000 76480000 0 - 9925820416 0 32000000 76480000
barlow-twins | three-views | 1 17825792 255852544 0 - 4143972352 0 301989888 255852544
barlow-twins | tiled | 1 87040000 2302400000 0 - 10974396416 0 800000000 1502400000
barlow-twins | tiled-three | 1 13708800 580608000 0 - 754624512 0 317520000 263088000
barlow-twins, nystrom | digits | 1 2195456 10027008 0 - 104857600 0 524288 10027008
barlow-twins, nystrom | million | 1 68608000 340672000 0 - 25600000000 0 32000000 340672000
barlow-twins, nystrom | three-views | 1 70254592 526385152 0 - 53687091200 0 301989888 526385152
barlow-twins, nystrom | tiled | 1 343040000 3623360000 0 - 640000000000 0 800000000 2823360000
barlow-twins, nystrom | tiled-three | 1 54028800 788659200 0 - 42336000000 0 317520000 471139200
barlow-twins, rkhs | digits | 1 622592 1638400 0 - 2883584 0 1572864 1638400
barlow-twins, rkhs | million | 1 19456000 78528000 0 - 9925820416 0 96000000 78528000
barlow-twins, rkhs | three-views | 1 19922944 257949696 0 - 4143972352 0 905969664 257949696
barlow-twins, rkhs | tiled | 1 97280000 2312640000 0 - 10974396416 0 2400000000 1512640000
barlow-twins, rkhs | tiled-three | 1 15321600 582220800 0 - 754624512 0 952560000 264700800
vicreg | digits | 1 557056 1835008 0 - 104857600 0 655360 1835008
vicreg | million | 1 17408000 84672000 0 - 25600000000 0 40000000 84672000
vicreg | three-views | 1 17825792 264241152 0 - 53687091200 0 402653184 264241152
vicreg | tiled | 1 87040000 2343360000 0 - 640000000000 0 1000000000 1543360000
vicreg | tiled-three | 1 13708800 587059200 0 - 42336000000 0 423360000 269539200
vicreg, rkhs | digits | 1 557056 1835008 0 - 104857600 0 1703936 1835008
vicreg, rkhs | million | 1 17408000 84672000 0 - 25600000000 0 104000000 84672000
vicreg, rkhs | three-views | 1 17825792 264241152 0 - 53687091200 0 1006632960 264241152
vicreg, rkhs | tiled | 1 87040000 2343360000 0 - 640000000000 0 2600000000 1543360000
vicreg, rkhs | tiled-three | 1 13708800 587059200 0 - 42336000000 0 1058400000 269539200
spectral, nystrom | digits | 1 2195456 10027008 0 - 104857600 0 524288 10027008
spectral, nystrom | million | 1 68608000 340672000 0 - 25600000000 0 32000000 340672000
spectral, nystrom | three-views | 1 70254592 526385152 0 - 53687091200 0 301989888 526385152
spectral, nystrom | tiled | 1 343040000 3623360000 0 - 640000000000 0 800000000 2823360000
spectral, nystrom | tiled-three | 1 54028800 788659200 0 - 42336000000 0 317520000 471139200
simclr | digits | 20 557056 1179648 1966080 8 4710727680 0 0 1966080
simclr | million | 20 17408000 40768000 66453504 16 81920000000000 0 0 66453504
simclr | three-views | 20 17825792 187957248 76283904 15 7549747200000 0 0 134217728
simclr | tiled | 20 87040000 2209322496 134037504 17 81920000000000 0 0 800000000
simclr | tiled-three | 20 13708800 556265472 30793728 10 967680000000 0 0 141120000
simclr, nystrom | digits | 20 2195456 31391744 29687808 8 117768192000 0 0 29687808
simclr, nystrom | million | 20 68608000 737600000 350011392 16 1341440000000000 0 0 350011392
simclr, nystrom | three-views | 20 70254592 769654784 352714752 15 120795955200000 0 0 352714752
simclr, nystrom | tiled | 20 343040000 3570472448 329367552 17 266240000000000 0 0 800000000
simclr, nystrom | tiled-three | 20 54028800 1026144000 309872640 10 20079360000000 0 0 309872640
byol | digits | 20 622592 1294336 1060864 8 5299568640 0 0 1060864
byol | million | 20 19456000 44352000 72171520 16 92160000000000 0 0 72171520
byol | three-views | 20 19922944 186351616 81035264 15 8493465600000 0 0 134217728
byol | tiled | 20 97280000 2213066240 145653760 17 92160000000000 0 0 800000000
byol | tiled-three | 20 15321600 555179520 34298880 10 1088640000000 0 0 141120000
byol, nystrom | digits | 20 2195456 31391744 15925248 8 117768192000 0 0 15925248
byol, nystrom | million | 20 68608000 737600000 369999872 16 1341440000000000 0 0 369999872
byol, nystrom | three-views | 20 70254592 769654784 365690880 15 120795955200000 0 0 365690880
byol, nystrom | tiled | 20 343040000 3576763904 323076096 17 266240000000000 0 0 800000000
byol, nystrom | tiled-three | 20 54028800 1026144000 322234368 10 20079360000000 0 0 322234368
"""


def sizes_of(name: str) -> AuditSizes:
    n, block_rows, sub_rows, shard_blocks, views, m, h, outputs, itemsize = SIZES[name]
    plan = BlockPlan(n, block_rows, 256, sub_rows, shard_blocks)
    return AuditSizes(views, 512, 600, outputs, 10000, True, m, h, 500, 300, 10, itemsize, plan)


def rows(stage: Any, table: str) -> list[tuple[Any, ...]]:
    cells = ([cell.strip() for cell in line.split("|")] for line in table.strip().splitlines())
    return [
        (stage, settings, sizes, [None if one == "-" else int(one) for one in numbers.split()])
        for settings, sizes, numbers in cells
    ]


def numbers(cost: Cost) -> list[Any]:
    return [
        cost.units,
        cost.disk.bytes,
        cost.need.fixed,
        cost.need.per_worker,
        cost.need.tasks,
        cost.flops.total,
        cost.scratch.bytes,
        cost.device.fixed,
        cost.device.per_worker,
    ]


@pytest.mark.parametrize(
    ("stage", "settings", "sizes", "expected"),
    [*rows(moments, MOMENTS), *rows(spectrum, SPECTRUM), *rows(newton, NEWTON)],
)
def test_totals_are_the_recorded_numbers(
    stage: Any, settings: str, sizes: str, expected: list[Any]
) -> None:
    cost = stage.STAGE.estimate_cost(sizes_of(sizes), SETTINGS[settings])
    assert numbers(cost) == expected
    streamed = settings.startswith(("simclr", "byol"))
    assert cost.float64 == (stage is not moments and not streamed)
    assert not cost.network
    assert not cost.skipped
    assert cost.bytes_read.total == cost.freed_early.total == 0


@pytest.mark.parametrize("name", ["barlow-twins", "simclr", "byol, nystrom"])
def test_every_term_names_its_array(name: str) -> None:
    cost = newton.estimate_cost(sizes_of("million"), SETTINGS[name])
    labels = [
        term["label"]
        for quantity in cost.to_json().values()
        for terms in quantity["phases"].values()
        for term in terms
    ]
    assert labels
    assert all(labels)
    assert "total" not in labels


def test_one_view_is_refused_before_any_cost() -> None:
    with pytest.raises(UsageError, match="compares views"):
        newton.estimate_cost(sizes_of("one-view"), SETTINGS["vicreg"])
