"""Stage pretrain: the demo trainer, one checkpoint an epoch, for recipes without weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.files import checksum
from krepes_ooc.engine.budget import MemoryNeed
from krepes_ooc.network.pretrain import PretrainSettings
from krepes_ooc.stages.base.cost import Cost, plain_cost
from krepes_ooc.stages.base.inputs import Rows
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts


@dataclass(frozen=True)
class PretrainInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    recipe: RecipeInputs = recipe_parts("source", "factory", "views")


def run(inputs: PretrainInputs, context: StageContext) -> None:
    """Train the missing epochs, publish the weights, seal."""
    from krepes_ooc.network import pretrain

    recipe, settings = inputs.recipe, context.settings
    context.executor()
    spec = recipe.network_spec
    saved = context.record.folder / "training.pt"
    if saved.exists():
        state = pretrain.load_state(saved, spec, settings, recipe.base, recipe.seed)
    else:
        state = pretrain.new_state(spec, settings, recipe.base, recipe.seed)
    context.progress.begin("pretrain", settings.epochs, state.epoch)
    n, output = recipe.source.n_samples, spec.output

    def batch_views(positions: npt.NDArray[np.int64], epoch: int) -> tuple[Rows, ...]:
        context.stop.check()
        return recipe.views.batch(positions, epoch)

    while state.epoch < settings.epochs:
        pretrain.train_epoch(state, settings, n, batch_views, output)
        pretrain.save_state(state, saved)
        context.progress.advance(1)
    recipe.pretrained.parent.mkdir(parents=True, exist_ok=True)
    pretrain.save_checkpoint(state, recipe.pretrained)
    data = recipe.pretrained.read_bytes()
    key = recipe.pretrained.relative_to(context.workspace.root).as_posix()
    context.seal_facts["losses"] = state.losses
    context.seal({key: (len(data), checksum(data))})
    saved.unlink(missing_ok=True)


def predict(shape: AuditSizes, settings: PretrainSettings) -> Cost:
    """Epochs of the demo trainer: three forward passes a view, and Adam's moments."""
    flops = 6.0 * shape.n_parameters * shape.plan.n_samples * shape.n_views * settings.epochs
    need = MemoryNeed(24 * shape.n_parameters + 64 * settings.batch * shape.n_features)
    return plain_cost(settings.epochs, 4 * shape.n_parameters, need, flops, 12 * shape.n_parameters)


STAGE = Stage(
    name="pretrain",
    version=1,
    inputs=PretrainInputs,
    store=None,
    settings=PretrainSettings,
    run=run,
    estimate_cost=predict,
    about="a small demo trainer for recipes without weights",
)
