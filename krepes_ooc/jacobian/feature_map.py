"""Feature maps: rows [sample, feature] whose inner products are the empirical NTK.

torch is imported on first use, so that reading a recipe stays fast.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.feature_layout import FeatureLayout, exponent_for, sketch_layout
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import NetworkError, UsageError

if TYPE_CHECKING:
    import torch

    from krepes_ooc.jacobian.opening import Opening
    from krepes_ooc.jacobian.sketched_features import SketchPlan
    from krepes_ooc.network.frozen import FrozenNetwork

Float32 = npt.NDArray[np.float32]
# Samples whose rows are compared with those of a batch of one, and the relative tolerance.
SINGLE_SAMPLES = 4
SINGLE_TOLERANCE = 1e-2
# Forward and backward passes of one sample of any opening: outputs and their size 1, gradients of
# two samples 2, checks of the outputs 2; and those that decide the sketch.
FIXED_PASSES = 5.0
SHAPE_PASSES = 2.0


@dataclass(frozen=True)
class FeatureSettings:
    """The recipe key ``features``: form of the Jacobian rows, probes, parameters, outputs."""

    kind: Literal["auto", "factors", "sketch"] = setting(
        "auto", about="exact layer factors, a sketch, or factors where they apply"
    )
    probes: Literal["auto"] | int = setting(
        "auto", about="random probes; auto: 1, or 4 with convolutions or attention", minimum=1
    )
    deflated_probes: Literal["auto"] | int = setting(
        "auto",
        about="calibrated probes; auto: 0, or 4 with convolutions or attention",
        minimum=0,
        digest_name="deflated",
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

    def embedding(self, inputs: npt.NDArray[Any]) -> Float32:
        """Embedding [sample, output] of a batch, with the bits of ``rows``, by a forward pass."""

    def tensors(self, inputs: npt.NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``rows``, but left on the device of the network."""

    def gradients(
        self, inputs: torch.Tensor, probe: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and gradient [sample, *parameter] of <probe, f>, parameter by parameter."""

    def clone(self) -> Self:
        """The same map on a copy of the network."""

    def to(self, device: str) -> Self:
        """The same map on a device of torch; ``rows`` copies its results to the host."""

    def double(self) -> Self:
        """The same map in float64, for the self-check."""

    def describe(self) -> dict[str, Any]:
        """The map as JSON, for the store's attributes."""


def open_features(
    module: torch.nn.Module,
    settings: FeatureSettings,
    calibration: npt.NDArray[Any],
    probes: npt.ArrayLike | None = None,
    seed: int = 0,
    opening: Opening | None = None,
) -> FeatureMap:
    """Plan the feature map of a network and fix its scales.

    Args:
        module: the network; never changed.
        settings: which parameters, outputs, probes and form of row.
        calibration: inputs [sample, ...] that fix scales and calibrated probes; 2 or more. A
            network with large samples takes fewer of them, a few at a time.
        probes: probes [probe, output] of an existing store, instead of new ones.
        seed: key of probes and sketch.
        opening: record, announcements and limit of this opening.

    Raises:
        UsageError: parameters or outputs match nothing, or ``kind: factors`` does not apply.
        NetworkError: weights, outputs or rows are not finite, the outputs are random or mix the
            samples of a batch, or a parameter's gradient cannot be reached.
        OpeningDeferred: it would take longer than the limit of ``opening``.
    """
    from krepes_ooc.jacobian.autograd_reference import check_function, used_parameters
    from krepes_ooc.jacobian.opening import Opening, sample_size
    from krepes_ooc.jacobian.selection import select_outputs, select_parameters
    from krepes_ooc.network.frozen import FrozenNetwork, check_state_finite, freeze

    if len(calibration) < 2:
        raise UsageError(f"{len(calibration)} calibration samples", expected="at least 2")
    opening = opening or Opening()
    network = module if isinstance(module, FrozenNetwork) else freeze(copy.deepcopy(module))
    # Hooks are never set on the caller's modules; the weights are shared.
    network = network.shared_copy()
    # From cheap to expensive: weights, selection, outputs, then gradients.
    check_state_finite(network)
    parameters = select_parameters(network, settings.parameters)
    outputs = select_outputs(network, settings.outputs, calibration[:2])
    size = sample_size(network, calibration)
    calibration = calibration[: size.n_calibration]
    known = None if probes is None else np.asarray(probes, dtype=np.float32)
    plan = _Plan(settings, seed, known, opening, size.batch)
    # Parameters outside the graph have zero gradients and need no rule.
    used = opening.measure(lambda: used_parameters(network, parameters, calibration[:2]), 2)
    n_passes = plan.count_passes(network, len(outputs), len(calibration))
    opening.begin(n_passes, len(outputs), parameters, plan.count_probes(network))
    opening.check_outputs(check_function(network, calibration[:2])[1])
    feature_map = plan.build(network, parameters, used, outputs, calibration)
    # Scales last: they need rows of the finished map.
    feature_map.layout = plan.scale(feature_map, calibration)
    return feature_map


def expected_layout(
    network: FrozenNetwork, settings: FeatureSettings, parameters: Sequence[str]
) -> FeatureLayout:
    """Layout that the rows will have, from classes and shapes alone; a network is not run.

    Args:
        network: the frozen network.
        settings: the recipe key ``features``.
        parameters: names of the audited parameters.
    """
    from krepes_ooc.jacobian.exact_features import linear_layout
    from krepes_ooc.jacobian.sketched_features import has_spatial_layers

    # A convolution or attention reads several positions: its network is sketched.
    if settings.kind == "sketch" or has_spatial_layers(network):
        return sketch_layout(settings.sketch)
    n_random = 1 if settings.probes == "auto" else settings.probes
    n_deflated = 0 if settings.deflated_probes == "auto" else settings.deflated_probes
    exact = linear_layout(network, parameters, n_random + n_deflated)
    return exact or sketch_layout(settings.sketch)


@dataclass(frozen=True)
class _Plan:
    """Choice of the form of row and of the probes.

    Args:
        settings: the recipe key ``features``.
        seed: key of probes and sketch.
        probes: probes of an existing store, or None.
        opening: record and announcements.
        batch: samples of one pass.
    """

    settings: FeatureSettings
    seed: int
    probes: Float32 | None
    opening: Opening
    batch: int

    @property
    def n_random(self) -> int | None:
        """Random probes, if the recipe sets them."""
        return None if self.settings.probes == "auto" else self.settings.probes

    @property
    def n_deflated(self) -> int | None:
        """Calibrated probes, if the recipe sets them."""
        return None if self.settings.deflated_probes == "auto" else self.settings.deflated_probes

    def count_passes(self, network: FrozenNetwork, n_outputs: int, n_samples: int) -> float:
        """Forward and backward passes of one sample that the opening still takes, at most."""
        from krepes_ooc.jacobian.gradient_plan import count_trial_passes
        from krepes_ooc.jacobian.sketched_features import count_calibration, count_probes

        n_random, n_deflated = count_probes(network, self.n_random, self.n_deflated)
        trials = 0.0 if self.opening.has("rules") else count_trial_passes(n_samples) + SHAPE_PASSES
        known = self.probes is not None or self.opening.has("probes")
        chosen = 0.0 if known else count_calibration(n_outputs, n_random, n_deflated, self.batch)
        if self.opening.has("scales"):
            return FIXED_PASSES + trials + chosen
        rows = self._count_rows(n_samples, n_random + n_deflated)
        return FIXED_PASSES + trials + chosen + rows

    def count_probes(self, network: FrozenNetwork) -> int:
        """Output directions of a row; for exact factors at most."""
        from krepes_ooc.jacobian.sketched_features import count_probes

        if self.probes is not None:
            return len(self.probes)
        return sum(count_probes(network, self.n_random, self.n_deflated))

    def _count_rows(self, n_samples: int, n_probes: int) -> float:
        """Passes of the rows that fix the scales: a forward pass is a third of both."""
        return (n_samples + count_single_samples(self.batch)) * (1 + 2 * n_probes) / 3

    def build(
        self,
        network: FrozenNetwork,
        parameters: tuple[str, ...],
        used: tuple[str, ...],
        outputs: tuple[int, ...],
        calibration: npt.NDArray[Any],
    ) -> FeatureMap:
        """The feature map: exact factors where they apply and are allowed, else a sketch."""
        from krepes_ooc.jacobian import exact_features, sketched_features
        from krepes_ooc.jacobian.output_probes import rademacher_probes

        settings = self.settings
        probes = self.probes
        # Exact factors are preferred: no sketching error, and shorter rows for small networks.
        if settings.kind != "sketch":
            rules, obstacle = exact_features.plan_factors(
                network, used, calibration, self.batch, self.opening
            )
            if rules:
                if probes is None:
                    n_probes = (self.n_random or 1) + (self.n_deflated or 0)
                    probes = rademacher_probes(n_probes, len(outputs), self.seed)
                return exact_features.FactorFeatures(network, rules, parameters, probes, outputs)
            if settings.kind == "factors":
                raise UsageError(
                    f"exact factors do not apply: {obstacle}",
                    where="features.kind",
                    expected="Linear layers on plain vectors, and few parameters elsewhere",
                    advice="take kind: sketch",
                )
        plan = sketched_features.plan_sketch(
            network, parameters, outputs, calibration, settings.sketch, self.batch, self.opening
        )
        return plan.build(self._probes(plan) if probes is None else probes, self.seed)

    def _probes(self, plan: SketchPlan) -> Float32:
        """Probes [probe, output], as recorded or chosen now."""
        from krepes_ooc.jacobian.sketched_features import count_calibration, count_probes

        known = self.opening.found("probes")
        if known is not None:
            return np.asarray(known, dtype=np.float32)
        counts = count_probes(plan.network, self.n_random, self.n_deflated)
        n_passes = count_calibration(len(plan.outputs), *counts, self.batch)
        with self.opening.step(f"{sum(counts)} probes", n_passes):
            probes = plan.choose_probes(self.n_random, self.n_deflated, self.seed, self.batch)
        self.opening.keep("probes", probes.astype(float).tolist())
        return probes

    def scale(self, feature_map: FeatureMap, calibration: npt.NDArray[Any]) -> FeatureLayout:
        """Layout of the map with its scales, as recorded or fixed now."""
        probes = feature_map.describe()["probes"]
        known = self.opening.found("scales", probes=probes)
        if known is not None and len(known) == len(feature_map.layout.scales):
            return feature_map.layout.with_scales(tuple(known))
        n_passes = self._count_rows(len(calibration), len(probes))
        with self.opening.step(f"scales on {len(calibration)} samples", n_passes):
            layout = calibrate(feature_map, calibration, self.batch)
        exponents = [exponent for _, _, exponent in layout.scales]
        self.opening.keep("scales", exponents, probes=probes)
        return layout


def calibrate(feature_map: FeatureMap, calibration: npt.NDArray[Any], batch: int) -> FeatureLayout:
    """Layout with the scale of every column range fixed from calibration rows.

    Args:
        feature_map: the map.
        calibration: inputs [sample, ...].
        batch: samples of one pass.

    Raises:
        NetworkError: a row or an output is not finite, or a row changes with its batch.
    """
    from krepes_ooc.jacobian.sketched_features import rows_in_batches

    rows, embedding = rows_in_batches(feature_map, calibration, batch)
    for name, values in (("output", embedding), ("Jacobian row", rows)):
        # A sample whose row is not finite makes every scale meaningless.
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise NetworkError(
                f"the {name} of calibration sample {int(bad.argmax())} is not finite",
                expected="finite numbers",
                advice="check the inputs' scale and the checkpoint",
            )
    _check_batch_independence(feature_map, calibration, rows, count_single_samples(batch))
    # A power of two for each range brings its largest entry near the top of float16.
    largest = np.abs(rows).max(axis=0)
    exponents = (exponent_for(float(largest[a:b].max())) for a, b, _ in feature_map.layout.scales)
    return feature_map.layout.with_scales(tuple(exponents))


def count_single_samples(batch: int) -> int:
    """Samples whose rows are computed alone too: one where samples are large."""
    from krepes_ooc.jacobian.opening import MAX_BATCH

    return SINGLE_SAMPLES if batch == MAX_BATCH else 1


def _check_batch_independence(
    feature_map: FeatureMap, calibration: npt.NDArray[Any], rows: Float32, n_single: int
) -> None:
    """Compare rows with those of a batch of one: a network may sort or group its batch."""
    largest = float(np.linalg.norm(rows, axis=1).max())
    for sample in np.unique(np.linspace(0, len(rows) - 1, n_single).astype(int)):
        single, _ = feature_map.rows(calibration[sample : sample + 1])
        difference = float(np.linalg.norm(single[0] - rows[sample]))
        if not difference <= SINGLE_TOLERANCE * largest:
            raise NetworkError(
                f"the Jacobian row of calibration sample {sample} changes by "
                f"{difference / largest:.2g} of the largest with its batch",
                where="network",
                expected="layers that read the samples of a batch in their order",
                advice="set forward_batch to 1 if the network sorts or groups its batch",
            )
