"""Sizes of an audit, from its recipe: source and network are opened, nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from krepes_ooc.core.blocks import BlockPlan, choose_block_plan
from krepes_ooc.errors import UsageError
from krepes_ooc.network.spec import PRETRAIN
from krepes_ooc.runner.staleness import SIZES_KEY
from krepes_ooc.stages.audited.stage import AuditedSettings, check_sample_ids
from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.stages.base.sizes import FEATURE_SIZES, AuditSizes
from krepes_ooc.stages.groups.declared import declare_partitions
from krepes_ooc.stages.landmarks.stage import count_landmarks
from krepes_ooc.stages.spectrum.stage import AUTO_COMPONENTS
from krepes_ooc.storage.workspace import Workspace

if TYPE_CHECKING:
    from krepes_ooc.jacobian.feature_map import FeatureMap

LEAST_SAMPLES = 2


def audit_sizes(
    workspace: Workspace, inputs: AuditInputs, settings: Mapping[str, Any]
) -> AuditSizes:
    """Sizes of an audit: block plan and feature sizes as its features were started, if they were.

    Raises:
        UsageError: as ``measure_sizes``.
    """
    fingerprint = workspace.record("features", "features").begun()
    if fingerprint is None or SIZES_KEY not in fingerprint:
        return measure_sizes(inputs, settings)
    stored = fingerprint[SIZES_KEY]
    sizes: dict[str, Any] = {key: int(stored[key]) for key in FEATURE_SIZES}
    sizes["keeps_features"] = bool(stored.get("keeps_features", True))
    return _complete(sizes, BlockPlan.from_attributes(stored["plan"]), inputs, settings)


def measure_sizes(inputs: AuditInputs, settings: Mapping[str, Any]) -> AuditSizes:
    """Sizes of an audit whose features are not started.

    Raises:
        UsageError: a single sample, more landmarks than samples, more components than landmarks,
            nothing left to audit, or a block plan that is not possible.
    """
    features = settings["features"]
    n = inputs.source.n_samples
    if n < LEAST_SAMPLES:
        raise UsageError(f"{n} sample", where="source", expected=f"at least {LEAST_SAMPLES}")
    # Widths: of a kernel row by the landmarks, of a feature row by the network.
    m = count_landmarks(settings["landmarks"], n)
    shared = feature_map(inputs, features)
    width = shared.layout.n_features
    # Blocks fit the longer of the two kinds of row.
    plan = choose_block_plan(
        n,
        2 * max(width, m),
        block_rows=None if features.block_rows == "auto" else features.block_rows,
        forward_batch=features.forward_batch,
        sub_row_bytes=4 * m,
    )
    parameters = dict(shared.network.inner.named_parameters())
    itemsize = _kernel_itemsize(settings)
    sizes = {
        "n_views": inputs.view_spec.count,
        "n_features": width,
        "n_moments": shared.layout.n_moments,
        "n_outputs": shared.n_outputs,
        "n_parameters": sum(parameters[name].numel() for name in shared.parameters),
        "keeps_features": features.keeps_rows(shared.layout, m * itemsize),
    }
    return _complete(sizes, plan, inputs, settings)


def _complete(
    sizes: Mapping[str, Any], plan: BlockPlan, inputs: AuditInputs, settings: Mapping[str, Any]
) -> AuditSizes:
    """Add the sizes that later stages choose anew whenever their settings change."""
    n = plan.n_samples
    m = count_landmarks(settings["landmarks"], n)
    components = settings["spectrum"].components
    if components != "auto" and components > m:
        raise UsageError(
            f"{components} components of {m} landmarks",
            where="stages.spectrum.components",
            expected=f"at most {m}",
            advice="lower it, or raise stages.landmarks.count",
        )
    check_sample_ids(settings["audited"], inputs.source, m)
    # Concepts are found later: at most these, and never more than landmarks.
    concepts = min(m, settings["discovery"].concepts)
    partitions = declare_partitions(settings["groups"], inputs.source, inputs.base, m, concepts)
    # Audited are explained samples and, beside the landmarks, those that controls are fitted on.
    explained = min(n, _n_explained(settings["audited"], n))
    # auto asks for at most as many components as the network has outputs.
    most = min(m, AUTO_COMPONENTS, sizes["n_outputs"])
    return AuditSizes(
        **sizes,
        n_landmarks=m,
        n_components=most if components == "auto" else components,
        n_audited=min(n, explained + min(settings["audited"].fit, max(0, n - m))),
        n_explained=explained,
        n_classes=len(inputs.source.classes),
        kernel_itemsize=_kernel_itemsize(settings),
        plan=plan,
        n_groups=sum(len(partition.groups) for partition in partitions),
        n_partitions=len(partitions),
    )


def _kernel_itemsize(settings: Mapping[str, Any]) -> int:
    return 2 if settings["kernel"].stored_dtype == "float16" else 4


def _n_explained(settings: AuditedSettings, n: int) -> int:
    return len(settings.sample_ids) or min(settings.audit, max(1, n // 4))


def feature_map(inputs: AuditInputs, settings: Any) -> FeatureMap:
    """The feature map; untrained weights have the same shapes as trained ones.

    A checkpoint of the demo trainer is not read: it may be that of another architecture.
    """
    if inputs.network_spec.weights == PRETRAIN:
        return inputs.open_untrained(settings)
    return inputs.open_features(settings)
