"""Map: embeddings of the network and of the audit on a plane, side by side."""

from __future__ import annotations

from typing import Any

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData
from krepes_ooc.rendering.drawing.markup import Child, Markup, element, join, number, user_text
from krepes_ooc.rendering.drawing.sample_view import class_name
from krepes_ooc.rendering.drawing.scatter import Scatter, colours_among, colours_of
from krepes_ooc.rendering.drawing.sentence import percent
from krepes_ooc.rendering.overview import EmbeddingMap, Plane
from krepes_ooc.rendering.panels.panel import Panel, absent

KEY = "map"
TITLE = "Embedding map"
MISSING = "There is no map: no sample was embedded."
HIDDEN = "There is no map: this page shows no sample."
CLASS = "class"
CONCEPT = "discovered concept"


def map_panel(audit: AuditData) -> Panel:
    """Both embeddings, coloured by class, or by concept where there are no labels."""
    found = audit.embedding_map
    if found is None or audit.audited is None:
        return absent(KEY, TITLE, HIDDEN if audit.hidden else MISSING)
    by, colour, landmark_colour, names = _colours(audit, found)
    lead = join(
        number(len(found.network.samples)), " audited samples (dots) and ",
        number(len(found.network.landmarks)), " landmarks (rings) on the first two principal "
        "components of the network's embedding, and of the audit's embedding turned onto it. Where "
        "the two differ, the audit does not describe the network. The planes agree in ",
        percent(found.likeness), " of their variance (Procrustes).",
    )  # fmt: skip
    sides = (
        ("network", "Network's embedding", found.network),
        ("audit", "Audit's embedding", found.audit),
    )
    drawings = [
        _drawing(key, title, plane, (by, colour, landmark_colour, names))
        for key, title, plane in sides
    ]
    body = join(
        _controls(audit, by),
        element("div", drawings, class_="maps", data_by=by),
        _legend(by, names),
        element("p", id="map-said", class_="unseen", aria_live="polite"),
        element("div", id="map-tip", class_="tip", hidden=""),
    )
    figures = {
        "samples": len(found.network.samples),
        "landmarks": len(found.network.landmarks),
        "likeness": found.likeness,
        "colour": by,
        **{
            key: {
                "samples": plane.samples,
                "landmarks": plane.landmarks,
                "variance": list(plane.variance),
            }
            for key, _, plane in sides
        },
    }
    return Panel(KEY, TITLE, lead, body, figures)


def _colours(audit: AuditData, found: EmbeddingMap) -> tuple[str, Array, Array, list[str]]:
    """Field that colours the map, colours of samples and landmarks, name of every colour."""
    assert audit.audited is not None
    n_landmarks = len(found.network.landmarks)
    none = np.full(n_landmarks, -1)
    label = audit.audited.label
    if label is not None and (label[: len(found.network.samples)] >= 0).any():
        colour, codes = colours_of(label[: len(found.network.samples)])
        marks = None if audit.landmarks is None else audit.landmarks.label
        landmark_colour = colours_among(none if marks is None else marks, codes)
        return CLASS, colour, landmark_colour, [class_name(c, audit.classes) for c in codes]
    concept = none[:0] if audit.sample_figures is None else audit.sample_figures.concept
    if len(concept) and (concept >= 0).any():
        colour, codes = colours_of(concept)
        named = () if audit.discovered is None else audit.discovered.names
        names = [named[c] if c < len(named) else f"concept {c}" for c in codes]
        return CONCEPT, colour, colours_among(none, codes), names
    nothing = np.full(len(found.network.samples), -1)
    return "nothing", colours_among(nothing, []), colours_among(none, []), []


def _drawing(
    key: str, title: str, plane: Plane, coloured: tuple[str, Array, Array, list[str]]
) -> Markup:
    by, colour, landmark_colour, names = coloured
    words = (
        f"Samples as dots and landmarks as rings on two principal components, coloured by {by}; "
        "arrow keys go from sample to sample, Enter opens the card."
    )
    scatter = Scatter(
        f"map-{key}", title, words, plane.samples, plane.landmarks, colour, landmark_colour, names
    )
    first, second = plane.variance
    shares = join(
        " (", percent(first), " and ", percent(second), " of its variance)"
    )  # fmt: skip
    caption = element("figcaption", title, element("span", shares, class_="quiet"))
    frame = element(
        "div",
        scatter.render(),
        class_="plane",
        tabindex="0",
        role="application",
        aria_label=f"{title}: arrow keys go from sample to sample, Enter opens the card",
        data_side=key,
    )
    return element("figure", caption, frame, class_="map", data_name=f"map-{key}")


def _controls(audit: AuditData, by: str) -> Markup:
    """Choice of colour, which the page's script fills, and a switch for the landmarks."""
    choice = element("select", element("option", by, value=""), name="colour")
    rings = element("input", type="checkbox", name="rings", checked="")
    return element(
        "form",
        element("label", element("span", "colour by"), choice),
        element("label", rings, " landmarks", class_="tick-box"),
        id="map-form",
        class_="find",
        hidden="",
        aria_label="Colour of the map",
    )


def _legend(by: str, names: list[str]) -> Markup:
    parts: list[Child] = [
        element("li", element("i", class_=f"k{colour}"), user_text(name, 24))
        for colour, name in enumerate(names)
    ]
    label: Any = element("span", by, class_="quiet")
    return element("ul", element("li", label), parts, id="map-legend", class_="keys")
