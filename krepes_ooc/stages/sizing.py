"""Measure the sizes of an audit from its recipe: source and network are opened, nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from krepes_ooc.blocks import choose_block_plan
from krepes_ooc.errors import UsageError
from krepes_ooc.network.modelspec import PRETRAIN
from krepes_ooc.stages.audited import AuditedSettings
from krepes_ooc.stages.inputs import AuditInputs
from krepes_ooc.stages.landmarks import count_landmarks
from krepes_ooc.stages.shapes import AuditShape
from krepes_ooc.stages.spectrum import AUTO_COMPONENTS
from krepes_ooc.storage.workspace import Workspace

if TYPE_CHECKING:
    from krepes_ooc.network.features import FeatureMap

LEAST_SAMPLES = 2


def shape_of(workspace: Workspace, inputs: AuditInputs, settings: Mapping[str, Any]) -> AuditShape:
    """Sizes of an audit: those that its features were begun with, else measured anew."""
    begun = workspace.record("features", "features").begun()
    if begun is not None and "shape" in begun:
        return AuditShape.from_attributes(begun["shape"])
    return measure_shape(inputs, settings)


def measure_shape(inputs: AuditInputs, settings: Mapping[str, Any]) -> AuditShape:
    """Sizes of an audit that is not begun.

    Raises:
        UsageError: a single sample, more landmarks than samples, or a block plan that cannot be.
    """
    features, n = settings["features"], inputs.source.n_samples
    if n < LEAST_SAMPLES:
        raise UsageError(f"{n} sample", where="source", expected=f"at least {LEAST_SAMPLES}")
    m = count_landmarks(settings["landmarks"], n)
    shared = _feature_map(inputs, features)
    width, outputs = shared.layout.n_features, shared.n_outputs
    plan = choose_block_plan(
        n,
        2 * max(width, m),
        block_rows=None if features.block_rows == "auto" else features.block_rows,
        forward_batch=features.forward_batch,
        sub_row_bytes=4 * m,
    )
    asked = settings["spectrum"].components
    parameters = dict(shared.network.inner.named_parameters())
    return AuditShape(
        n_views=inputs.view_spec.count,
        n_features=width,
        n_moments=shared.layout.n_moments,
        n_outputs=outputs,
        n_parameters=sum(parameters[name].numel() for name in shared.parameters),
        n_landmarks=m,
        n_components=min(m, AUTO_COMPONENTS, outputs) if asked == "auto" else asked,
        n_audited=_n_audited(settings["audited"], n, m),
        kernel_itemsize=2 if settings["kernel"].stored_dtype == "float16" else 4,
        plan=plan,
    )


def _n_audited(settings: AuditedSettings, n: int, m: int) -> int:
    audit = len(settings.sample_ids) or min(settings.audit, max(1, n // 4))
    return min(n, audit + min(settings.fit, max(0, n - m)))


def _feature_map(inputs: AuditInputs, settings: Any) -> FeatureMap:
    """The feature map; untrained weights have the same shapes as trained ones."""
    if inputs.network_spec.weights == PRETRAIN and not inputs.pretrained.exists():
        return inputs.open_untrained(settings)
    return inputs.open_features(settings)
