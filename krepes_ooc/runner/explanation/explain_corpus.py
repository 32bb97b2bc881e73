"""The samples of the whole source that the kernel finds most like a sample, not landmarks alone.

    k(t, i) = max over views a of k(x_t, x_i^a)

with the audit's own kernel, from the stored feature rows of all samples. They are read block by
block, and of every block only the best candidates are kept, so that memory does not grow with the
number of samples: it is one block of features, and one row for each explained sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc import rendering
from krepes_ooc.core.blocks import BlockPlan
from krepes_ooc.errors import SourceError, UsageError, WorkspaceError
from krepes_ooc.runner.explanation.explain_stores import AuditStores, Samples, one_kind_of_samples
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.stages.features.featurizer import unscale_rows
from krepes_ooc.stages.kernel.kernel_map import kernel_map
from krepes_ooc.stages.kernel.landmark_kernel import LandmarkKernel
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.workspace import Workspace

MEASURE = "corpus"
MOST_LISTED = 1000
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def explain_corpus(
    workspace: Path | str,
    *,
    sample: int | Sequence[int] | None = None,
    file: Path | str | None = None,
    top: int | None = None,
    recipe: Recipe | str | None = None,
) -> list[rendering.Explained]:
    """The most similar samples of the whole source, in the place of landmarks.

    Args:
        workspace: folder of the audit, with its store ``features``.
        sample: position in the source, or several.
        file: new samples instead, in the form of the source.
        top: samples to rank; default as many as landmarks are ranked.
        recipe: as ``explain``; it also vouches for the source that names and pictures come from.

    Raises:
        UsageError: neither or both are given, or too many samples are to be ranked.
        WorkspaceError: feature rows are not there, or the audit has not got that far.
    """
    stores = AuditStores(Workspace(workspace), recipe)
    count = top or int(stores.reader("influence").info("top_landmark").shape[1])
    if count > MOST_LISTED:
        raise UsageError(f"{count} samples", where="--top", expected=f"at most {MOST_LISTED}")
    # Looked for before a network is loaded
    _features(stores)
    chosen = one_kind_of_samples(sample, file)
    if chosen is None:
        assert file is not None
        parts = [stores.from_file(Path(file))]
    else:
        parts = [stores.sample(one) for one in chosen]
    return [one for part in parts for one in _explained(stores, part, count)]


def _explained(stores: AuditStores, samples: Samples, count: int) -> list[rendering.Explained]:
    """Samples with the most similar ones in the place of landmarks."""
    ids, value = nearest_samples(stores, samples, count)
    found = []
    for i in range(len(samples)):
        known = ids[i] >= 0
        columns, warnings = _visible(stores, ids[i][known])
        one = {
            name: values[i : i + 1]
            for name, values in samples.columns.items()
            if values is not None
        }
        influence = rendering.Influence(
            top_landmark=np.arange(int(known.sum()))[None],
            score=value[i][known][None],
            measure=MEASURE,
        )
        audit = stores.data(
            one, influence, uses_step=False, warnings=(*samples.warnings, *warnings)
        )
        audit = replace(audit, landmarks=rendering.Landmarks(**columns))
        found += rendering.explain_rows(audit, [0])
    return found


def nearest_samples(stores: AuditStores, samples: Samples, count: int) -> tuple[Index, Float]:
    """Positions of the samples of largest kernel, largest first, and these values.

    Args:
        stores: of the audit.
        samples: that are explained; one that the source has is not its own neighbour.
        count: samples of each.

    Returns:
        Both [sample, rank]; -1 where there are fewer samples.
    """
    store = _features(stores)
    against = _kernel_against(stores, samples)
    own = np.asarray(samples.columns["sample_id"], dtype=np.int64)
    ids = np.full((len(samples), count), -1, dtype=np.int64)
    best = np.full((len(samples), count), -np.inf)
    plan = BlockPlan.from_attributes(store.attributes["block_plan"])
    for block in plan.blocks():
        positions = np.asarray(store.block("sample_id", block), dtype=np.int64)
        value = np.full((len(samples), block.rows), -np.inf)
        for view in range(store.info("self_kernel").shape[0]):
            rows, diagonal = (store.block(name, block, view) for name in ("values", "self_kernel"))
            found = against.rows(rows, np.asarray(diagonal, dtype=np.float64))
            np.maximum(value, found.T, out=value)
        value[own[:, None] == positions] = -np.inf
        both = np.concatenate([best, value], axis=1)
        known = np.concatenate([ids, np.broadcast_to(positions, value.shape)], axis=1)
        # Ties go to the lower position, whatever the blocks
        order = np.lexsort((known, -both), axis=1)[:, :count]
        best = np.take_along_axis(both, order, axis=1)
        ids = np.take_along_axis(known, order, axis=1)
    ids[~np.isfinite(best)] = -1
    return ids, best


def _kernel_against(stores: AuditStores, samples: Samples) -> LandmarkKernel:
    """The audit's kernel with the explained samples in the place of landmarks."""
    landmarks = stores.landmark_kernel
    features = samples.features
    if features is None:
        features = stores.reader("audited").array("features")[samples.row]
    rows = unscale_rows(features, landmarks.layout)
    centre = stores.reader("landmarks").array("centre")
    normalisation = landmarks.kernel_map.normalisation
    against = kernel_map(rows, landmarks.layout, centre, normalisation)
    return LandmarkKernel(against, landmarks.layout, landmarks.sub_rows)


def _features(stores: AuditStores) -> StoreReader:
    """The store of feature rows.

    Raises:
        WorkspaceError: it was deleted, is not sealed, or holds no rows.
    """
    space = stores.workspace
    if "features" in space.stores() and stores.reader("features").has("values"):
        return stores.reader("features")
    raise WorkspaceError(
        "there are no feature rows of all samples",
        where=str(space.root),
        expected="the store features with its rows, which --corpus reads",
        advice="without --corpus landmarks are ranked from small stores; "
        "stages.features.persist=always keeps the rows",
    )


def _visible(
    stores: AuditStores, ids: Index
) -> tuple[dict[str, npt.NDArray[Any]], tuple[str, ...]]:
    """Visible columns of samples of the source; where it may not be opened, their positions."""
    try:
        source = stores.audit.inputs.source
        identity = {"sample_id": ids, "label": source.labels(ids)}
        return stores.visible(source.read(ids), source.names(ids), identity), ()
    except (UsageError, WorkspaceError, SourceError) as error:
        return {"sample_id": ids}, (f"samples are shown by their positions alone: {error}",)
