"""A similarity or a logit of one sample as a sum over landmarks, ready to be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData
from krepes_ooc.rendering.drawing.markup import to_plain
from krepes_ooc.rendering.drawing.sample_view import LandmarkSamples, SampleView, column_spans
from krepes_ooc.rendering.explanation import Explained
from krepes_ooc.rendering.landmark_links import LandmarkLink

# Ways to rank the landmarks: by their term, or their part in the network's embedding.
BY_TERM, BY_EMBEDDING = "term", "network_embedding"


@dataclass(frozen=True, eq=False)
class ExplainedSum:
    """One value as a sum over landmarks.

    Args:
        audit: landmarks, and the samples that the value is of.
        row: the sample's row among them.
        other: row of the sample that it is compared with; None: a logit.
        terms: [landmark sample].
        ranking: what ranks the landmarks: of those that attract the largest first, of those that
            repel the smallest [landmark sample].
        ranked_by: its name, ``BY_TERM`` or ``BY_EMBEDDING``.
        kernel: mean over a landmark's rows [landmark sample].
        figures: value, terms_sum, constant, residual, attracting_sum, repelling_sum, cancelled.
        coefficients: asked, used, words, likeness and r_squared.
        details: of the similarity (cosine) or of the probe.
        top: terms of either sign that are listed.
    """

    audit: AuditData
    row: int
    other: int | None
    terms: Array
    ranking: Array
    ranked_by: str
    kernel: Array
    figures: Mapping[str, float]
    coefficients: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    top: int = 10

    @property
    def sample(self) -> SampleView:
        """The samples as people see them."""
        assert self.audit.audited is not None
        return SampleView(self.audit.audited, self.audit)

    @cached_property
    def _landmarks(self) -> LandmarkSamples:
        assert self.audit.landmarks is not None
        return LandmarkSamples(self.audit.landmarks)

    @property
    def landmarks(self) -> SampleView:
        """The landmarks as people see them."""
        return SampleView(self._landmarks.landmarks, self.audit)

    @cached_property
    def attracting(self) -> list[LandmarkLink]:
        """The first landmarks whose term is above 0."""
        return self._links(self.terms > 0, -self.ranking)

    @cached_property
    def repelling(self) -> list[LandmarkLink]:
        """The first landmarks whose term is below 0."""
        return self._links(self.terms < 0, self.ranking)

    def _links(self, chosen: Array, ascending: Array) -> list[LandmarkLink]:
        order = np.argsort(ascending, kind="stable")
        places = order[chosen[order]][: self.top]
        return [
            LandmarkLink(
                int(self._landmarks.first_row[place]),
                rank,
                float(self.ranking[place]),
                float(self.terms[place]),
                float(self.kernel[place]),
            )
            for rank, place in enumerate(places, start=1)
        ]

    def share(self, link: LandmarkLink) -> float:
        """Part of a term in the sum of all terms of its sign."""
        side = "attracting_sum" if link.contribution > 0 else "repelling_sum"
        return link.contribution / self.figures[side]

    def others(self, links: Sequence[LandmarkLink]) -> tuple[int, float]:
        """Number and sum of the terms with the sign of the listed ones that are not listed.

        Args:
            links: ``attracting`` or ``repelling``.
        """
        attract = links is self.attracting
        count = int(np.sum(self.terms > 0 if attract else self.terms < 0)) - len(links)
        total = self.figures["attracting_sum" if attract else "repelling_sum"]
        return count, total - sum(link.contribution for link in links)

    def explained(self) -> Explained:
        """The listed landmarks as an explanation that can be drawn as a card, with their terms."""
        attracting, repelling = (
            [replace(link, score=link.contribution) for link in links]
            for links in (self.attracting, self.repelling)
        )
        spans = column_spans(self.audit)
        return Explained(self.audit, self.row, attracting, spans, repelling, self.other)

    def sentences(self) -> list[str]:
        """The value, its parts and the coefficients in words."""
        figures, sample = self.figures, self.sample
        named = " ".join(filter(None, [sample.name(self.row), _class(sample, self.row)]))
        parts = (
            f"attracting terms {figures['attracting_sum']:+.4g}, repelling terms "
            f"{figures['repelling_sum']:+.4g}, constant {figures['constant']:+.4g}: together "
            f"{figures['value']:.4g} (rounding {abs(figures['residual']):.0e})"
        )
        cancelled = f"{figures['cancelled']:.0%} of the terms' sizes cancel"
        about = self._similarity(named) if self.other is not None else self._logit(named)
        used = f"coefficients: {self._coefficients()}"
        return [*about, used, parts, cancelled, *self._warning()]

    def _similarity(self, named: str) -> list[str]:
        assert self.other is not None
        cosine = self.details["cosine"]
        sample = self.sample
        other = " ".join(filter(None, [sample.name(self.other), _class(sample, self.other)]))
        words = "" if cosine is None else f", cosine {cosine:.3f}"
        return [f"sample {named} against {other}: similarity {self.figures['value']:.4g}{words}"]

    def _logit(self, named: str) -> list[str]:
        probe = self.details["probe"]
        kind = "log-odds" if probe["classes"] == 2 else "logit"
        lines = [
            f"sample {named}: {kind} of class {probe['class']} {self.figures['value']:.4g}, "
            f"probability {probe['probability']:.3f}, decision {probe['decision']}",
            f"probe of {probe['classes']} classes fitted on the {probe['fitted_on']} of "
            f"{probe['fit_samples']} fit samples",
        ]
        if probe["network_logit"] is not None:
            lines.append(f"the network's own embedding gives {probe['network_logit']:.4g}")
        return lines

    def _coefficients(self) -> str:
        """Words for the coefficients and how much of the network is in them."""
        words = str(self.coefficients["words"])
        likeness, r_squared = self.coefficients["likeness"], self.coefficients["r_squared"]
        if r_squared is not None:
            words += f" (R2 {r_squared:.3f} of the network's embedding on audit samples)"
        if likeness is not None:
            words += f" (likeness to the network's embedding {likeness:.3f})"
        return words

    def _warning(self) -> list[str]:
        if self.ranked_by == BY_TERM:
            return []
        return [
            "single terms of distilled coefficients are large and cancel:",
            "landmarks are ranked by <k A, z>, their part in the network's embedding z of the "
            "sample",
        ]

    def record(self) -> dict[str, Any]:
        """The same as JSON values."""
        sample = self.sample
        return {
            "question": "logit" if self.other is None else "similarity",
            "sample": sample.record(self.row),
            "against": None if self.other is None else sample.record(self.other),
            **{name: to_plain(value) for name, value in self.figures.items()},
            **to_plain(dict(self.details)),
            "coefficients": to_plain(dict(self.coefficients)),
            "ranked_by": self.ranked_by,
            **self._side("attracting", self.attracting),
            **self._side("repelling", self.repelling),
        }

    def _side(self, name: str, links: list[LandmarkLink]) -> dict[str, Any]:
        count, total = self.others(links)
        listed = [
            {
                **self.landmarks.record(link.row),
                "rank": link.rank,
                "term": link.contribution,
                "share": self.share(link),
                "ranking": link.score,
                "kernel": link.kernel,
            }
            for link in links
        ]
        others = {"landmarks": count, "sum": total}
        return {name: listed, f"other_{name}": others}


def _class(sample: SampleView, row: int) -> str:
    name = sample.class_name(row)
    return f"({name})" if name else ""
