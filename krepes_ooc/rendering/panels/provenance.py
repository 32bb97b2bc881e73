"""Panels of the subject, of time and disk, and of provenance."""

from __future__ import annotations

import math
from typing import Any

from krepes_ooc.core.blocks import format_bytes
from krepes_ooc.rendering.data import AuditData, StageRecord
from krepes_ooc.rendering.drawing.markup import (
    DASH,
    Child,
    Markup,
    element,
    format_seconds,
    join,
    number,
    table,
    user_text,
)
from krepes_ooc.rendering.panels.newton import attribute_list
from krepes_ooc.rendering.panels.panel import Panel, absent

# Parts of a run and their stages; kernel and the solve are compared apart
PARTS = {
    "kernel": ("features", "landmarks", "kernel"),
    "optimisation": ("moments", "spectrum", "newton"),
    "evaluation": ("audited", "influence", "concepts", "alignment", "fidelity", "report"),
    "training": ("pretrain",),
}
# As many digits as distinguish digests at a glance; the title has them all
DIGEST_LENGTH = 12


def subject_panel(audit: AuditData) -> Panel:
    """Panel of the network, the data and the objective."""
    subject = audit.subject
    # Optional lines are left out where the recipe says nothing
    words = [
        ("network", subject.network),
        ("data", subject.source),
        ("objective", subject.objective),
        *([("training objective", subject.training)] if subject.training else []),
        *([("embedding", subject.embedding)] if subject.embedding else []),
        ("recipe", subject.recipe),
        *([("about", subject.about)] if subject.about else []),
        *subject.rows.items(),
    ]
    # Samples that are explained and those that only fit probes
    names = {"audited": "audited or to fit probes"}
    counts = [
        element(
            "div", element("dd", number(count)), element("dt", user_text(names.get(name, name)))
        )
        for name, count in subject.counts.items()
    ]
    body = join(
        attribute_list(list(words), "facts words"),
        element("dl", counts, class_="counts") if counts else None,
    )
    lead = (
        "The network is frozen. It is approximated by a kernel model on landmark samples; scores "
        "attribute an embedding to landmarks inside that model."
    )
    figures = {**dict(words), "counts": dict(subject.counts)}
    return Panel("subject", "Subject of the audit", lead, body, figures)


def timing_panel(audit: AuditData) -> Panel:
    """Wall time per stage, kernel and solve apart."""
    key = "timing"
    title = "Time and disk"
    if not audit.stages:
        return absent(key, title, "No stage was timed.")
    # Big figures first, then one line a stage
    totals = part_seconds(audit.stages)
    noted = any(stage.note for stage in audit.stages)
    big = [
        element("div", element("dd", _seconds(seconds)), element("dt", part))
        for part, seconds in totals.items()
    ]
    # -1 stands for what a stage does not have
    rows: list[list[Child]] = [
        [
            user_text(stage.name),
            _seconds(stage.seconds),
            number(stage.blocks) if stage.blocks >= 0 else _none(),
            _bytes(stage.bytes_written),
            _bytes(stage.peak_memory),
            _bytes(stage.planned_memory),
            *([user_text(stage.note)] if noted else []),
        ]
        for stage in audit.stages
    ]
    head: list[Child] = ["stage", "time", "blocks", "written", "memory", "planned"]
    head += ["note"] if noted else []
    body = join(
        element("dl", big, class_="counts"),
        table(head, rows, caption="Time, blocks, bytes and peak memory of each stage"),
    )
    figures = {"parts": totals, "stages": [_stage_figures(stage) for stage in audit.stages]}
    return Panel(
        key,
        title,
        "Wall time of kernel, optimisation and evaluation, and of each stage.",
        body,
        figures,
    )


def _stage_figures(stage: StageRecord) -> dict[str, Any]:
    """Figures of one stage; None for what it does not have."""
    sizes = {
        "blocks": stage.blocks,
        "bytes_written": stage.bytes_written,
        "peak_memory": stage.peak_memory,
        "planned_memory": stage.planned_memory,
    }
    present = {key: value if value >= 0 else None for key, value in sizes.items()}
    return {"name": stage.name, "seconds": stage.seconds, **present, "note": stage.note}


def provenance_panel(audit: AuditData) -> Panel:
    """Digests, versions, other records and the recipe itself."""
    # A shortened digest in view, the whole one on hover
    digests: list[list[Child]] = [
        [
            user_text(stage.name),
            str(stage.version) if stage.version >= 0 else _none(),
            element("code", stage.digest[:DIGEST_LENGTH], title=stage.digest)
            if stage.digest
            else _none(),
        ]
        for stage in audit.stages
    ]
    # Folded: the longest part, and the one that is copied rather than read
    recipe = element(
        "details",
        element("summary", "The recipe as it was run"),
        element("pre", audit.recipe_text, tabindex="0"),
    )
    body = join(
        attribute_list([*audit.record.items(), *audit.versions.items()])
        if audit.record or audit.versions
        else None,
        table(["stage", "version", "digest"], digests, caption="Digest of each stage")
        if digests
        else None,
        recipe
        if audit.recipe_text
        else element("p", "The recipe was not recorded.", class_="quiet"),
    )
    figures = {
        "record": dict(audit.record),
        "versions": dict(audit.versions),
        "stages": [
            {"name": s.name, "version": s.version, "digest": s.digest} for s in audit.stages
        ],
        "recipe": audit.recipe_text,
    }
    lead = "A digest covers a stage's settings and all that it read; equal digests, equal results."
    return Panel("provenance", "Provenance", lead, body, figures)


def part_seconds(stages: tuple[StageRecord, ...]) -> dict[str, float]:
    """Seconds of each part of the run that has a timed stage; NaN if none of it was timed."""
    totals: dict[str, float] = {}
    for part, names in PARTS.items():
        # A part without any stage of this run is left out
        timed = [stage.seconds for stage in stages if stage.name in names]
        if timed:
            # fsum: the order of the stages must not show in the last digit
            known = [seconds for seconds in timed if math.isfinite(seconds)]
            totals[part] = math.fsum(known) if known else math.nan
    return totals


def _seconds(seconds: float) -> Markup:
    return number(seconds, words=format_seconds(seconds) if math.isfinite(seconds) else "")


def _bytes(size: int) -> Markup:
    return number(size, words=format_bytes(size)) if size >= 0 else _none()


def _none() -> Markup:
    return element("span", DASH, class_="none")
