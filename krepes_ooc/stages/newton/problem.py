"""The objective at the start of its step, built from the sealed stores, or refused in words."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.engine.device import HOST, Device, eigh_on, to_device
from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.kernel.stream import KernelStream
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.moments.stored_moments import read_moments
from krepes_ooc.stages.newton.basis import Basis
from krepes_ooc.stages.newton.damping import absolute_damping
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.objectives.base import SampleObjective
from krepes_ooc.stages.newton.objectives.byol import BYOLSettings, Predictor, fit_predictor
from krepes_ooc.stages.newton.objectives.interface import (
    Linearisation,
    Objective,
    Stream,
    require_views,
)
from krepes_ooc.stages.spectrum import nystrom


@dataclass(frozen=True)
class DeviceMoments:
    """Moments of the kernel rows.

    Args:
        on_device: the moments, where they lie.
        device: that place.
    """

    on_device: Moments
    device: Device

    def embedding_rms(self, A: Float, offset: Float | None = None) -> float:
        """As ``Moments``, of coefficients on the host."""
        gamma = None if offset is None else self.device.to_device(offset)
        return float(
            self.device.to_host(self.on_device.embedding_rms(self.device.to_device(A), gamma))
        )


@dataclass(frozen=True)
class DeviceGradient:
    """A linearisation.

    Args:
        on_device: the linearisation, its arrays where they lie.
        device: that place.
    """

    on_device: Linearisation
    device: Device

    @cached_property
    def value(self) -> float:
        """The loss."""
        return float(self.device.to_host(self.on_device.value))

    @cached_property
    def gradient(self) -> Float:
        """G [landmark, component], on the host."""
        return np.asarray(self.device.to_host(self.on_device.gradient))

    @cached_property
    def mean_diagonal(self) -> float:
        """tr(H) / (m h)."""
        return float(self.device.to_host(self.on_device.mean_diagonal))

    def number(self, name: str) -> float | None:
        """Another number that this kind of linearisation knows, or None."""
        found: Any = getattr(self.on_device, name, None)
        return None if found is None else float(self.device.to_host(found))


@dataclass(frozen=True)
class DeviceObjective:
    """A loss.

    Args:
        on_device: the objective, its moments where they lie.
        device: that place; the host for an objective that streams, whose passes move themselves.
    """

    on_device: Objective
    device: Device

    @property
    def name(self) -> str:
        """Of the loss."""
        return self.on_device.name

    @property
    def can_iterate(self) -> bool:
        """As ``Objective``."""
        return self.on_device.can_iterate

    def value(self, A: Float) -> float:
        """The loss at A [landmark, component]."""
        return float(self.device.to_host(self.on_device.value(self.device.to_device(A))))

    def values(self, A: Float) -> Float:
        """The loss of each column of A [landmark, component, column]."""
        return np.asarray(self.device.to_host(self.on_device.values(self.device.to_device(A))))

    def linearise(self, A: Float) -> DeviceGradient:
        """Value, gradient and curvature at A [landmark, component]."""
        return DeviceGradient(self.on_device.linearise(self.device.to_device(A)), self.device)


Float = npt.NDArray[np.float64]
FLAT_STEP = 1e-5


@dataclass(frozen=True)
class NewtonProblem:
    """The objective at the start of its step, in the coordinates of the chosen metric.

    Args:
        context: the stage.
        stream: the kernel, and what passes over it have found.
        objective: the loss.
        at_start: its value, gradient and curvature at the start.
        start: A0, or its coordinates [landmark or direction, component].
        offset: gamma [component].
        moments: of the kernel rows, in the same coordinates.
        basis: from coordinates to coefficients; None for the euclidean metric.
    """

    context: StageContext
    stream: KernelStream
    objective: DeviceObjective
    at_start: DeviceGradient
    start: Float
    offset: Float
    moments: DeviceMoments
    basis: Basis | None

    @property
    def place(self) -> Device:
        """Where products are taken and iterates lie."""
        return self.objective.device

    def coefficients(self, values: Float) -> Float:
        """Coefficients [landmark, component(, column)] of coordinates."""
        return values if self.basis is None else self.basis.from_basis(values)


def open_newton_problem(context: StageContext) -> NewtonProblem:
    """The Newton system from the sealed stores; moments that products are taken with are moved.

    Raises:
        StageFailed: the loss has no curvature or no slope at the start, as for a collapsed network.
        UsageError: as ``check_settings``.
    """
    settings, spectrum = context.settings, context.reader("spectrum")
    coefficients = settings.objective_constants()
    moments, start, basis = read_moments(context), spectrum.array("start"), _basis(context)
    check_settings(settings, moments.n_views, start.shape[1], context.plan.block_rows)
    offset, features = spectrum.array("offset"), context.reader("features")
    kernel = KernelStream(context.reader("kernel"), features, context.reader("landmarks"), context)
    stream: Any = kernel
    place = context.device if registry.uses_moments(settings.objective) else HOST
    moments = to_device(place, moments)
    if basis is not None:
        moments, stream = to_device(place, basis).moments(moments), basis.stream(stream)
        start = basis.to_basis(start)
    there = registry.create(
        settings.objective,
        coefficients,
        moments=moments,
        stream=stream,
        start=start,
        offset=offset,
        predictor=_predictor(kernel, stream, coefficients, start, offset),
        sub_rows=product_rows(context, start.shape[1]),
    )
    objective = DeviceObjective(there, place)
    at_start = linearised(kernel, objective, start, "linearised-step-0")
    absolute_damping(settings.damping_values, at_start, start)
    _check_gradient(settings.objective, at_start, start)
    placed = DeviceMoments(moments, place)
    return NewtonProblem(context, kernel, objective, at_start, start, offset, placed, basis)


def linearised(
    stream: KernelStream, objective: DeviceObjective, A: Float, name: str
) -> DeviceGradient:
    """The linearisation at A; a streamed one is kept, since it costs a pass."""
    streamed = objective.on_device
    if not isinstance(streamed, SampleObjective):
        return objective.linearise(A)
    kept = stream.cached(name, lambda: streamed.linearise(A).arrays())
    return DeviceGradient(streamed.restore(A, kept), objective.device)


def product_rows(context: StageContext, n_components: int) -> int:
    """Rows of one product of a streamed objective; it holds their embeddings for every damping."""
    plan, columns = context.plan, len(context.settings.damping_values)
    return context.device.rows_per_product(
        plan.sub_rows, plan.block_rows, 64 * n_components * columns
    )


def to_host_arrays(record: Any, place: Device = HOST) -> dict[str, npt.NDArray[Any]]:
    """The fields of a flat dataclass as arrays of the host, to be kept on the disk.

    Args:
        record: the dataclass.
        place: where its arrays lie.
    """
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {
        name: np.asarray(value if isinstance(value, str) else place.to_host(value))
        for name, value in values.items()
    }


def _basis(context: StageContext) -> Basis | None:
    """Coordinates of the RKHS metric: damping is then the norm of the embedding's function."""
    if context.settings.metric == "euclidean":
        return None
    K = context.reader("kernel").whole("landmark_kernel")
    values, vectors = nystrom.eigenpairs(K, eigh_on(context.device))
    rank = int(context.reader("spectrum").attributes["usable_rank"])
    return Basis.rkhs(values, vectors, rank)


