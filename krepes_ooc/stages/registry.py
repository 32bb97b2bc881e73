"""All stages in the order in which they run."""

from __future__ import annotations

from krepes_ooc.stages import (
    alignment,
    audited,
    concepts,
    features,
    fidelity,
    influence,
    kernel,
    landmarks,
    moments,
    newton,
    pretrain,
    report,
    spectrum,
)
from krepes_ooc.stages.base import Stage

STAGES: tuple[Stage, ...] = (
    pretrain.STAGE,
    features.STAGE,
    landmarks.STAGE,
    audited.STAGE,
    kernel.STAGE,
    moments.STAGE,
    spectrum.STAGE,
    newton.STAGE,
    influence.STAGE,
    concepts.STAGE,
    alignment.STAGE,
    fidelity.STAGE,
    report.STAGE,
)
BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}
