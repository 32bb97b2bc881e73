"""Explain one sample: a stored one from small stores, a new one through the frozen network.

No store whose size grows with the number of samples is read, so that an audit of a billion samples
explains as fast as one of a thousand, and without its features and kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc import rendering
from krepes_ooc.core.settings import read_recorded_settings
from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.runner.audit import Audit, recorded_recipe
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.sources.base import check_finite, check_samples
from krepes_ooc.sources.display import full_scale, picture
from krepes_ooc.stages.features.featurizer import FeaturesSettings, unscale_rows
from krepes_ooc.stages.features.inner_products import self_kernel
from krepes_ooc.stages.influence.ranking import InfluenceScorer, ranking_score
from krepes_ooc.stages.kernel.landmark_kernel import LandmarkKernel, read_landmark_kernel
from krepes_ooc.stages.report.collect import column_text, display_columns
from krepes_ooc.storage.contracts import load_contract
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.verify import check_sealed
from krepes_ooc.storage.workspace import Workspace

NEEDED = ("landmarks", "spectrum", "newton", "influence")
NEW = -1
SUB_ROWS = 256
MOST_SAMPLES = 100
# Arrays of the store influence: with a column for every rank, and with other columns.
RANKED = ("top_landmark", "score", "contribution")
UNRANKED = ("kernel", "repelling_landmark", "repelling")
Float = npt.NDArray[np.float64]


def explain(
    workspace: Path | str,
    *,
    sample: int | None = None,
    file: Path | str | None = None,
    top: int | None = None,
    recipe: Recipe | str | None = None,
) -> list[rendering.Explained]:
    """Explain one sample of the source, or the new samples of a file.

    Args:
        workspace: folder of the audit.
        sample: position in the source.
        file: new samples instead, in the form of the source.
        top: landmarks to rank; default as many as the audit keeps.
        recipe: the recipe, its name or its file, if it names code that a new sample needs.

    Raises:
        UsageError: neither or both are given; or as ``explain_sample`` and ``explain_input``.
        WorkspaceError: the audit has not got that far, or its recipe is stale.
    """
    if sample is not None and file is None:
        return [explain_sample(workspace, sample, top, recipe)]
    if file is not None and sample is None:
        return explain_input(workspace, file, top, recipe)
    raise UsageError(
        "no sample was named" if sample is None else "a sample and a file were named",
        expected="one of --sample NUMBER and --input FILE",
    )


def explain_sample(
    workspace: Path | str, sample: int, top: int | None = None, recipe: Recipe | str | None = None
) -> rendering.Explained:
    """Explain the sample at one position of the source.

    Args:
        workspace: folder of the audit.
        sample: position in the source; an audited one is read, another goes through the network.
        top: landmarks to rank; default as many as the audit keeps.
        recipe: as ``explain``.

    Raises:
        UsageError: the source has no such sample, or the recorded recipe names other code.
        WorkspaceError: the audit has not got that far, or its recipe is stale.
        SourceError: the source is needed and cannot be opened.
    """
    explainer = _Explainer(Workspace(workspace), recipe)
    # An audited sample has its influence in the small stores.
    audited = explainer.reader("audited")
    rows = np.flatnonzero(audited.array("sample_id") == sample)
    if rows.size:
        return explainer.stored(int(rows[0]), top)
    # Any other one is read from the source and goes through the network.
    source = explainer.audit.inputs.source
    check_samples(source, [sample], str(workspace))
    ids = np.array([sample], dtype=np.int64)
    identity = {"sample_id": ids, "label": source.labels(ids)}
    return explainer.through_network(source.read(ids), source.names(ids), identity, top)[0]


def explain_input(
    workspace: Path | str,
    path: Path | str,
    top: int | None = None,
    recipe: Recipe | str | None = None,
) -> list[rendering.Explained]:
    """Explain new samples that are read from a file; see ``read_new_samples``.

    Raises:
        UsageError: a file that the source's kind does not take, or too many samples in it; or the
            recorded recipe names code that ``recipe`` does not.
        DataError: the file holds what the network cannot be shown.
        WorkspaceError: the audit has not got that far, or its recipe is stale.
        SourceError: the source, which says how a sample is encoded, cannot be opened.
    """
    from krepes_ooc.sources.new_samples import read_new_samples

    explainer = _Explainer(Workspace(workspace), recipe)
    inputs = explainer.audit.inputs
    # New samples are encoded as the source encodes its own.
    new = read_new_samples(inputs.source, inputs.opened_source_spec, Path(path))
    if len(new.raw) > MOST_SAMPLES:
        raise UsageError(
            f"{len(new.raw)} samples", where=str(path), expected=f"at most {MOST_SAMPLES}"
        )
    identity = {"sample_id": np.full(len(new.raw), NEW), "label": new.labels}
    explained = explainer.through_network(new.raw, new.names, identity, top)
    # What was filled or encoded as zeros stands beside the explanation.
    warnings = (*inputs.encoding_warnings, *(f"{Path(path).name}: {w}" for w in new.warnings))
    return [
        replace(e, audit=replace(e.audit, warnings=(*e.audit.warnings, *warnings)))
        for e in explained
    ]


@dataclass(frozen=True)
class _Explainer:
    """Stores, recipe and network of one workspace, opened and checked on first use.

    Args:
        workspace: of the audit.
        recipe: whose code may run, beside the code of krepes.
    """

    workspace: Workspace
    recipe: Recipe | str | None = None
    _checked: set[str] = field(default_factory=set)

    def reader(self, store: str) -> StoreReader:
        """The reader of a sealed store.

        Raises:
            WorkspaceError: it is not sealed, or another version of krepes gave it other arrays.
            DamageError: its documents are not those that were sealed.
        """
        record = self.workspace.record(store, store)
        if store in self._checked:
            return self.workspace.reader(store)
        unsealed = WorkspaceError(
            f"stage {store} is not sealed",
            where=str(self.workspace.root),
            expected="an audit that has influence",
            advice="krepes run with the same recipe computes what is missing",
        )
        check_sealed(record, unsealed)
        self._refuse_other_contract(record)
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
            if name in NEEDED and state.kind != "sealed":
                raise WorkspaceError(
                    f"stage {name} is {state.kind}"
                    + (f": {state.reason_text}" if state.reason_text else ""),
                    where=str(self.workspace.root),
                    expected="an audit of this source, network and recipe",
                    advice="run the recipe again, or undo the change",
                )
        return audit

    def stored(self, row: int, top: int | None) -> rendering.Explained:
        """The explanation of one row of the store audited."""
        store = self.reader("influence")
        rows = slice(row, row + 1)
        arrays = {name: store.array(name)[rows] for name in (*RANKED, *UNRANKED)}
        stored_top = arrays["top_landmark"].shape[1]
        if top is not None and top > stored_top:
            raise UsageError(
                f"{top} landmarks",
                where="--top",
                expected=f"at most {stored_top}, as many as the audit keeps",
                advice="raise stages.influence.top",
            )
        # Ranks come in descending order of score: the first ones are the top of a shorter list.
        arrays |= {name: arrays[name][:, :top] for name in RANKED}
        return self._explained(display_columns(self.reader("audited"), rows), arrays)[0]

    def through_network(
        self,
        raw: npt.NDArray[Any],
        names: list[str],
        identity: dict[str, npt.NDArray[Any]],
        top: int | None,
    ) -> list[rendering.Explained]:
        """Explanations of samples that are not stored.

        Args:
            raw: raw samples [sample, ...] of the source's kind.
            names: their names.
            identity: ``sample_id`` and ``label`` [sample].
            top: landmarks to rank; None: as many as the audit keeps.
        """
        # What people see of the samples, then their influence.
        columns: dict[str, Any] = {**identity, "sample_name": np.array(names, dtype=object)}
        if self.audit.inputs.source.kind == "table":
            columns["values"] = np.asarray(raw, dtype=np.float64)
        elif self.audit.inputs.source.kind == "image":
            columns["image"] = picture(raw, full_scale(self.audit.inputs.source))
        kernel = self._kernel(raw, identity["sample_id"]).astype(np.float64)
        if top is None:
            top = self.reader("influence").info("top_landmark").shape[1]
        return self._explained(columns, self._ranked(kernel, top))

    def _kernel(self, raw: npt.NDArray[Any], ids: npt.NDArray[np.int64]) -> Float:
        """Kernel rows [sample, landmark], as the kernel stage would store them."""
        from krepes_ooc.jacobian.float16_rows import store_rows

        inputs = self.audit.inputs
        encoded = inputs.source.encode(raw)
        check_finite(encoded, ids, "network input")
        # The same feature map as the stored rows: settings, network and probes of the features.
        fingerprint = self.workspace.record("features", "features").begun() or {}
        settings = read_recorded_settings(FeaturesSettings, fingerprint.get("settings"), "features")
        inputs.check_network_outputs(str(fingerprint["digest"]))
        probes = self.reader("landmarks").attributes["probes"]
        features, _ = inputs.open_features(settings, probes).rows(encoded)
        check_finite(features, ids, "feature row")
        # The same rounding as well: k(x, x) is that of the float16 row.
        landmark_kernel = self._landmark_kernel()
        layout = landmark_kernel.layout
        stored = store_rows(features, layout)
        diagonal = np.asarray(self_kernel(unscale_rows(stored, layout), layout))
        return np.asarray(landmark_kernel.rows(stored, diagonal))

    def _landmark_kernel(self) -> LandmarkKernel:
        attributes = self.reader("influence").attributes
        normalise = attributes["normalise"]
        scale = float(attributes["scale"])
        return read_landmark_kernel(self.reader("landmarks"), normalise, scale, SUB_ROWS)

    def _ranked(self, kernel: Float, top: int) -> dict[str, npt.NDArray[Any]]:
        store = self.reader("influence")
        step, measure = store.array("step"), str(store.attributes["measure"])
        second = self._second() if measure == "unique" else None
        score = ranking_score(measure, step, store.array("landmark_displacement"), second)
        offset = self.reader("spectrum").array("offset")
        coefficients = store.array("coefficients")
        scorer = InfluenceScorer(step, coefficients, offset, score, min(top, len(step)))
        ranked = scorer.rank(kernel)._asdict()
        del ranked["embedding"]
        return {**ranked, "kernel": kernel}

    def _second(self) -> Float:
        """Un-centred second moment, mean over views [landmark, landmark_]."""
        moments = self.reader("moments")
        mean, second = moments.array("mean"), moments.whole("second")
        parts = [second[a, a] + np.outer(mu, mu) for a, mu in enumerate(mean)]
        return np.asarray(sum(parts) / len(parts))

    def _explained(
        self, columns: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]
    ) -> list[rendering.Explained]:
        """Explanations of samples, from their columns and their influence arrays."""
        landmarks = self.reader("landmarks")
        influence = self.reader("influence").attributes
        newton = self.reader("newton").attributes
        audit = rendering.AuditData(
            subject=rendering.Subject(self.workspace.recipe() or "", "", "", newton["objective"]),
            landmarks=rendering.Landmarks(**display_columns(landmarks, slice(None))),
            audited=rendering.Audited(**columns),
            influence=rendering.Influence(measure=str(influence["measure"]), **arrays),
            classes=tuple(landmarks.info("label").attributes["categories"]),
            columns=tuple(column_text(column) for column in landmarks.attributes["columns"]),
        )
        if not influence["trusted"]:
            warning = f"The step is not trusted: {newton['reason']}."
            audit = replace(audit, warnings=(warning,))
        return rendering.explain_rows(audit, range(len(columns["sample_id"])))
