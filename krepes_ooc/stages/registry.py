"""All stages in the order in which they run."""

from __future__ import annotations

from krepes_ooc.core.stage_order import STAGE_ORDER
from krepes_ooc.stages.alignment import stage as alignment
from krepes_ooc.stages.audited import stage as audited
from krepes_ooc.stages.base.stage import Stage
from krepes_ooc.stages.concepts import stage as concepts
from krepes_ooc.stages.discovery import stage as discovery
from krepes_ooc.stages.distilled import stage as distilled
from krepes_ooc.stages.examples import stage as examples
from krepes_ooc.stages.features import stage as features
from krepes_ooc.stages.fidelity import stage as fidelity
from krepes_ooc.stages.group_influence import stage as group_influence
from krepes_ooc.stages.group_moments import stage as group_moments
from krepes_ooc.stages.groups import stage as groups
from krepes_ooc.stages.influence import stage as influence
from krepes_ooc.stages.kernel import stage as kernel
from krepes_ooc.stages.landmarks import stage as landmarks
from krepes_ooc.stages.minimiser import stage as minimiser
from krepes_ooc.stages.moments import stage as moments
from krepes_ooc.stages.newton import stage as newton
from krepes_ooc.stages.pretrain import stage as pretrain
from krepes_ooc.stages.randomised import stage as randomised
from krepes_ooc.stages.report import stage as report
from krepes_ooc.stages.retraining import stage as retraining
from krepes_ooc.stages.spectrum import stage as spectrum
from krepes_ooc.stages.verdict import stage as verdict

_MODULES = (
    alignment,
    audited,
    concepts,
    discovery,
    distilled,
    examples,
    features,
    fidelity,
    group_influence,
    group_moments,
    groups,
    influence,
    kernel,
    landmarks,
    minimiser,
    moments,
    newton,
    pretrain,
    randomised,
    report,
    retraining,
    spectrum,
    verdict,
)
STAGES: tuple[Stage, ...] = tuple(
    sorted((module.STAGE for module in _MODULES), key=lambda stage: STAGE_ORDER.index(stage.name))
)
BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}
