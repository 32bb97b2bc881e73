"""Further figures: networks with random weights, the solution, distilled and convex weights."""

from __future__ import annotations

from typing import Any

from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.markup import Child, element, join, number, table, user_text
from krepes_ooc.rendering.panels.newton import attribute_list
from krepes_ooc.rendering.panels.panel import Panel, absent

KEY = "further"
TITLE = "Controls and solutions"
PARTS = {
    "solution": "Likeness to the network's embedding (CKA) by coefficients",
    "distilled": "Coefficients fitted to the network's own embedding (ridge)",
    "deletion": "Decisions of a probe that flip without the first landmarks, by ranking",
    "convex": "R² of the network's embedding from convex weights, by choice of landmarks",
}


def further_panel(audit: AuditData) -> Panel:
    """Figures of random-weight networks, and those of other coefficients."""
    if not audit.random_weights and not any(audit.further.values()):
        return absent(KEY, TITLE, "No such control was computed.")
    parts: list[Child] = []
    if audit.random_weights:
        head: list[Child] = ["figure", "audited network", "random weights, at most", "above them"]
        rows = [_row(values) for values in audit.random_weights.values()]
        parts.append(table(head, rows, caption="Networks with random weights", class_="lines"))
    for key, title in PARTS.items():
        if values := audit.further.get(key):
            pairs = [(name.replace("_", " "), value) for name, value in values.items()]
            parts += [element("h3", title), attribute_list(pairs)]
    figures: dict[str, Any] = {
        "random_weights": {k: dict(v) for k, v in audit.random_weights.items()},
        "further": {k: dict(v) for k, v in audit.further.items()},
    }
    lead = "What else reaches the figures above, and what other coefficients give."
    return Panel(KEY, TITLE, lead, join(parts), figures)


def _row(values: Any) -> list[Child]:
    learned = values.get("learned")
    words = {True: "yes", False: "no"}.get(learned, "not decided")
    return [
        user_text(str(values["label"])),
        number(values["value"]),
        number(values.get("most")),
        words,
    ]
