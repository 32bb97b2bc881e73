"""Sizes of an audit, from its recipe: source and network are opened, nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from krepes_ooc.core.blocks import BlockPlan, choose_block_plan
from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.engine.budget import Budget
from krepes_ooc.errors import UsageError
from krepes_ooc.network.spec import PRETRAIN
from krepes_ooc.runner.staleness import SIZES_KEY
from krepes_ooc.stages.audited.stage import AuditedSettings, check_sample_ids
from krepes_ooc.stages.base.cost import NETWORK_BYTES, f32
from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.stages.base.sizes import FEATURE_SIZES, MEASURED, AuditSizes
from krepes_ooc.stages.base.stage import stage_cost
from krepes_ooc.stages.features.row_cost_record import load_measured
from krepes_ooc.stages.groups.declared import declare_partitions
from krepes_ooc.stages.landmarks.landmark_settings import count_landmarks
from krepes_ooc.stages.registry import BY_NAME
from krepes_ooc.stages.retraining.stage import check_trainer
from krepes_ooc.stages.retraining.training_sets import check_group_names
from krepes_ooc.stages.spectrum.stage import AUTO_COMPONENTS
from krepes_ooc.storage.workspace import Workspace

if TYPE_CHECKING:
    from krepes_ooc.jacobian.feature_map import FeatureMap

LEAST_SAMPLES = 2
# A limit that every opening exceeds.
NEVER = -1.0
# Forward batch that ``auto`` halves until it fits.
AUTO_BATCH = 256


@dataclass(frozen=True)
class SizingLimits:
    """Memory, and processor time of the opening, within which the sizes are chosen.

    Args:
        budget: memory and workers; None: any.
        base: anonymous bytes of the process before the first stage.
        seconds: processor seconds that opening the network may take; None: any.
    """

    budget: Budget | None = None
    base: int = 0
    seconds: float | None = None

    @property
    def free(self) -> int:
        """Bytes above the base; without a budget, more than any batch takes."""
        return 1 << 62 if self.budget is None else self.budget.memory - self.base


def audit_sizes(
    workspace: Workspace,
    inputs: AuditInputs,
    settings: Mapping[str, Any],
    limits: SizingLimits = SizingLimits(),
) -> AuditSizes:
    """Sizes of an audit: block plan and feature sizes as its features were started, if they were.

    Raises:
        UsageError: as ``measure_sizes``.
    """
    fingerprint = workspace.record("features", "features").begun()
    if fingerprint is None or SIZES_KEY not in fingerprint:
        return measure_sizes(inputs, settings, limits)
    stored = fingerprint[SIZES_KEY]
    sizes: dict[str, Any] = {key: int(stored[key]) for key in FEATURE_SIZES}
    sizes["keeps_features"] = bool(stored.get("keeps_features", True))
    # Features that were killed before they recorded it are measured anew.
    measured = load_measured(workspace)
    if not measured and not workspace.record("features", "features").is_sealed():
        measured = _row_form(inputs, settings["features"], limits).measured
    sizes |= measured
    return _complete(sizes, BlockPlan.from_attributes(stored["plan"]), inputs, settings)


def measure_sizes(
    inputs: AuditInputs,
    settings: Mapping[str, Any],
    limits: SizingLimits = SizingLimits(),
) -> AuditSizes:
    """Sizes of an audit whose features are not started.

    Args:
        inputs: source, network and views.
        settings: settings of every stage by name.
        limits: memory that ``forward_batch: auto`` fills, and time of the opening.

    Raises:
        UsageError: a single sample, more landmarks than samples, more components than landmarks,
            nothing left to audit, or a block plan that is not possible.
        PlanRefused: not even the weights and one sample fit the memory.
    """
    features = settings["features"]
    n = inputs.source.n_samples
    if n < LEAST_SAMPLES:
        raise UsageError(f"{n} sample", where="source", expected=f"at least {LEAST_SAMPLES}")
    # Widths: of a kernel row by the landmarks, of a feature row by the network.
    m = _kernel_width(inputs, settings)
    form = _row_form(inputs, features, limits)
    itemsize = _kernel_itemsize(settings)
    sizes = {
        "n_views": inputs.view_spec.count,
        "n_features": form.layout.n_features,
        "n_moments": form.layout.n_moments,
        "n_outputs": form.n_outputs,
        "n_parameters": form.n_parameters,
        "keeps_features": features.keeps_rows(form.layout, m * itemsize),
        **form.measured,
    }
    return _plan_blocks(sizes, inputs, settings, limits)


def _plan_blocks(
    sizes: Mapping[str, Any],
    inputs: AuditInputs,
    settings: Mapping[str, Any],
    limits: SizingLimits,
) -> AuditSizes:
    """Sizes of rows whose form is known, with block plan and forward batch."""
    features = settings["features"]
    m = _kernel_width(inputs, settings)

    def complete(forward_batch: int) -> AuditSizes:
        # Blocks fit the longer of the two kinds of row.
        plan = choose_block_plan(
            inputs.source.n_samples,
            2 * max(sizes["n_features"], m),
            block_rows=None if features.block_rows == "auto" else features.block_rows,
            forward_batch=forward_batch,
            sub_row_bytes=4 * m,
        )
        return _complete(sizes, plan, inputs, settings)

    if features.forward_batch != "auto":
        return complete(features.forward_batch)
    # Batches never straddle blocks: blocks that the recipe fixes bound them.
    block_rows = AUTO_BATCH if features.block_rows == "auto" else features.block_rows
    largest = complete(min(AUTO_BATCH, block_rows))
    return complete(fitting_batch(largest, inputs, settings, limits) or 1)


def resized(
    sizes: AuditSizes,
    inputs: AuditInputs,
    settings: Mapping[str, Any],
    limits: SizingLimits,
    plan: BlockPlan | None = None,
) -> list[AuditSizes]:
    """Sizes of the same audit with other batches, blocks or landmarks, which open no network.

    Args:
        sizes: of the audit.
        inputs: source, network and views.
        settings: the other settings of every stage.
        limits: memory that ``forward_batch: auto`` fills.
        plan: block plan of features that are begun; None: chosen anew.

    Returns:
        All that are possible: with ``persist: auto`` rows may be kept or not.

    Raises:
        UsageError: as ``measure_sizes``.
    """
    measured = {key: getattr(sizes, key) for key in (*FEATURE_SIZES, *MEASURED)}
    keeps = [sizes.keeps_features]
    if plan is None and settings["features"].persist == "auto":
        keeps = [True, False]
    each = [measured | {"keeps_features": keep} for keep in keeps]
    if plan is not None:
        return [_complete(one, plan, inputs, settings) for one in each]
    return [_plan_blocks(one, inputs, settings, limits) for one in each]


def fitting_batch(
    sizes: AuditSizes, inputs: AuditInputs, settings: Mapping[str, Any], limits: SizingLimits
) -> int:
    """Largest forward batch, halved from that of the plan, whose features fit; 0: none does."""
    stage = BY_NAME["features"]
    batch = sizes.plan.forward_batch
    while batch:
        smaller = replace(sizes, plan=replace(sizes.plan, forward_batch=batch))
        need = stage_cost(stage, smaller, settings["features"], inputs).need
        if limits.budget is None or limits.budget.workers_that_fit(need, limits.base):
            return batch
        batch //= 2
    return 0


@dataclass(frozen=True)
class _RowForm:
    """Layout, outputs and measured sizes of the rows, from an open network or from shapes."""

    layout: FeatureLayout
    n_outputs: int
    n_parameters: int
    measured: dict[str, Any]


def _row_form(inputs: AuditInputs, features: Any, limits: SizingLimits) -> _RowForm:
    """Form of the rows; where opening takes longer than the limit, from shapes and plain passes."""
    from krepes_ooc.jacobian.feature_map import expected_layout
    from krepes_ooc.jacobian.opening import OpeningDeferred

    shared: FeatureMap | None = None
    try:
        shared = feature_map(inputs, features, opening_limit(inputs, limits))
        layout = shared.layout
        names = shared.parameters
        n_outputs = shared.n_outputs
        network = shared.network
    except OpeningDeferred as deferred:
        network = inputs.network
        names = deferred.parameters
        n_outputs = deferred.n_outputs
        layout = expected_layout(network, features, names)
    size = inputs.measure_rows(features, shared, limits.free)
    parameters = dict(network.inner.named_parameters())
    measured = {
        "n_weights": sum(p.numel() for p in parameters.values()),
        "fixed_bytes": size.fixed_bytes,
        "sample_bytes": size.sample_bytes,
        "opening_bytes": size.opening_bytes,
        # Plain passes have one probe's operations, and no sketch.
        "row_flops": size.flops if shared is not None else 0.0,
    }
    return _RowForm(layout, n_outputs, sum(parameters[name].numel() for name in names), measured)


def opening_limit(inputs: AuditInputs, limits: SizingLimits) -> float | None:
    """Processor seconds that opening the network may take; none of them where it cannot fit.

    A plan shows what does not fit, from shapes; a run refuses it before the network is opened.

    Raises:
        PlanRefused: weights and one sample alone exceed the memory, with both numbers.
    """
    from krepes_ooc.jacobian.row_size import CHECK_BYTES

    # The demo trainer's network is not trained yet, and small.
    if limits.budget is None or inputs.network_spec.weights == PRETRAIN:
        return limits.seconds
    network = inputs.network
    n_weights = sum(parameter.numel() for parameter in network.parameters())
    numbers = inputs.sample_numbers()
    needed = limits.base + NETWORK_BYTES + CHECK_BYTES * n_weights + f32(numbers)
    if needed <= limits.budget.memory:
        return limits.seconds
    if limits.seconds is not None:
        return NEVER
    # What a batch takes was not measured: a lower bound.
    advice = ", or take a smaller network or smaller inputs: no forward batch fits"
    raise limits.budget.refusal_error("features", needed, advice, at_least=True)


def _complete(
    sizes: Mapping[str, Any], plan: BlockPlan, inputs: AuditInputs, settings: Mapping[str, Any]
) -> AuditSizes:
    """Add the sizes that later stages choose anew whenever their settings change."""
    n = plan.n_samples
    n_landmarks = count_landmarks(settings["landmarks"], n)
    m = _kernel_width(inputs, settings)
    components = settings["spectrum"].components
    if components != "auto" and components > m:
        raise UsageError(
            f"{components} components of {m} landmarks",
            where="stages.spectrum.components",
            expected=f"at most {m}",
            advice="lower it, or raise stages.landmarks.count",
        )
    check_sample_ids(settings["audited"], inputs.source, n_landmarks)
    # Concepts are found later: at most these, and never more than landmarks.
    concepts = min(m, settings["discovery"].concepts)
    partitions = declare_partitions(settings["groups"], inputs.source, inputs.base, m, concepts)
    groups = [name for partition in partitions for name in partition.groups]
    retrained = settings["retraining"]
    check_trainer(retrained, inputs.network_spec.weights)
    check_group_names(retrained.groups if retrained.enabled else (), groups)
    row = inputs.source.read(np.zeros(1, dtype=np.int64))
    # Audited are explained samples and, beside the landmarks, those that controls are fitted on.
    explained = min(n, _n_explained(settings["audited"], n))
    # auto asks for at most as many components as the network has outputs.
    most = min(m, AUTO_COMPONENTS, sizes["n_outputs"])
    return AuditSizes(
        **sizes,
        n_landmarks=m,
        n_components=most if components == "auto" else components,
        n_audited=min(n, explained + min(settings["audited"].fit, max(0, n - n_landmarks))),
        n_explained=explained,
        n_classes=len(inputs.source.classes),
        kernel_itemsize=_kernel_itemsize(settings),
        plan=plan,
        n_groups=len(groups),
        n_partitions=len(partitions),
        n_retrained=len(retrained.groups or groups) if retrained.enabled else 0,
        training_epochs=settings["pretrain"].epochs if retrained.enabled else 0,
        n_inputs=math.prod(inputs.source.input_shape),
        n_values=row[0].size,
        n_columns=len(inputs.source.columns),
        row_bytes=row.nbytes,
    )


def _kernel_width(inputs: AuditInputs, settings: Mapping[str, Any]) -> int:
    """Columns of a kernel row: the rows of all landmarks."""
    landmarks = settings["landmarks"]
    n_rows = len(landmarks.row_views(inputs.view_spec.count))
    return count_landmarks(landmarks, inputs.source.n_samples) * n_rows


def _kernel_itemsize(settings: Mapping[str, Any]) -> int:
    return 2 if settings["kernel"].stored_dtype == "float16" else 4


def _n_explained(settings: AuditedSettings, n: int) -> int:
    return len(settings.sample_ids) or min(settings.audit, max(1, n // 4))


def feature_map(inputs: AuditInputs, settings: Any, limit: float | None = None) -> FeatureMap:
    """The feature map; untrained weights have the same shapes as trained ones.

    A checkpoint of the demo trainer is not read: it may be that of another architecture.

    Args:
        inputs: source and network.
        settings: settings of the features.
        limit: processor seconds that the opening may take; None: any, as for the demo trainer.

    Raises:
        OpeningDeferred: it would take longer.
    """
    if inputs.network_spec.weights == PRETRAIN:
        return inputs.open_untrained(settings)
    return inputs.open_features(settings, limit=limit)
