"""Agreement of all predictions with the truth, and the figures made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.figure_specs import GROUP_INFLUENCE, PREDICTORS
from krepes_ooc.core.figures import Figure, figure, figure_spec, undefined_figure
from krepes_ooc.stages.retraining.agreement import (
    CENTRED,
    LEAST,
    MEASURES,
    PAIRS,
    WITHIN,
    Agreement,
    Measure,
    attainable_agreement,
    datamodeling_score,
    measure_agreement,
    rank_agreement,
    seed_agreement,
)

DATAMODELING = "datamodeling"
ALL_MEASURES = (*MEASURES, DATAMODELING)
FEW_GROUPS = f"fewer than {LEAST} groups were left out"
FEW_HALVES = f"fewer than {LEAST} random halves: set stages.groups.halves"
Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Summary:
    """Agreement with the truth, and what limits it.

    Args:
        value: correlation [predictor, measure], measures as ``ALL_MEASURES``.
        low: lower end of its interval [predictor, measure].
        high: upper end [predictor, measure].
        single_seed: agreement of one training with another [measure].
        attainable: bound for the mean over seeds [measure].
        figures: by key.
    """

    value: Float
    low: Float
    high: Float
    single_seed: Float
    attainable: Float
    figures: tuple[Figure, ...]


def summarise(
    effect: Float, predictions: Mapping[str, Float], halves: Mask, chosen: Mask, seed: int
) -> Summary:
    """Compare every prediction with the effects of training again.

    Args:
        effect: [seed, group, sample].
        predictions: [group, sample] by key of ``PREDICTORS``.
        halves: whether a group is a random half [group].
        chosen: whether a group was left out [group].
        seed: key of the bootstrap.
    """
    stacked = np.array([predictions[key] for key in PREDICTORS])
    parts = [(chosen & ~halves, rank_agreement), (chosen & halves, datamodeling_score)]
    found = [_compare(effect[:, kept], stacked[:, kept], m, seed) for kept, m in parts]
    value, low, high = (
        np.concatenate([getattr(a, name) for a, _ in found], axis=1)
        for name in ("value", "low", "high")
    )
    single = np.concatenate([s for _, s in found])
    attainable = np.array([attainable_agreement(float(r), len(effect)) for r in single])
    half = Summary(value, low, high, single, attainable, ())
    figures = [_figure(half, f"retraining_{key}", i, FEW_GROUPS) for i, key in enumerate(MEASURES)]
    figures.append(_margin(found[0][0]))
    figures.append(_figure(half, "retraining_halves", len(MEASURES), FEW_HALVES))
    return Summary(value, low, high, single, attainable, tuple(figures))


def _compare(
    effect: Float, predictions: Float, measure: Measure, seed: int
) -> tuple[Agreement, Float]:
    """Agreement with the mean over seeds, and of single seeds; NaN for too few groups."""
    width = 1 if measure is datamodeling_score else len(MEASURES)
    if effect.shape[1] < LEAST:
        empty = np.full((len(predictions), width), np.nan)
        return Agreement(empty, empty, empty, empty[None]), np.full(width, np.nan)
    found = measure_agreement(effect.mean(axis=0), predictions, measure, seed)
    return found, seed_agreement(effect, measure)


def _figure(summary: Summary, key: str, measure: int, reason: str) -> Figure:
    """One measure of the re-solve, beside those of the controls."""
    at = list(PREDICTORS).index(GROUP_INFLUENCE)
    value = float(summary.value[at, measure])
    if not np.isfinite(value):
        return undefined_figure(key, reason)
    values = dict(zip(PREDICTORS, summary.value[:, measure], strict=True))
    values |= {
        "single_seed": summary.single_seed[measure],
        "attainable": summary.attainable[measure],
    }
    known = {name: float(values[name]) for name in figure_spec(key).controls}
    ends = float(summary.low[at, measure]), float(summary.high[at, measure])
    return figure(key, value, known, ends if np.isfinite(ends).all() else None)


def _margin(found: Agreement) -> Figure:
    """Distance of the re-solve from the best control."""
    at = list(PREDICTORS).index(GROUP_INFLUENCE)
    controls = [i for i in range(len(PREDICTORS)) if i != at]
    pairs, within, centred = (found.margin(at, controls, m) for m in (PAIRS, WITHIN, CENTRED))
    if not np.isfinite(pairs[0]):
        return undefined_figure("retraining_margin", FEW_GROUPS)
    ends = (pairs[1], pairs[2]) if np.isfinite(pairs).all() else None
    values = {"within": within[0], "centred": centred[0]}
    return figure("retraining_margin", pairs[0], values, ends)
