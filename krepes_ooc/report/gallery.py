"""The landmarks themselves, by the length of their step row, and whose landmarks speak for whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from krepes_ooc.report.charts import bar
from krepes_ooc.report.data import Array, AuditData, Landmarks
from krepes_ooc.report.markup import Child, Markup, element, join, number, table, user_text
from krepes_ooc.report.panel import Panel, absent
from krepes_ooc.report.portrait import LandmarkSamples, Portraits, cell, class_name

MAX_SHOWN = 24
MAX_CLASSES = 24
MAX_COLUMNS = 6
SHADES = 6


@dataclass(frozen=True)
class _Entry:
    """One landmark of the gallery: its row, size, weight, and size as a share of the largest."""

    row: int
    size: float
    weight: float | None
    share: float


def landmarks_panel(audit: AuditData) -> Panel:
    """The gallery: landmarks with the longest step rows; by weight if no step was computed."""
    key, title = "landmarks", "Landmarks"
    if audit.landmarks is None or not len(audit.landmarks.sample_id):
        return absent(key, title, "No landmarks were chosen.")
    landmarks = audit.landmarks
    sizes, words = _sizes(audit, landmarks)
    rows = LandmarkSamples(landmarks).first_row
    order = [int(i) for i in np.argsort(-sizes, kind="stable")[:MAX_SHOWN]]
    most = float(sizes[order[0]]) or 1.0
    weights = None if landmarks.weight is None else landmarks.weight[rows]
    entries = [
        _Entry(
            int(rows[place]),
            float(sizes[place]),
            None if weights is None else weights[place].item(),
            float(sizes[place]) / most,
        )
        for place in order
    ]
    portraits = Portraits(landmarks, audit)
    records = [{**portraits.record(e.row), "size": e.size, "weight": e.weight} for e in entries]
    lead = join(
        "The ", number(len(order)), " of ", number(len(rows)),
        f" landmarks {words}; the bar compares them.",
    )  # fmt: skip
    figures = {"ranked_by": words, "shown": len(order), "total": len(rows), "landmarks": records}
    return Panel(key, title, lead, _gallery(portraits, entries), figures)


def shares_panel(audit: AuditData) -> Panel:
    """Group x group table: the classes of the landmarks that explain each class."""
    key, title = "shares", "Whose landmarks speak for whom"
    shares = landmark_shares(audit)
    if shares is None:
        return absent(key, title, "Without labels of samples and landmarks there is no such table.")
    codes, share, chance = shares
    if len(codes) > MAX_CLASSES:
        sentence = f"There are {len(codes)} classes; the table is drawn for at most {MAX_CLASSES}."
        return absent(key, title, sentence)
    names = [class_name(int(code), audit.classes) for code in codes]
    own = np.diag(share)
    own_mean = float(np.nanmean(own)) if np.isfinite(own).any() else float("nan")
    own_chance = float(chance.mean())
    lead = join(
        "Each line is a class of audited samples; it is shared out over the classes of the "
        "landmarks ranked highest for them. On average ", _percent(own_mean),
        " of these are of the sample's own class; landmarks drawn at random would give ",
        _percent(own_chance), ".",
    )  # fmt: skip
    rows: list[list[Child]] = [
        [user_text(name, 24), *(_share(value, i == j) for j, value in enumerate(share[i]))]
        for i, name in enumerate(names)
    ]
    rows.append([element("i", "all landmarks"), *(_share(value, False) for value in chance)])
    head: list[Child] = ["class of the sample", *(user_text(name, 24) for name in names)]
    body = table(head, rows, caption="Share of each class among the top landmarks", class_="shares")
    figures = {
        "classes": names,
        "share": share,
        "all_landmarks": chance,
        "own_class_mean": own_mean,
        "own_class_chance": own_chance,
    }
    return Panel(key, title, lead, body, figures)


def landmark_shares(audit: AuditData) -> tuple[Array, Array, Array] | None:
    """Class codes; share [class, class] of top landmarks (NaN: no sample); share of all."""
    audited, landmarks, influence = audit.audited, audit.landmarks, audit.influence
    if audited is None or landmarks is None or influence is None:
        return None
    if audited.label is None or landmarks.label is None:
        return None
    theirs = landmarks.label[LandmarkSamples(landmarks).first_row]
    chosen = audited.label >= 0
    if audited.role is not None:
        chosen &= audited.role == 0
    codes = np.unique(np.concatenate([theirs[theirs >= 0], audited.label[chosen]]))
    if not chosen.any() or not (theirs >= 0).any():
        return None
    top = influence.top_landmark[chosen]
    # A rank without a landmark, or a landmark without a label, counts for no class.
    top_code = np.where(top >= 0, theirs[top], -1)
    counts = np.array(
        [
            [(top_code[audited.label[chosen] == mine] == other).sum() for other in codes]
            for mine in codes
        ],
        dtype=np.float64,
    )
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    chance = np.array([(theirs[theirs >= 0] == code).mean() for code in codes])
    return codes, share, chance


def _gallery(portraits: Portraits, entries: list[_Entry]) -> Markup:
    """Pictures and texts as tiles, table rows as a table."""
    if portraits.samples.values is None or portraits.picture(entries[0].row) is not None:
        tiles = [_tile(portraits, entry) for entry in entries]
        return element("ol", tiles, class_="gallery")
    head: list[Child] = ["landmark", "size"]
    head += ["weight"] if entries[0].weight is not None else []
    head += [user_text(column.name, 24) for column in portraits.audit.columns[:MAX_COLUMNS]]
    lines = [_line(portraits, entry) for entry in entries]
    return table(head, lines, caption="Landmarks and the beginning of their rows", class_="lines")


def _sizes(audit: AuditData, landmarks: Landmarks) -> tuple[Array, str]:
    samples = LandmarkSamples(landmarks)
    if audit.newton is not None and audit.newton.step is not None:
        squares = (audit.newton.step**2).sum(axis=1)
        return np.sqrt(samples.total(squares)), "that the step moves most (length of the step row)"
    if landmarks.weight is not None:
        weight = np.asarray(landmarks.weight[samples.first_row], dtype=np.float64)
        return weight, "that stand for most samples (no step was computed)"
    return np.zeros(len(samples.first_row)), "chosen first (neither step nor weight is known)"


def _tile(portraits: Portraits, entry: _Entry) -> Markup:
    return element(
        "li",
        portraits.picture(entry.row),
        portraits.caption(entry.row),
        bar(entry.share, "neutral"),
        element(
            "dl",
            element("div", element("dt", "size"), element("dd", number(entry.size))),
            element("div", element("dt", "weight"), element("dd", number(entry.weight)))
            if entry.weight is not None
            else None,
        ),
    )


def _line(portraits: Portraits, entry: _Entry) -> list[Child]:
    columns = portraits.audit.columns[:MAX_COLUMNS]
    values = portraits.samples.values
    cells = [] if values is None else list(values[entry.row])
    return [
        portraits.caption(entry.row),
        join(number(entry.size), bar(entry.share, "neutral")),
        *([number(entry.weight)] if entry.weight is not None else []),
        *(cell(value, column) for value, column in zip(cells, columns, strict=False)),
    ]


def _percent(value: float) -> Markup:
    return number(float(value), words=f"{100 * value:.0f} %" if np.isfinite(value) else "")


def _share(value: float, own: bool) -> Markup:
    shade = 0 if not np.isfinite(value) else min(SHADES - 1, int(value * SHADES))
    return element("span", _percent(value), class_=f"shade shade-{shade}{' own' if own else ''}")
