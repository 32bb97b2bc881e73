"""The report: small arrays of an audit -> one self-contained HTML page and its figures as JSON."""

from krepes_ooc.report.data import (
    AuditData,
    Audited,
    Column,
    Influence,
    Landmarks,
    Newton,
    Samples,
    SelfCheck,
    Spectrum,
    StageRecord,
    Subject,
)
from krepes_ooc.report.explained import Explained, explain_rows
from krepes_ooc.report.measured import Alignment, Concepts, Curve, Figure, Groups
from krepes_ooc.report.page import Report, build_report

__all__ = [
    "Alignment",
    "AuditData",
    "Audited",
    "Column",
    "Concepts",
    "Curve",
    "Explained",
    "Figure",
    "Groups",
    "Influence",
    "Landmarks",
    "Newton",
    "Report",
    "Samples",
    "SelfCheck",
    "Spectrum",
    "StageRecord",
    "Subject",
    "build_report",
    "explain_rows",
]
