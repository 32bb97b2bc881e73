"""Stage report: hand the small stores to the report and publish it beside the audit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from krepes_ooc import rendering
from krepes_ooc.core import resources
from krepes_ooc.core.files import checksum, write_atomic
from krepes_ooc.core.settings import setting
from krepes_ooc.core.stage_order import STAGE_ORDER
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.engine.machine import recorded_versions
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.features.row_cost_record import load_row_description
from krepes_ooc.stages.report.collect import (
    read_alignment,
    read_concepts,
    read_curves,
    read_fidelity,
    read_groups,
)
from krepes_ooc.storage.store_reader import StoreReader

SWEEP = ("damping", "loss", "predicted", "rho", "step_norm", "stability")
NAME_LENGTH = 32
OBJECTIVES = {
    "barlow-twins": "Barlow Twins",
    "vicreg": "VICReg",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "spectral-contrastive": "spectral contrastive",
}


@dataclass(frozen=True)
class ReportSettings:
    """Recipe key ``stages.report``."""

    samples: int = setting(24, about="audited samples that are shown one by one", minimum=0)


@dataclass(frozen=True)
class ReportInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    audited: StoreReader
    kernel: StoreReader
    spectrum: StoreReader
    newton: StoreReader
    influence: StoreReader
    concepts: StoreReader
    alignment: StoreReader
    fidelity: StoreReader
    recipe: RecipeInputs = recipe_parts("source")


def run(inputs: ReportInputs, context: StageContext) -> None:
    """Draw the report and seal it."""
    context.progress.begin("report", 1, 0)
    drawn = rendering.build_report(collect(context))
    files = {}
    for name, text in (
        ("report.html", drawn.html),
        ("report.json", json.dumps(drawn.json, indent=1, sort_keys=True, allow_nan=False)),
    ):
        data = text.encode()
        write_atomic(context.workspace.root / name, data, context.record.temp, sync=True)
        files[name] = (len(data), checksum(data))
    context.seal(files)
    context.progress.advance(1)


def collect(context: StageContext) -> rendering.AuditData:
    """Everything that the report shows, from the small stores."""
    audited, landmarks = context.reader("audited"), context.reader("landmarks")
    shown = np.flatnonzero(audited.array("role") == ROLES["audit"])
    columns = landmarks.attributes["columns"]
    return rendering.AuditData(
        subject=_subject(context),
        landmarks=rendering.Landmarks(
            **display_columns(landmarks, slice(None)),
            weight=landmarks.array("weight"),
            view=landmarks.array("view"),
        ),
        audited=rendering.Audited(
            **display_columns(audited, shown), role=audited.array("role")[shown]
        ),
        influence=_influence(context.reader("influence"), shown),
        spectrum=_spectrum(context),
        newton=_newton(context.reader("newton")),
        fidelity=read_fidelity(context.reader("fidelity")),
        curves=read_curves(context.reader("fidelity")),
        alignment=read_alignment(context.reader("alignment")),
        groups=read_groups(context.reader("alignment")),
        concepts=read_concepts(context.reader("concepts"), shown),
        self_check=_self_check(context.reader("features")),
        stages=tuple(_stages(context)),
        classes=tuple(landmarks.info("label").attributes["categories"]),
        columns=tuple(column_text(column) for column in columns),
        warnings=tuple(_warnings(context)),
        recipe_text=context.recipe_text,
        versions=recorded_versions(),
        record={"processor and numerics": str(_seal(context, "features")["numerics"])},
        cards=context.settings.samples,
    )


def _subject(context: StageContext) -> rendering.Subject:
    features, spectrum = context.reader("features"), context.reader("spectrum")
    views, n = features.info("self_kernel").shape
    width = context.reader("landmarks").info("features").shape[1]
    m, h = spectrum.info("start").shape
    recipe = resources.parse_value(context.recipe_text)
    objective = str(context.reader("newton").attributes["objective"])
    return rendering.Subject(
        recipe=context.workspace.recipe() or "",
        network=_network_words(context),
        source=_source_words(context),
        objective=OBJECTIVES.get(objective, objective),
        about=str(recipe.get("about", "")) if isinstance(recipe, dict) else "",
        rows=known[0] if (known := load_row_description(context.workspace)) else {},
        counts={
            "samples": n,
            "views": views,
            "features": width,
            "landmarks": m,
            "components": h,
            "audited": context.reader("audited").info("role").shape[0],
        },
    )


def _network_words(context: StageContext) -> str:
    """The network as people would call it: what made it, how large, where its weights come from."""
    spec, described = context.recipe.network_spec, context.reader("features").attributes["network"]
    place, _, name = spec.factory.rpartition(":")
    size = f"{len(described['parameters'])} parameter arrays, {len(described['outputs'])} outputs"
    weights = {"pretrain": "trained by this run", "factory": "weights from the factory"}
    return f"{name} from {place}, {size}, {weights.get(spec.weights, f'weights {spec.weights}')}"


def _source_words(context: StageContext) -> str:
    spec, landmarks = context.recipe.source_spec, context.reader("landmarks")
    words = "handwritten digits inside scikit-learn" if spec.kind == "digits" else spec.path
    if landmarks.has("values"):
        return f"table {words}, {landmarks.info('values').shape[1]} columns"
    if landmarks.has("image"):
        _, height, width, channels = landmarks.info("image").shape
        return f"{words}, images of {height} x {width} x {channels}"
    return words or f"data set {spec.factory}"


def display_columns(store: StoreReader, rows: Any) -> dict[str, Any]:
    """What people can see of the samples of one store."""
    texts = np.array(store.info("sample_name").attributes["categories"], dtype=object)
    seen: dict[str, Any] = {
        "sample_id": store.array("sample_id")[rows],
        "sample_name": texts[store.array("sample_name")[rows]],
        "label": store.array("label")[rows],
    }
    for name in ("image", "values"):
        if store.has(name):
            seen[name] = store.array(name)[rows]
    if not {"image", "values"} & set(seen) and _are_texts(texts):
        seen |= {"text": seen["sample_name"], "sample_name": None}
    return seen


def _are_texts(names: Any) -> bool:
    """Whether the names of samples that show nothing else are the samples: whole sentences."""
    return bool(len(names)) and float(np.median([len(name) for name in names])) > NAME_LENGTH


def _influence(store: StoreReader, rows: Any) -> rendering.Influence:
    names = (
        *("top_landmark", "score", "contribution", "kernel", "embedding"),
        *("repelling_landmark", "repelling"),
    )
    arrays = {name: store.whole(name)[rows] for name in names}
    return rendering.Influence(measure=str(store.attributes["measure"]), **arrays)


def _spectrum(context: StageContext) -> rendering.Spectrum:
    store, facts = context.reader("spectrum"), context.reader("spectrum").attributes
    entropy = context.reader("fidelity").attributes["figures"]["spectral_entropy"]
    return rendering.Spectrum(
        eigenvalues=store.array("eigenvalues"),
        rank=int(facts["usable_rank"]),
        n_components=store.info("start").shape[1],
        nystrom_error=float(facts["nystrom_error"]),
        effective_dimension=float(facts["effective_dimension"]),
        entropy={"coefficients": entropy["value"], **entropy["controls"]},
    )


def _newton(store: StoreReader) -> rendering.Newton:
    return rendering.Newton(
        attributes={key: value for key, value in store.attributes.items() if key != "krepes"},
        step=store.array("step"),
        residual=store.array("residual"),
        sweep={name: store.array(name) for name in SWEEP},
    )


def _self_check(features: StoreReader) -> rendering.SelfCheck:
    facts = features.attributes["self_check"]
    return rendering.SelfCheck(True, float(facts["max_relative_error"]), str(facts["words"]))


def column_text(column: dict[str, Any]) -> rendering.Column:
    """A table column as the report draws it, from the attributes of a store."""
    kind = "category" if column["kind"] == "categorical" else "number"
    return rendering.Column(column["name"], kind, tuple(column["categories"]))


def _seal(context: StageContext, stage: str) -> dict[str, Any]:
    return context.workspace.record(stage, None).seal() or {}


def _stages(context: StageContext) -> list[rendering.StageRecord]:
    records = []
    for name in STAGE_ORDER[: STAGE_ORDER.index("report")]:
        seal = _seal(context, name)
        if seal:
            records.append(
                rendering.StageRecord(
                    name=name,
                    seconds=float(seal.get("seconds", float("nan"))),
                    blocks=sum(1 for key in seal["files"] if key.startswith("values/c/0/")) or -1,
                    bytes_written=int(seal.get("bytes", -1)),
                    digest=str(seal["digest"]),
                    version=int(seal["versions"]["stage"]),
                )
            )
    return records


def _warnings(context: StageContext) -> list[str]:
    found = [f"Source: {text}" for text in context.recipe.source.warnings]
    newton, kernel = context.reader("newton").attributes, context.reader("kernel").attributes
    if not newton["trusted"]:
        found.insert(0, f"The step is not trusted: {newton['reason']}.")
    if context.recipe.source_spec.order == "source":
        found.append("Rows keep the order of the source: neighbouring rows may belong together.")
    if kernel["collapsed_share"] > 0.5:
        share = f"{kernel['collapsed_share']:.0%}"
        found.append(f"The network looks collapsed: {share} of landmarks lie at the mean feature.")
    return found


def predict(shape: AuditSizes, settings: ReportSettings) -> Cost:
    """One page, and what it is written from."""
    return plain_cost(1, 2**21, MemoryNeed(2**25 + 16 * shape.n_explained * shape.n_landmarks))


STAGE = Stage(
    name="report",
    version=6,
    inputs=ReportInputs,
    store=None,
    settings=ReportSettings,
    run=run,
    estimate_cost=predict,
    about="report.html and report.json",
)
