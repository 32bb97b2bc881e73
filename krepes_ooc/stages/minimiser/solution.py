"""The coefficients that explanations use: those whose embedding is most like the network's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.storage.store_reader import StoreReader

Float = npt.NDArray[np.float64]

STEP, LM_STEPS, MINIMISER = "step", "lm_steps", "minimiser"
# In words, for people.
SOLUTIONS = {
    STEP: "one Newton step",
    LM_STEPS: "Levenberg-Marquardt steps",
    MINIMISER: "damped minimiser",
}


@dataclass(frozen=True)
class Solution:
    """Coefficients and what they changed.

    Args:
        name: of ``SOLUTIONS``.
        coefficients: A [landmark, component].
        step: A - A0 [landmark, component].
    """

    name: str
    coefficients: Float
    step: Float


def read_solution(newton: StoreReader, spectrum: StoreReader, minimiser: StoreReader) -> Solution:
    """The chosen coefficients.

    Args:
        newton: the store ``newton``.
        spectrum: the store ``spectrum``, for the start.
        minimiser: the store ``minimiser``, which says which ones were chosen.
    """
    name = str(minimiser.attributes["solution"])
    if name == STEP:
        return Solution(name, newton.array("coefficients"), newton.array("step"))
    coefficients = (
        newton.array("coefficients_lm")
        if name == LM_STEPS
        else minimiser.array("coefficients_minimiser")
    )
    return Solution(name, coefficients, coefficients - spectrum.array("start"))


def best_solution(likeness: Iterable[tuple[str, Any]]) -> str:
    """Name of the solution of the largest likeness; among equals the first."""
    return max(likeness, key=lambda pair: float(pair[1]))[0]
