"""An objective by moments where its moments lie, as the host sees it.

Coefficients go there; a loss, a gradient and single numbers come back. Products, and whatever is
solved with them, stay there. Where the moments lie on the host nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.algebra.curvature import Linearisation, Moments, Objective
from krepes_ooc.engine.device import Device

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PlacedMoments:
    """Moments of the kernel rows.

    Args:
        there: the moments, where they lie.
        device: that place.
    """

    there: Moments
    device: Device

    def embedding_rms(self, A: Float, offset: Float | None = None) -> float:
        """As ``Moments``, of coefficients on the host."""
        gamma = None if offset is None else self.device.to(offset)
        return float(self.device.back(self.there.embedding_rms(self.device.to(A), gamma)))


@dataclass(frozen=True)
class PlacedSlope:
    """A linearisation.

    Args:
        there: the linearisation, its arrays where they lie.
        device: that place.
    """

    there: Linearisation
    device: Device

    @cached_property
    def value(self) -> float:
        """The loss."""
        return float(self.device.back(self.there.value))

    @cached_property
    def gradient(self) -> Float:
        """G [landmark, component], on the host."""
        return np.asarray(self.device.back(self.there.gradient))

    @cached_property
    def mean_diagonal(self) -> float:
        """tr(H) / (m h)."""
        return float(self.device.back(self.there.mean_diagonal))

    def number(self, name: str) -> float | None:
        """Another number that this kind of linearisation knows, or None."""
        found: Any = getattr(self.there, name, None)
        return None if found is None else float(self.device.back(found))


@dataclass(frozen=True)
class PlacedObjective:
    """A loss.

    Args:
        there: the objective, its moments where they lie.
        device: that place; the host for an objective that streams, whose passes move themselves.
    """

    there: Objective
    device: Device

    @property
    def name(self) -> str:
        """Of the loss."""
        return self.there.name

    @property
    def repeatable(self) -> bool:
        """As ``Objective``."""
        return self.there.repeatable

    def value(self, A: Float) -> float:
        """The loss at A [landmark, component]."""
        return float(self.device.back(self.there.value(self.device.to(A))))

    def values(self, A: Float) -> Float:
        """The loss of each column of A [landmark, component, column]."""
        return np.asarray(self.device.back(self.there.values(self.device.to(A))))

    def linearise(self, A: Float) -> PlacedSlope:
        """Value, gradient and curvature at A [landmark, component]."""
        return PlacedSlope(self.there.linearise(self.device.to(A)), self.device)
