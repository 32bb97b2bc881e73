"""Explain samples: stored ones from small stores, new ones through the frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc import rendering
from krepes_ooc.core.landmark_rows import rows_of_each
from krepes_ooc.errors import UsageError
from krepes_ooc.runner.explanation.explain_concepts import read_known_concepts
from krepes_ooc.runner.explanation.explain_stores import AuditStores, Samples, one_kind_of_samples
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.stages.influence.ranking import InfluenceScorer, ranking_score
from krepes_ooc.stages.moments.stored_moments import second_moment
from krepes_ooc.stages.report.collect import display_columns
from krepes_ooc.stages.report.known_concepts import KnownConcepts
from krepes_ooc.storage.workspace import Workspace

# Arrays of the store influence: with a column for every rank, and with other columns.
RANKED = ("top_landmark", "score", "contribution")
UNRANKED = ("kernel", "repelling_landmark", "repelling")
Float = npt.NDArray[np.float64]


def explain(
    workspace: Path | str,
    *,
    sample: int | Sequence[int] | None = None,
    file: Path | str | None = None,
    top: int | None = None,
    recipe: Recipe | str | None = None,
) -> list[rendering.Explained]:
    """Explain samples of the source, or the new samples of a file.

    Args:
        workspace: folder of the audit.
        sample: position in the source, or several.
        file: new samples instead, in the form of the source.
        top: landmarks to rank; default as many as the audit keeps.
        recipe: the recipe, its name or its file, if it names code that a new sample needs.

    Raises:
        UsageError: neither or both are given; or as ``explain_sample`` and ``explain_input``.
        WorkspaceError: the audit has not got that far, or its recipe is stale.
    """
    explainer = _Explainer(AuditStores(Workspace(workspace), recipe))
    if (chosen := one_kind_of_samples(sample, file)) is None:
        assert file is not None
        return explainer.through_network(explainer.stores.from_file(Path(file)), top)
    return [explainer.sample(one, top) for one in chosen]


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
    return explain(workspace, sample=sample, top=top, recipe=recipe)[0]


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
    return explain(workspace, file=path, top=top, recipe=recipe)


@dataclass(frozen=True)
class _Explainer:
    """Rankings of landmarks for single samples.

    Args:
        stores: of the audit.
    """

    stores: AuditStores

    def sample(self, sample: int, top: int | None) -> rendering.Explained:
        """The explanation of one sample of the source."""
        # An audited sample has its influence in the small stores.
        row = self.stores.audited_row(sample)
        if row is not None:
            return self.stored(row, top)
        return self.through_network(self.stores.from_source(sample), top)[0]

    def stored(self, row: int, top: int | None) -> rendering.Explained:
        """The explanation of one row of the store audited.

        Raises:
            UsageError: more landmarks than the store keeps.
        """
        store = self.stores.reader("influence")
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
        return self._explained(display_columns(self.stores.reader("audited"), rows), arrays)[0]

    def through_network(self, samples: Samples, top: int | None) -> list[rendering.Explained]:
        """Explanations of samples that are not stored.

        Args:
            samples: with their kernel rows.
            top: landmarks to rank; None: as many as the audit keeps.
        """
        if top is None:
            top = self.stores.reader("influence").info("top_landmark").shape[1]
        return self._explained(samples.columns, self._ranked(samples.kernel, top), samples.warnings)

    def _ranked(self, kernel: Float, top: int) -> dict[str, npt.NDArray[Any]]:
        store = self.stores.reader("influence")
        step, measure = store.array("step"), str(store.attributes["measure"])
        second = second_moment(self.stores.reader("moments")) if measure == "unique" else None
        n_views = rows_of_each(self.stores.reader("landmarks").array("sample_id"))
        displacement = store.array("landmark_displacement")
        score = ranking_score(measure, step, displacement, second, n_views)
        offset = self.stores.reader("spectrum").array("offset")
        coefficients = store.array("coefficients")
        most = min(top, len(step) // n_views)
        scorer = InfluenceScorer(step, coefficients, offset, score, most, n_views)
        ranked = scorer.rank(kernel)._asdict()
        del ranked["embedding"]
        return {**ranked, "kernel": kernel}

    def _explained(
        self,
        columns: dict[str, Any],
        arrays: dict[str, npt.NDArray[Any]],
        warnings: tuple[str, ...] = (),
    ) -> list[rendering.Explained]:
        """Explanations of samples, from their columns and their influence arrays."""
        measure = str(self.stores.reader("influence").attributes["measure"])
        influence = rendering.Influence(measure=measure, **arrays)
        audit = self.stores.data(columns, influence, warnings=warnings)
        concepts = None
        if self.concepts is not None:
            assert audit.landmarks is not None
            step = self.stores.reader("influence").array("step")
            concepts = self.concepts.of_samples(arrays["kernel"], step, audit.landmarks)
        return rendering.explain_rows(audit, range(len(columns["sample_id"])), concepts)

    @cached_property
    def concepts(self) -> KnownConcepts | None:
        """Given and discovered concepts; None: the audit has none."""
        return read_known_concepts(self.stores)
