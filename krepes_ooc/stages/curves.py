"""Label-free curves: entropy over damping, ceiling over components, error over landmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc import counter
from krepes_ooc.algebra.span import Span
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelityrows import Rows, curve, powers_of_two
from krepes_ooc.stages.narrower import Narrow, streamed_note
from krepes_ooc.storage.reader import StoreReader

LEAST_LANDMARKS = 8
ALL_ROWS = "all samples"
AUDIT_ROWS = "audit samples"
UNIFORM = "uniform landmarks"
_SUBSET_STREAM = 422
Float = npt.NDArray[np.float64]


def entropy_curve(newton: StoreReader, spectrum: StoreReader) -> dict[str, Any]:
    """Spectral entropy of start + step over the damping sweep, beside that of the start."""
    from krepes_ooc.algebra.measures import spectral_entropy

    found = newton.array("entropy")
    start = spectral_entropy(spectrum.array("start"))
    return curve(
        "Spectral entropy over the damping",
        ("relative damping", "entropy of A, 1 = all directions alike"),
        newton.array("damping_relative"),
        {"start + step": found, "start": np.full(len(found), start)},
        "Each point is a step of its own; the chosen damping is in the panel of the step.",
    )


def ceiling_curve(fit: Rows, held: Rows, audits: list[Narrow]) -> dict[str, Any]:
    """R squared of the network's embedding from the embeddings of narrower audits.

    Raises:
        StageFailed: fewer than two fit samples, or as ``ridge_ceiling``.
    """
    from krepes_ooc.algebra.measures import ridge_ceiling

    if len(fit.kernel) < 2:
        raise StageFailed("too few fit samples", where="fidelity", expected="at least two")

    def score(audit: Narrow, name: str) -> float:
        first, second = (audit.embedding(name, part.kernel) for part in (fit, held))
        return ridge_ceiling(first, fit.network, second, held.network).r_squared

    return curve(
        "What h components carry of the network's embedding",
        ("components h", "held-out R squared"),
        [audit.n_components for audit in audits],
        {name: [score(audit, name) for audit in audits] for name in audits[-1].coefficients},
        "Ridge regression from the embedding of an audit with h components; its steps are solved "
        "anew. " + streamed_note(audits),
    )


def landmark_curves(spans: Mapping[str, Span], seed: int) -> dict[str, Any]:
    """Nystrom error and effective dimension of nested random subsets of landmarks.

    Args:
        spans: equally many landmarks before their populations, by name in words.
        seed: of the order in which landmarks are added.
    """
    m = len(next(iter(spans.values())).landmark_kernel)
    order = np.argsort(counter.bits(seed, _SUBSET_STREAM, np.arange(m)), kind="stable")
    counts = [count for count in powers_of_two(m) if count >= min(m, LEAST_LANDMARKS)]
    parts = {name: [span.subset(order[:count]) for count in counts] for name, span in spans.items()}
    subsets = "Random subsets of the landmarks, each holding the one before."
    return {
        "nystrom_error_over_landmarks": curve(
            "Share of the kernel that is missed, against the number of landmarks",
            ("landmarks m", "Nystrom error"),
            counts,
            {name: [part.error() for part in line] for name, line in parts.items()},
            subsets + " Where the curve is still falling at its end, more landmarks would help. "
            "Over all samples and views, over the audit samples, and for as many uniform landmarks "
            "over the same audit samples.",
        ),
        "effective_dimension_over_landmarks": curve(
            "Effective dimension against the number of landmarks",
            ("landmarks m", "effective dimension"),
            counts,
            {
                name: [part.dimension() for part in parts[name]]
                for name in (ALL_ROWS, UNIFORM)
                if name in parts
            },
            "Sum of Lambda / (Lambda + mean k(x, x)). " + subsets + " It levels off once the "
            "landmarks span the data.",
        ),
    }
