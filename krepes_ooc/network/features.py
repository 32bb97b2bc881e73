"""Feature rows: one row of numbers a view whose inner products are the empirical NTK.

torch is imported on first use, so that reading a recipe stays fast.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import DataError, NetworkError, StageFailed, UsageError
from krepes_ooc.layout import FeatureLayout, exponent_for
from krepes_ooc.settings import setting

if TYPE_CHECKING:
    import torch

    from krepes_ooc.network.frozen import FrozenNetwork

Float32 = npt.NDArray[np.float32]
SUBNORMAL_SHARE = 0.01
_FLOAT16_LARGEST = 65504.0
_FLOAT16_NORMAL = 2.0**-14


@dataclass(frozen=True)
class FeatureSettings:
    """How Jacobian rows are taken: the recipe key ``features``."""

    kind: Literal["auto", "factors", "sketch"] = setting(
        "auto", about="exact layer factors, a sketch, or factors where they apply"
    )
    probes: Literal["auto"] | int = setting(
        "auto", about="random probes; auto: 1, or 4 with convolutions or attention", minimum=1
    )
    deflated: Literal["auto"] | int = setting(
        "auto", about="calibrated probes; auto: 0, or 4 with convolutions or attention", minimum=0
    )
    sketch: int = setting(4096, about="columns of a sketch", minimum=16, maximum=2**20)
    parameters: tuple[str, ...] = setting(
        (), about="globs of audited parameter names; none: all trainable ones"
    )
    outputs: tuple[int, ...] = setting((), about="indices of audited outputs; none: all", minimum=0)
    seed: int = setting(0, about="key of probes and sketch", minimum=0)


class FeatureMap(Protocol):
    """Jacobian rows of one frozen network; threads sharing one wait for each other: use clones."""

    layout: FeatureLayout
    network: FrozenNetwork
    parameters: tuple[str, ...]
    outputs: tuple[int, ...]

    @property
    def n_outputs(self) -> int:
        """Number of audited outputs."""

    def rows(self, inputs: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        """Unscaled features[sample, feature] and embedding[sample, output] of a batch."""

    def gradients(
        self, inputs: torch.Tensor, probe: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and gradient [sample, *parameter] of <probe, f>, parameter by parameter."""

    def clone(self) -> Self:
        """The same map on an own copy of the network."""

    def doubled(self) -> Self:
        """The same map in float64, for the self-check."""

    def describe(self) -> dict[str, Any]:
        """The map as JSON, for the store's attributes."""


def open_features(
    module: torch.nn.Module,
    settings: FeatureSettings,
    calibration: npt.NDArray[Any],
    probes: npt.ArrayLike | None = None,
) -> FeatureMap:
    """Plan the feature map of a network and fix its scales.

    Args:
        module: the network; copied, never changed.
        settings: which parameters, outputs, probes and form of row.
        calibration: inputs [sample, ...] that fix scales and calibrated probes; 2 or more.
        probes: the probes [probe, output] of a store that exists, instead of new ones.

    Raises:
        UsageError: parameters or outputs match nothing, or ``kind: factors`` does not apply.
        NetworkError: weights, outputs or rows are not finite, the outputs are random or mix the
            samples of a batch, or a parameter's gradient cannot be reached.
    """
    from krepes_ooc.network.frozen import FrozenNetwork, check_state_finite, freeze
    from krepes_ooc.network.reference import check_function

    if len(calibration) < 2:
        raise UsageError(f"{len(calibration)} calibration samples", expected="at least 2")
    network = module.copied() if isinstance(module, FrozenNetwork) else freeze(_copy(module))
    check_state_finite(network)
    parameters = select_parameters(network, settings.parameters)
    outputs = select_outputs(network, settings.outputs, calibration[:2])
    check_function(network, calibration[:2])
    given = None if probes is None else np.asarray(probes, dtype=np.float32)
    feature_map = _plan(network, parameters, outputs, settings, calibration, given)
    feature_map.layout = calibrate(feature_map, calibration)
    return feature_map


def _plan(
    network: FrozenNetwork,
    parameters: tuple[str, ...],
    outputs: tuple[int, ...],
    settings: FeatureSettings,
    calibration: npt.NDArray[Any],
    probes: Float32 | None,
) -> FeatureMap:
    from krepes_ooc.network import factors, sketched
    from krepes_ooc.network.probes import rademacher_probes
    from krepes_ooc.network.reference import used_parameters

    used = used_parameters(network, parameters, calibration[:2])
    wanted = [None if n == "auto" else n for n in (settings.probes, settings.deflated)]
    if settings.kind != "sketch":
        units, obstacle = factors.plan_factors(network, used, calibration[:2])
        if units:
            n_probes = (wanted[0] or 1) + (wanted[1] or 0)
            if probes is None:
                probes = rademacher_probes(n_probes, len(outputs), settings.seed)
            return factors.FactorFeatures(network, units, parameters, probes, outputs)
        if settings.kind == "factors":
            raise UsageError(
                f"exact factors do not apply: {obstacle}",
                where="features.kind",
                expected="Linear layers on plain vectors, and few parameters elsewhere",
                advice="take kind: sketch",
            )
    plan = sketched.plan_sketch(network, parameters, outputs, calibration, settings.sketch)
    if probes is None:
        probes = plan.choose_probes(wanted[0], wanted[1], settings.seed)
    return plan.build(probes, settings.seed)


