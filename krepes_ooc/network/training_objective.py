"""The objective that trained a network, beside the one that is audited."""

from __future__ import annotations

import re

from krepes_ooc.network.spec import PRETRAIN, NetworkSpec


def training_objective(spec: NetworkSpec, pretrain_objective: str) -> str:
    """Name of the objective that trained the network, as far as the recipe says it; else empty.

    Args:
        spec: the recipe key ``network``.
        pretrain_objective: that of the demo trainer, which counts where it made the weights.
    """
    if spec.weights == PRETRAIN:
        return pretrain_objective
    return canonical_name(spec.objective)


def canonical_name(objective: str) -> str:
    """A name in lower case, its words joined by hyphens: ``Barlow Twins`` is ``barlow-twins``."""
    return re.sub(r"[\s_]+", "-", objective.strip().lower())


def contradiction(spec: NetworkSpec, pretrain_objective: str) -> str:
    """The statement of a recipe that the demo trainer belies, in words; empty if there is none."""
    stated = canonical_name(spec.objective)
    if spec.weights != PRETRAIN or stated in ("", pretrain_objective):
        return ""
    return f"says {stated!r}, but stage pretrain trains with {pretrain_objective!r}"


def difference(trained: str, audited: str) -> str:
    """A sentence on a network that is audited by another objective than trained it; else empty."""
    if trained in ("", audited):
        return ""
    return (
        f"trained with {trained}, audited with {audited} in its place: scores say what {audited} "
        f"would change, not what the training did"
    )
