"""Kernel rows of one network, trained or with permuted weights, for a few samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.engine.executor import Executor
from krepes_ooc.errors import StageFailed
from krepes_ooc.jacobian.feature_map import FeatureMap
from krepes_ooc.jacobian.float16_rows import store_rows
from krepes_ooc.sources.base import check_finite
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.inputs import CALIBRATION_ROWS
from krepes_ooc.stages.base.recipe_inputs import RecipeInputs
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.features import inner_products
from krepes_ooc.stages.features.featurizer import (
    FeaturesSettings,
    features_settings,
    unscale_rows,
)
from krepes_ooc.stages.kernel.kernel_map import kernel_map
from krepes_ooc.stages.kernel.kernel_map import landmark_kernel as kernel_between
from krepes_ooc.stages.kernel.landmark_kernel import LandmarkKernel
from krepes_ooc.stages.kernel.normalisation import Normalisation
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.views.spec import CLEAN

TRAINED = 0
_FIT_STREAM = 702
Float = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]
Half = npt.NDArray[np.float16]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RandomisedInputs(StageInputs):
    """Stores and parts of the recipe that the stage reads."""

    features: StoreReader
    landmarks: StoreReader
    audited: StoreReader
    kernel: StoreReader
    newton: StoreReader
    minimiser: StoreReader
    spectrum: StoreReader
    influence: StoreReader
    recipe: RecipeInputs = recipe_parts("source", "views", "network")


def used_samples(inputs: RandomisedInputs, most_fit: int) -> Ids:
    """Rows of store audited that are used: audit samples, and fit samples by a keyed draw."""
    role = inputs.audited.array("role")
    fit = np.flatnonzero(role == ROLES["fit"])
    keys = counter_rng.bits(inputs.recipe.seed, _FIT_STREAM, inputs.audited.array("sample_id")[fit])
    chosen = fit[np.argsort(keys, kind="stable")[:most_fit]]
    return np.sort(np.concatenate([np.flatnonzero(role == ROLES["audit"]), chosen]))


class RowRange(NamedTuple):
    """Samples of one forward pass.

    Args:
        view: CLEAN, or number of the view.
        positions: in the source.
    """

    view: int
    positions: Ids


class KernelRows(NamedTuple):
    """Kernel rows and embeddings of one network.

    Args:
        landmark_kernel: K_mm [landmark, landmark_].
        landmark_embedding: the network's embedding of the rows of the landmarks [landmark, output].
        views: rows of the fit samples' views [view, fit, landmark].
        clean: clean rows of the used samples [used, landmark].
        embedding: the network's embedding of them [used, output].
        view_embedding: the network's embedding of the fit samples' views [view, fit, output].
    """

    landmark_kernel: Float
    landmark_embedding: Rows
    views: Rows
    clean: Rows
    embedding: Rows
    view_embedding: Rows


@dataclass(frozen=True)
class DrawnNetwork:
    """The network of one draw; number 0 is the network itself.

    Tasks hold it. On a worker it opens its inputs, and with them the network, for itself.

    Args:
        inputs: of the stage.
        context: the running stage.
        draw: number of the draw.
        most_fit: fit samples at most.
    """

    inputs: RandomisedInputs
    context: StageContext
    draw: int
    most_fit: int

    def __reduce__(self) -> tuple[Any, ...]:
        """Reach a worker without the network, which is opened there once."""
        return DrawnNetwork, (self.inputs, self.context, self.draw, self.most_fit)

    @cached_property
    def settings(self) -> FeaturesSettings:
        """Settings that the sealed features were computed with."""
        return features_settings(self.context)

    @cached_property
    def feature_map(self) -> FeatureMap:
        """The feature map of this draw; threads work on copies of their own.

        The trained network keeps the probes of its store; a draw chooses its own by the same rule.

        Raises:
            NetworkError: the rows or outputs of the permuted network are not finite.
        """
        recipe, attributes = self.inputs.recipe, self.inputs.features.attributes
        if self.draw == TRAINED:
            shared = recipe.open_features(self.settings, attributes["probes"])
            recipe.check_network_outputs(str(attributes["krepes"]["digest"]))
            return shared
        from krepes_ooc.jacobian.feature_map import open_features
        from krepes_ooc.network.permuted import permuted_network

        rows = recipe.order.positions(0, min(CALIBRATION_ROWS, recipe.source.n_samples))
        calibration = recipe.encode(rows, 0)[0]
        permuted = permuted_network(recipe.network, recipe.seed, self.draw)
        return open_features(permuted, self.settings, calibration, seed=recipe.seed)

    def stored_rows(self, part: RowRange) -> tuple[Half, Rows]:
        """Stored feature rows [sample, feature] and embedding [sample, output] of one range.

        Raises:
            DataError: a row is not finite; names the sample.
        """
        self.context.stop.check()
        local = self.inputs.recipe.feature_map(self.feature_map, self.context.device.torch)
        inputs, _ = self.inputs.recipe.encode(part.positions, part.view)
        features, embedding = local.rows(inputs)
        check_finite(features, part.positions, "feature row")
        return store_rows(features, self.feature_map.layout), embedding

    def centre_sums(self, part: RowRange) -> tuple[Float, float]:
        """Sum of feature moments [moment] and of k(x, x) over the samples of one range."""
        rows = self._unscaled(self.stored_rows(part)[0])
        layout = self.feature_map.layout
        own = inner_products.self_kernel(rows, layout)
        return np.asarray(inner_products.centre_sum(rows, layout)), float(np.sum(own))

    def kernel_rows(self, executor: Executor, normalise: Any) -> KernelRows:
        """Kernel rows of the landmarks, the fit samples' views and all audited samples.

        Two passes over the fit samples' views: the centre, then the rows.

        Args:
            executor: where ranges are computed.
            normalise: how kernel values are normalised.

        Raises:
            StageFailed: fewer than two fit samples.
        """
        used = used_samples(self.inputs, self.most_fit)
        role = self.inputs.audited.array("role")[used]
        sample_id = self.inputs.audited.array("sample_id")[used]
        fit = sample_id[role == ROLES["fit"]]
        n_views = self.inputs.features.info("self_kernel").shape[0]
        if len(fit) < 2:
            raise StageFailed(
                f"{len(fit)} fit samples",
                where="randomised",
                expected="at least 2",
                advice="raise stages.audited.fit",
            )
        view_ranges = [part for view in range(n_views) for part in self._ranges(view, fit)]

        # The centre of the same rows that the moments are taken of; then the landmarks.
        centre, normalisation = self._centre(executor, view_ranges, normalise)
        found = list(executor.map(self.stored_rows, self._landmark_ranges()))
        landmarks = self._unscaled(np.concatenate([rows for rows, _ in found]))
        layout = self.feature_map.layout
        K_mm = np.asarray(kernel_between(landmarks, layout, centre, normalisation))
        mapped = LandmarkKernel(
            kernel_map(landmarks, layout, centre, normalisation),
            layout,
            self.context.plan.sub_rows,
            self.context.device,
        )

        # Rows of all samples against them.
        task = KernelTask(self, mapped)
        of_views = list(executor.map(task, view_ranges))
        of_clean = list(executor.map(task, self._ranges(CLEAN, sample_id)))
        m, outputs = len(landmarks), len(self.feature_map.outputs)
        return KernelRows(
            K_mm,
            np.concatenate([embedding for _, embedding in found]),
            _joined(of_views, 0).reshape(n_views, len(fit), m),
            _joined(of_clean, 0),
            _joined(of_clean, 1),
            _joined(of_views, 1).reshape(n_views, len(fit), outputs),
        )

    def _centre(
        self, executor: Executor, ranges: Sequence[RowRange], normalise: Any
    ) -> tuple[Float, Normalisation]:
        """Mean feature moments [moment] over ranges of samples, and the normalisation by them."""
        total, self_sum = executor.reduce(self.centre_sums, ranges, _add)
        count = sum(len(part.positions) for part in ranges)
        centre = total / count
        scale = self_sum / count if normalise == "mean-diagonal" else 1.0
        return centre, Normalisation(normalise, inner_products.centre_self(centre), scale)

    def _landmark_ranges(self) -> list[RowRange]:
        """Ranges of the landmarks as the audit chose them, in their views."""
        view_of_row, row_id = (self.inputs.landmarks.array(n) for n in ("view", "sample_id"))
        return [
            part
            for view in np.unique(view_of_row).tolist()
            for part in self._ranges(view, row_id[view_of_row == view])
        ]

    def _ranges(self, view: int, positions: Ids) -> list[RowRange]:
        """Ranges of one forward pass each: they decide bits, so the block plan fixes them."""
        size = self.context.plan.forward_batch
        return [
            RowRange(view, positions[start : start + size])
            for start in range(0, len(positions), size)
        ]

    def _unscaled(self, stored: Half) -> Rows:
        return np.asarray(unscale_rows(stored, self.feature_map.layout))


@dataclass(frozen=True)
class KernelTask:
    """Kernel rows and embedding of one range.

    Args:
        network: whose rows.
        landmark_kernel: the kernel against the landmarks.
    """

    network: DrawnNetwork
    landmark_kernel: LandmarkKernel

    def __call__(self, part: RowRange) -> tuple[Rows, Rows]:
        """Kernel rows [sample, landmark] and the network's embedding [sample, output]."""
        stored, embedding = self.network.stored_rows(part)
        rows = self.network._unscaled(stored)
        own = np.asarray(inner_products.self_kernel(rows, self.landmark_kernel.layout))
        return self.landmark_kernel.rows(stored, own), embedding


def _add(left: tuple[Float, float], right: tuple[Float, float]) -> tuple[Float, float]:
    return left[0] + right[0], left[1] + right[1]


def _joined(parts: Sequence[tuple[Rows, Rows]], which: int) -> Rows:
    return np.concatenate([part[which] for part in parts])
