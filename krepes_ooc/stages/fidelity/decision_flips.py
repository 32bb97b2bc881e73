"""Deletion test on decisions: share that changes without the ten landmarks of largest term.

With a linear probe on the audit's embedding f_t = sum_l k_lt A_l + gamma, the logit of the class c
that it decides for is an exact sum over landmarks,

    w_c . f_t + b_c = sum_l k_lt <A_l, w_c> + const,

and the ten landmarks of largest term leave the sum. Source: Yeh et al. (2018), "Representer point
selection"; deletion as a test: Samek et al. (2017).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.figure_specs import RANKED_BY, STEP_AGAINST_KERNEL
from krepes_ooc.core.figures import Figure, figure
from krepes_ooc.core.landmark_rows import strongest_view, sum_views
from krepes_ooc.stages.fidelity.baselines import LinearProbe
from krepes_ooc.stages.fidelity.confidence_drop import largest, random_landmarks
from krepes_ooc.stages.fidelity.landmark_removal import DRAWS, LandmarkRemoval
from krepes_ooc.stages.fidelity.sample_estimates import mean_estimate, paired

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def flips_figure(removal: LandmarkRemoval) -> Figure:
    """Decisions that change without the landmarks of largest term, and without others.

    Args:
        removal: labelled fit and audit samples, coefficients, and the audit's own ranking.

    Raises:
        StageFailed: no linear probe is defined.
    """
    audit, A, n_views = removal.audit, removal.coefficients, removal.n_views
    probe = LinearProbe.fit(removal.fit.embedding, removal.fit.label, removal.n_classes)
    decided = decisions(probe, audit.embedding)
    terms = sum_views(decision_terms(probe, audit.kernel, A, decided), n_views)
    count = removal.top.shape[1]

    def flipped(removed: Index) -> Float:
        left = removal.without(removed)
        return np.asarray(decisions(probe, left) != decided, dtype=np.float64)

    by_term = mean_estimate(flipped(largest(terms, count)))
    by_kernel = mean_estimate(
        flipped(largest(strongest_view(np.abs(audit.kernel), n_views), count))
    )
    random = [
        flipped(random_landmarks(audit.sample_id, removal.n_landmarks, count, removal.seed + draw))
        for draw in range(DRAWS)
    ]
    controls: dict[str, float | None] = {
        "own_ranking": float(flipped(removal.top).mean()),
        "kernel_only": by_kernel.value,
        "random": float(np.mean(random)),
    }
    inputs = removal.rankings.get("input_cosine")
    if inputs is not None:
        controls[f"{RANKED_BY}input_cosine"] = float(flipped(largest(inputs, count)).mean())
    differences = paired(by_term, {STEP_AGAINST_KERNEL: by_kernel})
    return figure("decision_flips", by_term.value, controls, by_term.interval, paired=differences)


def decisions(probe: LinearProbe, embedding: Float) -> Index:
    """Class of the largest logit [sample]; the lower code among equals."""
    return np.asarray((probe.design(embedding) @ probe.W).argmax(axis=1))


def decision_terms(probe: LinearProbe, kernel: Float, coefficients: Float, decided: Index) -> Float:
    """Terms k_lt <A_l, w_c> [sample, landmark] of the logit of each sample's class c.

    Args:
        probe: of the embedding K A + gamma.
        kernel: k [sample, landmark].
        coefficients: A [landmark, component].
        decided: class of every sample [sample].
    """
    # The probe standardises its columns: w_c on plain columns is its row over their deviations.
    weight = probe.W[:-1] / probe.scale[:, None]
    return np.asarray(kernel * (weight.T[decided] @ coefficients.T))
