"""All audited samples for the page's search: what its script draws cards from, and the JSON keeps.

The script is ours and in the page; its sha256 stands in the page's policy, so that no other can
run. User text reaches the page as JSON and is only ever set as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData, Audited, Landmarks
from krepes_ooc.rendering.drawing.markup import Markup, element, to_plain
from krepes_ooc.rendering.drawing.sample_view import SampleView
from krepes_ooc.rendering.drawing.thumbnails import data_uri
from krepes_ooc.rendering.explanation import Explained

# Pictures of all samples together; the page must open at once
PICTURE_BYTES = 2_500_000
# Sides that are tried, largest first
SIDES = (96, 64, 48, 32, 24, 16)
MAX_TEXT = 400
# Groups whose effects colour the map, and digits of its figures
MAP_GROUPS = 24
MAP_DIGITS = 5
SCRIPTS = ("page", "cards", "search", "map", "downloads")


def search_index(audit: AuditData, explained: Sequence[Explained]) -> dict[str, Any]:
    """The samples and the landmarks that any of them shows, as JSON values.

    ``top``, ``agree``, ``near``, ``mix`` and ``concept`` of a sample are its first score, its
    agreement with its landmarks, closeness, mixing and discovered concept; null: not measured.

    A link is [place in ``landmarks``, score, contribution, kernel]; ``links`` are ranked,
    ``repelling`` are the most repelling ones outside the ranking, without a score (null: not
    measured).
    """
    assert audit.landmarks is not None
    assert audit.audited is not None
    # Links point into the landmarks that any sample shows, not into all of them
    used = _used(explained)
    place = {row: i for i, row in enumerate(used)}
    return {
        "classes": list(audit.classes),
        "columns": [
            {
                "name": c.name,
                "kind": c.kind,
                "categories": list(c.categories),
                "span": span,
                "audited": c.name in audit.audited_columns,
            }
            # Keys as the page's script spells numbers.
            | (
                {"words": {f"{code:.15g}": word for code, word in c.words.items()}}
                if c.words
                else {}
            )
            for c, span in zip(audit.columns, _spans(explained), strict=False)
        ],
        "landmarks": _samples(audit, audit.landmarks, used),
        "samples": [
            {
                **record,
                **_figures(audit, place_of, one),
                "links": [_link(link, place) for link in one.links],
                "repelling": None
                if one.repelling_only is None
                else [_link(link, place) for link in one.repelling_only],
            }
            for place_of, (record, one) in enumerate(
                zip(
                    _samples(audit, audit.audited, [one.row for one in explained]),
                    explained,
                    strict=True,
                )
            )
        ],
        **_map_data(audit),
    }


def _figures(audit: AuditData, place: int, one: Explained) -> dict[str, Any]:
    """Figures that cards are sorted by and the map is coloured by."""
    scores = [link.score for link in one.links]
    found: dict[str, Any] = {"top": to_plain(scores[0]) if scores else None}
    found["agree"] = _agreement(one)
    known = audit.sample_figures
    for key, name in (("near", "closeness"), ("mix", "mixing"), ("concept", "concept")):
        found[key] = None if known is None else to_plain(getattr(known, name)[place])
    return found


def _agreement(one: Explained) -> float | None:
    """Share of ranked landmarks of the sample's class; without labels, of cells that agree."""
    n_ranked = len(one.links)
    if not n_ranked:
        return None
    if one.same_class is not None:
        return one.same_class / n_ranked
    return None if one.agrees is None else float(one.agrees[:n_ranked].mean())


def _map_data(audit: AuditData) -> dict[str, Any]:
    """Coordinates, landmarks and group effects for the map; nothing without one."""
    found = audit.embedding_map
    if found is None or audit.landmarks is None:
        return {}
    view = SampleView(audit.landmarks, audit)
    rings = range(len(audit.landmarks.sample_id))
    effects = audit.group_effects
    groups: dict[str, Any] = {}
    if effects is not None and effects.effect is not None:
        order = [int(g) for g in np.argsort(-np.nan_to_num(effects.mean), kind="stable")]
        groups = {
            effects.names[g]: _rounded(effects.effect[g])
            for g in order[:MAP_GROUPS]
            if np.isfinite(effects.mean[g])
        }
    planes = (("network", found.network), ("audit", found.audit))
    return {
        "map": {
            "concepts": [] if audit.discovered is None else list(audit.discovered.names),
            "effects": groups,
            "rings": [[view.name(row)[:MAX_TEXT], view.code(row)] for row in rings],
            "points": {
                name: {
                    "samples": [_rounded(point) for point in plane.samples],
                    "landmarks": [_rounded(point) for point in plane.landmarks],
                }
                for name, plane in planes
            },
        }
    }


