"""One panel of the report: a heading, one sentence that says what it shows, a body, its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from krepes_ooc.rendering.drawing.glossary import define_terms
from krepes_ooc.rendering.drawing.markup import Child, Markup, element, join


@dataclass(frozen=True)
class Panel:
    """A panel and the figures it shows; whatever number is in ``body`` is in ``figures`` too.

    Args:
        key: its anchor in the page and its key in the JSON.
        title: heading.
        lead: one sentence: what is seen here and how to read it.
        body: the HTML.
        figures: JSON values.
    """

    key: str
    title: str
    lead: Child
    body: Markup
    figures: Mapping[str, Any] = field(default_factory=dict)

    def render(self) -> Markup:
        """The panel as a section of the page; its terms are defined on hover."""
        return element(
            "section",
            element("h2", self.title, id=f"{self.key}-title"),
            define_terms(join(element("p", self.lead, class_="lead"), self.body)),
            id=self.key,
            aria_labelledby=f"{self.key}-title",
        )


def absent(key: str, title: str, sentence: str) -> Panel:
    """The panel of a part that is missing: it says so in one sentence."""
    return Panel(key, title, sentence, Markup(""), {"missing": sentence})
