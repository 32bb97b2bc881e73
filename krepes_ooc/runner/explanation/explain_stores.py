"""Stores, recipe and network of one audit, as explanations read them.

No store whose size grows with the number of samples is read, so that an audit of a billion samples
explains as fast as one of a thousand, and without its features and kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc import rendering
from krepes_ooc.core.option_values import positions
from krepes_ooc.core.settings import read_recorded_settings
from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.runner.audit import Audit, recorded_recipe
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.sources.base import check_finite, check_samples
from krepes_ooc.sources.display import full_scale, picture
from krepes_ooc.stages.features.featurizer import FeaturesSettings, unscale_rows
from krepes_ooc.stages.features.inner_products import self_kernel
from krepes_ooc.stages.kernel.landmark_kernel import LandmarkKernel, read_landmark_kernel
from krepes_ooc.stages.report.collect import column_text, display_columns
from krepes_ooc.storage.contracts import load_contract
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.verify import check_sealed
from krepes_ooc.storage.workspace import Workspace

NEEDED = ("landmarks", "spectrum", "newton", "influence")
# Stores that explanations combine with what was computed from them.
READ_TOGETHER = (
    "landmarks",
    "audited",
    "groups",
    "group_moments",
    "spectrum",
    "newton",
    "minimiser",
    "influence",
)
NEW = -1
SUB_ROWS = 256
MOST_SAMPLES = 100
Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Samples to explain.

    Args:
        columns: what people see of them, fields of ``rendering.Audited``.
        kernel: normalised kernel rows [sample, landmark].
        network: the network's embedding [sample, output].
        row: row in the store audited, -1 for a sample that is not stored [sample].
        warnings: about how new samples were read.
        features: feature rows, rounded as stored ones, of samples that went through the network
            [sample, feature]; None: all are stored, or the samples come from both.
    """

    columns: dict[str, Any]
    kernel: Float
    network: Float
    row: Ids
    warnings: tuple[str, ...] = ()
    features: npt.NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.row)


def stack_columns(parts: Sequence[Samples]) -> dict[str, Any]:
    """Columns of several samples as those of one list; what not all of them have is left out."""
    shared = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    kept = [name for name in shared if _alike([part.columns[name] for part in parts])]
    return {name: np.concatenate([part.columns[name] for part in parts]) for name in kept}


def _alike(columns: Sequence[Any]) -> bool:
    """Whether columns can be joined: all of them are there, with cells of one shape."""
    return all(c is not None for c in columns) and len({c.shape[1:] for c in columns}) == 1


def chosen_samples(
    stores: AuditStores, sample: int | Sequence[int] | None, file: Path | str | None
) -> Samples:
    """The samples of the source that are named, in their order, or those of a file.

    Raises:
        UsageError: neither or both are given, or there is no such sample.
    """
    chosen = one_kind_of_samples(sample, file)
    if chosen is None:
        assert file is not None
        return stores.from_file(Path(file))
    parts = [stores.sample(one) for one in chosen]
    return Samples(
        stack_columns(parts),
        np.concatenate([part.kernel for part in parts]),
        np.concatenate([part.network for part in parts]),
        np.concatenate([part.row for part in parts]),
    )


def one_kind_of_samples(
    sample: int | Sequence[int] | None, file: Path | str | None
) -> list[int] | None:
    """The samples of the source that are asked for; None: those of the file.

    Raises:
        UsageError: neither or both are given, or a sample is no whole number.
    """
    chosen = [] if sample is None else positions(sample)
    if bool(chosen) == (file is not None):
        raise UsageError(
            "a sample and a file were named" if chosen else "no sample was named",
            expected="one of --sample NUMBER and --input FILE",
        )
    return chosen or None


