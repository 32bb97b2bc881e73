"""Source, network and views of one recipe, opened on first use and shared by all stages."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.live_objects import NOT_LIVE, LiveObjects
from krepes_ooc.core.settings import to_mapping
from krepes_ooc.engine import machine
from krepes_ooc.errors import DamageError, NetworkError, WorkspaceError
from krepes_ooc.network.spec import PRETRAIN, NetworkSpec, wants_inputs, with_inputs
from krepes_ooc.sources.base import Source, SourceSpec, check_finite
from krepes_ooc.sources.row_order import ShuffledOrder
from krepes_ooc.storage.file_checks import file_problem
from krepes_ooc.storage.learned_files import read_learned, write_learned
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.views.spec import CLEAN, ViewSpec

if TYPE_CHECKING:
    from krepes_ooc.jacobian.feature_map import FeatureMap, FeatureSettings
    from krepes_ooc.jacobian.opening import Opening
    from krepes_ooc.jacobian.row_size import RowSize
    from krepes_ooc.network.preprocessing import Preprocessing
    from krepes_ooc.views.views import Views

CALIBRATION_ROWS = 64
# Entry of the seal of the features: sha256 of the network's outputs on two samples.
OUTPUTS_FACT = "network_outputs"
_OUTPUTS = "network.json"
Rows = npt.NDArray[np.float32]
# Bytes of raw samples, in float32 at least, that views are made of at a time.
VIEWED_BYTES = 4 * 2**20
VIEWED_ITEMSIZE = 4


def samples_at_once(raw: npt.NDArray[Any]) -> int:
    """Samples that views are made of at a time, at least one.

    Args:
        raw: samples as the source reads them [sample, ...].
    """
    of_one = raw[:1].size * max(VIEWED_ITEMSIZE, raw.dtype.itemsize)
    return max(1, VIEWED_BYTES // max(1, of_one))


@dataclass(frozen=True)
class AuditInputs:
    """Source, network, views and seed of an audit.

    Args:
        source_spec: recipe key ``source``.
        declared_network: recipe key ``network``.
        view_spec: recipe key ``views``.
        seed: recipe key ``seed``; every random draw is keyed by it.
        base: folder that relative paths of the recipe start from.
        private: the workspace's private folder, for caches, checkpoints and records of openings.
        training_objective: objective that trained the network; empty: unknown.
        check_stop: raises when the run is to stop, while the source is opened.
        live: objects of a script, where the recipe says ``live``.
        note: receives one line about a long opening of the network; not pickled.
    """

    source_spec: SourceSpec
    declared_network: NetworkSpec
    view_spec: ViewSpec
    seed: int
    base: Path
    private: Path
    training_objective: str = ""
    check_stop: Callable[[], None] = lambda: None
    live: LiveObjects = NOT_LIVE
    note: Callable[[str], None] = field(default=lambda text: None, compare=False, repr=False)
    _local: threading.local = field(default_factory=threading.local)
    _opened: dict[FeatureSettings, FeatureMap] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the declarations; another process opens source and network anew."""
        spec = (self.source_spec, self.declared_network, self.view_spec)
        parts = (*spec, self.seed, self.base, self.private)
        # A stop reaches other processes by their own context.
        return _reopen, (parts, self.training_objective, self.live)

    @property
    def pretrained(self) -> Path:
        """Checkpoint of the demo trainer."""
        return self.private / "checkpoints" / "network.safetensors"

    @cached_property
    def source(self) -> Source:
        """The source, opened."""
        from krepes_ooc.sources.open import open_source

        cache = self.private / "cache"
        source = open_source(
            self.opened_source_spec, self.base, cache, self.check_stop, self.live.dataset
        )
        if self._preprocessing is not None:
            source.warnings = (*source.warnings, *self._preprocessing.lines())
        return source

    @cached_property
    def opened_source_spec(self) -> SourceSpec:
        """Recipe key ``source``, completed by what the network states of its input."""
        stated = self._preprocessing
        if stated is None:
            return self.source_spec
        # Keys of the recipe win; only picture files are scaled.
        spec = self.source_spec
        keys: dict[str, Any] = {"mean": spec.mean or stated.mean, "std": spec.std or stated.std}
        if spec.kind == "images":
            keys["size"] = spec.size or stated.size
            keys["interpolation"] = spec.interpolation or stated.interpolation
        return replace(spec, **keys)

    @cached_property
    def _preprocessing(self) -> Preprocessing | None:
        """Input that the network states, where the recipe asks for it."""
        if self.source_spec.transform != "from_model":
            return None
        from krepes_ooc.network.preprocessing import read_preprocessing

        return read_preprocessing(self.declared_network, self.base, self.live.model)

    @cached_property
    def network_spec(self) -> NetworkSpec:
        """The declared network; opens the source if its number of inputs is ``auto``."""
        if not wants_inputs(self.declared_network):
            return self.declared_network
        return with_inputs(self.declared_network, math.prod(self.source.input_shape))

    @cached_property
    def encoding_facts(self) -> dict[str, Any]:
        """Origin of a table's encoding and what it changes, for records; {} for other sources."""
        from krepes_ooc.sources.tables.encoding_facts import describe_encoding

        return describe_encoding(self.source, trained_here=self._trained_here)

    @property
    def source_warnings(self) -> tuple[str, ...]:
        """Warnings about the source, and about an encoding that the network may not know."""
        return (*self.source.warnings, *self.encoding_warnings)

    @property
    def encoding_warnings(self) -> list[str]:
        """The warning about a table's encoding that the network may not know, or none."""
        from krepes_ooc.sources.tables.encoding_facts import encoding_warnings

        return encoding_warnings(self.source, trained_here=self._trained_here)

    @property
    def _trained_here(self) -> bool:
        return self.declared_network.weights == PRETRAIN

    @cached_property
    def order(self) -> ShuffledOrder:
        """Store row to source position."""
        from krepes_ooc.sources.open import row_order

        return row_order(self.source, self.source_spec, self.seed)

    @cached_property
    def views(self) -> Views:
        """The seeded augmentations."""
        from krepes_ooc.views.views import Views

        return Views(self.view_spec, self.source, self.seed, self.base, self.live.view)

    @cached_property
    def network(self) -> Any:
        """The frozen network, loaded and checked."""
        from krepes_ooc.network.spec import load_network

        weights = None
        if self.network_spec.weights == PRETRAIN:
            self._check_pretrained()
            weights = self.pretrained
        model = self.live.model
        return load_network(self.network_spec, weights, self.base, self._example, model)

    @property
    def network_notes(self) -> tuple[str, ...]:
        """Lines for people on how the weights were read; none while the network is not loaded."""
        return tuple(self.network.notes) if "network" in vars(self) else ()

    def _example(self) -> Rows:
        """Network input [1, ...] of the first sample."""
        return self.encode(np.zeros(1, dtype=np.int64), CLEAN)[0]

    def _check_pretrained(self) -> None:
        """Refuse a checkpoint of the demo trainer that is not the one its stage sealed.

        Raises:
            DamageError: another file, or a damaged one.
        """
        record = StageRecord(PRETRAIN, self.private / "stages" / PRETRAIN, None, self.private)
        files, sealed = record.recorded_files()
        key = self.pretrained.relative_to(self.private.parent).as_posix()
        if not sealed or key not in files:
            return  # ``load_network`` says that the stage has not run
        if problem := file_problem(self.pretrained, *files[key], suffixed=False):
            raise DamageError(
                problem,
                where=str(self.pretrained),
                expected="the checkpoint that stage pretrain sealed",
                advice="`krepes run --repair` trains it again to the same bits",
            )

    def encode(self, positions: npt.NDArray[np.int64], view: int) -> tuple[Rows, str]:
        """Network inputs [sample, ...] of source samples in one view, and the hash of the raw rows.

        Raises:
            DataError: an input is not finite; names the sample.
        """
        raw = self.source.read(positions)
        # The hash is of the raw rows, so that every view of a block records the same one.
        content = hashlib.sha256(np.ascontiguousarray(raw).data).hexdigest()
        # Views and encoding are of each sample alone: their copies are of a few samples at a time.
        step = samples_at_once(raw)
        if step >= len(raw):
            inputs = self._viewed(raw, positions, view)
        else:
            inputs = np.empty((len(raw), *self.source.input_shape), dtype=np.float32)
            for start in range(0, len(raw), step):
                part = slice(start, start + step)
                inputs[part] = self._viewed(raw[part], positions[part], view)
        check_finite(inputs, positions, "network input")
        return inputs, content

    def _viewed(self, raw: npt.NDArray[Any], positions: npt.NDArray[np.int64], view: int) -> Rows:
        """Network inputs [sample, ...] of raw samples in one view."""
        augmented = raw if view == CLEAN else self.views.apply(raw, positions, view)
        return self.source.encode(augmented)

    def open_features(
        self,
        settings: FeatureSettings,
        probes: npt.ArrayLike | None = None,
        limit: float | None = None,
    ) -> FeatureMap:
        """The feature map of the network, its scale fixed from calibration samples; opened once.

        What an earlier opening found, also one that was killed, is read from the workspace.

        Args:
            settings: kind, outputs and probes of the feature rows.
            probes: output probes of an existing features store; None: they are drawn.
            limit: processor seconds that the opening may take; None: any.

        Raises:
            OpeningDeferred: it would take longer.
            NetworkError: the network does not run on the samples, or cannot be trusted.
        """
        from krepes_ooc.jacobian.feature_map import open_features

        # Scales and probes cost a pass over calibration samples: one map per settings.
        if settings not in self._opened:
            calibration = self.calibration()
            opening = self._opening(settings, calibration, limit)
            try:
                self._opened[settings] = open_features(
                    self.network, settings, calibration, probes, self.seed, opening
                )
            except NetworkError as error:
                raise self._with_columns(error) from error
            # Rows are computed in other threads, which cannot use again what this one freed.
            machine.trim()
        return self._opened[settings]

    def close_features(self) -> None:
        """Forget the open feature maps: the next one may have other probes."""
        self._opened.clear()

    def sample_numbers(self) -> int:
        """Numbers that one sample makes in all layers of the network.

        Raises:
            NetworkError: the network does not run on it.
        """
        from krepes_ooc.jacobian.opening import sample_size

        try:
            return sample_size(self.network, self.calibration()).numbers
        except NetworkError as error:
            raise self._with_columns(error) from error

    def _with_columns(self, error: NetworkError) -> NetworkError:
        """The error of a network that does not take the inputs, with the columns of a table."""
        from krepes_ooc.sources.describe import list_inputs

        listed = list_inputs(self.source)
        if not (listed and error.where.startswith("inputs of shape")):
            return error
        return NetworkError(
            error.what,
            where=f"{error.where}, {listed}",
            expected=error.expected,
            advice=error.advice,
        )

    def measure_rows(
        self, settings: FeatureSettings, shared: FeatureMap | None, free: int
    ) -> RowSize:
        """Memory and operations of feature rows, measured on a few calibration samples.

        Args:
            settings: kind, outputs and probes of the feature rows.
            shared: the feature map; None: it is not open, and plain passes are measured.
            free: bytes that a batch may take.
        """
        from krepes_ooc.engine.calibration import peak_growth
        from krepes_ooc.jacobian.opening import sample_size
        from krepes_ooc.jacobian.row_size import measure_pass_size, measure_row_size
        from krepes_ooc.jacobian.selection import select_parameters

        inputs = self.calibration()
        network = self.network if shared is None else shared.network
        size = sample_size(network, inputs)
        if shared is not None:
            return measure_row_size(shared, inputs, size, free, peak_growth)
        names = select_parameters(network, settings.parameters)
        return measure_pass_size(network, names, inputs, size, free, peak_growth)

    def _opening(
        self, settings: FeatureSettings, calibration: Rows, limit: float | None
    ) -> Opening:
        """The recorded opening of this network under these settings."""
        from krepes_ooc.jacobian.feature_map import FeatureSettings
        from krepes_ooc.jacobian.opening import Opening, network_identity

        # Of the settings, those of the rows: blocks and batches change nothing here.
        names = [each.name for each in fields(FeatureSettings)]
        declared = {
            "factory": self.network_spec.factory,
            "arguments": to_mapping(self.network_spec.arguments),
            "output": self.network_spec.output,
            "module": self.network_spec.module,
            "settings": {name: to_mapping(getattr(settings, name)) for name in names},
            "seed": self.seed,
        }
        name = network_identity(self.network, calibration, declared)[:32]
        return Opening(self.private / "openings" / f"{name}.json", self.note, limit)

    def open_untrained(self, settings: FeatureSettings) -> FeatureMap:
        """The feature map of the untrained network, which has the same sizes as the trained one."""
        from krepes_ooc.jacobian.feature_map import open_features
        from krepes_ooc.jacobian.opening import Opening
        from krepes_ooc.network.spec import build_network, freeze_network

        module = build_network(self.network_spec, self.base)
        network = freeze_network(self.network_spec, module, self._example)
        opening = Opening(note=self.note)
        return open_features(network, settings, self.calibration(), seed=self.seed, opening=opening)

    def calibration(self) -> Rows:
        """Network inputs [sample, ...] of the samples that scales and row costs are measured on."""
        rows = self.order.positions(0, min(CALIBRATION_ROWS, self.source.n_samples))
        return self.encode(rows, 0)[0]

    def feature_map(self, shared: FeatureMap, where: str = "cpu") -> FeatureMap:
        """This thread's copy of a feature map: hooks are never shared between threads.

        Args:
            shared: the map, which stays on the host.
            where: device of torch that the copy runs on, if torch can use it.
        """
        # A new shared map replaces the copy: one thread works with one network at a time.
        if getattr(self._local, "shared", None) is not shared:
            from krepes_ooc.network.torch_device import available_device

            torch_device = available_device(where)
            on_host = torch_device == "cpu"
            self._local.copy = shared.clone() if on_host else shared.to(torch_device)
            self._local.shared = shared
        copy: FeatureMap = self._local.copy
        return copy

    def check_network_outputs(self, digest: str) -> str:
        """Raise if the network's outputs differ from those when the features were begun.

        Args:
            digest: digest of the features stage; the first check under it records the bits.

        Returns:
            sha256 of the outputs, for the seal of the features.

        Raises:
            WorkspaceError: same weights and factory, other outputs: the factory's code or the
                machine has changed.
            DamageError: what was recorded is not what was written.
        """
        from krepes_ooc.network.checkpoint import outputs_sha256

        # Weights and factory code have digests; torch, kernels and imported code do not.
        rows = self.order.positions(0, min(2, self.source.n_samples))
        bits = outputs_sha256(self.network, self.encode(rows, CLEAN)[0])
        known = self._recorded_outputs(digest)
        # Features of another digest are computed anew, so their outputs are the new reference.
        if not known:
            write_learned(self.private, _OUTPUTS, digest, {"bits": bits})
        elif known != bits:
            raise WorkspaceError(
                "the network gives other outputs on two fixed samples than when the run began",
                where=self.network_spec.factory,
                expected="the same code, torch version and kind of processor",
                advice="undo the change, or start over in another --workspace",
            )
        return bits

    def _recorded_outputs(self, digest: str) -> str:
        """sha256 of the outputs by the seal of the features, else by their file; empty: none."""
        features = self.private / "stages" / "features"
        seal = StageRecord("features", features, None, self.private).seal() or {}
        if seal.get("digest") == digest and OUTPUTS_FACT in seal:
            return str(seal[OUTPUTS_FACT])
        return str((read_learned(self.private, _OUTPUTS, digest) or {}).get("bits", ""))


def _reopen(
    parts: tuple[SourceSpec, NetworkSpec, ViewSpec, int, Path, Path],
    training_objective: str,
    live: LiveObjects,
) -> AuditInputs:
    return AuditInputs(*parts, training_objective=training_objective, live=live)