def _rounded(values: Array) -> list[Any]:
    """Values with the digits that a drawing needs."""
    return [to_plain(float(f"{value:.{MAP_DIGITS}g}")) for value in values.tolist()]


def embed_search_index(
    index: dict[str, Any], audit: AuditData, explained: Sequence[Explained]
) -> Markup:
    """The index as a data block of the page, with pictures as far as their bytes allow."""
    rows = [one.row for one in explained]
    used = _used(explained)
    assert audit.landmarks is not None
    assert audit.audited is not None
    pictures = _pictures(audit.audited, rows, audit.landmarks, used)
    shown = {**index, "pictures": pictures} if pictures else index
    # Compact, and without NaN, which no browser parses
    text = json.dumps(shown, separators=(",", ":"), allow_nan=False)
    # Nothing inside may end the element that holds it.
    return element(
        "script", Markup(text.replace("<", "\\u003c")), type="application/json", id="deck"
    )


def script() -> str:
    """The page's one script: its parts in one function, so that no name is global."""
    folder = files("krepes_ooc.rendering").joinpath("script")
    parts = [folder.joinpath(f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return f'"use strict";\n(() => {{\n{"".join(parts)}}})();\n'


def script_policy() -> str:
    """Script source of the page's policy: this script by its sha256."""
    # As a browser computes it: base64 of the sha256 of the text
    digest = hashlib.sha256(script().encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _used(explained: Sequence[Explained]) -> list[int]:
    return sorted({link.row for one in explained for link in one.displayed})


def _spans(explained: Sequence[Explained]) -> list[float]:
    return [float(span) for span in explained[0].spans] if explained else []


def _samples(
    audit: AuditData, samples: Audited | Landmarks, rows: Sequence[int]
) -> list[dict[str, Any]]:
    view = SampleView(samples, audit)
    records = []
    for row in rows:
        record: dict[str, Any] = {
            "id": int(samples.sample_id[row]),
            "name": view.name(row)[:MAX_TEXT],
            "label": view.code(row),
        }
        if samples.text is not None:
            record["text"] = str(samples.text[row])[:MAX_TEXT]
        if samples.values is not None:
            record["values"] = [_short(value) for value in samples.values[row].tolist()]
        records.append(record)
    return records


def _link(link: Any, place: dict[int, int]) -> list[Any]:
    return [place[link.row], *(to_plain(v) for v in (link.score, link.contribution, link.kernel))]


def _short(value: float) -> Any:
    """A cell without the digits that nobody reads; whole numbers without a point."""
    plain = to_plain(value)
    return int(plain) if plain is not None and plain == int(plain) else plain


def _pictures(
    audited: Audited, rows: Sequence[int], landmarks: Landmarks, used: Sequence[int]
) -> dict[str, list[str]]:
    """Pictures of both as data addresses, as large as fit the page; none where none fit."""
    if audited.image is None or landmarks.image is None or not rows:
        return {}
    for side in SIDES:
        # A sixteenth of the pictures tells what all would take.
        trial = [audited.image[row] for row in rows[:: max(1, len(rows) // 16)]]
        # Mean size of a picture, taken for all
        each = sum(len(data_uri(image, side)) for image in trial) / len(trial)
        if each * (len(rows) + len(used)) <= PICTURE_BYTES:
            return {
                "samples": _addresses(audited.image, rows, side),
                "landmarks": _addresses(landmarks.image, used, side),
            }
    return {}


def _addresses(images: Array, rows: Sequence[int], side: int) -> list[str]:
    return [data_uri(images[row], side) for row in rows]
