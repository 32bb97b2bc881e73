"""Estimated costs of the early stages: totals as recorded before costs had terms, terms with names.

``AuditSizes`` of five audits, from a tiny one to a million rows without stored features.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from krepes_ooc.core.blocks import BlockPlan
from krepes_ooc.network.pretrain import PretrainSettings
from krepes_ooc.stages.audited.stage import AuditedSettings
from krepes_ooc.stages.base.cost import Cost, Quantity, Term
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, large_batch
from krepes_ooc.stages.features.featurizer import FeaturesSettings, computing_bytes
from krepes_ooc.stages.kernel.stage import KernelSettings
from krepes_ooc.stages.landmarks.landmark_settings import LandmarksSettings
from krepes_ooc.stages.landmarks.stage import SAMPLERS
from krepes_ooc.stages.registry import BY_NAME, STAGES

SIZES = {
    "small": AuditSizes(
        *(2, 4186, 2048, 10, 5000, True, 24, 4, 110, 30, 10, 2), BlockPlan(300, 256, 256, 64, 1)
    ),
    "digits": AuditSizes(
        *(2, 1280, 32768, 64, 37_000, True, 898, 16, 1347, 449, 10, 2),
        BlockPlan(1797, 1024, 256, 512, 1),
    ),
    "million": AuditSizes(
        *(3, 2048, 524_288, 512, 1_181_696, False, 1000, 32, 11_000, 1000, 2, 4),
        BlockPlan(1_000_000, 4096, 256, 256, 15),
    ),
    "tiles": AuditSizes(
        *(2, 6400, 65_536, 128, 400_000, True, 5000, 64, 11_000, 1000, 100, 2),
        BlockPlan(60_000, 1024, 256, 128, 3),
    ),
    "one": AuditSizes(*(1, 1, 1, 1, 1, False, 1, 1, 1, 1, 0, 4), BlockPlan(2, 256, 256, 64, 1)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "pretrain": {"default": PretrainSettings(), "epochs": PretrainSettings(epochs=3, batch=64)},
    "features": {"default": FeaturesSettings()},
    "landmarks": {
        **{name: LandmarksSettings(sampler=name) for name in (*SAMPLERS, "uniform")},  # type: ignore[arg-type]
        "rounds": LandmarksSettings(rounds=3, oversampling=2.0),
    },
    "audited": {"default": AuditedSettings()},
    "kernel": {mode: KernelSettings(normalise=mode) for mode in ("ccos", "cosine")},  # type: ignore[arg-type]
}
# Units, disk, memory of process and worker, tasks, operations, scratch, bytes freed early, device
# memory of process and task, and whether the network runs: by stage, settings and sizes.
RECORDED = {
    "pretrain default small": (20, 20000, 152589504, 0, None, 360000000.0, 60000, 0, 0, 0, False),
    "pretrain default digits": (
        20, 148000, 105745600, 0, None, 15957360000.0, 444000, 0, 0, 0, False,
    ),
    "pretrain default million": (
        20, 4726784, 145801216, 0, None, 425410560000000.0, 14180352, 0, 0, 0, False,
    ),
    "pretrain default tiles": (
        20, 1600000, 198343680, 0, None, 5760000000000.0, 4800000, 0, 0, 0, False,
    ),
    "pretrain default one": (20, 4, 83902488, 0, None, 240.0, 12, 0, 0, 0, False),
    "pretrain epochs small": (3, 20000, 101151936, 0, None, 54000000.0, 60000, 0, 0, 0, False),
    "pretrain epochs digits": (3, 148000, 90016960, 0, None, 2393604000.0, 444000, 0, 0, 0, False),
    "pretrain epochs million": (
        3, 4726784, 120635392, 0, None, 63811584000000.0, 14180352, 0, 0, 0, False,
    ),
    "pretrain epochs tiles": (
        3, 1600000, 119700480, 0, None, 864000000000.0, 4800000, 0, 0, 0, False,
    ),
    "pretrain epochs one": (3, 4, 83890200, 0, None, 36.0, 12, 0, 0, 0, False),
    "features default small": (
        2, 8601600, 16384, 27911168, 2, 20457600.0, 0, 0, 0, 40770560, False,
    ),
    "features default digits": (
        2, 10797056, 262144, 19136512, 2, 1033404384.0, 0, 0, 0, 19136512, False,
    ),
    "features default million": (
        245, 1071941632, 4194304, 121634816, 17, 24416256000000.0, 71337984, 0, 0, 96468992, False,
    ),
    "features default tiles": (
        59, 1548623872, 524288, 93323264, 20, 303728640000.0, 0, 0, 0, 93323264, False,
    ),
    "features default one": (1, 270344, 8, 6168, 1, 16.0, 2056, 0, 0, 9240, False),
    "landmarks kmeans-parallel small": (
        8, 218848, 4226656, 2213888, 2, 293294400.0, 26016, 4431264, 1037408, 2319872, False,
    ),
    "landmarks kmeans-parallel digits": (
        8, 2618496, 214333568, 20209664, 2, 15654591072.0, 246312, 176147132, 12018688, 184914720,
        False,
    ),
    "landmarks kmeans-parallel million": (
        8, 8354304, 670346240, 8821760, 245, 2950578176000.0, 72129648, 225071233, 10948608,
        210764288, False,
    ),
    "landmarks kmeans-parallel tiles": (
        8, 64844288, 5496622225, 26443264, 59, 13804696320000.0, 4941552, 4883065489, 321048576,
        5032153600, False,
    ),
    "landmarks kmeans-parallel one": (
        8, 74, 20624, 138752, 1, 11274.0, 624, 159356, 2064, 133248, False,
    ),
    "landmarks kmeans++ small": (
        2, 218848, 5061600, 2161664, 2, 362390400.0, 7200, 5213984, 1037408, 2319872, False,
    ),
    "landmarks kmeans++ digits": (
        16, 2618496, 223783040, 10760192, 2, 37379142240.0, 43128, 0, 12018688, 184914720, False,
    ),
    "landmarks kmeans++ million": (
        17, 8354304, 675571712, 3596288, 245, 601010176000.0, 480000, 0, 10948608, 210764288,
        False,
    ),
    "landmarks kmeans++ tiles": (
        80, 64844288, 2664806400, 14233600, 59, 42252000000000.0, 1440000, 917913600, 321048576,
        5032153600, False,
    ),
    "landmarks kmeans++ one": (2, 74, 2304, 131840, 1, 3078.0, 48, 134124, 2064, 133248, False),
    "landmarks leverage small": (
        2, 218848, 4149312, 2221056, 2, 182937600.0, 0, 4322496, 1037408, 2319872, False,
    ),
    "landmarks leverage digits": (
        2, 2618496, 207214720, 27328512, 2, 24185481984.0, 0, 179341952, 12018688, 184914720,
        False,
    ),
    "landmarks leverage million": (
        2, 8354304, 666290176, 12877824, 245, 9543090176000.0, 0, 142157824, 10948608, 210764288,
        False,
    ),
    "landmarks leverage tiles": (
        2, 64844288, 5280000000, 37289984, 59, 23532000000000.0, 0, 4677289984, 321048576,
        5032153600, False,
    ),
    "landmarks leverage one": (2, 74, 10400, 138240, 1, 3094.0, 0, 148620, 2064, 133248, False),
    "landmarks uniform small": (
        2, 218848, 4208704, 2161664, 2, 60998400.0, 0, 152384, 1037408, 2319872, False,
    ),
    "landmarks uniform digits": (
        2, 2618496, 223783040, 10760192, 2, 4330443360.0, 0, 0, 12018688, 184914720, False,
    ),
    "landmarks uniform million": (
        2, 8354304, 675571712, 3596288, 245, 519090176000.0, 0, 0, 10948608, 210764288, False,
    ),
    "landmarks uniform tiles": (
        2, 64844288, 2664806400, 14233600, 59, 3852000000000.0, 0, 0, 321048576, 5032153600, False,
    ),
    "landmarks uniform one": (2, 74, 0, 131840, 1, 1030.0, 0, 131820, 2064, 133248, False),
    "landmarks rounds small": (
        6, 218848, 11633289, 2291456, 2, 546966000.0, 20576, 11915465, 2443904, 2954240, False,
    ),
    "landmarks rounds digits": (
        6, 2618496, 884535085, 40159232, 2, 30591830112.0, 268112, 901705517, 28110848, 978358784,
        False,
    ),
    "landmarks rounds million": (
        6, 8354304, 1074239113, 19911680, 245, 4798898176000.0, 48201952, 1053190793, 14532608,
        1177100288, False,
    ),
    "landmarks rounds tiles": (
        6, 64844288, 26647579780, 53699584, 59, 27432856320000.0, 3862208, 26061279364, 769048576,
        28867993600, False,
    ),
    "landmarks rounds one": (6, 74, 34960, 144128, 1, 18442.0, 640, 179068, 6160, 138368, False),
    "audited default small": (1, 2155520, 0, 23592296, 1, 3300000.0, 0, 0, 0, 0, False),
    "audited default digits": (2, 5783552, 0, 23592960, 2, 299034000.0, 0, 0, 0, 0, False),
    "audited default million": (3, 75595776, 0, 125829120, 3, 77991936000.0, 0, 0, 0, 0, False),
    "audited default tiles": (11, 150036480, 0, 117964800, 11, 26400000000.0, 0, 0, 0, 0, False),
    "audited default one": (1, 3584, 0, 4110, 1, 6.0, 0, 0, 0, 0, False),
    "kernel ccos small": (2, 57856, 451008, 2229248, 2, 123014400.0, 0, 0, 836480, 2167808, False),
    "kernel ccos digits": (
        2, 13824032, 11352160, 21794816, 2, 8497711104.0, 0, 0, 9719808, 77414784, False,
    ),
    "kernel ccos million": (
        245, 12058268160, 20774912, 148930560, 245, 36704256000000.0, 0, 0, 24772608, 129554432,
        True,
    ),
    "kernel ccos tiles": (
        59, 1408803328, 505782272, 134217728, 59, 7695728640000.0, 0, 0, 257048576, 536870912,
        False,
    ),
    "kernel ccos one": (1, 3080, 28, 10240, 1, 20.0, 0, 0, 24, 2560, True),
    "kernel cosine small": (
        2, 57856, 451008, 2229248, 2, 120556800.0, 0, 0, 836480, 2167808, False,
    ),
    "kernel cosine digits": (
        2, 13824032, 11352160, 21794816, 2, 8262174720.0, 0, 0, 9719808, 77414784, False,
    ),
    "kernel cosine million": (
        245, 12058268160, 20774912, 148930560, 245, 33558528000000.0, 0, 0, 24772608, 129554432,
        True,
    ),
    "kernel cosine tiles": (
        59, 1408803328, 505782272, 134217728, 59, 7680000000000.0, 0, 0, 257048576, 536870912,
        False,
    ),
    "kernel cosine one": (1, 3080, 28, 10240, 1, 16.0, 0, 0, 24, 2560, True),
}  # fmt: skip


def estimate(case: str) -> Cost:
    stage, settings, sizes = case.split()
    return BY_NAME[stage].estimate_cost(SIZES[sizes], SETTINGS[stage][settings])


@pytest.mark.parametrize("case", RECORDED)
def test_totals_are_the_recorded_ones(case: str) -> None:
    cost = estimate(case)
    assert (
        cost.units,
        cost.disk.bytes,
        cost.need.fixed,
        cost.need.per_worker,
        cost.need.tasks,
        cost.flops.total,
        cost.scratch.bytes,
        cost.freed_early.bytes,
        cost.device.fixed,
        cost.device.per_worker,
        cost.network,
    ) == RECORDED[case]


@pytest.mark.parametrize("case", [name for name in RECORDED if name.endswith("million")])
def test_every_term_names_an_array_or_operation(case: str) -> None:
    """Labels that say something, once in a phase: totals without terms are no explanation."""
    for quantity in estimate(case).to_json().values():
        for terms in quantity["phases"].values():
            labels = [term["label"] for term in terms]
            assert all(len(label) > 4 and label != "total" for label in labels)
            assert len(set(labels)) == len(labels)


def test_bytes_of_computed_rows_are_those_of_their_terms() -> None:
    sizes = SIZES["digits"]
    assert computing_bytes(sizes) == 6 * 1024 * 1280 + 16 * 256 * 1280
    assert computing_bytes(sizes, 512) == 6 * 512 * 1280 + 16 * 256 * 1280


def test_a_quantity_is_the_largest_of_its_phases() -> None:
    quantity = Quantity({"first": (Term("a", 3, 2),), "second": (Term("b", 10), Term("c", 1, -2))})
    assert quantity.total == 8
    assert quantity.plus(Term("d", 1)).total == 9
    assert Quantity.of(Term("freed", 5, -1)).bytes == 0
    assert Quantity().total == 0
    assert quantity.to_json()["phases"]["second"][1] == {
        "label": "c",
        "size": 1,
        "times": -2,
        "total": -2,
    }


@pytest.mark.parametrize("stage", [stage for stage in STAGES if "network" in stage.reads])
def test_whatever_runs_the_network_counts_its_measured_batch(stage: Stage) -> None:
    """Activations and gradients of a batch, far larger than its rows, are in every such plan."""
    sizes = dataclasses.replace(SIZES["digits"], sample_bytes=2**24, n_weights=40_000)
    settings = stage.settings()
    if stage.name == "concepts":
        settings = stage.settings(sets={"a": {"positive": {"ids": [1]}}})
    if stage.name == "retraining":
        pytest.skip("it trains networks by the demo trainer, whose batches are not feature rows")
    need = stage.estimate_cost(sizes, settings).need
    assert need.fixed + need.per_worker >= sizes.batch_bytes > 2**31


@pytest.mark.parametrize("stage", STAGES)
def test_only_a_stage_that_runs_a_large_network_keeps_more_freed_memory(stage: Stage) -> None:
    settings = stage.settings()
    for sample_bytes in (2**16, 2**24):
        sizes = dataclasses.replace(SIZES["digits"], sample_bytes=sample_bytes)
        cost = stage.estimate_cost(sizes, settings)
        runs = ("network" in stage.reads or cost.network) and not cost.skipped
        large = sample_bytes == 2**24 and runs
        assert large_batch(stage, sizes, cost) == (sizes.batch_bytes if large else 0)
