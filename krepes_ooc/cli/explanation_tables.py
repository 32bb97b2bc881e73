"""Explanations as tables of the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from krepes_ooc.cli.console import echo, print_table
from krepes_ooc.errors import printable

if TYPE_CHECKING:
    from krepes_ooc.rendering.explanation import Explained
    from krepes_ooc.rendering.explanation_sum import ExplainedSum
    from krepes_ooc.rendering.explanation_without import ExplainedWithout, Neighbour
    from krepes_ooc.rendering.landmark_links import LandmarkLink

CELL_WIDTH = 16
MOST_RANKED = 5
MOST_REPELLING = 1
# Concepts of a sample, and landmarks that move it along each.
MOST_CONCEPTS = 5
MOST_MOVING = 3
SIGNS = {"attract": "+", "repel": "-", "neutral": ""}


def print_landmarks(one: Explained) -> None:
    """Print the counts of landmarks, then the landmarks, then the columns of a table row."""
    from krepes_ooc.rendering.landmark_links import NOTHING_NEAR, NOTHING_REPELS

    # One line of counts.
    record = one.record()
    if _is_corpus(one):
        _print_corpus(record)
        return
    class_name = f" ({record['class']})" if record["class"] else ""
    counts = f"{record['attract']} attract, {record['repel']} repel"
    if one.repelling_only:
        counts += f", {len(one.repelling_only)} further ones repel"
    if record["same_class"] is not None:
        counts += f", {record['same_class']} of {record['ranked']} ranked share its class"
    echo(printable(f"sample {record['name']}{class_name}: {counts}"))
    # Ranked landmarks, then the most repelling ones that no rank holds.
    columns = ("rank", "", "score", "contribution", "kernel", "class", "landmark")
    links = [*record["landmarks"], *(record["repelling"] or ())]
    print_table("", columns, [_link_cells(link) for link in links])
    if one.is_far:
        echo(f"warning: {NOTHING_NEAR[0].lower()}{NOTHING_NEAR[1:].rstrip('.')}")
    if one.nothing_repels:
        echo(NOTHING_REPELS.lower().rstrip("."))
    _show_concepts(one)
    if one.agrees is not None:
        _show_columns(one)


def _is_corpus(one: Explained) -> bool:
    """Whether samples of the whole source stand in the place of landmarks."""
    from krepes_ooc.runner.explanation.explain_corpus import MEASURE

    return one.audit.influence is not None and one.audit.influence.measure == MEASURE


def _print_corpus(record: dict[str, Any]) -> None:
    """Print the samples of the source that are most like a sample."""
    class_name = f" ({record['class']})" if record["class"] else ""
    words = ""
    if record["same_class"] is not None:
        words = f": {record['same_class']} of {record['ranked']} share its class"
    echo(printable(f"sample {record['name']}{class_name}{words}"))
    rows = [
        (link["rank"], f"{link['score']:.3g}", link["class"] or "", link["name"])
        for link in record["landmarks"]
    ]
    print_table("", ("rank", "kernel", "class", "sample"), rows)


def _show_concepts(one: Explained) -> None:
    """Concepts along which the sample is moved, with the landmarks that move it most."""
    if one.concepts is None or not one.concepts.scores:
        return
    rows = []
    for concept in one.concepts.first(MOST_CONCEPTS):
        moved = sorted(one.displayed, key=lambda link: -abs(link.concepts.get(concept.name, 0.0)))
        landmarks = [
            f"{one.landmarks.name(link.row)} {link.concepts[concept.name]:+.2g}"
            for link in moved[:MOST_MOVING]
            if link.concepts.get(concept.name)
        ]
        activation = f"{concept.activation:.3g}" if concept.kind == "discovered" else ""
        shows = "shown" if concept.shows else ""
        row = (concept.title, shows, activation, f"{concept.score:+.3g}", ", ".join(landmarks))
        rows.append(row)
    head = ("concept", "", "activation", "moved along it", "by")
    print_table("", head, rows)


def _link_cells(link: dict[str, Any]) -> tuple[Any, ...]:
    """Cells of one landmark: rank, sign, numbers, class and name."""
    contribution = link["contribution"]
    sign = ""
    if contribution is not None:
        sign = "attracts" if contribution >= 0 else "repels"
    numbers = [
        "-" if link[name] is None else f"{link[name]:.3g}"
        for name in ("score", "contribution", "kernel")
    ]
    return (link["rank"] or "-", sign, *numbers, link["class"] or "", link["name"])


def _show_columns(one: Explained) -> None:
    """The sample's row beside the rows of its first landmarks; equal values are marked."""
    from krepes_ooc.rendering.drawing.sample_view import plain_cell

    sample_values = one.sample.samples.values
    landmark_values = one.landmarks.samples.values
    agrees = one.agrees
    assert sample_values is not None
    assert landmark_values is not None
    assert agrees is not None
    # One column for each landmark, headed by its sign and rank.
    links = one.beside(MOST_RANKED, MOST_REPELLING)
    head = ["column", "sample", *(f"{SIGNS[link.kind]}{link.rank or ''}" for _, link in links)]
    # One row for each column of the table.
    rows = []
    for c, column in enumerate(one.audit.columns):
        cells = [
            _shortened(plain_cell(landmark_values[link.row, c], column))
            + (" =" if agrees[place, c] else "")
            for place, link in links
        ]
        sample_cell = _shortened(plain_cell(sample_values[one.row, c], column))
        rows.append((column.name, sample_cell, *cells))
    title = "\nits row beside those of its landmarks; = agrees, + attracts, - repels"
    print_table(title, head, rows)


