"""Kernel rows of one network, trained or with permuted weights, for a few samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.engine import machine
from krepes_ooc.engine.executor import Executor
from krepes_ooc.errors import StageFailed
from krepes_ooc.jacobian.feature_map import FeatureMap
from krepes_ooc.jacobian.float16_rows import store_rows
from krepes_ooc.sources.base import check_finite
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.base.cost import f16
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
# Feature rows of the fit samples' views stay in memory up to that; above, a second pass gives them.
KEPT_BYTES = 2**26
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


class PassedRows(NamedTuple):
    """Rows of the samples of one range.

    Args:
        stored: feature rows as they are stored [sample, feature].
        embedding: the network's embedding [sample, output].
    """

    stored: Half
    embedding: Rows


class CentreSums(NamedTuple):
    """Sums over the samples of some ranges.

    Args:
        moments: of feature moments [moment].
        self_kernel: of k(x, x).
        kept: the rows of every range; none where they are not kept.
    """

    moments: Float
    self_kernel: float
    kept: tuple[PassedRows, ...]


def keeps_view_rows(n_rows: int, n_features: int) -> bool:
    """Whether feature rows of the fit samples' views stay in memory.

    Args:
        n_rows: fit samples in all views.
        n_features: width of a row.
    """
    return f16(n_rows, n_features) <= KEPT_BYTES


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
        opened = open_features(permuted, self.settings, calibration, seed=recipe.seed)
        # Rows are computed in other threads, which cannot use again what this one freed.
        machine.trim()
        return opened

    def passed(self, part: RowRange) -> PassedRows:
        """Feature rows and embedding of one range, by forward and backward passes.

        Raises:
            DataError: a row is not finite; names the sample.
        """
        self.context.stop.check()
        local = self.inputs.recipe.feature_map(self.feature_map, self.context.device.torch)
        inputs, _ = self.inputs.recipe.encode(part.positions, part.view)
        features, embedding = local.rows(inputs)
        check_finite(features, part.positions, "feature row")
        return PassedRows(store_rows(features, self.feature_map.layout), embedding)

    def embedding(self, part: RowRange) -> Rows:
        """The network's embedding [sample, output] of one range, by a forward pass."""
        self.context.stop.check()
        local = self.inputs.recipe.feature_map(self.feature_map, self.context.device.torch)
        return local.embedding(self.inputs.recipe.encode(part.positions, part.view)[0])

    def kernel_rows(self, executor: Executor, normalise: Any) -> KernelRows:
        """Kernel rows of the landmarks, the fit samples' views and all audited samples.

        The fit samples' views give the centre, then their rows: by a second pass where the rows of
        the first are not kept.

        Args:
            executor: where ranges are computed.
            normalise: how kernel values are normalised.

        Raises:
            StageFailed: fewer than two fit samples.
        """
        used = used_samples(self.inputs, self.most_fit)
        role = self.inputs.audited.array("role")[used]
        fit = self.inputs.audited.array("sample_id")[used][role == ROLES["fit"]]
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
        centre, normalisation, kept = self._centre(executor, view_ranges, normalise)
        stored, landmark_embedding = self._landmarks(executor)
        landmarks = self._unscaled(stored)
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
        view_items: Sequence[RowRange | PassedRows] = kept or view_ranges
        of_views = list(executor.map(task, view_items))
        of_clean = list(executor.map(task, self._clean_items(used)))
        m, outputs = len(landmarks), len(self.feature_map.outputs)
        return KernelRows(
            K_mm,
            landmark_embedding,
            _joined(of_views, 0).reshape(n_views, len(fit), m),
            _joined(of_clean, 0),
            _joined(of_clean, 1),
            _joined(of_views, 1).reshape(n_views, len(fit), outputs),
        )

    def _centre(
        self, executor: Executor, ranges: Sequence[RowRange], normalise: Any
    ) -> tuple[Float, Normalisation, tuple[PassedRows, ...]]:
        """Mean feature moments [moment] over ranges, the normalisation by them, the kept rows."""
        count = sum(len(part.positions) for part in ranges)
        keeps = keeps_view_rows(count, self.feature_map.layout.n_features)
        sums = executor.reduce(CentreTask(self, keeps), ranges, _add)
        centre = sums.moments / count
        scale = sums.self_kernel / count if normalise == "mean-diagonal" else 1.0
        centre_self = inner_products.centre_self(centre)
        return centre, Normalisation(normalise, centre_self, scale), sums.kept

    def _landmarks(self, executor: Executor) -> tuple[Half, Rows]:
        """Stored rows and embedding of the landmarks as the audit chose them, in their views."""
        store = self.inputs.landmarks
        view_of_row, row_id = store.array("view"), store.array("sample_id")
        ranges = [
            part
            for view in np.unique(view_of_row).tolist()
            for part in self._ranges(view, row_id[view_of_row == view])
        ]
        # The store has the rows of the network itself.
        if self.draw == TRAINED:
            embedding = np.concatenate(list(executor.map(self.embedding, ranges)))
            return store.array("features"), embedding
        found = list(executor.map(self.passed, ranges))
        return _joined(found, 0), _joined(found, 1)

    def _clean_items(self, used: Ids) -> Sequence[RowRange | PassedRows]:
        """The clean rows of some audited samples: those of the network itself are in the store."""
        store = self.inputs.audited
        if self.draw != TRAINED:
            return self._ranges(CLEAN, store.array("sample_id")[used])
        stored, embedding = store.array("features"), store.array("network_embedding")
        size = self.context.plan.forward_batch
        parts = [used[start : start + size] for start in range(0, len(used), size)]
        return [PassedRows(stored[part], embedding[part]) for part in parts]

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
class CentreTask:
    """Sums for the centre over one range.

    Args:
        network: whose rows.
        keeps: whether the rows are kept.
    """

    network: DrawnNetwork
    keeps: bool

    def __call__(self, part: RowRange) -> CentreSums:
        """The sums, and the rows where they are kept."""
        passed = self.network.passed(part)
        layout = self.network.feature_map.layout
        rows = self.network._unscaled(passed.stored)
        return CentreSums(
            np.asarray(inner_products.centre_sum(rows, layout)),
            float(np.sum(inner_products.self_kernel(rows, layout))),
            (passed,) if self.keeps else (),
        )


@dataclass(frozen=True)
class KernelTask:
    """Kernel rows and embedding of one range.

    Args:
        network: whose rows.
        landmark_kernel: the kernel against the landmarks.
    """

    network: DrawnNetwork
    landmark_kernel: LandmarkKernel

    def __call__(self, item: RowRange | PassedRows) -> tuple[Rows, Rows]:
        """Kernel rows [sample, landmark] and the network's embedding [sample, output]."""
        passed = item if isinstance(item, PassedRows) else self.network.passed(item)
        rows = self.network._unscaled(passed.stored)
        own = np.asarray(inner_products.self_kernel(rows, self.landmark_kernel.layout))
        return self.landmark_kernel.rows(passed.stored, own), passed.embedding


def _add(left: CentreSums, right: CentreSums) -> CentreSums:
    return CentreSums(
        left.moments + right.moments, left.self_kernel + right.self_kernel, left.kept + right.kept
    )


def _joined(parts: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]], which: int) -> Any:
    return np.concatenate([part[which] for part in parts])
