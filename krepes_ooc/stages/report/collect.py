"""Everything that the report shows, collected from the small stores."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc import rendering
from krepes_ooc.core import resources
from krepes_ooc.core.figures import Figure
from krepes_ooc.core.stage_order import STAGE_ORDER
from krepes_ooc.core.verdict import Verdict
from krepes_ooc.network.pretrain import PretrainSettings
from krepes_ooc.network.spec import NetworkSpec
from krepes_ooc.network.training_objective import difference, training_objective
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, optional_store, recipe_parts
from krepes_ooc.stages.features.row_cost_record import load_row_description
from krepes_ooc.stages.fidelity.stored_figures import read_curves, read_fidelity
from krepes_ooc.stages.group_influence.solutions import FIRST_ORDER_TOLERANCE, FirstOrder
from krepes_ooc.stages.group_influence.stage import GroupInfluenceSettings
from krepes_ooc.stages.report import structure
from krepes_ooc.stages.report.known_concepts import KnownConcepts
from krepes_ooc.stages.report.results import (
    read_alignment,
    read_concepts,
    read_further,
    read_groups,
    read_random_fidelity,
)
from krepes_ooc.stages.retraining.stage import NOT_REPEATABLE
from krepes_ooc.storage.store_reader import StoreReader

LIBRARIES = ("krepes-ooc", "numpy", "scipy", "torch", "zarr", "dask", "xarray")
# Arrays over the dampings
SWEEP = ("damping", "loss", "predicted", "rho", "step_norm", "stability")
INFLUENCE = (
    *("top_landmark", "score", "contribution", "kernel", "embedding"),
    *("repelling_landmark", "repelling"),
)
# Value of stages.report.samples for a page of aggregates
HIDDEN = "hidden"
# Longer names of samples that show nothing else are sentences, that is the samples themselves.
NAME_LENGTH = 32
# More landmarks than this at the mean feature: the network maps everything to one point.
MOST_COLLAPSED = 0.5
OBJECTIVES = {
    "barlow-twins": "Barlow Twins",
    "vicreg": "VICReg",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "spectral-contrastive": "spectral contrastive",
}


@dataclass(frozen=True)
class ReportInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    audited: StoreReader
    kernel: StoreReader
    spectrum: StoreReader
    discovery: StoreReader
    groups: StoreReader
    newton: StoreReader
    minimiser: StoreReader
    group_influence: StoreReader
    influence: StoreReader
    concepts: StoreReader
    alignment: StoreReader
    fidelity: StoreReader
    distilled: StoreReader
    examples: StoreReader
    randomised: StoreReader
    verdict: StoreReader
    retraining: StoreReader | None = optional_store()
    recipe: RecipeInputs = recipe_parts("source")


def collect(inputs: ReportInputs, context: StageContext) -> rendering.AuditData:
    """Everything that the report shows, from the small stores.

    Args:
        inputs: of the stage.
        context: of the stage; names the recipe and gives the records of the stages before.
    """
    landmarks = inputs.landmarks
    audited = inputs.audited
    # Samples that fit probes are not explained
    role = audited.array("role")
    explained = np.flatnonzero(role == ROLES["audit"])
    columns = landmarks.attributes["columns"]
    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name in LIBRARIES}
    cards = context.settings.samples
    shown = rendering.Landmarks(
        **display_columns(landmarks, slice(None)),
        weight=landmarks.array("weight"),
        view=landmarks.array("view"),
    )
    n_cards = 0 if cards == HIDDEN else cards
    audit = rendering.AuditData(
        subject=_subject(inputs, context),
        landmarks=shown,
        audited=rendering.Audited(**display_columns(audited, explained), role=role[explained]),
        influence=_influence(inputs.influence, explained),
        spectrum=_spectrum(inputs),
        newton=_newton(inputs.newton),
        fidelity=_figures(inputs),
        curves=read_curves(inputs.fidelity),
        alignment=read_alignment(inputs.alignment, inputs.randomised),
        groups=read_groups(inputs.alignment, inputs.randomised, landmarks, audited, explained),
        concepts=read_concepts(inputs.concepts, explained),
        verdict=Verdict.from_json(inputs.verdict.attributes["verdict"]),
        stages=tuple(_stages(context)),
        classes=tuple(landmarks.info("label").attributes["categories"]),
        columns=tuple(column_text(column) for column in columns),
        warnings=tuple(_warnings(inputs, context)),
        recipe_text=context.recipe_text,
        versions=versions,
        record=_record(context),
        cards=n_cards,
        sample_concepts=_sample_concepts(inputs, explained[:n_cards], shown),
        random_weights=inputs.randomised.attributes["figures"],
        random_fidelity=read_random_fidelity(inputs.randomised),
        further=read_further(inputs.minimiser, inputs.distilled, inputs.examples),
        audited_columns=_audited_columns(context),
        **_overview(inputs, context, explained),
    )
    return rendering.hide_samples(audit) if cards == HIDDEN else audit


def _overview(
    inputs: ReportInputs, context: StageContext, explained: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Fields of ``AuditData`` about the structure of the data."""
    audited = inputs.audited
    landmarks = inputs.landmarks
    examples = inputs.examples
    influence = inputs.influence
    return {
        "embedding_map": structure.read_map(
            influence, inputs.spectrum, inputs.kernel, audited, examples, explained
        ),
        "discovered": structure.read_discovered(inputs.discovery, examples, audited, explained),
        "group_effects": structure.read_group_effects(
            *(inputs.group_influence, inputs.groups, landmarks, explained),
            _group_tolerance(inputs, context),
        ),
        "class_figures": structure.read_class_figures(landmarks, audited, influence, explained),
        "sample_figures": structure.read_sample_figures(examples, explained),
        "odd": structure.read_odd(examples, audited, landmarks, display_columns),
    }


