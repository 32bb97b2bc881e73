"""The panel of the kernel spectrum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.line_chart import Axis, Chart
from krepes_ooc.rendering.drawing.markup import element, join
from krepes_ooc.rendering.panels.newton import attribute_list
from krepes_ooc.rendering.panels.panel import Panel, absent


def spectrum_panel(audit: AuditData) -> Panel:
    """Eigenvalues of the landmark kernel, and how many directions are usable and used."""
    key = "spectrum"
    title = "Spectrum of the landmark kernel"
    spectrum = audit.spectrum
    if spectrum is None or not len(spectrum.eigenvalues):
        return absent(key, title, "No spectrum was computed.")
    index = np.arange(1, len(spectrum.eigenvalues) + 1)
    # -1 stands for unknown
    ranks = [("components used", spectrum.n_components), ("usable rank", spectrum.rank)]
    marks = {words: value for words, value in ranks if value > 0}
    chart = Chart(
        "spectrum-chart", "Eigenvalues", "Eigenvalues of the landmark kernel, falling.",
        Axis("eigenvalue number"), Axis("eigenvalue", log=True), index,
        {"eigenvalue": spectrum.eigenvalues}, marks=marks,
    )  # fmt: skip
    # Rounding leaves tiny negative eigenvalues
    positive = np.clip(spectrum.eigenvalues, 0.0, None)
    used = min(max(spectrum.n_components, 0), len(positive))
    share = (
        float(positive[:used].sum() / positive.sum()) if used and positive.sum() > 0 else math.nan
    )
    pairs: list[tuple[str, Any]] = [
        *marks.items(),
        ("share of the trace in the components", share),
        ("effective dimension", spectrum.effective_dimension),
        ("Nystrom error", spectrum.nystrom_error),
        *((f"spectral entropy, {name}", value) for name, value in spectrum.entropy.items()),
    ]
    figures = {
        "number": index,
        "eigenvalues": spectrum.eigenvalues,
        "rank": spectrum.rank,
        "n_components": spectrum.n_components,
        "share_of_trace": share,
        "effective_dimension": spectrum.effective_dimension,
        "nystrom_error": spectrum.nystrom_error,
        "entropy": dict(spectrum.entropy),
    }
    lead = (
        "A slow fall means that many directions matter; what lies beyond the usable rank is "
        "rounding noise."
    )
    body = join(element("div", chart.render(), class_="charts"), attribute_list(pairs))
    return Panel(key, title, lead, body, figures)
