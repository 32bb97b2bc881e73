"""Rendering: small arrays of an audit -> HTML page, JSON figures, pictures.

In comes ``AuditData``, plain arrays and text; out go one self-contained HTML page and its figures
as JSON. Nothing here imports torch, zarr or dask. ``stages/report``, ``runner`` and ``cli`` may
import it.
"""

from krepes_ooc.core.figures import Control, Curve, Figure
from krepes_ooc.rendering.data import (
    AuditData,
    Audited,
    Column,
    Influence,
    Landmarks,
    Newton,
    OddSamples,
    Samples,
    Spectrum,
    StageRecord,
    Subject,
)
from krepes_ooc.rendering.explanation import Explained, explain_rows
from krepes_ooc.rendering.hidden import hide_samples
from krepes_ooc.rendering.measured import Alignment, Concepts, Groups
from krepes_ooc.rendering.overview import (
    ClassFigures,
    DiscoveredConcepts,
    EmbeddingMap,
    GroupEffects,
    OddTable,
    SampleFigures,
)
from krepes_ooc.rendering.page import Report, build_report
from krepes_ooc.rendering.sample_concepts import SampleConcepts

__all__ = [
    "Alignment",
    "AuditData",
    "Audited",
    "ClassFigures",
    "Column",
    "Concepts",
    "Control",
    "Curve",
    "DiscoveredConcepts",
    "EmbeddingMap",
    "Explained",
    "Figure",
    "GroupEffects",
    "Groups",
    "Influence",
    "Landmarks",
    "Newton",
    "OddSamples",
    "OddTable",
    "Report",
    "SampleConcepts",
    "SampleFigures",
    "Samples",
    "Spectrum",
    "StageRecord",
    "Subject",
    "build_report",
    "explain_rows",
    "hide_samples",
]
