"""The Newton problem: an objective linearised at the start, built from the sealed stores."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.engine.device import HOST, Device, to_device
from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.kernel.stream import KernelStream
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.moments.stored_moments import read_moments
from krepes_ooc.stages.newton.basis import Basis
from krepes_ooc.stages.newton.damping import absolute_damping
from krepes_ooc.stages.newton.objectives import registry
from krepes_ooc.stages.newton.objectives.byol import BYOLSettings, Predictor, fit_predictor
from krepes_ooc.stages.newton.objectives.families import SampleObjective
from krepes_ooc.stages.newton.objectives.interface import (
    Linearisation,
    Objective,
    Stream,
    require_views,
)
from krepes_ooc.stages.newton.stored_basis import read_rkhs_basis
from krepes_ooc.storage.store_reader import StoreReader

Float = npt.NDArray[np.float64]
# Gradients below this share of curvature times coefficients are rounding.
FLAT_STEP = 1e-5


class NewtonStores(Protocol):
    """The declared inputs of the stage."""

    @property
    def features(self) -> StoreReader:
        """Feature rows, from which a device may recompute kernel rows."""

    @property
    def landmarks(self) -> StoreReader:
        """Landmarks, for the same."""

    @property
    def kernel(self) -> StoreReader:
        """Kernel rows and K_mm."""

    @property
    def moments(self) -> StoreReader:
        """Moments of the kernel rows."""

    @property
    def spectrum(self) -> StoreReader:
        """Start, offset and usable rank."""

    @property
    def recipe(self) -> RecipeInputs:
        """The recipe's seed."""


@dataclass(frozen=True)
class DeviceMoments:
    """Moments of the kernel rows on a device, with host numbers as results.

    Args:
        on_device: the moments, their arrays on the device.
        device: the device.
    """

    on_device: Moments
    device: Device

    def embedding_rms(self, A: Float, offset: Float | None = None) -> float:
        """As ``Moments``, of coefficients on the host."""
        gamma = None if offset is None else self.device.to_device(offset)
        rms = self.on_device.embedding_rms(self.device.to_device(A), gamma)
        return float(self.device.to_host(rms))


