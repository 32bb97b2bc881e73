"""The parts of a recipe that one stage declares: anything else is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from krepes_ooc.errors import UndeclaredInputError
from krepes_ooc.network.spec import NetworkSpec
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.row_order import ShuffledOrder
from krepes_ooc.stages.base.inputs import AuditInputs, Rows
from krepes_ooc.views.spec import CLEAN, ViewSpec

if TYPE_CHECKING:
    from krepes_ooc.jacobian.feature_map import FeatureMap, FeatureSettings
    from krepes_ooc.views.views import Views

RECIPE_PARTS = ("source", "labels", "views", "factory", "network", "training")


class RecipeContext(Protocol):
    """Context that recipe inputs are opened in: a ``StageContext``."""

    @property
    def stage_name(self) -> str:
        """Name of the running stage."""
        ...

    @property
    def audit_inputs(self) -> AuditInputs:
        """Source, network and views of the recipe, opened on first use."""
        ...


@dataclass(frozen=True)
class RecipeInputs:
    """Source, network and views of the recipe, as far as a stage declares them.

    They pickle by their context, so that all tasks of a worker use one open source and network.

    Args:
        context: the running stage.
        parts: the declared ones of ``RECIPE_PARTS``.
    """

    context: RecipeContext = field(repr=False, compare=False)
    parts: tuple[str, ...]

    @property
    def audit(self) -> AuditInputs:
        """All inputs of the recipe, shared by all stages."""
        return self.context.audit_inputs

    @property
    def seed(self) -> int:
        """Key of all random draws; part of every digest."""
        return self.audit.seed

    @property
    def base(self) -> Path:
        """Folder that relative paths of the recipe start from."""
        return self.audit.base

    @property
    def network_spec(self) -> NetworkSpec:
        """Recipe key ``network``; loads no network."""
        return self.audit.network_spec

    @property
    def training_objective(self) -> str:
        """Objective that trained the network; empty if the recipe does not say."""
        self._require("training")
        return self.audit.training_objective

    @property
    def source_spec(self) -> SourceSpec:
        """Recipe key ``source``; opens nothing."""
        return self.audit.source_spec

    @property
    def view_spec(self) -> ViewSpec:
        """Recipe key ``views``."""
        return self.audit.view_spec

    @property
    def pretrained(self) -> Path:
        """Checkpoint of the demo trainer."""
        return self.audit.pretrained

    @property
    def source(self) -> Source:
        """The source; without labels and names where these are not declared."""
        self._require("source")
        return self.audit.source if "labels" in self.parts else cast(Source, _Unlabelled(self))

    @property
    def source_warnings(self) -> tuple[str, ...]:
        """Warnings about the source; see ``AuditInputs``."""
        self._require("source")
        return self.audit.source_warnings

    @property
    def encoding_facts(self) -> dict[str, Any]:
        """Origin of a table's encoding; see ``AuditInputs``."""
        self._require("source")
        return self.audit.encoding_facts

    @property
    def order(self) -> ShuffledOrder:
        """Store row to source position."""
        self._require("source")
        return self.audit.order

    @property
    def views(self) -> Views:
        """The seeded augmentations."""
        self._require("views")
        return self.audit.views

    @property
    def network(self) -> Any:
        """The frozen network, loaded and checked."""
        self._require("network")
        return self.audit.network

    def encode(self, positions: npt.NDArray[np.int64], view: int) -> tuple[Rows, str]:
        """Network inputs [sample, ...] of source samples in one view, and the hash of the raw rows.

        Raises:
            DataError: an input is not finite; names the sample.
        """
        self._require("source")
        # A clean sample passes no augmentation, so its row does not depend on the views.
        if view != CLEAN:
            self._require("views")
        return self.audit.encode(positions, view)

    def calibration(self) -> Rows:
        """Network inputs [sample, ...] of the calibration samples; see ``AuditInputs``."""
        self._require("source")
        return self.audit.calibration()

    def open_features(
        self, settings: FeatureSettings, probes: npt.ArrayLike | None = None
    ) -> FeatureMap:
        """The feature map of the network; see ``AuditInputs.open_features``."""
        self._require("network")
        return self.audit.open_features(settings, probes)

    def close_features(self) -> None:
        """Forget the open feature maps: the next one may have other probes."""
        self.audit.close_features()

    def feature_map(self, shared: FeatureMap, where: str = "cpu") -> FeatureMap:
        """This thread's copy of a feature map; see ``AuditInputs.feature_map``."""
        self._require("network")
        return self.audit.feature_map(shared, where)

    def check_network_outputs(self, digest: str) -> str:
        """Refuse a network that gives other outputs; see ``AuditInputs.check_network_outputs``.

        Raises:
            WorkspaceError: same weights and factory, other outputs.
        """
        self._require("network")
        return self.audit.check_network_outputs(digest)

    def _require(self, part: str) -> None:
        if part not in self.parts:
            raise UndeclaredInputError(self.context.stage_name, part)


class _Unlabelled:
    """The source of a recipe, whose labels and names are refused.

    Args:
        recipe: inputs of a stage that does not declare the labels.
    """

    _REFUSED = ("labels", "names", "label_fingerprint")

    def __init__(self, recipe: RecipeInputs) -> None:
        self._recipe = recipe

    def __getattr__(self, name: str) -> Any:
        # The digest of the source covers the samples; labels have another digest.
        if name in self._REFUSED:
            raise UndeclaredInputError(self._recipe.context.stage_name, "labels")
        return getattr(self._recipe.audit.source, name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the inputs, so that a worker opens the source once."""
        return _Unlabelled, (self._recipe,)
