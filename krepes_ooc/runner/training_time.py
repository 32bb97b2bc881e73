"""Expected time of the trainings of stage retraining: their number times the seconds of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.partial_files import read_arrays
from krepes_ooc.network.retrain import DemoTraining, seconds_of_training
from krepes_ooc.network.spec import PRETRAIN
from krepes_ooc.runner.audit import Audit
from krepes_ooc.runner.staleness import StageState
from krepes_ooc.stages.base.cost import Cost
from krepes_ooc.stages.base.inputs import Rows
from krepes_ooc.stages.retraining.trainings import FOLDER

RETRAINING = "retraining"
# Steps of the demo trainer are timed for this long where none has run.
MEASURED_SECONDS = 1.0


def training_time(
    audit: Audit, states: dict[str, StageState], cost: Cost, *, timed: bool
) -> dict[str, Any]:
    """Trainings in all and left, seconds of one and where they are from; empty: none are asked for.

    Args:
        audit: the recipe and its workspace.
        states: of all stages.
        cost: of stage retraining.
        timed: whether steps of the demo trainer may be run to measure it.
    """
    state = states.get(RETRAINING)
    if state is None:
        return {}
    done, each = _finished(audit, state)
    left = 0 if state.kind == "sealed" else cost.units - done
    known = {"trainings": cost.units, "left": left}
    if each is not None:
        return known | {"seconds_of_one": each, "from": "finished trainings"}
    if audit.recipe.settings[RETRAINING].train:
        return known | {"seconds_of_one": None, "from": "not known before the first training"}
    pretrained = states[PRETRAIN]
    if pretrained.kind == "sealed":
        seal = audit.staleness.record(pretrained.stage).seal() or {}
        return known | {"seconds_of_one": float(seal["seconds"]), "from": "stage pretrain"}
    seconds = _measured(audit) if timed else None
    return known | {"seconds_of_one": seconds, "from": "a few steps"}


def _finished(audit: Audit, state: StageState) -> tuple[int, float | None]:
    """Number of finished trainings, and their mean seconds."""
    record = audit.staleness.record(state.stage)
    if state.kind == "sealed":
        return 0, float((record.seal() or {})["seconds_of_training"])
    if state.kind != "started":
        return 0, None
    paths = (audit.workspace.private / FOLDER).glob("*.npz")
    found = [read_arrays(path, path.stem) for path in paths]
    seconds = [float(known["seconds"]) for known in found if known is not None]
    return len(record.done()), float(np.mean(seconds)) if seconds else None


def _measured(audit: Audit) -> float:
    inputs = audit.inputs
    settings = audit.recipe.settings[PRETRAIN]
    training = DemoTraining(inputs.network_spec, settings, inputs.base)

    def batch_views(positions: npt.NDArray[np.int64], epoch: int) -> tuple[Rows, ...]:
        return inputs.views.batch(positions, epoch)

    return seconds_of_training(training, inputs.source.n_samples, batch_views, MEASURED_SECONDS)
