"""Coefficients that a sum over landmarks is taken with, and their likeness to the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import UsageError
from krepes_ooc.runner.explanation.explain_stores import AuditStores
from krepes_ooc.stages.minimiser.solution import MINIMISER, SOLUTIONS, STEP

AUTO, DISTILLED = "auto", "distilled"
CHOICES = (AUTO, STEP, MINIMISER, DISTILLED)
WORDS = {**SOLUTIONS, DISTILLED: "distilled coefficients"}
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Coefficients:
    """Coefficients A and offset gamma of an embedding f = K A + gamma.

    Args:
        name: step, lm_steps, minimiser or distilled.
        asked: the choice that led to them.
        coefficients: A [landmark, output].
        offset: gamma [output].
        likeness: linear CKA with the network's embedding over fit samples; None: not measured.
        r_squared: share of the network's embedding over audit samples; None: not measured.
    """

    name: str
    asked: str
    coefficients: Float
    offset: Float
    likeness: float | None = None
    r_squared: float | None = None

    @property
    def is_distilled(self) -> bool:
        """Whether outputs are those of the network, not components of the audit."""
        return self.name == DISTILLED

    def embedding(self, kernel: Float) -> Float:
        """Embedding f = K A + gamma [sample, output] of kernel rows [sample, landmark]."""
        return np.asarray(kernel @ self.coefficients + self.offset)

    def record(self) -> dict[str, Any]:
        """The choice and its figures as JSON values."""
        return {
            "asked": self.asked,
            "used": self.name,
            "words": WORDS[self.name],
            "likeness": self.likeness,
            "r_squared": self.r_squared,
        }


def choose_coefficients(stores: AuditStores, asked: str) -> Coefficients:
    """The coefficients that were asked for; auto: those that the audit explains with.

    Raises:
        UsageError: no such choice, or this audit has no such coefficients.
    """
    if asked not in CHOICES:
        raise UsageError(
            f"no coefficients {asked!r}",
            where="--coefficients",
            expected=f"one of {', '.join(CHOICES)}",
        )
    if asked == DISTILLED:
        return _distilled(stores)
    minimiser = stores.reader("minimiser")
    influence = stores.reader("influence")
    name = str(influence.attributes["solution"]) if asked == AUTO else asked
    if asked == AUTO:
        coefficients = influence.array("coefficients")
    elif name == STEP:
        coefficients = stores.reader("newton").array("coefficients")
    elif minimiser.has("coefficients_minimiser"):
        coefficients = minimiser.array("coefficients_minimiser")
    else:
        objective = stores.reader("newton").attributes["objective"]
        raise UsageError(
            f"{objective} has no damped minimiser: its loss streams the kernel",
            where="--coefficients minimiser",
            expected="step, distilled or auto",
        )
    offset = stores.reader("spectrum").array("offset")
    # Without fit samples the likeness is 0 by definition, and says nothing.
    likeness = minimiser.attributes["likeness"].get(name) or None
    return Coefficients(name, asked, coefficients, offset, likeness)


def _distilled(stores: AuditStores) -> Coefficients:
    """Coefficients of the network's own embedding.

    Raises:
        UsageError: they are not defined in this audit.
    """
    store = stores.reader(DISTILLED)
    if not store.attributes["defined"]:
        raise UsageError(
            f"there are no distilled coefficients: {store.attributes['reason']}",
            where="--coefficients distilled",
            expected="step, minimiser or auto",
        )
    return Coefficients(
        DISTILLED,
        DISTILLED,
        store.array("distilled"),
        store.array("offset"),
        r_squared=float(store.attributes["r_squared"]),
    )
