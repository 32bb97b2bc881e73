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


def search_index(audit: AuditData, explained: Sequence[Explained]) -> dict[str, Any]:
    """The samples and the landmarks that any of them shows, as JSON values.

    A link is [place in ``landmarks``, score, contribution, kernel]; ``links`` are ranked, ``push``
    are the most repelling ones outside the ranking, without a score (null: not measured).
    """
    assert audit.landmarks is not None
    assert audit.audited is not None
    # Links point into the landmarks that any sample shows, not into all of them
    used = _used(explained)
    place = {row: i for i, row in enumerate(used)}
    return {
        "classes": list(audit.classes),
        "columns": [
            {"name": c.name, "kind": c.kind, "categories": list(c.categories), "span": span}
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
                "links": [_link(link, place) for link in one.links],
                "push": None
                if one.repelling_only is None
                else [_link(link, place) for link in one.repelling_only],
            }
            for record, one in zip(
                _samples(audit, audit.audited, [one.row for one in explained]),
                explained,
                strict=True,
            )
        ],
    }


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
    """The page's one script."""
    return files("krepes_ooc.rendering").joinpath("report.js").read_text(encoding="utf-8")


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
