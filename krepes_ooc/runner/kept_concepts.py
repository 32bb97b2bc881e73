"""Discovered concepts that people named: a file beside the stores, read as further concept sets.

No sealed store knows a name. A kept concept is a set of samples that show it and one of samples
that show another, so that it outlives another discovery; the recipe's own sets stand beside it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.files import read_small, to_json, write_atomic
from krepes_ooc.errors import RecipeError, UsageError, WorkspaceError
from krepes_ooc.stages.concepts.concept_sets import MIN_SAMPLES, read_sets
from krepes_ooc.stages.discovery.stored_concepts import read_concept_map, top_samples
from krepes_ooc.storage.workspace import Workspace

FILE = "concepts.json"
LONGEST_NAME = 80
# Samples of either set that are kept, and stored rows that they are looked for in.
KEPT_SAMPLES, SEARCHED_ROWS = 200, 20_000
MAX_BYTES = 2**26
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KeptConcept:
    """One named concept.

    Args:
        name: given by a person.
        concept: its number when it was named.
        positive: source positions of samples that show it.
        negative: source positions of samples that show another one.
    """

    name: str
    concept: int
    positive: tuple[int, ...]
    negative: tuple[int, ...]

    def sets(self) -> dict[str, Any]:
        """As recipe key ``stages.concepts.sets`` has it."""
        return {"positive": {"ids": list(self.positive)}, "negative": {"ids": list(self.negative)}}


def read_kept(workspace: Workspace) -> tuple[KeptConcept, ...]:
    """The named concepts of a workspace, in the order of their names.

    Raises:
        WorkspaceError: the file cannot be read.
    """
    path = kept_path(workspace)
    try:
        entries = json.loads(read_small(path, MAX_BYTES)) if os.path.lexists(path) else {}
        kept = tuple(
            KeptConcept(
                str(name),
                int(entry["concept"]),
                tuple(entry["positive"]),
                tuple(entry["negative"]),
            )
            for name, entry in entries.items()
        )
        read_sets({each.name: each.sets() for each in kept}, str(path))
    except (*_UNREADABLE, RecipeError) as error:
        raise WorkspaceError(
            f"the named concepts cannot be read ({type(error).__name__}: {error})",
            where=str(path),
            expected="the file that `krepes concepts keep` writes",
            advice="undo the change, or delete the file and name the concepts again",
        ) from error
    return kept


def with_kept(settings: Mapping[str, Any], workspace: Workspace) -> Mapping[str, Any]:
    """Settings of all stages, with the named concepts as further concept sets.

    Raises:
        WorkspaceError: the file of names cannot be read.
        UsageError: the recipe has a set of the same name.
    """
    kept = read_kept(workspace)
    if not kept:
        return settings
    concepts = settings["concepts"]
    for each in kept:
        _refuse_twice(each.name, concepts.sets, "the recipe has a concept set")
    sets = {**concepts.sets, **{each.name: each.sets() for each in kept}}
    return {**settings, "concepts": dataclasses.replace(concepts, sets=sets)}


def keep_concept(
    workspace: Workspace, number: int, name: str, sets: Mapping[str, Any]
) -> KeptConcept:
    """Name a discovered concept and keep samples that show it.

    Args:
        workspace: with a sealed discovery.
        number: of the concept.
        name: what people call it.
        sets: concept sets of the recipe, whose names are taken.

    Raises:
        WorkspaceError: there is no sealed discovery.
        UsageError: no such concept, a name that is empty, long or taken, or too few samples.
    """
    discovery = _sealed(workspace, "discovery")
    kept, name = read_kept(workspace), " ".join(name.split())
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise UsageError(
            f"{name!r} is no name",
            where="--as",
            expected=f"1 to {LONGEST_NAME} printable characters",
        )
    _refuse_twice(name, sets, "the recipe has a concept set")
    _refuse_twice(name, {each.name: each for each in kept}, "there is a kept concept")
    count = len(discovery.array("const"))
    if not 0 <= number < count:
        raise UsageError(
            f"no concept {number}",
            where=str(workspace.root),
            expected=f"0 to {count - 1}" if count else "none: discovery found no concept",
        )
    positive, negative = top_samples(
        read_concept_map(discovery),
        _sealed(workspace, "kernel"),
        number,
        KEPT_SAMPLES,
        SEARCHED_ROWS,
    )
    for ids, what in ((positive, f"show concept {number}"), (negative, "show another one")):
        if len(ids) < MIN_SAMPLES:
            raise UsageError(
                f"{len(ids)} samples {what}, of the first {SEARCHED_ROWS} stored ones",
                where=str(workspace.root),
                expected=f"at least {MIN_SAMPLES}, to fit and to hold out",
                advice="fewer concepts are larger ones: stages.discovery.concepts",
            )
    found = KeptConcept(name, number, tuple(positive.tolist()), tuple(negative.tolist()))
    _write(workspace, (*kept, found))
    return found


def drop_concept(workspace: Workspace, name: str) -> None:
    """Forget a named concept.

    Raises:
        UsageError: none has this name.
    """
    kept = read_kept(workspace)
    left = tuple(each for each in kept if each.name != name)
    if len(left) == len(kept):
        names = ", ".join(repr(each.name) for each in kept)
        raise UsageError(
            f"no kept concept {name!r}",
            where=str(kept_path(workspace)),
            expected=f"one of {names}" if names else "none is kept",
        )
    _write(workspace, left)


def list_concepts(workspace: Workspace) -> list[dict[str, Any]]:
    """Number, figures and names of every discovered concept.

    Raises:
        WorkspaceError: there is no sealed discovery.
    """
    discovery = _sealed(workspace, "discovery")
    names: dict[int, list[str]] = {}
    for each in read_kept(workspace):
        names.setdefault(each.concept, []).append(each.name)
    figures = {key: discovery.array(key) for key in ("share", "stability", "view_agreement")}
    return [
        {
            "concept": number,
            **{key: _number(values[number]) for key, values in figures.items()},
            "stable": bool(stable),
            "kept_as": names.get(number, []),
        }
        for number, stable in enumerate(discovery.array("stable"))
    ]


def kept_path(workspace: Workspace) -> Path:
    """File of the names, beside the stores."""
    return workspace.root / FILE


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _refuse_twice(name: str, taken: Mapping[str, Any], what: str) -> None:
    if name in taken:
        raise UsageError(
            f"{what} {name!r} already",
            where=FILE,
            expected="a name of its own",
            advice="krepes concepts drop takes a kept one away",
        )


def _sealed(workspace: Workspace, store: str) -> Any:
    if not workspace.record(store, store).is_sealed():
        raise WorkspaceError(
            f"stage {store} has not run",
            where=str(workspace.root),
            expected="a workspace with discovered concepts",
            advice="krepes run computes it",
        )
    return workspace.reader(store)


def _write(workspace: Workspace, kept: tuple[KeptConcept, ...]) -> None:
    entries = {
        each.name: {
            "concept": each.concept,
            "positive": list(each.positive),
            "negative": list(each.negative),
        }
        for each in kept
    }
    data = to_json(entries).encode()
    write_atomic(kept_path(workspace), data, workspace.private / "temp", sync=True)
