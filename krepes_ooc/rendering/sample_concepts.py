"""Concepts of one sample: along which it is moved, and which discovered one it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class ConceptScore:
    """One concept and one sample.

    Args:
        name: given, or ``concept`` and the number of a discovered one.
        kind: ``given`` or ``discovered``.
        kept_as: names that people gave a discovered concept.
        reliable: recognised better than by chance, or stable.
        score: displacement of the sample by the step along the concept.
        activation: of a discovered concept; NaN for a given one.
        shows: whether it is the discovered concept of largest activation.
    """

    name: str
    kind: str
    kept_as: tuple[str, ...]
    reliable: bool
    score: float
    activation: float
    shows: bool

    @property
    def title(self) -> str:
        """The name, those that people gave it, and whether it is to be relied on."""
        kept = f" ({', '.join(self.kept_as)})" if self.kept_as else ""
        doubt = "unstable" if self.kind == "discovered" else "not recognised"
        return f"{self.name}{kept}" + ("" if self.reliable else f", {doubt}")


@dataclass(frozen=True, eq=False)
class SampleConcepts:
    """Concepts of one sample.

    Args:
        scores: of every concept, given ones first.
        by_landmark: landmark row -> name of the concept -> k_lt <dA_l, v_c>.
    """

    scores: Sequence[ConceptScore]
    by_landmark: Mapping[int, Mapping[str, float]]

    def first(self, count: int) -> list[ConceptScore]:
        """The concept that the sample shows, then those along which it is moved furthest."""
        order = sorted(self.scores, key=lambda each: (not each.shows, -abs(each.score)))
        return order[:count]
