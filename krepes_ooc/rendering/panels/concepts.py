"""Concepts: whether each is recognised, beside its controls, and the landmarks of largest score."""

from __future__ import annotations

from typing import Any

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData
from krepes_ooc.rendering.drawing.line_chart import bar
from krepes_ooc.rendering.drawing.markup import (
    Child,
    Markup,
    element,
    join,
    number,
    table,
    user_text,
)
from krepes_ooc.rendering.drawing.sample_view import LandmarkSamples, SampleView
from krepes_ooc.rendering.hidden import mean_scores
from krepes_ooc.rendering.measured import CONCEPT_CONTROLS, Concepts
from krepes_ooc.rendering.panels.landmarks import Entry, gallery
from krepes_ooc.rendering.panels.panel import Panel, absent

# Landmarks shown on either side of a concept
TOP_LANDMARKS = 6
LEAD = (
    "A concept is recognised only if held-out samples are classified better than for random "
    "concepts on the same samples; 0.5 is chance. The controls are the same classifier on the "
    "embedding at the start, on the network's own embedding and on its inputs: the kernel is made "
    "of gradients, which contain the inputs, so a concept may be recognised here though hardly by "
    "the network."
)


def concepts_panel(audit: AuditData) -> Panel:
    """Concepts with their accuracies, mean scores and landmarks of largest score."""
    key = "concepts"
    title = "Named concepts"
    concepts = audit.concepts
    if concepts is None or not concepts.names:
        return absent(key, title, "No concept was named in the recipe.")
    # A concept that is not trusted has no score
    means = _means(audit, concepts)
    head: list[Child] = ["concept", "", "held-out accuracy"]
    head += [*(CONCEPT_CONTROLS[key] for key in concepts.controls), "mean score"]
    rows = [_row(concepts, i, means[i]) for i in range(len(concepts.names))]
    extremes: dict[str, dict[str, list[dict[str, Any]]]] = {}
    galleries: list[Child] = []
    if concepts.landmark_score is not None and audit.landmarks is not None:
        view = SampleView(audit.landmarks, audit)
        for i, name in enumerate(concepts.names):
            # Landmarks of a concept that is not recognised mean nothing
            if _trusted(concepts, i):
                extremes[name] = _top_landmarks(view, concepts.landmark_score[i])
                galleries.append(_top_landmark(view, name, extremes[name]))
    body = join(
        table(head, rows, caption="Concepts and their controls", class_="lines"),
        galleries,
    )
    figures = {
        "names": list(concepts.names),
        "accuracy": concepts.accuracy,
        "trusted": concepts.trusted,
        "controls": dict(concepts.controls),
        "mean_score": means,
        "landmarks": extremes,
    }
    return Panel(key, title, LEAD, body, figures)


def _means(audit: AuditData, concepts: Concepts) -> list[float]:
    """Mean score over the samples that are explained, not over those that fit probes."""
    role = None if audit.audited is None else audit.audited.role
    means = mean_scores(concepts, None if role is None else role == 0)
    return [float(value) for value in means]


def _row(concepts: Concepts, i: int, mean: float) -> list[Child]:
    trusted = _trusted(concepts, i)
    accuracy = join(
        number(concepts.accuracy[i]),
        # The bar begins at chance, 0.5
        bar((float(concepts.accuracy[i]) - 0.5) * 2, "attract" if trusted else "neutral"),
    )
    score = number(mean, signed=True)
    if not trusted:
        score = element("span", "nothing is scored", class_="none")
    return [
        user_text(concepts.names[i]),
        "recognised" if trusted else element("b", "no better than by chance"),
        accuracy,
        *(number(values[i]) for values in concepts.controls.values()),
        score,
    ]


def _trusted(concepts: Concepts, i: int) -> bool:
    return concepts.trusted is None or bool(concepts.trusted[i])


def _top_landmarks(view: SampleView, scores: Array) -> dict[str, list[dict[str, Any]]]:
    """The landmarks that displace samples farthest towards a concept and away from it."""
    marks = LandmarkSamples(view.samples)
    total = marks.total(scores)
    order = np.argsort(-total, kind="stable")
    # Only landmarks with the sign of their side
    sides = {
        "towards": [j for j in order[:TOP_LANDMARKS] if total[j] > 0],
        "away": [j for j in order[::-1][:TOP_LANDMARKS] if total[j] < 0],
    }
    return {
        side: [
            {
                **view.record(int(marks.first_row[j])),
                "row": int(marks.first_row[j]),
                "score": float(total[j]),
            }
            for j in picked
        ]
        for side, picked in sides.items()
    }


def _top_landmark(view: SampleView, name: str, sides: dict[str, list[dict[str, Any]]]) -> Markup:
    # One scale for both sides, so that bars compare
    most = max((abs(one["score"]) for side in sides.values() for one in side), default=0.0) or 1.0
    parts = []
    for side, kind in (("towards", "attract"), ("away", "repel")):
        entries = [
            Entry(one["row"], one["score"], None, abs(one["score"]) / most, kind)
            for one in sides[side]
        ]
        if entries:
            parts.append(element("h4", f"displace samples {side}", class_=kind))
            parts.append(gallery(view, entries, f"Landmarks that displace samples {side}", "score"))
    return element("details", element("summary", "Landmarks of ", user_text(name)), parts)
