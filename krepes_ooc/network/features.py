"""Feature rows: one row of numbers a view whose inner products are the empirical NTK.

torch is imported on first use, so that reading a recipe stays fast.
"""

from __future__ import annotations

import copy
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
ALONE, ALONE_TOLERANCE = 4, 1e-2


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

    def tensors(self, inputs: npt.NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """What ``rows`` gives, left on the device of the network."""

    def gradients(
        self, inputs: torch.Tensor, probe: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and gradient [sample, *parameter] of <probe, f>, parameter by parameter."""

    def clone(self) -> Self:
        """The same map on an own copy of the network."""

    def on(self, where: str) -> Self:
        """The same map on a device of torch, from which rows come back to the host."""

    def doubled(self) -> Self:
        """The same map in float64, for the self-check."""

    def describe(self) -> dict[str, Any]:
        """The map as JSON, for the store's attributes."""


def open_features(
    module: torch.nn.Module,
    settings: FeatureSettings,
    calibration: npt.NDArray[Any],
    probes: npt.ArrayLike | None = None,
    seed: int = 0,
) -> FeatureMap:
    """Plan the feature map of a network and fix its scales.

    Args:
        module: the network; copied, never changed.
        settings: which parameters, outputs, probes and form of row.
        calibration: inputs [sample, ...] that fix scales and calibrated probes; 2 or more.
        probes: the probes [probe, output] of a store that exists, instead of new ones.
        seed: key of probes and sketch.

    Raises:
        UsageError: parameters or outputs match nothing, or ``kind: factors`` does not apply.
        NetworkError: weights, outputs or rows are not finite, the outputs are random or mix the
            samples of a batch, or a parameter's gradient cannot be reached.
    """
    from krepes_ooc.network.frozen import FrozenNetwork, check_state_finite, freeze
    from krepes_ooc.network.reference import check_function
    from krepes_ooc.network.selection import select_outputs, select_parameters

    if len(calibration) < 2:
        raise UsageError(f"{len(calibration)} calibration samples", expected="at least 2")
    network = (
        module.copied() if isinstance(module, FrozenNetwork) else freeze(copy.deepcopy(module))
    )
    check_state_finite(network)
    parameters = select_parameters(network, settings.parameters)
    outputs = select_outputs(network, settings.outputs, calibration[:2])
    check_function(network, calibration[:2])
    given = None if probes is None else np.asarray(probes, dtype=np.float32)
    plan = _Plan(settings, seed, given)
    feature_map = plan.build(network, parameters, outputs, calibration)
    feature_map.layout = calibrate(feature_map, calibration)
    return feature_map


@dataclass(frozen=True)
class _Plan:
    """Which form of row, with which probes.

    Args:
        settings: what the recipe asks for.
        seed: key of probes and sketch.
        probes: the probes of a store that exists, or None.
    """

    settings: FeatureSettings
    seed: int
    probes: Float32 | None

    def build(
        self,
        network: FrozenNetwork,
        parameters: tuple[str, ...],
        outputs: tuple[int, ...],
        calibration: npt.NDArray[Any],
    ) -> FeatureMap:
        from krepes_ooc.network import factors, sketched
        from krepes_ooc.network.probes import rademacher_probes
        from krepes_ooc.network.reference import used_parameters

        settings, probes = self.settings, self.probes
        used = used_parameters(network, parameters, calibration[:2])
        wanted = [None if n == "auto" else n for n in (settings.probes, settings.deflated)]
        if settings.kind != "sketch":
            units, obstacle = factors.plan_factors(network, used, calibration)
            if units:
                n_probes = (wanted[0] or 1) + (wanted[1] or 0)
                if probes is None:
                    probes = rademacher_probes(n_probes, len(outputs), self.seed)
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
            probes = plan.choose_probes(wanted[0], wanted[1], self.seed)
        return plan.build(probes, self.seed)


def calibrate(feature_map: FeatureMap, calibration: npt.NDArray[Any]) -> FeatureLayout:
    """The map's layout with the scale of every column range fixed from calibration rows.

    Raises:
        NetworkError: a row or an output is not finite, or a row changes with its batch.
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
    _check_alone(feature_map, calibration, rows)
    largest = np.abs(rows).max(axis=0)
    exponents = (exponent_for(float(largest[a:b].max())) for a, b, _ in feature_map.layout.scales)
    return feature_map.layout.with_scales(tuple(exponents))


def _check_alone(feature_map: FeatureMap, calibration: npt.NDArray[Any], rows: Float32) -> None:
    """Rows of a few samples alone: a network that sorts or groups its batch would mix them up."""
    largest = float(np.linalg.norm(rows, axis=1).max())
    for sample in np.unique(np.linspace(0, len(rows) - 1, ALONE).astype(int)):
        alone, _ = feature_map.rows(calibration[sample : sample + 1])
        difference = float(np.linalg.norm(alone[0] - rows[sample]))
        if not difference <= ALONE_TOLERANCE * largest:
            raise NetworkError(
                f"the Jacobian row of calibration sample {sample} changes by "
                f"{difference / largest:.2g} of the largest with its batch",
                where="network",
                expected="layers that read the samples of a batch in their order",
                advice="set forward_batch to 1 if the network sorts or groups its batch",
            )


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
    scaled = features * scale
    # torch rounds several times faster than NumPy.
    stored = np.asarray(torch.from_numpy(scaled).to(torch.float16).numpy())
    narrowest = min(stop - start for start, stop, _ in layout.scales) * len(stored)
    if _overflows(stored) or _lost(scaled, stored) > SUBNORMAL_SHARE * narrowest:
        for start, stop, exponent in layout.scales:
            _check_range(features, scaled, stored, slice(start, stop), exponent)
    return stored


def _overflows(stored: npt.NDArray[np.float16]) -> bool:
    return bool(stored.size) and int((stored.view(np.uint16) & 0x7FFF).max()) >= 0x7C00


def _lost(scaled: Float32, stored: npt.NDArray[np.float16]) -> int:
    """Numbers that became subnormal or zero, read from the bits: this runs on every row."""
    magnitude = stored.view(np.uint16) & 0x7FFF
    subnormal = np.count_nonzero(magnitude - np.uint16(1) < 0x3FF)
    return int(subnormal + np.count_nonzero(scaled != 0) - np.count_nonzero(magnitude))


def _check_range(
    features: Float32,
    scaled: Float32,
    stored: npt.NDArray[np.float16],
    columns: slice,
    exponent: int,
) -> None:
    where, name = f"features, scale 2**{exponent}", f"columns {columns.start} to {columns.stop}"
    wrong = ~np.isfinite(features[:, columns]).all(axis=1)
    if wrong.any():
        raise DataError(
            f"{name} of row {int(wrong.argmax())} are NaN or infinite",
            where="features",
            expected="finite Jacobian rows",
            advice="look at this sample's values",
        )
    advice = "calibrate on more samples, or check for samples of another scale"
    part, rounded = scaled[:, columns], np.ascontiguousarray(stored[:, columns])
    if _overflows(rounded):
        raise StageFailed(
            f"{name} overflow float16: {float(np.abs(part).max()):.3g}",
            where=where,
            expected=f"at most {np.finfo(np.float16).max:g}",
            advice=advice,
        )
    lost = _lost(part, rounded)
    if lost > SUBNORMAL_SHARE * part.size:
        raise StageFailed(
            f"{lost} of {part.size} values of {name} are subnormal in float16",
            where=where,
            expected=f"at most {SUBNORMAL_SHARE:.0%}",
            advice=advice,
        )
