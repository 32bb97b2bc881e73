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
from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import DamageError, UsageError, WorkspaceError
from krepes_ooc.runner.audit import Audit, trusted_recipe
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.sources.display import picture
from krepes_ooc.stages.base.inputs import check_finite
from krepes_ooc.stages.features.featurizer import FeaturesSettings, unscale_rows
from krepes_ooc.stages.features.inner_products import self_kernel
from krepes_ooc.stages.influence.ranking import InfluenceScorer, ranking_score
from krepes_ooc.stages.kernel.landmark_kernel import LandmarkKernel, read_landmark_kernel
from krepes_ooc.stages.report.collect import column_text, display_columns
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.verify import metadata_damage
from krepes_ooc.storage.workspace import Workspace

NEEDED = ("landmarks", "spectrum", "newton", "influence")
NEW = -1
SUB_ROWS = 256
MOST_SAMPLES = 100
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
    audited = explainer.reader("audited")
    here = np.flatnonzero(audited.array("sample_id") == sample)
    if here.size:
        return explainer.stored(int(here[0]), top)
    source = explainer.audit.inputs.source
    if not 0 <= sample < source.n_samples:
        raise UsageError(
            f"no sample {sample}",
            where=str(workspace),
            expected=f"0 to {source.n_samples - 1}",
        )
    at = np.array([sample], dtype=np.int64)
    people = {"sample_id": at, "label": source.labels(at)}
    return explainer.through_network(source.read(at), source.names(at), people, top)[0]


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
    given = read_new_samples(inputs.source, inputs.source_spec, Path(path))
    if len(given.raw) > MOST_SAMPLES:
        raise UsageError(
            f"{len(given.raw)} samples", where=str(path), expected=f"at most {MOST_SAMPLES}"
        )
    people = {"sample_id": np.full(len(given.raw), NEW), "label": given.labels}
    return explainer.through_network(given.raw, given.names, people, top)


@dataclass(frozen=True)
class _Explainer:
    """What explaining needs of one workspace, opened on first use.

    Args:
        workspace: of the audit.
        recipe: whose code may run, beside that of krepes.
    """

    workspace: Workspace
    recipe: Recipe | str | None = None
    _sound: set[str] = field(default_factory=set)

    def reader(self, store: str) -> StoreReader:
        """The reader of a sealed store.

        Raises:
            WorkspaceError: it is not sealed.
            DamageError: its documents are not those that were sealed.
        """
        record = self.workspace.record(store, store)
        if store in self._sound:
            return self.workspace.reader(store)
        if (seal := record.seal()) is None:
            raise WorkspaceError(
                f"stage {store} is not sealed",
                where=str(self.workspace.root),
                expected="an audit that has influence",
                advice="krepes run with the same recipe computes what is missing",
            )
        if harmed := metadata_damage(record, seal):
            raise DamageError(harmed, expected="what was written", advice="`krepes run --repair`")
        self._sound.add(store)
        return self.workspace.reader(store)

    @cached_property
    def audit(self) -> Audit:
        """The recipe that was run here, none of its stages stale.

        Raises:
            UsageError: it names code that the user has not named.
            WorkspaceError: the recipe is unknown, or source, network or settings have changed.
        """
        trusted = trusted_recipe(self.workspace.root, named=self.recipe)
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
        """One row of the store audited."""
        store, rows = self.reader("influence"), slice(row, row + 1)
        names = ["top_landmark", "score", "contribution", "kernel"]
        # Stores of the first development versions do not say what pushes.
        names += ["repelling_landmark", "repelling"] if store.has("repelling") else []
        arrays = {name: store.array(name)[rows] for name in names}
        if top is not None:
            kept = arrays["top_landmark"].shape[1]
            if top > kept:
                raise UsageError(
                    f"{top} landmarks",
                    where="--top",
                    expected=f"at most {kept}, as many as the audit keeps",
                    advice="raise stages.influence.top",
                )
            arrays |= {n: arrays[n][:, :top] for n in ("top_landmark", "score", "contribution")}
        return self._explained(display_columns(self.reader("audited"), rows), arrays)[0]

    def through_network(
        self,
        raw: npt.NDArray[Any],
        names: list[str],
        people: dict[str, npt.NDArray[Any]],
        top: int | None,
    ) -> list[rendering.Explained]:
        """Raw samples [sample, ...] of the source's kind, none of them stored."""
        known: dict[str, Any] = {**people, "sample_name": np.array(names, dtype=object)}
        if self.audit.inputs.source.kind == "table":
            known["values"] = np.asarray(raw, dtype=np.float64)
        elif self.audit.inputs.source.kind == "image":
            known["image"] = picture(raw)
        kernel = self._kernel(raw, people["sample_id"]).astype(np.float64)
        kept = self.reader("influence").info("top_landmark").shape[1] if top is None else top
        return self._explained(known, self._ranked(kernel, kept))

    def _kernel(self, raw: npt.NDArray[Any], ids: npt.NDArray[np.int64]) -> Float:
        """Kernel rows [sample, landmark], as the kernel stage would store them."""
        from krepes_ooc.jacobian.float16_rows import store_rows

        inputs, landmarks = self.audit.inputs, self.reader("landmarks")
        encoded = inputs.source.encode(raw)
        check_finite(encoded, ids, "network input")
        begun = self.workspace.record("features", "features").begun() or {}
        settings = read_settings(FeaturesSettings, begun.get("settings"), "features")
        inputs.check_network_outputs(str(begun["digest"]))
        # Landmarks of the first development versions carry no probes of their own.
        holder = landmarks if "probes" in landmarks.attributes else self.reader("features")
        shared = inputs.open_features(settings, holder.attributes["probes"])
        features, _ = shared.rows(encoded)
        check_finite(features, ids, "feature row")
        own_map = self._landmark_kernel()
        stored = store_rows(features, own_map.layout)
        own = np.asarray(self_kernel(unscale_rows(stored, own_map.layout), own_map.layout))
        return np.asarray(own_map.rows(stored, own))

    def _landmark_kernel(self) -> LandmarkKernel:
        facts = self.reader("influence").attributes
        scale = float(facts["scale"])
        return read_landmark_kernel(self.reader("landmarks"), facts["normalise"], scale, SUB_ROWS)

    def _ranked(self, kernel: Float, top: int) -> dict[str, npt.NDArray[Any]]:
        newton, store = self.reader("newton"), self.reader("influence")
        step, measure = newton.array("step"), str(store.attributes["measure"])
        second = self._second() if measure == "unique" else None
        score = ranking_score(measure, step, store.array("landmark_displacement"), second)
        offset = self.reader("spectrum").array("offset")
        coefficients = newton.array("coefficients")
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
        self, known: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]
    ) -> list[rendering.Explained]:
        landmarks, facts = self.reader("landmarks"), self.reader("influence").attributes
        newton = self.reader("newton").attributes
        audit = rendering.AuditData(
            subject=rendering.Subject(self.workspace.recipe() or "", "", "", newton["objective"]),
            landmarks=rendering.Landmarks(**display_columns(landmarks, slice(None))),
            audited=rendering.Audited(**known),
            influence=rendering.Influence(measure=str(facts["measure"]), **arrays),
            classes=tuple(landmarks.info("label").attributes["categories"]),
            columns=tuple(column_text(column) for column in landmarks.attributes["columns"]),
        )
        if not facts["trusted"]:
            warning = f"The step is not trusted: {newton['reason']}."
            audit = replace(audit, warnings=(warning,))
        return rendering.explain_rows(audit, range(len(known["sample_id"])))
