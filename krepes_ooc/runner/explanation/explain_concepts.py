"""Concepts of an audit, from those of its stores that are there and current."""

from __future__ import annotations

from krepes_ooc.errors import WorkspaceError
from krepes_ooc.runner.explanation.explain_stores import AuditStores
from krepes_ooc.runner.kept_concepts import read_kept
from krepes_ooc.stages.report.known_concepts import KnownConcepts
from krepes_ooc.storage.store_reader import StoreReader


def read_known_concepts(stores: AuditStores) -> KnownConcepts | None:
    """Given and discovered concepts, with the names that people gave; None: there are none yet."""
    kept_as: dict[int, tuple[str, ...]] = {}
    for kept in read_kept(stores.workspace):
        kept_as[kept.concept] = (*kept_as.get(kept.concept, ()), kept.name)
    concepts, discovery, examples = (
        _readable(stores, name) for name in ("concepts", "discovery", "examples")
    )
    # Landmarks are explained before influence is there; concepts are not.
    if concepts is None and discovery is None:
        return None
    influence = stores.reader("influence")
    return KnownConcepts.of_stores(influence, concepts, discovery, examples, kept_as)


def _readable(stores: AuditStores, store: str) -> StoreReader | None:
    """A store that is sealed and belongs to the stores there; None: landmarks need none of them."""
    try:
        return stores.reader(store)
    except WorkspaceError:
        return None
