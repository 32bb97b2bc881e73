"""Stage verdict: what the audit may be used for, from the figures of the sealed stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from krepes_ooc.core.verdict import Check, Verdict
from krepes_ooc.stages.base.cost import Cost, Quantity, Term
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.base.writing import write_whole
from krepes_ooc.stages.fidelity.stored_figures import read_fidelity
from krepes_ooc.stages.verdict import criteria
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_reader import StoreReader


@dataclass(frozen=True)
class VerdictSettings:
    """Recipe key ``stages.verdict``: nothing to set; criteria are no choice of an audit."""


@dataclass(frozen=True)
class VerdictInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    spectrum: StoreReader
    newton: StoreReader
    fidelity: StoreReader
    randomised: StoreReader
    recipe: RecipeInputs = recipe_parts("source", "training")


def run(inputs: VerdictInputs, context: StageContext) -> None:
    """Make every check, write the verdict, seal."""
    verdict = Verdict(tuple(make_checks(inputs)))
    for line in verdict_lines(verdict):
        context.progress.note(line)
    spec = StoreSpec(load_contract("verdict"), {})
    write_whole(context, spec, {}, {"verdict": verdict.to_json()})


def make_checks(inputs: VerdictInputs) -> Iterator[Check]:
    """All checks in reading order, blocking ones first."""
    newton = inputs.newton.attributes
    figures = read_fidelity(inputs.fidelity)
    randomised = inputs.randomised.attributes
    # What makes every figure meaningless.
    yield criteria.random_weights(randomised["ranking"], randomised["figures"]["cka"])
    yield criteria.collapse(randomised["health"])
    yield criteria.kernel_rows(figures["ridge_ceiling"])
    yield criteria.objective(inputs.recipe.training_objective, str(newton["objective"]))
    yield criteria.step(newton)
    yield criteria.solver(float(newton["residual_norm"]), float(newton["tolerance"]))
    check = inputs.features.attributes["self_check"]
    yield criteria.self_check(float(check["max_relative_error"]), str(check["words"]))
    # What has to be read with care.
    yield criteria.raw_inputs(figures)
    yield criteria.plain_kernel(figures)
    yield criteria.noise_ceiling(figures)
    yield criteria.learned_ranking(randomised["ranking"])
    yield criteria.learned_figures(randomised["figures"])
    origin = inputs.recipe.encoding_facts.get("origin")
    if origin is not None:
        yield criteria.encoding(learned_here=origin == "learned here")
    yield criteria.nystrom(float(inputs.spectrum.attributes["nystrom_error"]))
    yield criteria.landmarks(len(np.unique(inputs.landmarks.array("sample_id"))))


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    """Lines for the terminal: the verdict, then every check that did not pass, with its figures."""
    yield verdict.sentence
    for check in (*verdict.reasons, *verdict.reservations):
        yield f"{check.title}: {check.words()}"


def estimate_cost(sizes: AuditSizes, settings: VerdictSettings) -> Cost:
    """Attributes alone."""
    return Cost(
        disk=Quantity.of(Term("attributes", 2**14)),
        memory=Quantity.of(Term("figures", 2**20)),
    )


STAGE = Stage(
    name="verdict",
    version=1,
    inputs=VerdictInputs,
    store="verdict",
    settings=VerdictSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="checks with a criterion each, and what follows",
)
