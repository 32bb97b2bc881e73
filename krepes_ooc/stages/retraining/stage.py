"""Stage retraining: networks trained again without each group, against what was predicted.

It is off unless the recipe asks for it, because it costs a training for every group and seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.figure_specs import PREDICTORS
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.network.spec import PRETRAIN
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f32, f64
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.retraining.agreement import REPEATS
from krepes_ooc.stages.retraining.agreement_figures import ALL_MEASURES, Summary, summarise
from krepes_ooc.stages.retraining.controls import profile_effect
from krepes_ooc.stages.retraining.predictions import LONGEST_INPUT, Predictions
from krepes_ooc.stages.retraining.training_sets import (
    ALL,
    COMPONENT_ROWS,
    RetrainingInputs,
    RetrainingProblem,
    Unit,
)
from krepes_ooc.stages.retraining.trainings import Trainings, centred_embedding
from krepes_ooc.storage.contracts import StoreSpec, load_contract

NOT_REPEATABLE = (
    "the same training gave other weights: effects hold noise that the seeds do not name"
)
# Samples of a training step, for the estimate of memory.
BATCH = 512
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RetrainingSettings:
    """Recipe key ``stages.retraining``."""

    enabled: bool = setting(
        False, about="whether networks are trained again without each group; run --with retraining"
    )
    seeds: int = setting(5, about="trainings of each set of samples", minimum=1)
    groups: tuple[str, ...] = setting((), about="names of groups to leave out; []: every group")
    train: str = setting(
        "",
        about="module:function or path/to/file.py:function, called with a subset of the source "
        "and a seed, which returns weights; its code runs; '': the demo trainer",
    )

    @property
    def code(self) -> tuple[str, ...]:
        """Code of the user that the result depends on."""
        return (self.train,) if self.train else ()


def check_trainer(settings: RetrainingSettings, weights: str) -> None:
    """Check that there is something to train with.

    Args:
        settings: of the stage.
        weights: the recipe key ``network.weights``.

    Raises:
        UsageError: the weights are not those of the demo trainer, and no function is named.
    """
    if settings.enabled and not settings.train and weights != PRETRAIN:
        raise UsageError(
            f"no function trains the network, whose weights are {weights!r}",
            where="stages.retraining.train",
            expected="module:function, called with a subset of the source and a seed",
            advice="name the function that trained the network",
        )


def run(inputs: RetrainingInputs, context: StageContext) -> None:
    """Train what is missing, compare the effects with the predictions, seal."""
    problem = RetrainingProblem(inputs, context)
    trainings = Trainings(problem)
    units = problem.units
    mine = _mine(context, units)
    journalled = context.record.done()
    missing = [unit for unit in mine if trainings.known(unit) is None]
    for unit in mine:
        # Results of an earlier run of the stage, whose other settings they do not depend on.
        if unit not in missing and f"training {unit.index}" not in journalled:
            trainings.note(unit)
    # One more unit: the comparison.
    context.progress.begin("retraining", len(units) + 1, len(units) - len(missing))
    context.executor()  # trainings run on this thread; its memory is checked against the budget
    for unit in missing:
        context.stop.check()
        trainings.train(unit)
    context.stop_after_shard()
    effect, facts = _effects(problem, trainings)
    predictions = Predictions(problem).all()
    chosen = np.isin(np.arange(len(problem.groups.names)), problem.chosen)
    summary = summarise(effect, predictions, problem.halves, chosen, inputs.recipe.seed)
    context.seal_facts["seconds_of_training"] = facts.seconds
    _write(problem, trainings, effect, predictions, summary, facts)


def _mine(context: StageContext, units: list[Unit]) -> list[Unit]:
    """Trainings that fall to this process; consecutive ones stay together."""
    if context.shard is None:
        return units
    number, count = context.shard
    return [unit for unit in units if unit.index * count // len(units) == number - 1]


@dataclass(frozen=True)
class TrainingFacts:
    """Facts about the trainings themselves.

    Args:
        seconds: mean wall time of one.
        repeatable: whether one of them gave the same weights again.
    """

    seconds: float
    repeatable: bool


def _effects(problem: RetrainingProblem, trainings: Trainings) -> tuple[Float, TrainingFacts]:
    """Effects [seed, group, sample] from the embeddings of all networks.

    Raises:
        StageFailed: a partial result was damaged after it was written.
    """
    explained = len(problem.explained)
    shape = (len(problem.seeds), len(problem.groups.names), explained)
    effect = np.full(shape, np.nan)
    full: Float = np.empty((0, 0))
    seconds = []
    repeatable = True
    for unit in problem.units:
        known = trainings.known(unit)
        if known is None:
            raise StageFailed(
                f"the result of the training {unit.text} is damaged",
                where="retraining",
                advice="run the same command again: it is trained anew",
            )
        seconds.append(float(known["seconds"]))
        embedding = centred_embedding(known)
        if unit.group == ALL:
            # Trainings of one seed follow that of all samples.
            full = embedding
            repeatable &= bool(known.get("repeatable", True))
            continue
        kept = np.flatnonzero(problem.outside[unit.group]) + explained
        sides = [(rows[:explained], rows[kept]) for rows in (full, embedding)]
        seed = problem.seeds.index(unit.seed)
        effect[seed, unit.group] = profile_effect(*sides)
    return effect, TrainingFacts(float(np.mean(seconds)), repeatable)


def _write(
    problem: RetrainingProblem,
    trainings: Trainings,
    effect: Float,
    predictions: dict[str, Float],
    summary: Summary,
    facts: TrainingFacts,
) -> None:
    """Write the store and seal it."""
    names = problem.groups.names
    arrays: dict[str, npt.NDArray[Any]] = {
        "effect": effect,
        "prediction": np.array([predictions[key] for key in PREDICTORS]),
        "agreement": summary.value,
        "agreement_low": summary.low,
        "agreement_high": summary.high,
        "single_seed": summary.single_seed,
        "attainable": summary.attainable,
        "explained": problem.explained,
        "seed": np.array(problem.seeds, dtype=np.int64),
    }
    sizes = {"seed": len(effect), "group": len(names), "explained": effect.shape[2]}
    sizes |= {"predictor": len(PREDICTORS), "measure": len(ALL_MEASURES)}
    attributes = {
        "names": names,
        "reasons": problem.reasons,
        "halves": [name for name, half in zip(names, problem.halves, strict=True) if half],
        "predictors": list(PREDICTORS),
        "measures": list(ALL_MEASURES),
        "trainer": trainings.trainer,
        "repeatable": facts.repeatable,
        "figures": {found.key: found.to_attributes() for found in summary.figures},
    }
    for line in _lines(summary, facts.repeatable):
        problem.context.progress.note(line)
    spec = StoreSpec(load_contract("retraining"), sizes)
    write_whole(problem.context, spec, arrays, attributes)


def _lines(summary: Summary, repeatable: bool) -> list[str]:
    """The result in words."""
    pairs = summary.figures[0]
    margin = summary.figures[len(ALL_MEASURES) - 1]
    lines = []
    if pairs.is_defined:
        lines.append(f"group influence against training again: Spearman {pairs.value:.2f}")
    if margin.is_defined:
        word = "above" if margin.value > 0 else "below"
        lines.append(f"{abs(margin.value):.2f} {word} the best control")
    return lines if repeatable else [*lines, NOT_REPEATABLE]


def estimate_cost(sizes: AuditSizes, settings: RetrainingSettings) -> Cost:
    """A training for every group and seed, and for all samples and every seed."""
    trainings = settings.seeds * (1 + sizes.n_retrained)
    weights = f32(sizes.n_parameters)
    embedded = sizes.n_audited
    # A backward pass costs two forward passes, each two operations a parameter.
    flops = 6.0 * sizes.n_parameters * sizes.plan.n_samples * sizes.n_views * sizes.training_epochs
    pairs = f64(sizes.n_groups, sizes.n_explained)
    predictors = len(PREDICTORS)
    return Cost(
        units=trainings,
        disk=Quantity.of(
            Term("effects", pairs, settings.seeds),
            Term("predictions", pairs, predictors),
            Term("embeddings of one training", f32(embedded, sizes.n_outputs), trainings),
        ),
        memory=_memory(sizes),
        flops=Quantity.of(
            Term("forward and backward passes of one training", flops, trainings),
            Term("ranks of the bootstrap", 60.0 * predictors * REPEATS * pairs),
        ),
        scratch=Quantity.of(Term("training state", weights, 3)),
        network=True,
    )


def _memory(sizes: AuditSizes) -> Quantity:
    """One training, then the comparison."""
    m = sizes.n_landmarks
    weights = f32(sizes.n_parameters)
    pairs = f64(sizes.n_groups, sizes.n_explained)
    predictors = len(PREDICTORS)
    return Quantity(
        {
            "training": (
                Term("weights, gradients, Adam moments, target network, states", weights, 8),
                Term("activations of a batch", f32(BATCH, sizes.n_features), 16),
                Term("positions of the samples", f64(sizes.plan.n_samples), 3),
            ),
            "comparing": (
                Term("effects and predictions, and those drawn", pairs, 3 * predictors + 8),
                Term("kernel rows of samples and anchors", f64(sizes.n_audited, m), 2),
                Term("moments of the rest, and on the way", f64(m, m), 12),
                Term("inputs of the components", f32(COMPONENT_ROWS, LONGEST_INPUT)),
                Term("covariances of inputs", f64(LONGEST_INPUT, LONGEST_INPUT), 6),
            ),
        }
    )


STAGE = Stage(
    name="retraining",
    version=1,
    inputs=RetrainingInputs,
    store="retraining",
    settings=RetrainingSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="networks trained again without each group, the truth for group influence",
    parallel="shards",
)
