"""Stage group_influence: the embedding without one group, and what that changes for samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.files import Files
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.base.cost import Cost, Quantity, Term, f32, f64
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.base.stage import Stage, StageContext
from krepes_ooc.stages.base.writing import partial_path, read_partial, seal_blocks
from krepes_ooc.stages.group_influence.effects import LEAST_ANCHORS, SUB_ROWS, summarise
from krepes_ooc.stages.group_influence.group_problem import GroupInfluenceInputs, GroupProblem
from krepes_ooc.stages.group_influence.solutions import LONGER, WITHOUT, FirstOrder, Resolver
from krepes_ooc.stages.minimiser.minimise import HISTORY
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.store_writer import StoreWriter

# Of a re-solve from the minimum of all samples: 52 and 71 in the median at a relative damping of .3
# (digits, 50 groups of a synthetic table), 300 at .03 (Adult).
EVALUATIONS = 200
Float = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class GroupInfluenceSettings:
    """Recipe key ``stages.group_influence``."""

    damping: float | Literal["auto"] = setting(
        "auto",
        about="damping of the re-solve relative to the curvature's mean diagonal; auto: that of "
        "the minimiser",
        above=0,
    )
    tolerance: float = setting(
        1e-4, about="gradient at the end relative to the start", above=0, below=1
    )
    max_evaluations: int = setting(
        300, about="evaluations of loss and gradient of a re-solve at most", minimum=1
    )
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
    """Solver of the coefficients without a group: re-solve by moments, or first order."""
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
    return read_partial(context, partial_path(context, WITHOUT, group))


@dataclass
class _Groups:
    """Results of all groups; NaN for groups that cannot be left out.

    Args:
        effect: [group, audited].
        iterations: accepted steps or products [group].
        gradient_norm: gradient or residual at the end, relative [group].
        converged: whether the tolerance was reached [group].
    """

    effect: Float
    iterations: npt.NDArray[np.int64]
    gradient_norm: Float
    converged: npt.NDArray[np.bool_]

    @classmethod
    def empty(cls, groups: int, audited: int) -> _Groups:
        """No group left out."""
        return cls(
            np.full((groups, audited), np.nan),
            np.zeros(groups, dtype=np.int64),
            np.full(groups, np.nan),
            np.ones(groups, dtype=bool),
        )

    def put(self, group: int, known: Arrays) -> None:
        """Take over the partial result of one group."""
        self.effect[group] = known["effect"]
        self.iterations[group] = known["steps"]
        self.gradient_norm[group] = known["gradient_norm"]
        self.converged[group] = known["converged"]


def _write(problem: GroupProblem, solver: Resolver | FirstOrder, reasons: dict[int, str]) -> None:
    """Bring the groups together and seal."""
    context, names = problem.context, problem.groups.names
    full = solver.full()
    m, h = full["coefficients"].shape
    groups, audited = problem.members.shape
    context.record.reset()
    # One block a group, so that coefficients are written one group at a time.
    sizes = {"group": groups, "audited": audited, "landmark": m, "component": h}
    sizes["anchor"] = len(problem.anchors)
    spec = StoreSpec(load_contract("group_influence"), sizes, block_rows=1)
    writer = context.workspace.writer(spec, context.digest)
    writer.create()
    found, files = _collect(problem, reasons, writer, (m, h))
    # Effects on groups and beyond size follow from those on samples.
    summary = summarise(found.effect, problem.members, problem.groups.count)
    arrays = {
        "effect": found.effect,
        **vars(summary),
        "count": problem.groups.count,
        "iterations": found.iterations,
        "gradient_norm": found.gradient_norm,
        "coefficients_full": full["coefficients"],
        "anchor": problem.anchors,
    }
    for line in _lines(names, summary.mean_effect, found.converged, reasons, full["floor"]):
        context.progress.note(line)
    # Absolute damping is that of all samples; the relative one is comparable between audits.
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
        "floor": {"mean_effect": floor} if np.isfinite(floor := float(full["floor"])) else {},
        "converged": bool(found.converged.all() and full["converged"]),
    }
    seal_blocks(context, writer, files, arrays, attributes)


def _collect(
    problem: GroupProblem, reasons: dict[int, str], writer: StoreWriter, shape: tuple[int, int]
) -> tuple[_Groups, Files]:
    """Results of all groups, their coefficients written group by group.

    Raises:
        StageFailed: a partial result was damaged after it was written.
    """
    found = _Groups.empty(*problem.members.shape)
    files: Files = {}
    for group, name in enumerate(problem.groups.names):
        # NaN stands for a group that cannot be left out.
        coefficients = np.full(shape, np.nan)
        if group not in reasons:
            known = _partial(problem.context, group)
            if known is None:
                raise StageFailed(
                    f"the partial result of group {name!r} is damaged",
                    where="group_influence",
                    advice="run the same command again: it is computed anew",
                )
            found.put(group, known)
            coefficients = known["coefficients"]
        # A row of the array is one chunk.
        block = Block(group, group, group + 1)
        files |= writer.write_block("coefficients", block, coefficients[None])
    return found, files


def _lines(
    names: list[str],
    mean_effect: Float,
    converged: npt.NDArray[np.bool_],
    reasons: dict[int, str],
    floor: Float,
) -> list[str]:
    """The result in words: the group of the largest effect, and what to know about the solves."""
    lines = []
    if np.isfinite(mean_effect).any():
        # Groups with a reason are NaN and never the largest.
        top = int(np.nanargmax(mean_effect))
        lines.append(f"largest mean effect: {names[top]}, {mean_effect[top]:.3f}")
    if reasons:
        lines.append(f"{len(reasons)} of {len(names)} groups cannot be left out")
    if not converged.all():
        open_ = int((~converged).sum())
        lines.append(f"{open_} of {len(names)} solves ended above the tolerance")
    if np.isfinite(floor):
        lines.append(f"solving on with all samples: mean effect {float(floor):.1e}")
    return lines


def estimate_cost(sizes: AuditSizes, settings: GroupInfluenceSettings) -> Cost:
    """One minimisation a group on its moments; kernel rows of the audited samples once."""
    # The kernel rows are computed once in this process, each solve runs in a worker.
    m, h, views = sizes.n_landmarks, sizes.n_components, sizes.n_views
    n, width, groups = sizes.n_audited, sizes.n_features, max(1, sizes.n_groups)
    pairs = views * (views + 1) // 2
    worker = _worker_memory(sizes, settings)
    rows = Term("kernel rows of the audited samples", f32(n, m))
    landmarks = Term("landmark rows", f64(m, width), 2.5)
    block = Term("rows of one block", f32(sizes.plan.block_rows, width + m), 2)
    curvature = Term("curvature of all samples", f64(m, m), 2)
    copied = Term("moments of all samples in tiles", sizes.copied_square, pairs)
    membership = Term("membership of audited samples", n * groups, 4)
    coefficients = Term("coefficients", f64(groups + 1, m, h))
    effects = Term("effects", f64(groups, n))
    # An evaluation is one product with every moment of a pair of views.
    evaluations = (
        min(EVALUATIONS, settings.max_evaluations) * groups + LONGER * settings.max_evaluations
    )
    products = Term("products of moments", 2.0 * m * m * h * (pairs + 3), evaluations)
    return Cost(
        units=groups,
        disk=Quantity.of(effects, coefficients),
        memory=Quantity(
            {
                "opening": (landmarks, block, rows, Term("no worker yet", worker.bytes, -1)),
                "solving": (rows, curvature, copied, membership),
                "writing": (rows, effects, effects, effects, effects, membership),
            }
        ),
        worker_memory=worker,
        parallel_tasks=groups,
        flops=Quantity.of(products, Term("kernel rows", 2.0 * n * m * width)),
        scratch=Quantity.of(effects, coefficients, rows),
        float64=True,
    )


def _worker_memory(sizes: AuditSizes, settings: GroupInfluenceSettings) -> Quantity:
    """One group: the moments of the rest, the iterates, or the profiles of a short range."""
    m, h, views, n = sizes.n_landmarks, sizes.n_components, sizes.n_views, sizes.n_audited
    # Moments are symmetric in the views: one for each pair.
    pairs, anchors = views * (views + 1) // 2, min(settings.anchors, n)
    return Quantity(
        {
            "moments": (Term("moments of the rest, and on the way", f64(m, m), 2 * pairs),),
            "solving": (
                Term("moments of the rest", f64(m, m), views**2 + pairs),
                Term("their mean, its eigenvectors and workspaces", f64(m, m), 5),
                Term("iterates, steps and changes", f64(m, h), 2 * HISTORY + 16),
            ),
            "effects": (
                Term("moments of the rest", f64(m, m), pairs),
                Term("kernel rows of audited samples and anchors", f64(n + anchors, m)),
                Term("profiles of a short range", f64(SUB_ROWS, anchors), 8),
            ),
        }
    )


STAGE = Stage(
    name="group_influence",
    version=2,
    inputs=GroupInfluenceInputs,
    store="group_influence",
    settings=GroupInfluenceSettings,
    run=run,
    estimate_cost=estimate_cost,
    about="the embedding without each group of samples",
    parallel="shards",
)