def _sample_concepts(
    inputs: ReportInputs, rows: npt.NDArray[np.int64], landmarks: rendering.Landmarks
) -> tuple[rendering.SampleConcepts, ...]:
    """Concepts of the samples that have a card."""
    influence = inputs.influence
    known = KnownConcepts.of_stores(
        influence, inputs.concepts, inputs.discovery, inputs.examples, {}
    )
    if known is None or not len(known.names):
        return ()
    kernel, step = influence.whole("kernel")[rows], influence.array("step")
    return tuple(known.of_samples(kernel, step, landmarks, by_landmark=False))


def _group_tolerance(inputs: ReportInputs, context: StageContext) -> float:
    """Tolerance that the solutions without a group were to reach."""
    if inputs.group_influence.attributes["method"] == FirstOrder.method:
        return FIRST_ORDER_TOLERANCE
    settings = (_recipe(context).get("stages") or {}).get("group_influence") or {}
    return float(settings.get("tolerance", GroupInfluenceSettings().tolerance))


def _recipe(context: StageContext) -> dict[str, Any]:
    """The recipe as it was written; empty if it is no mapping."""
    recipe = resources.parse_value(context.recipe_text)
    return recipe if isinstance(recipe, dict) else {}


def _audited_columns(context: StageContext) -> tuple[str, ...]:
    """Columns that the recipe names for the audit: group tables, and columns for it alone."""
    parts = _recipe(context)
    grouped = ((parts.get("stages") or {}).get("alignment") or {}).get("groups") or ()
    audit_only = (parts.get("source") or {}).get("audit_only") or ()
    return tuple(dict.fromkeys(str(name) for name in (*grouped, *audit_only)))


def _figures(inputs: ReportInputs) -> dict[str, Figure]:
    """Fidelity figures, then those of training again where that is part of the audit."""
    figures = read_fidelity(inputs.fidelity)
    return figures if inputs.retraining is None else figures | read_fidelity(inputs.retraining)


