"""Stage report: hand the small stores to the report and publish it beside the audit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from krepes_ooc import rendering
from krepes_ooc.core.files import checksum, write_atomic
from krepes_ooc.core.settings import setting
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f64
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.report.collect import ReportInputs, collect

# Memory of one value of a table in page and figures: objects, then JSON and its bytes.
CELL_BYTES = 1400
# Pictures of a card and of the rest of the page, bytes of the largest of them as text (96 x 96
# pixels), copies of the text while the page is put together: 14 without, 24 with other stages in
# the process.
CARD_PICTURES, OTHER_PICTURES = 14, 280
PICTURE_NUMBERS = 96 * 96 * 3
COPIES = 24


@dataclass(frozen=True)
class ReportSettings:
    """Recipe key ``stages.report``."""

    samples: int | Literal["hidden"] = setting(
        24,
        about="audited samples that have a card in the page; hidden: a page of aggregates, without "
        "pictures, names or rows",
        minimum=0,
    )


def run(inputs: ReportInputs, context: StageContext) -> None:
    """Draw the report and seal it."""
    context.progress.begin("report", 1, 0)
    report = rendering.build_report(collect(inputs, context))
    # Sorted keys: equal audits give equal bytes
    figures = json.dumps(report.json, indent=1, sort_keys=True, allow_nan=False)
    files = {}
    for name, text in (("report.html", report.html), ("report.json", figures)):
        data = text.encode()
        write_atomic(context.workspace.root / name, data, context.record.temp, sync=True)
        files[name] = (len(data), checksum(data))
    context.seal(files)
    context.progress.advance(1)


def estimate_cost(sizes: AuditSizes, settings: ReportSettings) -> Cost:
    """One page, and the arrays that it is drawn from."""
    shown = sizes.n_explained * sizes.n_columns
    common = (
        Term("page and figures", 2**25),
        Term("kernel rows, read and cut", f64(sizes.n_explained, sizes.n_landmarks), 2),
        Term("landmark kernel", f64(sizes.n_landmarks, sizes.n_landmarks)),
        Term("embeddings", f64(sizes.n_explained + sizes.n_landmarks, sizes.n_outputs), 3),
        Term("effects of groups", f64(sizes.n_groups, sizes.n_audited), 2),
        Term("values of explained samples, as objects and as text", shown, CELL_BYTES),
    )
    outputs = sizes.n_outputs
    covariance = Term("covariance of the outputs, its eigenvectors", f64(outputs, outputs), 5)
    picture = min(sizes.n_values, PICTURE_NUMBERS)
    count = _n_pictures(settings.samples, sizes.n_explained)
    pictures = Term("pictures of the page and copies of its text", count * picture, COPIES)
    memory = Quantity({"planes": (*common, covariance), "page": (*common, pictures)})
    return Cost(disk=Quantity.of(Term("report.html and report.json", 2**21)), memory=memory)


def _n_pictures(samples: int | Literal["hidden"], n_explained: int) -> int:
    """Pictures of a page with so many cards; a page of aggregates has none."""
    if samples == "hidden":
        return 0
    return OTHER_PICTURES + CARD_PICTURES * min(samples, n_explained)


STAGE = Stage(
    name="report",
    version=10,
    inputs=ReportInputs,
    store=None,
    settings=ReportSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="report.html and report.json",
)
