"""The self-supervised losses under audit, by name."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from krepes_ooc.core.array_columns import Array
from krepes_ooc.errors import UsageError
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives.barlow_twins import BarlowTwins, BarlowTwinsSettings
from krepes_ooc.stages.newton.objectives.byol import BYOL, BYOLSettings, Predictor, fit_predictor
from krepes_ooc.stages.newton.objectives.interface import Objective, Stream
from krepes_ooc.stages.newton.objectives.simclr import SimCLR, SimCLRSettings
from krepes_ooc.stages.newton.objectives.spectral_contrastive import (
    SpectralContrastive,
    SpectralContrastiveSettings,
)
from krepes_ooc.stages.newton.objectives.vicreg import VICReg, VICRegSettings

__all__ = [
    "BYOL",
    "OBJECTIVES",
    "BYOLSettings",
    "BarlowTwins",
    "BarlowTwinsSettings",
    "Predictor",
    "SimCLR",
    "SimCLRSettings",
    "SpectralContrastive",
    "SpectralContrastiveSettings",
    "VICReg",
    "VICRegSettings",
    "can_iterate",
    "create",
    "fit_predictor",
    "least_components",
    "settings_type",
    "uses_moments",
]

# Name in recipes: the objective and its settings.
OBJECTIVES = MappingProxyType(
    {
        "barlow-twins": (BarlowTwins, BarlowTwinsSettings),
        "byol": (BYOL, BYOLSettings),
        "simclr": (SimCLR, SimCLRSettings),
        "spectral-contrastive": (SpectralContrastive, SpectralContrastiveSettings),
        "vicreg": (VICReg, VICRegSettings),
    }
)


def settings_type(name: str) -> type[Any]:
    """The frozen dataclass of an objective's settings.

    Raises:
        UsageError: no objective of this name.
    """
    return _entry(name)[1]


def uses_moments(name: str) -> bool:
    """Whether the objective needs moments only, and no pass over the kernel.

    Raises:
        UsageError: no objective of this name.
    """
    return bool(_entry(name)[0].uses_moments)


def can_iterate(name: str) -> bool:
    """Whether more than one step makes sense.

    Raises:
        UsageError: no objective of this name.
    """
    return bool(_entry(name)[0].can_iterate)


def least_components(name: str) -> int:
    """Components that the objective needs: one direction on a sphere cannot turn.

    Raises:
        UsageError: no objective of this name.
    """
    return int(_entry(name)[0].least_components)


def create(
    name: str,
    settings: Any,
    *,
    moments: Moments,
    stream: Stream | None = None,
    start: Array,
    offset: Array,
    predictor: Predictor | None = None,
    sub_rows: int = 512,
) -> Objective:
    """The objective of this name on the data at hand.

    Args:
        name: one of ``OBJECTIVES``.
        settings: an instance of ``settings_type(name)``.
        moments: of the kernel rows.
        stream: kernel blocks of all views; sample objectives need it.
        start: A0 [landmark, component].
        offset: gamma [component].
        predictor: W and b for BYOL; overrides its settings.
        sub_rows: samples of one matrix product.

    Raises:
        UsageError: no objective of this name, or too few views.
        StageFailed: too few samples.
        ValueError: no stream for a sample objective.
    """
    kind, _ = _entry(name)
    # Moment objectives need neither stream nor offset: their losses are functions of C and mu.
    if kind.uses_moments:
        moment: Objective = kind(moments, settings)
        return moment
    if stream is None:
        raise ValueError(f"{name} reads kernel blocks and was given no stream")
    if kind is SimCLR:
        return SimCLR(stream, offset, settings)
    # BYOL: one more pass for the fitted predictor, unless the caller has it.
    if predictor is None and settings.predictor == "ridge":
        predictor = fit_predictor(stream, start, offset, settings.ridge, sub_rows)
    return BYOL(stream, offset, start, predictor, sub_rows)


def _entry(name: str) -> tuple[Any, type[Any]]:
    if name not in OBJECTIVES:
        raise UsageError(
            f"no objective {name!r}",
            where="stages.newton.objective",
            expected="one of " + ", ".join(OBJECTIVES),
        )
    return OBJECTIVES[name]
