"""Cost of stage landmarks: each choice in its passes, then the rows of the chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from krepes_ooc.stages.base.cost import ROW_PASSES, Cost, Quantity, Term, f16, f32, f64
from krepes_ooc.stages.base.sizes import AuditSizes
from krepes_ooc.stages.features.featurizer import batch_term, input_terms
from krepes_ooc.stages.landmarks.landmark_settings import LandmarksSettings
from krepes_ooc.stages.landmarks.samplers import PILOT, POOL, ROUND
from krepes_ooc.stages.landmarks.sampling import seeding_trials
from krepes_ooc.stages.landmarks.view_errors import CURVE_SAMPLES


def estimate_cost(sizes: AuditSizes, settings: LandmarksSettings) -> Cost:
    """A choice in passes over view 0, then the rows of the chosen through the network."""
    m = sizes.n_landmarks
    width = sizes.n_features
    choice = _CHOICES[settings.sampler](sizes, settings)
    worker = choice.worker_memory.bytes
    clean_rows = Term("clean rows: float16 and float32, batches and self kernels", f32(m, width), 5)
    # Phases: the passes of the choice, then the clean rows, when no worker computes any more.
    phases = dict(choice.memory.phases)
    batch = (*input_terms(sizes, m), *((batch_term(sizes),) if sizes.sample_bytes else ()))
    free = Term("memory of one worker", worker, -1)
    phases["clean rows"] = (clean_rows, *batch, free)
    if settings.count == "auto":
        rows = sizes.n_views * (CURVE_SAMPLES + sizes.plan.block_rows)
        phases["number of landmarks"] = (
            clean_rows,
            Term("landmark rows in float64", f64(m, width)),
            Term("kernel rows of the first samples, carried parts", f64(rows, m), 4),
            Term("kernel of the landmarks and its factor", f64(m, m), 4),
            free,
        )
    by_then_free = Term(clean_rows.label, clean_rows.size, -clean_rows.times)
    return replace(
        choice,
        disk=Quantity.of(
            Term("feature rows", f16(m, width)),
            Term("ids, weights, k(x, x) and display of a landmark", f64(m), 8),
            Term("centre", f64(sizes.n_moments)),
        ),
        memory=Quantity(phases),
        flops=choice.flops.plus(Term(ROW_PASSES, sizes.row_operations * m)),
        freed_early=choice.memory.plus(Term("memory of one worker", worker), by_then_free),
        device_memory=_device_memory(sizes, settings),
        device_task_memory=_device_task_memory(sizes, settings),
    )


def _device_memory(sizes: AuditSizes, settings: LandmarksSettings) -> Quantity:
    """Device memory of the kernel map to the landmarks or candidates."""
    return Quantity.of(
        Term("landmarks or candidates", f32(_n_columns(sizes, settings), sizes.n_selection)),
        Term("centre in both types", f64(sizes.n_moments), 2),
    )


def _device_task_memory(sizes: AuditSizes, settings: LandmarksSettings) -> Quantity:
    """Device memory of one product, or of the kernel among landmarks or candidates."""
    sub_rows = sizes.plan.sub_rows
    n_columns = _n_columns(sizes, settings)
    return Quantity.of(
        Term("rows of a product in float32", f32(sub_rows, sizes.n_selection), 2),
        Term("kernel values of a product", f32(sub_rows, n_columns), 4),
        Term("kernel among landmarks or candidates", f64(n_columns, n_columns), 4),
    )


def _n_columns(sizes: AuditSizes, settings: LandmarksSettings) -> int:
    """Landmarks, or the candidates that the rounds draw on average if these are more."""
    drawn = round(sizes.n_landmarks * settings.oversampling * settings.rounds)
    return max(sizes.n_landmarks, drawn)


def _uniform_cost(sizes: AuditSizes, settings: LandmarksSettings) -> Cost:
    """A uniform choice needs no pass but that of the weights."""
    return Cost(
        units=2,
        memory=Quantity.of(),
        worker_memory=Quantity.of(*_weights_memory(sizes)),
        parallel_tasks=sizes.plan.n_blocks,
        flops=Quantity.of(_weights_flops(sizes)),
    )


def _weights_memory(sizes: AuditSizes) -> tuple[Term, ...]:
    """Memory of a worker in the pass that counts the nearest samples of each landmark."""
    sub_rows = sizes.plan.sub_rows
    return (
        Term("rows of a product in float32", f32(sub_rows, sizes.n_selection), 2),
        Term("kernel values of a product", f32(sub_rows, sizes.n_landmarks), 3),
    )


def _weights_flops(sizes: AuditSizes) -> Term:
    """The same pass in operations."""
    products = 2.0 * sizes.plan.n_samples * sizes.n_selection * sizes.n_landmarks
    return Term("nearest landmark of every sample", products)


def _kmeans_plus_plus_cost(sizes: AuditSizes, settings: LandmarksSettings) -> Cost:
    """Greedy k-means++ on a pool, then a pass for the weights."""
    n_samples = sizes.plan.n_samples
    m = sizes.n_landmarks
    width = sizes.n_selection
    # The pool stays in memory: every landmark needs kernel values to all of its samples.
    pool = min(n_samples, POOL * m)
    return Cost(
        units=-(-m // ROUND) + 1,
        memory=Quantity.of(
            Term("rows of the pool", f32(pool, width)),
            Term("distances, draws and kernel rows of the pool", f64(pool), 16),
        ),
        worker_memory=Quantity.of(*_weights_memory(sizes)),
        parallel_tasks=sizes.plan.n_blocks,
        flops=Quantity.of(
            Term("seeding", 2.0 * m * seeding_trials(m) * pool * width), _weights_flops(sizes)
        ),
        scratch=Quantity.of(Term("chosen, distances and owners", f64(pool), 3)),
    )


def _leverage_cost(sizes: AuditSizes, settings: LandmarksSettings) -> Cost:
    """A pilot kernel, a pass for the scores and one for the weights."""
    n_samples = sizes.plan.n_samples
    width = sizes.n_selection
    sub_rows = sizes.plan.sub_rows
    # The pilot kernel is factorised whole; a worker projects short row ranges on it.
    pilot = min(n_samples, PILOT * sizes.n_landmarks)
    return Cost(
        units=2,
        memory=Quantity.of(
            Term("rows of the pilot samples in float32 and float64", f32(pilot, width), 5),
            Term("pilot kernel, its factor and whitening", f64(pilot, pilot), 5),
        ),
        worker_memory=Quantity.of(
            Term("rows of a product in float32", f32(sub_rows, width), 2),
            Term("kernel values of a product, whitened", f64(sub_rows, pilot), 3),
            Term("scores and keys of a block", f64(sizes.plan.block_rows), 2),
        ),
        parallel_tasks=sizes.plan.n_blocks,
        flops=Quantity.of(
            Term("scores", 2.0 * n_samples * pilot * (width + pilot)), _weights_flops(sizes)
        ),
    )


def _kmeans_parallel_cost(sizes: AuditSizes, settings: LandmarksSettings) -> Cost:
    """Rounds of k-means||, then weighted k-means++ among the candidates."""
    n_samples = sizes.plan.n_samples
    width = sizes.n_selection
    sub_rows = sizes.plan.sub_rows
    # The number of candidates is random: four standard deviations above its mean.
    drawn = sizes.n_landmarks * settings.oversampling * settings.rounds
    candidates = math.ceil(drawn + 4 * math.sqrt(drawn)) + 1
    worker = (
        Term("rows of a product in float32", f32(sub_rows, width), 2),
        Term("kernel values of a product", f32(sub_rows, max(candidates, sizes.n_landmarks)), 3),
    )
    state = Term("distance and owner of every sample, their copies and order", 60 * n_samples)
    centre = Term("centre in both types", f64(sizes.n_moments), 3)
    rows = f32(candidates, width)
    return Cost(
        units=settings.rounds + 3,
        memory=Quantity(
            {
                "rounds": (state, Term("rows of the candidates", rows, 2), centre),
                # While one is normalised there are three kernels of the candidates in float64.
                "reduction": (
                    state,
                    Term("rows of the candidates in float32 and float64", rows, 4),
                    Term("kernels of the candidates and a mask", 25 * candidates**2),
                    centre,
                    Term("memory of one worker", Quantity.of(*worker).bytes, -1),
                ),
            }
        ),
        worker_memory=Quantity.of(*worker),
        parallel_tasks=sizes.plan.n_blocks,
        flops=Quantity.of(
            Term("distances and centre", 2.0 * n_samples * (width * candidates + sizes.n_moments)),
            _weights_flops(sizes),
        ),
        scratch=Quantity.of(
            Term(
                "distance, owner and candidates of a round",
                12 * n_samples + f64(candidates),
                settings.rounds + 1,
            )
        ),
    )


_CHOICES: dict[str, Callable[[AuditSizes, LandmarksSettings], Cost]] = {
    "kmeans-parallel": _kmeans_parallel_cost,
    "kmeans++": _kmeans_plus_plus_cost,
    "leverage": _leverage_cost,
    "uniform": _uniform_cost,
}