@dataclass(frozen=True)
class DeviceGradient:
    """A linearisation on a device, its value, gradient and mean diagonal on the host.

    Args:
        on_device: the linearisation, its arrays on the device; products are taken with it.
        device: the device.
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
        """Another number of this kind of linearisation, or None if it has none of this name."""
        number: Any = getattr(self.on_device, name, None)
        return None if number is None else float(self.device.to_host(number))


@dataclass(frozen=True)
class DeviceObjective:
    """An objective on a device, as a function of host coefficients.

    Args:
        on_device: the objective, its moments on the device.
        device: the device; the host for an objective that streams, whose passes move their arrays.
    """

    on_device: Objective
    device: Device

    @property
    def name(self) -> str:
        """Name of the objective."""
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


@dataclass(frozen=True)
class NewtonProblem:
    """The objective at the start of its step, in the coordinates of the chosen metric.

    Args:
        context: the stage.
        seed: key of random draws.
        stream: passes over the kernel, and checkpoints of their results.
        objective: the loss.
        at_start: its value, gradient and curvature at the start.
        start: A0, or its coordinates [landmark or direction, component].
        coefficients_start: A0 [landmark, component], in every metric.
        offset: gamma [component].
        moments: of the kernel rows, in the same coordinates.
        basis: from coordinates to coefficients; None for the euclidean metric.
    """

    context: StageContext
    seed: int
    stream: KernelStream
    objective: DeviceObjective
    at_start: DeviceGradient
    start: Float
    coefficients_start: Float
    offset: Float
    moments: DeviceMoments
    basis: Basis | None

    @property
    def device(self) -> Device:
        """The device of products and iterates."""
        return self.objective.device

    def coefficients(self, values: Float) -> Float:
        """Coefficients [landmark, component(, column)] of coordinates."""
        return values if self.basis is None else self.basis.from_basis(values)


def open_newton_problem(inputs: NewtonStores, context: StageContext) -> NewtonProblem:
    """The Newton problem from the sealed stores, moments on the device of the products.

    Raises:
        StageFailed: the loss has no curvature or no slope at the start, as for a collapsed network.
        UsageError: as ``check_settings``.
    """
    settings = context.settings
    constants = settings.objective_constants()
    # mu and C of the kernel, start A0 and offset gamma of the spectrum.
    moments = read_moments(inputs.moments)
    A0 = inputs.spectrum.array("start")
    offset = inputs.spectrum.array("offset")
    check_settings(settings, moments.n_views, A0.shape[1], context.plan.block_rows)
    kernel = KernelStream(inputs.kernel, inputs.features, inputs.landmarks, context)
    # Moment objectives work on the device; a streamed one moves what each pass needs.
    device = context.device if registry.uses_moments(settings.objective) else HOST
    moments = to_device(device, moments)
    stream: Any = kernel
    start = A0
    # RKHS metric: everything in coordinates B with A = T B.
    basis = None
    if settings.metric != "euclidean":
        basis = read_rkhs_basis(inputs.kernel, inputs.spectrum, context.device)
        moments = to_device(device, basis).moments(moments)
        stream = basis.stream(stream)
        start = basis.to_basis(A0)
    on_device = registry.create(
        settings.objective,
        constants,
        moments=moments,
        stream=stream,
        start=start,
        offset=offset,
        predictor=_predictor(kernel, stream, constants, start, offset),
        sub_rows=product_rows(context, start.shape[1]),
    )
    objective = DeviceObjective(on_device, device)
    at_start = linearised(kernel, objective, start, "linearised-step-0")
    # Refuse a start without curvature or slope before any solve.
    absolute_damping(settings.damping_values, at_start, start)
    _check_gradient(settings.objective, at_start, start)
    return NewtonProblem(
        context,
        inputs.recipe.seed,
        kernel,
        objective,
        at_start,
        start,
        A0,
        offset,
        DeviceMoments(moments, device),
        basis,
    )


def linearised(
    stream: KernelStream, objective: DeviceObjective, A: Float, name: str
) -> DeviceGradient:
    """The linearisation at A; a streamed one is checkpointed, since it costs a pass.

    Args:
        stream: keeps checkpoints.
        objective: the loss.
        A: coefficients [landmark, component].
        name: of the checkpoint.
    """
    # Moment objectives linearise in memory: nothing to save.
    streamed = objective.on_device
    if not isinstance(streamed, SampleObjective):
        return objective.linearise(A)
    arrays = stream.cached(name, lambda: streamed.linearise(A).arrays())
    return DeviceGradient(streamed.restore(A, arrays), objective.device)


def product_rows(context: StageContext, n_components: int) -> int:
    """Rows of one product of a streamed objective, whose embeddings have a column per damping."""
    plan = context.plan
    row_bytes = 64 * n_components * len(context.settings.damping_values)
    return context.device.rows_per_product(plan.sub_rows, plan.block_rows, row_bytes)


def to_host_arrays(record: Any, device: Device = HOST) -> dict[str, npt.NDArray[Any]]:
    """The fields of a flat dataclass as host arrays, for a checkpoint.

    Args:
        record: the dataclass.
        device: the device of its arrays.
    """
    # Text has no device; numbers become arrays without dimension.
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {
        name: np.asarray(value if isinstance(value, str) else device.to_host(value))
        for name, value in values.items()
    }


def _predictor(
    kernel: KernelStream, stream: Stream, constants: Any, start: Float, offset: Float
) -> Predictor | None:
    """BYOL's fitted predictor, checkpointed, since it costs a pass; None for other objectives."""
    if not isinstance(constants, BYOLSettings) or constants.predictor != "ridge":
        return None
    rows = product_rows(kernel.context, start.shape[1])

    def fit() -> dict[str, Float]:
        return to_host_arrays(fit_predictor(stream, start, offset, constants.ridge, rows))

    return Predictor(**kernel.cached("predictor", fit))


def check_settings(settings: Any, n_views: int, n_components: int, block_rows: int) -> None:
    """Refuse settings that the objective does not allow for these sizes; plan and run call it.

    Args:
        settings: of the stage.
        n_views: views of a sample.
        n_components: components h.
        block_rows: rows of a block.

    Raises:
        UsageError: too few views or components, further steps of an objective that may not be
            iterated, or a batch that does not divide the block rows.
    """
    name = settings.objective
    require_views(name, n_views)
    # Objectives of directions alone: one component is +1 or -1, whatever the step.
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
    # Batches are consecutive rows of one block; the nearest power of two is the advice.
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
    # |G| against |H A0|, roughly: far below, the loss is stationary at the start.
    slope = np.linalg.norm(at_start.gradient)
    if not slope > FLAT_STEP * at_start.mean_diagonal * np.linalg.norm(start):
        raise StageFailed(
            f"{name} has no slope at the start (loss {at_start.value:g}, gradient {slope:g})",
            where="newton",
            expected="a loss that a step can lower",
            advice="the views of each sample may be equal: let views.* make them differ",
        )
