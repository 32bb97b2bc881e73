"""Nearest landmarks of one sample with and without a group of samples, ready to be drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from krepes_ooc.rendering.data import Array, AuditData
from krepes_ooc.rendering.drawing.markup import to_plain
from krepes_ooc.rendering.drawing.sample_view import SampleView, column_spans
from krepes_ooc.rendering.explanation import Explained
from krepes_ooc.rendering.landmark_links import LandmarkLink

# Words for the kinds of landmarks on a card.
HEADINGS = {"repel": "left", "neutral": "new", "attract": "stays near"}


@dataclass(frozen=True)
class Neighbour:
    """One near landmark: its row, rank from 1 and cosine, and its rank on the other side.

    ``in_group`` is None where the small stores do not say whether it belongs to the group.
    """

    row: int
    rank: int
    cosine: float
    other_rank: int
    in_group: bool | None


@dataclass(frozen=True, eq=False)
class ExplainedWithout:
    """A sample's neighbourhood before and after a group is left out.

    Args:
        audit: landmarks, and the samples.
        row: the sample's row among them.
        group: name, samples, mean_effect, mean_effect_stderr, method and converged.
        effect: 1 - correlation of the sample's profiles; None: not defined.
        effect_quantile: share of audited samples with a smaller effect; None: not defined.
        in_group: whether the sample belongs to the group; None: not known.
        before: nearest landmarks with all samples, nearest first.
        after: nearest landmarks without the group.
    """

    audit: AuditData
    row: int
    group: Mapping[str, Any]
    effect: float | None
    effect_quantile: float | None
    in_group: bool | None
    before: tuple[Neighbour, ...]
    after: tuple[Neighbour, ...]

    @property
    def sample(self) -> SampleView:
        """The samples as people see them."""
        assert self.audit.audited is not None
        return SampleView(self.audit.audited, self.audit)

    @property
    def landmarks(self) -> SampleView:
        """The landmarks as people see them."""
        assert self.audit.landmarks is not None
        return SampleView(self.audit.landmarks, self.audit)

    @cached_property
    def left(self) -> list[Neighbour]:
        """Landmarks that are near before and not after."""
        near = {neighbour.row for neighbour in self.after}
        return [neighbour for neighbour in self.before if neighbour.row not in near]

    @cached_property
    def entered(self) -> list[Neighbour]:
        """Landmarks that are near after and not before."""
        near = {neighbour.row for neighbour in self.before}
        return [neighbour for neighbour in self.after if neighbour.row not in near]

    def explained(self) -> Explained:
        """The neighbours as an explanation that can be drawn: those that left, new ones, the rest.

        Their kinds are the keys of ``HEADINGS``.
        """
        stays = [near for near in self.before if near not in self.left]
        parts = ((self.left, -1.0), (self.entered, math.nan), (stays, 1.0))
        links = [
            LandmarkLink(near.row, near.rank, near.cosine, sign, math.nan)
            for part, sign in parts
            for near in part
        ]
        return Explained(self.audit, self.row, links, column_spans(self.audit), [])

    def sentences(self) -> list[str]:
        """The group, its effect on the sample, and what changed, in words."""
        group, sample = self.group, self.sample
        class_name = sample.class_name(self.row)
        named = f"{sample.name(self.row)} ({class_name})" if class_name else sample.name(self.row)
        effect = "not defined" if self.effect is None else f"{self.effect:.3f}"
        if self.effect_quantile is not None:
            effect += f", above {self.effect_quantile:.0%} of the audited samples"
        belongs = {True: ", belongs to it", False: ", does not belong to it", None: ""}
        mean = group["mean_effect"]
        lines = [
            f"sample {named} without group {group['name']} ({group['samples']} samples"
            f"{belongs[self.in_group]}): effect {effect}",
        ]
        if mean is not None:
            lines.append(
                f"mean effect of the group {mean:.3f} +- {group['mean_effect_stderr'] or 0:.3f}, "
                f"{group['method']} at relative damping {group['damping_relative']:g}"
            )
        gone = [self.landmarks.name(neighbour.row) for neighbour in self.left]
        words = f"left: {', '.join(gone)}" if gone else "none left"
        lines.append(f"of its {len(self.before)} nearest landmarks {words}")
        return lines

    def record(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "question": "without",
            "sample": self.sample.record(self.row),
            "group": to_plain(dict(self.group)),
            "in_group": self.in_group,
            "effect": self.effect,
            "effect_quantile": self.effect_quantile,
            "before": [self._record(one) for one in self.before],
            "after": [self._record(one) for one in self.after],
            "left": [self._record(one) for one in self.left],
            "entered": [self._record(one) for one in self.entered],
        }

    def _record(self, one: Neighbour) -> dict[str, Any]:
        return {
            **self.landmarks.record(one.row),
            "rank": one.rank,
            "cosine": one.cosine,
            "other_rank": one.other_rank,
            "in_group": one.in_group,
        }


def neighbours(
    cosine: Array, other: Array, rows: Array, in_group: list[bool | None], top: int
) -> tuple[Neighbour, ...]:
    """The landmark samples of largest cosine, with their ranks on the other side.

    Args:
        cosine: of the sample with every landmark sample [landmark sample]; -inf: left out.
        other: the same on the other side.
        rows: landmark row of every landmark sample.
        in_group: of every landmark sample.
        top: how many.
    """
    order = (-cosine).argsort(kind="stable")
    other_rank = (-other).argsort(kind="stable").argsort(kind="stable") + 1
    return tuple(
        Neighbour(
            int(rows[place]), rank, float(cosine[place]), int(other_rank[place]), in_group[place]
        )
        for rank, place in enumerate(order[:top], start=1)
        if cosine[place] > -2.0
    )
