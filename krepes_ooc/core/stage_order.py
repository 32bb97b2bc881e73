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
    "discovery",
    "groups",
    "group_moments",
    "newton",
    "minimiser",
    "group_influence",
    "influence",
    "concepts",
    "alignment",
    "fidelity",
    "distilled",
    "examples",
    "randomised",
    "retraining",
    "verdict",
    "report",
)
