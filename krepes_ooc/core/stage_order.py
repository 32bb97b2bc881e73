"""Names of all stages in the order in which they run; nothing else lists them in order."""

from __future__ import annotations

STAGE_ORDER = (
    "pretrain",
    "features",
    "landmarks",
    "audited",
    "kernel",
    "moments",
    "spectrum",
    "newton",
    "influence",
    "concepts",
    "alignment",
    "fidelity",
    "distilled",
    "randomised",
    "report",
)