def _shortened(text: str) -> str:
    return text if len(text) <= CELL_WIDTH else text[: CELL_WIDTH - 1] + "…"


def print_sum(one: ExplainedSum) -> None:
    """Print a sum over landmarks: the value, its parts, then the first terms of either sign."""
    from krepes_ooc.rendering.explanation_sum import BY_EMBEDDING

    for sentence in one.sentences():
        echo(printable(sentence))
    # The ranking stands beside the term where another figure than the term ranks.
    by_embedding = one.ranked_by == BY_EMBEDDING
    columns = ("", "term", "share", "kernel", *(("<k A, z>",) if by_embedding else ()))
    rows = []
    for sign, links in (("attracts", one.attracting), ("repels", one.repelling)):
        rows += [_term_cells(one, sign, link, by_embedding) for link in links]
        count, total = one.others(links)
        if count:
            empty = ("",) * (len(columns) - 2)
            rows.append((sign, f"{total:+.4g}", *empty, "", f"{count} others together"))
    rows.append(("", f"{one.figures['constant']:+.4g}", *("",) * (len(columns) - 1), "constant"))
    rows.append(("", f"{one.figures['value']:+.4g}", *("",) * (len(columns) - 1), "sum"))
    print_table("", (*columns, "class", "landmark"), rows)


def _term_cells(
    one: ExplainedSum, sign: str, link: LandmarkLink, by_embedding: bool
) -> tuple[Any, ...]:
    """Cells of one term: sign, numbers, class and name of the landmark."""
    numbers = [f"{link.contribution:+.4g}", f"{one.share(link):.0%}", f"{link.kernel:.3g}"]
    if by_embedding:
        numbers.append(f"{link.score:+.3g}")
    landmarks = one.landmarks
    return (sign, *numbers, landmarks.class_name(link.row), landmarks.name(link.row))


def print_without(one: ExplainedWithout) -> None:
    """Print a neighbourhood before and after a group is left out, side by side."""
    for sentence in one.sentences():
        echo(printable(sentence))
    columns = ("rank", "before", "class", "landmark", "", "after", "class", "landmark", "")
    left = {neighbour.row for neighbour in one.left}
    entered = {neighbour.row for neighbour in one.entered}
    rows = []
    for before, after in zip(one.before, one.after, strict=True):
        first = _neighbour_cells(one, before, "left" if before.row in left else "")
        second = _neighbour_cells(one, after, "new" if after.row in entered else "")
        rows.append((before.rank, *first, *second))
    print_table("", columns, rows)
    echo("before, after: cosine of embeddings; * belongs to the group")


def _neighbour_cells(one: ExplainedWithout, near: Neighbour, mark: str) -> tuple[Any, ...]:
    """Cells of one neighbour: cosine, class, name, and whether it left or is new."""
    star = " *" if near.in_group else ""
    landmarks = one.landmarks
    name = landmarks.name(near.row) + star
    return (f"{near.cosine:.3f}", landmarks.class_name(near.row), name, mark)
