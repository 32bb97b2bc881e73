"""One audit as comparisons read it: its clean samples, from small stores alone.

Neither source, network nor recipe is opened, so that audits that somebody sent are compared without
their code and their data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc import rendering
from krepes_ooc.core.landmark_rows import rows_of_each
from krepes_ooc.core.stage_order import STAGE_ORDER
from krepes_ooc.errors import DamageError, UsageError
from krepes_ooc.runner.explanation.explain_stores import AuditStores
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.stages.discovery.concept_map import nystrom_projection
from krepes_ooc.stages.discovery.stored_concepts import read_concept_map
from krepes_ooc.stages.influence.ranking import ranking_score
from krepes_ooc.stages.moments.stored_moments import second_moment
from krepes_ooc.stages.report.collect import display_columns
from krepes_ooc.storage.workspace import Workspace
from krepes_ooc.views.spec import CLEAN

# Parts of a fingerprint that say what was audited, beside settings and seed.
PARTS = ("source", "labels", "views", "factory", "network")
NO_LANDMARK = -1
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ComparedAudit:
    """Stores of one audit, opened and checked on first use.

    Its entries are the clean samples that have a kernel row and a network embedding in small
    stores: the audited samples, then the landmarks that are not among them.

    Args:
        stores: of the audit.
    """

    stores: AuditStores

    @classmethod
    def open(cls, root: Path | str) -> ComparedAudit:
        """The audit of a workspace.

        Raises:
            UsageError: no workspace is there.
            WorkspaceError: it has no influence yet.
        """
        space = Workspace(root)
        if not space.private.is_dir():
            raise UsageError(
                "no workspace there", where=str(root), expected="a folder that `krepes run` made"
            )
        audit = cls(AuditStores(space))
        for store in ("audited", "influence"):
            audit.stores.reader(store)
        return audit

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.stores.workspace.root.name

    def has(self, store: str) -> bool:
        """Whether a store is sealed."""
        return bool(self.stores.workspace.record(store, store).is_sealed())

    @cached_property
    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Fingerprint of every stage that has one, by its name."""
        found = {}
        for stage in STAGE_ORDER:
            try:
                begun = self.stores.workspace.record(stage, None).begun()
            except DamageError:
                begun = None
            if begun is not None:
                found[stage] = begun
        return found

    @property
    def source(self) -> Any:
        """Digest of the samples of the source."""
        return self.fingerprints.get("features", {}).get("inputs", {}).get("source")

    def keys(self, stages: Collection[str]) -> dict[str, Any]:
        """Everything that the results of some stages depend on, by recipe key or part."""
        found: dict[str, Any] = {}
        for stage, begun in self.fingerprints.items():
            if stage not in stages:
                continue
            found["seed"] = begun.get("seed")
            inputs = begun.get("inputs", {})
            found |= {part: inputs[part] for part in PARTS if part in inputs}
            settings = begun.get("settings", {})
            found |= {f"stages.{stage}.{key}": value for key, value in settings.items()}
        # Views carry the seed, which stands by itself.
        if isinstance(found.get("views"), dict):
            found["views"] = {k: v for k, v in found["views"].items() if k != "seed"}
        return found

    @cached_property
    def _landmark_rows(self) -> Index:
        """Rows of clean landmarks that are not audited samples [landmark entry]."""
        if not self.has("examples"):
            return np.empty(0, dtype=np.int64)
        landmarks = self.stores.reader("landmarks")
        clean = landmarks.array("view") == CLEAN
        audited = self.stores.reader("audited").array("sample_id")
        known = np.isin(landmarks.array("sample_id"), audited)
        return np.flatnonzero(clean & ~known).astype(np.int64)

    @cached_property
    def n_audited(self) -> int:
        """Audited samples, the first entries."""
        return int(self.stores.reader("audited").info("sample_id").shape[0])

    @cached_property
    def positions(self) -> Index:
        """Position in the source [entry]."""
        audited = self.stores.reader("audited").array("sample_id")
        landmarks = self.stores.reader("landmarks").array("sample_id")[self._landmark_rows]
        return np.concatenate([audited, landmarks]).astype(np.int64)

    @cached_property
    def sample_names(self) -> list[str]:
        """The user's own names [entry]."""
        texts: list[str] = []
        for store in ("audited", "landmarks"):
            reader = self.stores.reader(store)
            known = reader.info("sample_name").attributes["categories"]
            codes = reader.array("sample_name")
            chosen = codes if store == "audited" else codes[self._landmark_rows]
            texts += [str(known[code]) for code in chosen]
        return texts

    @cached_property
    def explained(self) -> npt.NDArray[np.bool_]:
        """Whether an entry is an audited sample that is explained or fits probes [entry]."""
        role = self.stores.reader("audited").array("role")
        mask = np.zeros(len(self.positions), dtype=np.bool_)
        mask[: len(role)] = (role == ROLES["audit"]) | (role == ROLES["fit"])
        return mask

    @cached_property
    def labels(self) -> list[str]:
        """Class in words, empty without a label [entry]."""
        classes = self.classes
        audited = self.stores.reader("audited").array("label")
        landmarks = self.stores.reader("landmarks").array("label")[self._landmark_rows]
        codes = np.concatenate([audited, landmarks])
        return [classes[code] if 0 <= code < len(classes) else "" for code in codes]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        categories = self.stores.reader("landmarks").info("label").attributes["categories"]
        return tuple(str(text) for text in categories)

    @cached_property
    def landmark_kernel(self) -> Float:
        """K_mm of the clean landmark rows [landmark, landmark_], without the store kernel."""
        landmarks = self.stores.reader("landmarks")
        rows = self.stores.landmark_kernel.rows(
            landmarks.array("features"), landmarks.array("self_kernel")
        )
        return np.asarray(rows, dtype=np.float64)

    @cached_property
    def kernel(self) -> Float:
        """Kernel rows [entry, landmark]."""
        audited = self.stores.reader("influence").whole("kernel")
        return np.concatenate([audited, self.landmark_kernel[self._landmark_rows]])

    @cached_property
    def network(self) -> Float:
        """The network's own embedding [entry, output]."""
        audited = self.stores.reader("audited").array("network_embedding").astype(np.float64)
        if not len(self._landmark_rows):
            return np.asarray(audited)
        landmarks = self.stores.reader("examples").array("landmark_embedding")
        return np.concatenate([audited, landmarks[self._landmark_rows].astype(np.float64)])

    @cached_property
    def embedding(self) -> Float:
        """The embedding f = K A + gamma of the solution that explains [entry, component]."""
        coefficients = self.stores.reader("influence").array("coefficients")
        return np.asarray(
            self.kernel @ coefficients + self.stores.reader("spectrum").array("offset")
        )

    @cached_property
    def nystrom(self) -> Float:
        """Rows whose inner products are the Nystrom kernel [entry, direction]."""
        K = 0.5 * (self.landmark_kernel + self.landmark_kernel.T)
        values, vectors = np.linalg.eigh(K)
        rank = int(self.stores.reader("spectrum").attributes["usable_rank"])
        projection = nystrom_projection(values[::-1].copy(), vectors[:, ::-1].copy(), rank)
        return np.asarray(self.kernel @ projection)

    def rows(self, space: str) -> Float:
        """Rows whose inner products are the kernel of a space [entry, direction].

        Args:
            space: ``network``, ``embedding`` or ``kernel``.
        """
        return {
            "network": lambda: self.network,
            "embedding": lambda: self.embedding,
            "kernel": lambda: self.nystrom,
        }[space]()

    @cached_property
    def activation(self) -> Float | None:
        """Activation of the discovered concepts [entry, concept]; None without any."""
        if not self.has("discovery"):
            return None
        discovery = self.stores.reader("discovery")
        if not discovery.attributes["defined"]:
            return None
        return read_concept_map(discovery).activation(self.kernel)

    def scores(self, entries: Index, landmarks: Index) -> Float:
        """Scores that rank landmarks for people [sample, landmark].

        Args:
            entries: samples.
            landmarks: landmarks, in the order of the columns.
        """
        influence = self.stores.reader("influence")
        measure = str(influence.attributes["measure"])
        second = second_moment(self.stores.reader("moments")) if measure == "unique" else None
        n_views = rows_of_each(self.stores.reader("landmarks").array("sample_id"))
        step, displacement = influence.array("step"), influence.array("landmark_displacement")
        score = ranking_score(measure, step, displacement, second, n_views)
        return np.asarray(score(self.kernel[entries]))[:, landmarks]

    def landmark_of(self, entry: int) -> int:
        """Row of the clean landmark that an entry is; ``NO_LANDMARK`` if it is none."""
        if entry >= self.n_audited:
            return int(self._landmark_rows[entry - self.n_audited])
        return self._own.get(int(self.positions[entry]), NO_LANDMARK)

    @cached_property
    def _own(self) -> Mapping[int, int]:
        landmarks = self.stores.reader("landmarks")
        clean = np.flatnonzero(landmarks.array("view") == CLEAN)
        ids = landmarks.array("sample_id")
        return {int(ids[row]): int(row) for row in reversed(clean)}

    def explanations(self, entries: Sequence[int], top: int) -> list[rendering.Explained]:
        """Stored explanations of audited samples.

        Args:
            entries: audited ones.
            top: landmarks of each.
        """
        rows = np.asarray(entries, dtype=np.int64)
        influence = self.stores.reader("influence")
        arrays = {
            name: influence.array(name)[rows][:, :top]
            for name in ("top_landmark", "score", "contribution")
        }
        shown = rendering.Influence(measure=str(influence.attributes["measure"]), **arrays)
        columns = display_columns(self.stores.reader("audited"), rows)
        return rendering.explain_rows(self.stores.data(columns, shown), range(len(rows)))

    @cached_property
    def landmark_data(self) -> rendering.AuditData:
        """Landmarks, classes and columns, as people see them."""
        none = display_columns(self.stores.reader("audited"), slice(0, 0))
        return self.stores.data(none)

    @cached_property
    def _audited_data(self) -> rendering.Audited:
        return rendering.Audited(**display_columns(self.stores.reader("audited"), slice(None)))

    def visible(self, entry: int) -> tuple[rendering.Samples, int]:
        """Visible columns of the samples that an entry is one of, and its row among them."""
        if entry < self.n_audited:
            return self._audited_data, entry
        assert self.landmark_data.landmarks is not None
        return self.landmark_data.landmarks, int(self._landmark_rows[entry - self.n_audited])
