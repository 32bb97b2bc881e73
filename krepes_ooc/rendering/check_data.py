"""Checks that the parts of an audit fit together, before anything is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from krepes_ooc.core.figure_specs import CURVES
from krepes_ooc.core.figures import check_figure, reading_order
from krepes_ooc.errors import DataError
from krepes_ooc.rendering.data import AuditData, Influence, Newton, Samples
from krepes_ooc.rendering.drawing.sample_view import explained_rows
from krepes_ooc.rendering.measured import CONCEPT_CONTROLS, Groups


def check_audit(audit: AuditData) -> None:
    """Check lengths and indices of all parts.

    Raises:
        DataError: two arrays disagree in length, or an index points outside its array.
        FigureKeyError: a figure or control is unknown or missing.
    """
    n_columns = len(audit.columns)
    # Lengths and types of what people see
    for where, samples in (("landmarks", audit.landmarks), ("audited", audit.audited)):
        if samples is not None:
            _check_samples(where, samples, n_columns)
    if audit.influence is not None:
        _check_influence(audit, audit.influence)
    if audit.newton is not None:
        _check_newton(audit, audit.newton)
    # Keys before lengths: an unknown one would be drawn nowhere
    for figure in audit.fidelity.values():
        check_figure(figure)
    reading_order(audit.curves, CURVES)
    for key, curve in audit.curves.items():
        for name, line in curve.lines.items():
            _check_length(f"curves.{key}.{name}", line, len(curve.x), "points")
    _check_concepts(audit)
    if audit.alignment is not None:
        # Columns of the table, unless the gaps name their own
        n_names = len(audit.alignment.names) or n_columns
        for name, value in vars(audit.alignment).items():
            if name not in ("names", "notes"):
                _check_length(f"alignment.{name}", value, n_names, "columns")
    for name, groups in audit.groups.items():
        _check_groups(f"groups.{name}", groups)
    _check_overview(audit)


def _check_overview(audit: AuditData) -> None:
    """Lengths of what is drawn beside samples and landmarks."""
    n_explained = 0
    if audit.audited is not None:
        n_explained = len(explained_rows(audit.audited))
    if audit.embedding_map is not None and audit.audited is not None:
        for name in ("network", "audit"):
            plane = getattr(audit.embedding_map, name)
            _check_length(f"map.{name}.samples", plane.samples, n_explained, "explained samples")
            if audit.landmarks is not None:
                n_landmarks = len(audit.landmarks.sample_id)
                _check_length(f"map.{name}.landmarks", plane.landmarks, n_landmarks, "landmarks")
    if audit.sample_figures is not None and audit.audited is not None:
        for name, values in vars(audit.sample_figures).items():
            _check_length(f"sample_figures.{name}", values, n_explained, "explained samples")
    if audit.group_effects is not None:
        n_groups = len(audit.group_effects.names)
        for name in ("partition", "count", "mean", "stderr", "residual", "by_group"):
            values = getattr(audit.group_effects, name)
            _check_length(f"group_effects.{name}", values, n_groups, "groups")
    if audit.discovered is not None:
        n_concepts = len(audit.discovered.names)
        for name in ("share", "stability", "stable", "view_agreement", "precision"):
            values = getattr(audit.discovered, name)
            _check_length(f"discovered.{name}", values, n_concepts, "concepts")


def _check_concepts(audit: AuditData) -> None:
    concepts = audit.concepts
    if concepts is None:
        return
    n_concepts = len(concepts.names)
    n_audited = 0
    if audit.audited is not None:
        n_audited = len(audit.audited.sample_id)
    for name in ("accuracy", "trusted", "landmark_score"):
        _check_length(f"concepts.{name}", getattr(concepts, name), n_concepts, "concepts")
    reading_order(concepts.controls, CONCEPT_CONTROLS)
    for name, values in concepts.controls.items():
        _check_length(f"concepts.controls.{name}", values, n_concepts, "concepts")
    _check_length("concepts.score", concepts.score, n_audited, "audited samples")
    if concepts.landmark_score is not None and audit.landmarks is not None:
        n_landmarks = len(audit.landmarks.sample_id)
        _check_length(
            "concepts.landmark_score", concepts.landmark_score.T, n_landmarks, "landmarks"
        )


def _check_groups(where: str, groups: Groups) -> None:
    n_groups = len(groups.categories)
    shares = ("share", "stderr", "kernel_only", "by_network", "by_inputs", "random_weights")
    for name in ("samples", "landmarks", "chance", *shares):
        value = getattr(groups, name)
        if value is None:
            continue
        _check_length(f"{where}.{name}", value, n_groups, "groups")
        if value.ndim == 2:
            _check_length(f"{where}.{name}", value.T, n_groups, "groups")


def _check_samples(where: str, samples: Samples, n_columns: int) -> None:
    n_samples = len(samples.sample_id)
    for name, value in vars(samples).items():
        _check_length(f"{where}.{name}", value, n_samples, "samples")
    image = samples.image
    values = samples.values
    # Grey without a channel axis, grey, colour or colour with alpha
    channels = 1 if image is None or image.ndim == 3 else image.shape[-1]
    fits = image is None or (image.dtype == np.uint8 and image.ndim in (3, 4))
    if image is not None and not (fits and channels in (1, 3, 4)):
        raise DataError(
            f"images of shape {image.shape} and type {image.dtype}",
            where=f"report {where}.image",
            expected="uint8 [sample, y, x] or [sample, y, x, channel] with 1, 3 or 4 channels",
        )
    if values is not None and values.shape[1:] != (n_columns,):
        raise DataError(
            f"values of shape {values.shape} for {n_columns} columns",
            where=f"report {where}.values",
            expected="[sample, column]",
        )


def _check_influence(audit: AuditData, influence: Influence) -> None:
    if audit.audited is None or audit.landmarks is None:
        raise DataError(
            "influence without its samples", where="report", expected="audited and landmarks too"
        )
    n_audited = len(audit.audited.sample_id)
    for name, value in vars(influence).items():
        if name != "measure":
            _check_length(f"influence.{name}", value, n_audited, "audited samples")
    # Indices count landmark samples, not the rows of their views
    n_landmarks = len(np.unique(audit.landmarks.sample_id))
    for name in ("top_landmark", "repelling_landmark"):
        index = getattr(influence, name)
        if index is not None and index.size and not -1 <= index.min() <= index.max() < n_landmarks:
            raise DataError(
                f"landmark indices from {index.min()} to {index.max()}",
                where=f"report influence.{name}",
                expected=f"-1 to {n_landmarks - 1}",
            )
    index = influence.repelling_landmark
    values = influence.repelling
    # The values belong to the landmarks place by place
    shapes = [None if array is None else array.shape for array in (index, values)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"shape {shapes[1]}",
            where="report influence.repelling",
            expected=f"{shapes[0]}, that of repelling_landmark",
        )


def _check_newton(audit: AuditData, newton: Newton) -> None:
    if newton.step is not None and audit.landmarks is not None:
        _check_length("newton.step", newton.step, len(audit.landmarks.sample_id), "landmarks")
    # Without dampings no sweep can be drawn
    damping = newton.sweep.get("damping")
    for name, values in newton.sweep.items():
        length = 0 if damping is None else len(damping)
        _check_length(f"newton.sweep.{name}", values, length, "dampings")


def _check_length(where: str, value: Any, length: int, unit: str) -> None:
    if value is not None and len(value) != length:
        raise DataError(f"{len(value)} rows", where=f"report {where}", expected=f"{length} {unit}")