def _subject(inputs: ReportInputs, context: StageContext) -> rendering.Subject:
    n_views, n_samples = inputs.features.info("self_kernel").shape
    n_landmarks = len(np.unique(inputs.landmarks.array("sample_id")))
    n_components = inputs.spectrum.info("start").shape[1]
    # The text is parsed again: ``about`` is not part of any settings
    recipe = resources.parse_value(context.recipe_text)
    objective = str(inputs.newton.attributes["objective"])
    described = load_row_description(context.workspace)
    spec = inputs.recipe.network_spec
    trained = _training_objective(inputs, context)
    stated = spec.objective or difference(trained, objective)
    return rendering.Subject(
        recipe=context.workspace.recipe() or "",
        network=_describe_network(inputs),
        source=_describe_source(inputs),
        objective=OBJECTIVES.get(objective, objective),
        about=str(recipe.get("about", "")) if isinstance(recipe, dict) else "",
        rows=described[0] if described else {},
        training=OBJECTIVES.get(trained, trained) if stated else "",
        embedding=_describe_embedding(spec),
        counts={
            "samples": n_samples,
            "views": n_views,
            "features": inputs.landmarks.info("features").shape[1],
            "landmarks": n_landmarks,
            "components": n_components,
            "audited": inputs.audited.info("role").shape[0],
        },
    )


def _training_objective(inputs: ReportInputs, context: StageContext) -> str:
    """Objective that trained the network, by the recipe; empty if it does not say."""
    recipe = resources.parse_value(context.recipe_text)
    stages = (recipe if isinstance(recipe, dict) else {}).get("stages") or {}
    trainer = (stages.get("pretrain") or {}).get("objective", PretrainSettings().objective)
    return training_objective(inputs.recipe.network_spec, str(trainer))


def _describe_embedding(spec: NetworkSpec) -> str:
    """Module and entry of the output that are audited, in words; empty for the whole output."""
    if not spec.module:
        return ""
    return f"output of module {spec.module}" + (f", entry {spec.output}" if spec.output else "")


def _describe_network(inputs: ReportInputs) -> str:
    """The network's factory, size and origin of its weights, in words."""
    spec = inputs.recipe.network_spec
    described = inputs.features.attributes["network"]
    # module:function, as a recipe names code
    module, _, name = spec.factory.rpartition(":")
    size = f"{len(described['parameters'])} parameter arrays, {len(described['outputs'])} outputs"
    weights = {"pretrain": "trained by this run", "factory": "weights from the factory"}
    return f"{name} from {module}, {size}, {weights.get(spec.weights, f'weights {spec.weights}')}"


def _describe_source(inputs: ReportInputs) -> str:
    """Kind, path and shape of the source, in words."""
    spec = inputs.recipe.source_spec
    landmarks = inputs.landmarks
    words = "handwritten digits inside scikit-learn" if spec.kind == "digits" else spec.path
    if landmarks.has("values"):
        return f"table {words}, {landmarks.info('values').shape[1]} columns"
    if landmarks.has("image"):
        _, height, width, channels = landmarks.info("image").shape
        return f"{words}, images of {height} x {width} x {channels}"
    return words or f"data set {spec.factory}"


def display_columns(store: StoreReader, rows: Any) -> dict[str, Any]:
    """Visible columns of the samples of one store: fields of ``rendering.Samples``.

    Args:
        store: landmarks or audited.
        rows: index of its samples.
    """
    texts = np.array(store.info("sample_name").attributes["categories"], dtype=object)
    columns: dict[str, Any] = {
        "sample_id": store.array("sample_id")[rows],
        "sample_name": texts[store.array("sample_name")[rows]],
        "label": store.array("label")[rows],
    }
    for name in ("image", "values"):
        if store.has(name):
            columns[name] = store.array(name)[rows]
    # Samples that show nothing else are shown by their texts
    if not {"image", "values"} & set(columns) and _are_sentences(texts):
        columns |= {"text": columns["sample_name"], "sample_name": None}
    return columns


def _are_sentences(names: npt.NDArray[Any]) -> bool:
    """True if names of samples that show nothing else are whole sentences: the samples."""
    return bool(len(names)) and float(np.median([len(name) for name in names])) > NAME_LENGTH