def _predictor(
    kernel: KernelStream, stream: Stream, coefficients: Any, start: Float, offset: Float
) -> Predictor | None:
    """BYOL's fitted predictor, kept, since it costs a pass."""
    if not isinstance(coefficients, BYOLSettings) or coefficients.predictor != "ridge":
        return None
    rows = product_rows(kernel.context, start.shape[1])

    def fit() -> dict[str, Float]:
        return to_host_arrays(fit_predictor(stream, start, offset, coefficients.ridge, rows))

    return Predictor(**kernel.cached("predictor", fit))


def check_settings(settings: Any, n_views: int, n_components: int, block_rows: int) -> None:
    """Refuse what the objective cannot do with these sizes: at plan time, and again at its start.

    Raises:
        UsageError: too few views or components, further steps of an objective that may not be
            iterated, or a batch that does not divide the block rows.
    """
    name = settings.objective
    require_views(name, n_views)
    least = registry.least_components(name)
    if n_components < least:
        raise UsageError(
            f"{n_components} component of {name}, which compares directions: one cannot turn",
            where="stages.spectrum.components",
            expected=f"at least {least}",
            advice="raise it, or choose another objective",
        )
    if settings.lm_step_limit and not registry.can_iterate(name):
        raise UsageError(
            f"{settings.lm_step_limit} further steps of {name}, whose target is its own start: it "
            "would collapse",
            where="stages.newton.lm_steps",
            expected="0",
        )
    batch = getattr(settings.objective_constants(), "batch", None)
    if batch is not None and block_rows % batch:
        divisors = [2**i for i in range(1, block_rows.bit_length())]
        raise UsageError(
            f"a batch of {batch} does not divide blocks of {block_rows} rows",
            where="stages.newton.objective_settings.batch",
            expected=f"a divisor of {block_rows}",
            advice=f"take {min(divisors, key=lambda size: abs(size - batch))}",
        )


def _check_gradient(name: str, at_start: DeviceGradient, start: Float) -> None:
    """Refuse a gradient of rounding size: a step along it would explain noise."""
    slope = np.linalg.norm(at_start.gradient)
    if not slope > FLAT_STEP * at_start.mean_diagonal * np.linalg.norm(start):
        raise StageFailed(
            f"{name} has no slope at the start (loss {at_start.value:g}, gradient {slope:g})",
            where="newton",
            expected="a loss that a step can lower",
            advice="the views of each sample may be equal: let views.* make them differ",
        )