@dataclass(frozen=True)
class AuditStores:
    """Stores, recipe and network of one workspace, opened and checked on first use.

    Args:
        workspace: of the audit.
        recipe: whose code may run, beside the code of krepes.
        needed: stages that must not be stale where the network is used.
    """

    workspace: Workspace
    recipe: Recipe | str | None = None
    needed: tuple[str, ...] = NEEDED
    _checked: set[str] = field(default_factory=set)

    def reader(self, store: str) -> StoreReader:
        """The reader of a sealed store.

        Raises:
            WorkspaceError: it is not sealed, another version of krepes gave it other arrays, or it
                was computed from another store than the one that is there.
            DamageError: its documents are not those that were sealed.
        """
        record = self.workspace.record(store, store)
        if store in self._checked:
            return self.workspace.reader(store)
        unsealed = WorkspaceError(
            f"stage {store} is not sealed",
            where=str(self.workspace.root),
            expected="an audit that has influence" if store in NEEDED else f"a sealed {store}",
            advice="krepes run with the same recipe computes what is missing",
        )
        check_sealed(record, unsealed)
        self._refuse_other_contract(record)
        self._refuse_other_inputs(record)
        self._checked.add(store)
        return self.workspace.reader(store)

    def _refuse_other_contract(self, record: StageRecord) -> None:
        was = dict((record.begun() or {}).get("versions", {})).get("contract")
        now = load_contract(record.name).version
        if was != now:
            raise WorkspaceError(
                f"contract version of store {record.name} was {was}, is {now}",
                where=str(self.workspace.root),
                expected="stores that this version of krepes can read",
                advice="krepes run --restart-stale with the same recipe computes them again",
            )

    def _refuse_other_inputs(self, record: StageRecord) -> None:
        """Refuse a store whose inputs were computed again after it, with another result."""
        inputs = dict((record.begun() or {}).get("inputs", {}))
        for name in READ_TOGETHER:
            now = (self.workspace.record(name, name).begun() or {}).get("digest")
            if name in inputs and now is not None and inputs[name] != now:
                raise WorkspaceError(
                    f"stage {record.name} was computed from another {name} than the one there",
                    where=str(self.workspace.root),
                    expected="stores of one audit",
                    advice="krepes run --restart-stale with the same recipe computes it again",
                )

    @cached_property
    def audit(self) -> Audit:
        """The recipe that was run here, none of its stages stale.

        Raises:
            UsageError: it names code that the user has not named.
            WorkspaceError: the recipe is unknown, or source, network or settings have changed.
        """
        # The network and the encoding must be those that made the stores.
        trusted = recorded_recipe(self.workspace, require="trust", named=self.recipe)
        audit = Audit(trusted, self.workspace)
        for name, state in audit.states().items():
            if name in self.needed and state.kind != "sealed":
                raise WorkspaceError(
                    f"stage {name} is {state.kind}"
                    + (f": {state.reason_text}" if state.reason_text else ""),
                    where=str(self.workspace.root),
                    expected="an audit of this source, network and recipe",
                    advice="run the recipe again, or undo the change",
                )
        return audit

    def audited_row(self, sample: int) -> int | None:
        """Row of a sample of the source in the store audited; None if it is not there."""
        rows = np.flatnonzero(self.reader("audited").array("sample_id") == sample)
        return int(rows[0]) if rows.size else None

    def stored(self, rows: Sequence[int]) -> Samples:
        """Samples of the store audited."""
        audited = self.reader("audited")
        index = np.array(rows, dtype=np.int64)
        network = audited.array("network_embedding")[index].astype(np.float64)
        kernel = self.reader("influence").whole("kernel")[index]
        return Samples(display_columns(audited, index), kernel, network, index)

    def from_source(self, sample: int) -> Samples:
        """A sample of the source that is not stored, through the network.

        Raises:
            UsageError: the source has no such sample.
        """
        source = self.audit.inputs.source
        check_samples(source, [sample], str(self.workspace.root))
        ids = np.array([sample], dtype=np.int64)
        identity = {"sample_id": ids, "label": source.labels(ids)}
        return self.through_network(source.read(ids), source.names(ids), identity)

    def from_file(self, path: Path) -> Samples:
        """New samples of a file, through the network.

        Raises:
            UsageError: a file that the source's kind does not take, or too many samples in it.
        """
        from krepes_ooc.sources.new_samples import read_new_samples

        inputs = self.audit.inputs
        # New samples are encoded as the source encodes its own.
        new = read_new_samples(inputs.source, inputs.opened_source_spec, path)
        if len(new.raw) > MOST_SAMPLES:
            raise UsageError(
                f"{len(new.raw)} samples", where=str(path), expected=f"at most {MOST_SAMPLES}"
            )
        identity = {"sample_id": np.full(len(new.raw), NEW), "label": new.labels}
        found = self.through_network(new.raw, new.names, identity)
        # What was filled or encoded as zeros stands beside the explanation.
        told = (*inputs.encoding_warnings, *(f"{path.name}: {words}" for words in new.warnings))
        return replace(found, warnings=told)

    def sample(self, sample: int) -> Samples:
        """One sample of the source: from the stores if it is audited, else through the network.

        Raises:
            UsageError: the source has no such sample.
        """
        row = self.audited_row(sample)
        return self.from_source(sample) if row is None else self.stored([row])

    def through_network(
        self, raw: npt.NDArray[Any], names: list[str], identity: dict[str, npt.NDArray[Any]]
    ) -> Samples:
        """Samples that are not stored.

        Args:
            raw: raw samples [sample, ...] of the source's kind.
            names: their names.
            identity: ``sample_id`` and ``label`` [sample].
        """
        columns = self.visible(raw, names, identity)
        kernel, network, features = self._rows(raw, identity["sample_id"])
        return Samples(columns, kernel, network, np.full(len(names), NEW), features=features)

    def visible(
        self, raw: npt.NDArray[Any], names: list[str], identity: dict[str, npt.NDArray[Any]]
    ) -> dict[str, Any]:
        """Columns that people see of raw samples, fields of ``rendering.Samples``.

        Args:
            raw: raw samples [sample, ...] of the source's kind.
            names: their names.
            identity: ``sample_id`` and ``label`` [sample].
        """
        columns: dict[str, Any] = {**identity, "sample_name": np.array(names, dtype=object)}
        if self.audit.inputs.source.kind == "table":
            columns["values"] = np.asarray(raw, dtype=np.float64)
        elif self.audit.inputs.source.kind == "image":
            columns["image"] = picture(raw, full_scale(self.audit.inputs.source))
        return columns

    def _rows(
        self, raw: npt.NDArray[Any], ids: Ids
    ) -> tuple[Float, Float, npt.NDArray[np.float16]]:
        """Kernel rows [sample, landmark], as stores hold them, embeddings, and feature rows."""
        from krepes_ooc.jacobian.float16_rows import store_rows

        inputs = self.audit.inputs
        encoded = inputs.source.encode(raw)
        check_finite(encoded, ids, "network input")
        # The same feature map as the stored rows: settings, network and probes of the features.
        fingerprint = self.workspace.record("features", "features").begun() or {}
        settings = read_recorded_settings(FeaturesSettings, fingerprint.get("settings"), "features")
        inputs.check_network_outputs(str(fingerprint["digest"]))
        probes = self.reader("landmarks").attributes["probes"]
        features, network = inputs.open_features(settings, probes).rows(encoded)
        check_finite(features, ids, "feature row")
        # The same rounding as well: k(x, x) is that of the float16 row.
        layout = self.landmark_kernel.layout
        stored = store_rows(features, layout)
        diagonal = np.asarray(self_kernel(unscale_rows(stored, layout), layout))
        kernel = np.asarray(self.landmark_kernel.rows(stored, diagonal))
        return kernel.astype(np.float64), np.asarray(network, dtype=np.float64), stored

    @cached_property
    def landmark_kernel(self) -> LandmarkKernel:
        """Kernel rows against the landmarks, without the store kernel."""
        attributes = self.reader("influence").attributes
        normalise = attributes["normalise"]
        scale = float(attributes["scale"])
        return read_landmark_kernel(self.reader("landmarks"), normalise, scale, SUB_ROWS)

    def data(
        self,
        columns: dict[str, Any],
        influence: rendering.Influence | None = None,
        *,
        uses_step: bool = True,
        warnings: Sequence[str] = (),
    ) -> rendering.AuditData:
        """Data of a drawing of samples: columns, landmarks, and a warning about the step.

        Args:
            columns: of the samples.
            influence: of landmarks on them.
            uses_step: whether the Newton step is behind what is explained.
            warnings: about the samples.
        """
        landmarks = self.reader("landmarks")
        newton = self.reader("newton").attributes
        audit = rendering.AuditData(
            subject=rendering.Subject(self.workspace.recipe() or "", "", "", newton["objective"]),
            landmarks=rendering.Landmarks(**display_columns(landmarks, slice(None))),
            audited=rendering.Audited(**columns),
            influence=influence,
            classes=tuple(landmarks.info("label").attributes["categories"]),
            columns=tuple(column_text(column) for column in landmarks.attributes["columns"]),
        )
        if uses_step and not self.reader("influence").attributes["trusted"]:
            warning = f"The step is not trusted: {newton['reason']}."
            warnings = (warning, *warnings)
        return replace(audit, warnings=tuple(warnings))
