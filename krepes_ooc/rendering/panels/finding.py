"""One finding: a sentence with its figures and the panel that shows them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        key: stable name.
        title: subject, in one or two words.
        sentence: our own words with places for figures and texts, see ``drawing.sentence``.
        figures: values by name.
        words: texts of users by name.
        panel: key of the panel with all figures.
    """

    key: str
    title: str
    sentence: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    panel: str = ""
