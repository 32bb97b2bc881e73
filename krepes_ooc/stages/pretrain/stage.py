"""Stage pretrain: the demo trainer, one checkpoint an epoch, for recipes without weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.files import remove_leftover, write_atomic
from krepes_ooc.network.pretrain import PretrainSettings
from krepes_ooc.sources.base import sample_positions
from krepes_ooc.stages.base.cost import NETWORK_BYTES, Cost, Quantity, Term, f32
from krepes_ooc.stages.base.inputs import Rows
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.storage.file_checks import measure

ENCODING_NAME = "encoding.json"


@dataclass(frozen=True)
class PretrainInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    recipe: RecipeInputs = recipe_parts("source", "factory", "views")


def run(inputs: PretrainInputs, context: StageContext) -> None:
    """Train the missing epochs, publish the weights, seal."""
    from krepes_ooc.network import pretrain

    recipe = inputs.recipe
    settings = context.settings
    spec = recipe.network_spec
    # Training runs on this thread alone; the executor checks its memory against the budget.
    context.executor()
    # An interrupted training goes on after its last finished epoch, with the same bits.
    saved = context.record.folder / "training.pt"
    key = f"{context.digest}/{saved.name}"
    state = pretrain.resume_state(saved, spec, settings, recipe.base, recipe.seed, key)
    context.progress.begin("pretrain", settings.epochs, state.epoch)
    n_samples = recipe.source.n_samples

    def batch_views(samples: npt.NDArray[np.int64], epoch: int) -> tuple[Rows, ...]:
        context.stop.check()
        return recipe.views.batch(sample_positions(recipe.source, samples), epoch)

    while state.epoch < settings.epochs:
        pretrain.train_epoch(state, settings, n_samples, batch_views, spec.output)
        pretrain.save_state(state, saved, key)
        context.progress.advance(1)
    # The checkpoint lies outside the stores; its path and checksum are the files of the seal.
    recipe.pretrained.parent.mkdir(parents=True, exist_ok=True)
    pretrain.save_checkpoint(state, recipe.pretrained)
    written = [recipe.pretrained]
    # A table's encoding belongs to the network: another table is shown to it through the same one.
    if recipe.source.kind == "table":
        written.append(_save_encoding(recipe, context))
    context.seal_facts["losses"] = state.losses
    context.seal(dict(_recorded(path, context) for path in written))
    remove_leftover(saved)


def _save_encoding(recipe: RecipeInputs, context: StageContext) -> Path:
    """Write the encoding that the network was trained with beside its weights."""
    from krepes_ooc.sources.tables.encoding_file import encoding_bytes

    encoding = recipe.source.encoding  # type: ignore[attr-defined]
    path = recipe.pretrained.with_name(ENCODING_NAME)
    write_atomic(path, encoding_bytes(encoding), context.record.temp, sync=True)
    context.progress.note(f"table encoding: {path}, for source.encoding of another table")
    return path


def _recorded(path: Path, context: StageContext) -> tuple[str, tuple[int, int]]:
    """Name of a file in the workspace, with its size and checksum."""
    return path.relative_to(context.workspace.root).as_posix(), measure(path)


def estimate_cost(sizes: AuditSizes, settings: PretrainSettings) -> Cost:
    """Epochs of the demo trainer: three forward passes a view, and Adam's moments."""
    weights = f32(sizes.n_parameters)
    # A backward pass costs two forward passes, each two operations a parameter.
    flops = 6.0 * sizes.n_parameters * sizes.plan.n_samples * sizes.n_views * settings.epochs
    return Cost(
        units=settings.epochs,
        disk=Quantity.of(Term("weights", weights)),
        memory=Quantity.of(
            Term("weights, gradients, Adam moments, target network, saved state", weights, 6),
            Term("activations of a batch", f32(settings.batch, sizes.n_features), 16),
            Term("autograd of torch", NETWORK_BYTES),
        ),
        flops=Quantity.of(Term("forward and backward passes of all epochs", flops)),
        scratch=Quantity.of(Term("training state: weights and Adam moments", weights, 3)),
    )


STAGE = Stage(
    name="pretrain",
    version=1,
    inputs=PretrainInputs,
    store=None,
    settings=PretrainSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="a small demo trainer for recipes without weights",
)
