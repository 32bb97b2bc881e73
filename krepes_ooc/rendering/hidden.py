"""A page of aggregates: no picture, name, row or position of a sample, and no small group."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData
from krepes_ooc.rendering.measured import Concepts, Groups
from krepes_ooc.rendering.overview import ClassFigures, DiscoveredConcepts, GroupEffects

# Figures of fewer samples disclose single ones.
LEAST_SAMPLES = 10


def hide_samples(audit: AuditData) -> AuditData:
    """The audit without anything of a single sample.

    Left out are samples, their concepts, landmarks, rankings, map, odd samples, the recipe's text
    and the origin of a table's encoding, which name files; groups and classes of fewer than ten
    samples lose their figures. Names of columns, levels, classes and concepts stay.
    """
    return dataclasses.replace(
        audit,
        subject=dataclasses.replace(audit.subject, source=_without_path(audit.subject.source)),
        landmarks=None,
        audited=None,
        influence=None,
        embedding_map=None,
        sample_figures=None,
        sample_concepts=(),
        odd=None,
        cards=0,
        recipe_text="",
        # Warnings and records name rows and files
        warnings=tuple(text for text in audit.warnings if not text.startswith("Source:")),
        record={key: words for key, words in audit.record.items() if key != "table encoding"},
        newton=None if audit.newton is None else dataclasses.replace(audit.newton, step=None),
        concepts=None if audit.concepts is None else _concepts(audit.concepts),
        discovered=None if audit.discovered is None else _discovered(audit.discovered),
        groups=_groups(audit.groups),
        group_effects=None if audit.group_effects is None else _effects(audit.group_effects),
        class_figures=None if audit.class_figures is None else _classes(audit.class_figures),
        hidden=True,
    )


def _without_path(source: str) -> str:
    """Words without the folders of a path in them."""
    return " ".join(word.rpartition("/")[2] for word in source.split())


def mean_scores(concepts: Concepts, explained: Array | None = None) -> Array:
    """Mean score of every concept [concept]; NaN for one that is not scored.

    Args:
        concepts: with their scores, or with the means of a page of aggregates.
        explained: mask of the samples to average over [audited]; None: all.
    """
    if concepts.score is None:
        missing = np.full(len(concepts.names), np.nan)
        return missing if concepts.mean_score is None else concepts.mean_score
    score = concepts.score if explained is None else concepts.score[explained]
    known = np.isfinite(score)
    total = np.where(known, score, 0.0).sum(axis=0)
    number = known.sum(axis=0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _concepts(concepts: Concepts) -> Concepts:
    means = mean_scores(concepts)
    return dataclasses.replace(concepts, score=None, landmark_score=None, mean_score=means)


def _discovered(found: DiscoveredConcepts) -> DiscoveredConcepts:
    return dataclasses.replace(found, top_samples=None, top_landmark=None)


def _groups(tables: Mapping[str, Groups]) -> dict[str, Groups]:
    return {name: _large_groups(table) for name, table in tables.items()}


def _large_groups(groups: Groups) -> Groups:
    """A group table whose small groups have no shares."""
    small = groups.samples < LEAST_SAMPLES
    names = ("share", "stderr", "kernel_only", "by_network", "by_inputs", "random_weights")
    shares: dict[str, Any] = {}
    for name in names:
        values = getattr(groups, name)
        if values is not None and len(values):
            values = np.array(values, dtype=np.float64)
            values[small] = np.nan
        shares[name] = values
    shares["samples"] = np.where(small, 0, groups.samples)
    return dataclasses.replace(groups, **shares)


def _effects(effects: GroupEffects) -> GroupEffects:
    small = effects.count < LEAST_SAMPLES
    by_group = np.array(effects.by_group, dtype=np.float64)
    by_group[small] = np.nan
    by_group[:, small] = np.nan
    return dataclasses.replace(
        effects,
        effect=None,
        count=np.where(small, 0, effects.count),
        mean=np.where(small, np.nan, effects.mean),
        stderr=np.where(small, np.nan, effects.stderr),
        residual=np.where(small, np.nan, effects.residual),
        by_group=by_group,
    )


def _classes(figures: ClassFigures) -> ClassFigures:
    small = figures.samples < LEAST_SAMPLES
    return dataclasses.replace(
        figures,
        samples=np.where(small, 0, figures.samples),
        first_same=np.where(small, 0, figures.first_same),
        prototypes=None,
        confusing=None,
    )