def calibrate(feature_map: FeatureMap, calibration: npt.NDArray[Any]) -> FeatureLayout:
    """The map's layout with the scale of every column range fixed from calibration rows.

    Raises:
        NetworkError: a row or an output is not finite.
    """
    rows, embedding = feature_map.rows(calibration)
    for name, values in (("output", embedding), ("Jacobian row", rows)):
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise NetworkError(
                f"the {name} of calibration sample {int(bad.argmax())} is not finite",
                expected="finite numbers",
                advice="check the inputs' scale and the checkpoint",
            )
    largest = np.abs(rows).max(axis=0)
    exponents = (exponent_for(float(largest[a:b].max())) for a, b, _ in feature_map.layout.scales)
    return feature_map.layout.with_scales(tuple(exponents))


def store_rows(features: Float32, layout: FeatureLayout) -> npt.NDArray[np.float16]:
    """The stored form of feature rows: 2**exponent times the value, rounded to float16.

    Args:
        features: unscaled rows [sample, feature].
        layout: the layout with its calibrated scales.

    Raises:
        DataError: a feature is NaN or infinite.
        StageFailed: a column range overflows float16 or loses more than 1 % to subnormals.
    """
    import torch

    scale = np.empty(layout.n_features, dtype=np.float32)
    for start, stop, exponent in layout.scales:
        scale[start:stop] = 2.0**exponent
    scaled = torch.from_numpy(np.asarray(features * scale))
    for start, stop, exponent in layout.scales:
        _check_range(scaled[:, start:stop], features[:, start:stop], start, stop, exponent)
    return np.asarray(scaled.to(torch.float16).numpy())


def select_parameters(network: FrozenNetwork, globs: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the audited parameters, in network order; no glob: those that were trainable.

    Raises:
        UsageError: a glob, or the whole selection, matches no parameter.
    """
    names = [name for name, _ in network.inner.named_parameters()]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    for glob in globs:
        if not fnmatch.filter(names, glob):
            raise UsageError(
                f"{glob!r} matches no parameter", where="features.parameters", expected=shown
            )
    if globs:
        return tuple(n for n in names if any(fnmatch.fnmatchcase(n, glob) for glob in globs))
    if not network.trainable:
        raise UsageError(
            "the network has no trainable parameter",
            where="features.parameters",
            expected="at least one",
            advice=f"name some of {shown}" if names else "an NTK needs parameters",
        )
    return network.trainable


def select_outputs(
    network: FrozenNetwork, outputs: tuple[int, ...], inputs: npt.NDArray[Any]
) -> tuple[int, ...]:
    """Indices of the audited outputs; none given: all.

    Raises:
        UsageError: an index is outside the network's output, or stands twice.
        NetworkError: the network does not run on the samples.
    """
    n_outputs = _n_outputs(network, inputs)
    chosen = outputs or tuple(range(n_outputs))
    if len(set(chosen)) != len(chosen) or not all(0 <= index < n_outputs for index in chosen):
        raise UsageError(
            f"outputs {list(chosen)}",
            where="features.outputs",
            expected=f"different indices from 0 to {n_outputs - 1}",
        )
    return chosen


def _n_outputs(network: FrozenNetwork, inputs: npt.NDArray[Any]) -> int:
    import torch

    try:
        with torch.no_grad():
            return int(network(torch.tensor(inputs)).shape[1])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise NetworkError(
            f"the network does not run: {error}",
            where=f"inputs of shape {tuple(inputs.shape)} and type {inputs.dtype}",
            expected="the shape that the network was built for",
            advice="check network.arguments and the source",
        ) from error


def _check_range(
    scaled: torch.Tensor, features: Float32, start: int, stop: int, exponent: int
) -> None:
    largest = float(scaled.abs().max()) if scaled.numel() else 0.0
    if largest <= _FLOAT16_LARGEST:
        size = scaled.abs()
        small = int(((size > 0) & (size < _FLOAT16_NORMAL)).sum())
        if small <= SUBNORMAL_SHARE * scaled.numel():
            return
        raise StageFailed(
            f"{small} of {scaled.numel()} values of columns {start} to {stop} "
            "are subnormal in float16",
            where=f"features, scale 2**{exponent}",
            expected=f"at most {SUBNORMAL_SHARE:.0%}",
            advice="calibrate on more samples, or check for samples of another scale",
        )
    if not np.isfinite(features).all():
        row = int((~np.isfinite(features)).any(axis=1).argmax())
        raise DataError(
            f"columns {start} to {stop} of row {row} are NaN or infinite",
            where="features",
            expected="finite Jacobian rows",
            advice="look at this sample's values",
        )
    raise StageFailed(
        f"columns {start} to {stop} overflow float16: {largest:.3g}",
        where=f"features, scale 2**{exponent}",
        expected=f"at most {_FLOAT16_LARGEST:g}",
        advice="calibrate on more samples, or check for samples of another scale",
    )


def _copy(module: torch.nn.Module) -> torch.nn.Module:
    import copy

    return copy.deepcopy(module)