def _influence(store: StoreReader, rows: Any) -> rendering.Influence:
    # Rows of explained samples only
    arrays = {name: store.whole(name)[rows] for name in INFLUENCE}
    return rendering.Influence(measure=str(store.attributes["measure"]), **arrays)


def _spectrum(inputs: ReportInputs) -> rendering.Spectrum:
    store = inputs.spectrum
    attributes = store.attributes
    # The entropy is shown beside the spectrum as well
    entropy = inputs.fidelity.attributes["figures"]["spectral_entropy"]
    return rendering.Spectrum(
        eigenvalues=store.array("eigenvalues"),
        rank=int(attributes["usable_rank"]),
        n_components=store.info("start").shape[1],
        nystrom_error=float(attributes["nystrom_error"]),
        effective_dimension=float(attributes["effective_dimension"]),
        entropy={"coefficients": entropy["value"], **entropy["controls"]},
    )


def _newton(store: StoreReader) -> rendering.Newton:
    return rendering.Newton(
        attributes={key: value for key, value in store.attributes.items() if key != "krepes"},
        step=store.array("step"),
        residual=store.array("residual"),
        sweep={name: store.array(name) for name in SWEEP},
    )


def column_text(column: Mapping[str, Any]) -> rendering.Column:
    """A table column as the report draws it, from the attributes of a store."""
    kind = "category" if column["kind"] == "categorical" else "number"
    words = {float(code): str(word) for code, word in column.get("words", {}).items()}
    return rendering.Column(column["name"], kind, tuple(column["categories"]), words)


def _seal(context: StageContext, stage: str) -> dict[str, Any]:
    return context.workspace.record(stage, None).seal() or {}


def _record(context: StageContext) -> dict[str, str]:
    """Facts of the run that are no results: the machine, and the origin of a table's encoding."""
    seal = _seal(context, "features")
    record = {"processor and numerics": str(seal["numerics"])}
    # Features of an earlier version have no such fact.
    if encoding := seal.get("encoding"):
        origin = encoding.get("file") or encoding["origin"]
        words = f"{origin}; {encoding['layout']}; sha256 {encoding['sha256']}"
        record["table encoding"] = words
    return record


def _stages(context: StageContext) -> list[rendering.StageRecord]:
    """Time, size and digest of every sealed stage, from its seal."""
    records = []
    # Every stage but the report itself, which is not sealed yet.
    for name in STAGE_ORDER[:-1]:
        if seal := _seal(context, name):
            # Blocks of the first view; a store without views has none
            n_blocks = sum(1 for key in seal["files"] if key.startswith("values/c/0/"))
            records.append(
                rendering.StageRecord(
                    name=name,
                    seconds=float(seal.get("seconds", float("nan"))),
                    blocks=n_blocks or -1,
                    bytes_written=int(seal.get("bytes", -1)),
                    peak_memory=int(seal.get("anonymous_peak") or -1),
                    planned_memory=int(seal.get("planned_memory") or -1),
                    digest=str(seal["digest"]),
                    version=int(seal["versions"]["stage"]),
                )
            )
    return records


def _warnings(inputs: ReportInputs, context: StageContext) -> list[str]:
    """Reasons to read the audit with care, worst first."""
    newton = inputs.newton.attributes
    warnings = []
    if not newton["trusted"]:
        warnings.append(f"The step is not trusted: {newton['reason']}.")
    trained = _training_objective(inputs, context)
    if words := difference(trained, str(newton["objective"])):
        warnings.append(f"Network: {words}.")
    warnings += [f"Source: {text}" for text in inputs.recipe.source_warnings]
    if inputs.recipe.source_spec.order == "source":
        warnings.append("Rows keep the order of the source: neighbouring rows may belong together.")
    if inputs.retraining is not None and not inputs.retraining.attributes["repeatable"]:
        warnings.append(f"Training again: {NOT_REPEATABLE}.")
    collapsed = inputs.kernel.attributes["collapsed_share"]
    if collapsed > MOST_COLLAPSED:
        warnings.append(
            f"The network looks collapsed: {collapsed:.0%} of landmarks lie at the mean feature."
        )
    return warnings
