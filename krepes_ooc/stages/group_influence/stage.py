"""Stage group_influence: the embedding without one group, and what that changes for samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.files import Files, read_arrays
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f32, f64
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.writing import partial_path, seal_blocks
from krepes_ooc.stages.group_influence.effects import LEAST_ANCHORS, SUB_ROWS, summarise
from krepes_ooc.stages.group_influence.minimise import MAX_STEPS, MEMORY, TOLERANCE
from krepes_ooc.stages.group_influence.problem import GroupInfluenceInputs, GroupProblem
from krepes_ooc.stages.group_influence.solutions import WITHOUT, FirstOrder, Resolver
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.storage.contracts import StoreSpec, load_contract

Float = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class GroupInfluenceSettings:
    """Recipe key ``stages.group_influence``."""

    damping: float = setting(
        1.0, about="damping of the re-solve relative to the curvature's mean diagonal", above=0
    )
    tolerance: float = setting(
        TOLERANCE, about="gradient at the end relative to the start", above=0, below=1
    )
    max_steps: int = setting(MAX_STEPS, about="accepted steps of a re-solve at most", minimum=1)
    anchors: int = setting(
        400, about="samples of role fit that profiles are taken against", minimum=LEAST_ANCHORS
    )


def run(inputs: GroupInfluenceInputs, context: StageContext) -> None:
    """Solve for all samples, then without each group; write, seal."""
    problem = GroupProblem(inputs, context)
    names = problem.groups.names
    reasons = {g: text for g in range(len(names)) if (text := problem.reason(g))}
    solver = make_solver(problem)
    possible = [g for g in range(len(names)) if g not in reasons]
    missing = [g for g in _mine(context, possible) if _partial(context, g) is None]
    context.progress.begin("group_influence", len(possible), len(possible) - len(missing))
    solver.full()
    if missing:
        solver.without(missing)
    context.stop_after_shard()
    _write(problem, solver, reasons)


def make_solver(problem: GroupProblem) -> Resolver | FirstOrder:
    """How coefficients without a group are computed."""
    if registry.uses_moments(problem.objective_name):
        return Resolver(problem)
    return FirstOrder(problem)


def _mine(context: StageContext, groups: list[int]) -> list[int]:
    """Groups that fall to this process; consecutive ones stay together."""
    if context.shard is None:
        return groups
    number, count = context.shard
    return [g for i, g in enumerate(groups) if i * count // len(groups) == number - 1]


def _partial(context: StageContext, group: int) -> Arrays | None:
    return read_arrays(partial_path(context, WITHOUT, group))


def _write(problem: GroupProblem, solver: Resolver | FirstOrder, reasons: dict[int, str]) -> None:
    """Bring the groups together and seal.

    Raises:
        StageFailed: a partial result was damaged after it was written.
    """
    context, names, members = problem.context, problem.groups.names, problem.members
    full = solver.full()
    m, h = full["coefficients"].shape
    groups, audited = members.shape
    context.record.reset()
    sizes = {"group": groups, "audited": audited, "landmark": m, "component": h}
    sizes["anchor"] = len(problem.anchors)
    spec = StoreSpec(load_contract("group_influence"), sizes, block_rows=1)
    writer = context.workspace.writer(spec, context.digest)
    writer.create()
    effect, gradient = np.full((groups, audited), np.nan), np.full(groups, np.nan)
    iterations, converged = np.zeros(groups, dtype=np.int64), np.ones(groups, dtype=bool)
    files: Files = {}
    for group in range(groups):
        coefficients = np.full((1, m, h), np.nan)
        if group not in reasons:
            known = _partial(context, group)
            if known is None:
                raise StageFailed(
                    f"the partial result of group {names[group]!r} is damaged",
                    where="group_influence",
                    advice="run the same command again: it is computed anew",
                )
            coefficients[0], effect[group] = known["coefficients"], known["effect"]
            iterations[group], gradient[group] = known["steps"], known["gradient_norm"]
            converged[group] = known["converged"]
        block = Block(group, group, group + 1)
        files |= writer.write_block("coefficients", block, coefficients)
    found = summarise(effect, members, problem.groups.count)
    arrays = {
        "effect": effect,
        **vars(found),
        "count": problem.groups.count,
        "iterations": iterations,
        "gradient_norm": gradient,
        "coefficients_full": full["coefficients"],
        "anchor": problem.anchors,
    }
    for line in _lines(names, found.mean_effect, converged, reasons):
        context.progress.note(line)
    attributes = {
        "names": names,
        "reasons": {names[group]: text for group, text in reasons.items()},
        "method": solver.method,
        "objective": problem.objective_name,
        "damping": solver.damping,
        "damping_relative": solver.damping / solver.mean_diagonal,
        "mean_diagonal": solver.mean_diagonal,
        "iterations_full": int(full["steps"]),
        "gradient_norm_full": float(full["gradient_norm"]),
        "converged": bool(converged.all() and full["converged"]),
    }
    seal_blocks(context, writer, files, arrays, attributes)


def _lines(
    names: list[str],
    mean_effect: Float,
    converged: npt.NDArray[np.bool_],
    reasons: dict[int, str],
) -> list[str]:
    """The result in words: the group of the largest effect, and what to know about the solves."""
    lines = []
    if np.isfinite(mean_effect).any():
        top = int(np.nanargmax(mean_effect))
        lines.append(f"largest mean effect: {names[top]}, {mean_effect[top]:.3f}")
    if reasons:
        lines.append(f"{len(reasons)} of {len(names)} groups cannot be left out")
    if not converged.all():
        open_ = int((~converged).sum())
        lines.append(f"{open_} of {len(names)} solves ended above the tolerance")
    return lines


def predict(shape: AuditSizes, settings: GroupInfluenceSettings) -> Cost:
    """One minimisation a group on its moments; kernel rows of the audited samples once."""
    m, h, views = shape.n_landmarks, shape.n_components, shape.n_views
    n, width, groups = shape.n_audited, shape.n_features, max(1, shape.n_groups)
    pairs = views * (views + 1) // 2
    anchors = min(settings.anchors, n)
    worker = Quantity(
        {
            "moments": (Term("moments of the rest, and on the way", f64(m, m), 3 * pairs),),
            "solving": (
                Term("moments of the rest", f64(m, m), views**2 + 2),
                Term("iterates, steps and changes", f64(m, h), 2 * MEMORY + 16),
            ),
            "effects": (
                Term("kernel rows of audited samples and anchors", f64(n + anchors, m)),
                Term("profiles of a short range", f64(SUB_ROWS, anchors), 8),
            ),
        }
    )
    memory = Quantity(
        {
            "opening": (
                Term("landmark rows", f64(m, width), 2.5),
                Term("rows of one block", f32(shape.plan.block_rows, width + m), 2),
            ),
            "solving": (
                Term("kernel rows of the audited samples", f32(n, m), 2),
                Term("curvature of all samples", f64(m, m), 3 + views**2),
                Term("membership of audited samples", n * groups),
            ),
            "writing": (
                Term("kernel rows of the audited samples", f32(n, m)),
                Term("effects", f64(groups, n), 5),
            ),
        }
    )
    return Cost(
        units=groups,
        disk=Quantity.of(
            Term("effects", f64(groups, n)), Term("coefficients", f64(groups + 1, m, h))
        ),
        memory=memory,
        worker_memory=worker,
        parallel_tasks=groups,
        flops=Quantity.of(
            Term("products of moments", 2.0 * m * m * h * (pairs + 3), groups * settings.max_steps),
            Term("kernel rows", 2.0 * n * m * width),
        ),
        scratch=Quantity.of(
            Term("effects and coefficients", f64(groups, n + m * h)), Term("rows", f32(n, m))
        ),
        float64=True,
    )


STAGE = Stage(
    name="group_influence",
    version=1,
    inputs=GroupInfluenceInputs,
    store="group_influence",
    settings=GroupInfluenceSettings,
    run=run,
    estimate_cost=predict,
    about="the embedding without each group of samples",
    parallel="shards",
)
