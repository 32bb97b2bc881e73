"""Results of the last stages for the report: gaps, group tables, concepts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc import rendering
from krepes_ooc.rendering.measured import CONCEPT_CONTROLS
from krepes_ooc.stages.alignment.groups import group_table
from krepes_ooc.stages.alignment.stage import ARRAYS, INPUT_GAP, LABEL
from krepes_ooc.stages.minimiser.solution import SOLUTIONS
from krepes_ooc.stages.randomised.ranking_overlap import prediction_interval
from krepes_ooc.storage.store_reader import StoreReader

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
GAPS = (*ARRAYS, INPUT_GAP)

# Figures of store randomised that store fidelity has under another name
FIDELITY_KEYS = {"ridge_r_squared": "ridge_ceiling"}


def read_alignment(store: StoreReader, randomised: StoreReader) -> rendering.Alignment | None:
    """The gaps of the table's columns, and of the label, which comes last.

    Args:
        store: of the stage alignment.
        randomised: store; the gaps of networks with random weights.
    """
    attributes = store.attributes
    names = tuple(attributes["columns"])
    if not names:
        return None
    is_defined = store.array("defined") == 1
    # 0 in the store stands for a gap that is not defined
    arrays = {
        name: np.where(is_defined, store.array(name), np.nan) for name in GAPS if store.has(name)
    }
    drawn = randomised.attributes["gaps"]
    most = [(drawn.get(name) or {}).get("most") for name in names]
    arrays["random_most"] = np.array([np.nan if value is None else value for value in most])
    return rendering.Alignment(**arrays, names=names, notes=attributes["notes"])


def read_groups(
    store: StoreReader,
    randomised: StoreReader,
    landmarks: StoreReader,
    audited: StoreReader,
    explained: Index,
) -> dict[str, rendering.Groups]:
    """All group tables; one that is not defined has its note alone.

    Args:
        store: of the stage alignment.
        randomised: store; the landmarks that networks with random weights rank first.
        landmarks: store.
        audited: store.
        explained: rows of the explained samples.
    """
    tables = {}
    for name, table in store.attributes["groups"].items():
        groups = rendering.Groups.from_attributes(table)
        if len(groups.categories):
            codes = [_group_codes(s, name) for s in (audited, landmarks)]
            share = _random_share(randomised, codes[0][explained], codes[1], len(groups.categories))
            groups = dataclasses.replace(groups, random_weights=share)
        tables[name] = groups
    return tables


def _group_codes(store: StoreReader, name: str) -> Index:
    """Group of every sample of a store in one column or the label [sample]; -1: none."""
    if name == LABEL:
        return store.array("label")
    columns = store.attributes["columns"]
    place = [column["name"] for column in columns].index(name)
    values = store.array("values")[:, place]
    codes = [float(code) for code in columns[place].get("words", {})]
    if not columns[place]["categories"] and codes:
        same = values[:, None] == np.array(codes)
        return np.asarray(np.where(same.any(axis=1), same.argmax(axis=1), -1), dtype=np.int64)
    codes_of_levels: Index = np.nan_to_num(values, nan=-1.0).astype(np.int64)
    return codes_of_levels


def _random_share(
    randomised: StoreReader, group: Index, landmark_group: Index, n_groups: int
) -> Float:
    """Mean share over the networks with random weights [group, group_]; NaN without any."""
    known = np.flatnonzero(randomised.array("audited_network") == 1)
    top = randomised.array("top_landmark")[known[known > 0]]
    shares = [
        group_table(group, landmark_group, draw, np.ones(draw.shape), n_groups).share
        for draw in top
    ]
    return np.mean(shares, axis=0) if shares else np.full((n_groups, n_groups), np.nan)


def read_random_fidelity(randomised: StoreReader) -> dict[str, dict[str, Any]]:
    """Figures of store fidelity for networks with random weights, by their keys there."""
    found = {str(key): dict(value) for key, value in randomised.attributes["fidelity"].items()}
    for key, value in randomised.attributes["figures"].items():
        draws = list(value["draws"])
        if not draws:
            continue
        low, high = prediction_interval(np.array(draws))
        figure = {"value": value["value"], "draws": draws, "low": low, "high": high}
        found[FIDELITY_KEYS.get(str(key), str(key))] = figure
    return found


def read_further(
    minimiser: StoreReader, distilled: StoreReader, examples: StoreReader
) -> dict[str, dict[str, Any]]:
    """Figures of the coefficients that explain, of the distilled ones, and of convex weights."""
    reproduced = {
        key: distilled.attributes[key] for key in ("r_squared", "r_squared_fit", "penalty_relative")
    }
    deletion = distilled.attributes["deletion"]
    flipped = deletion.get("flipped", {}) if isinstance(deletion, dict) else {}
    return {
        "solution": {
            "explains": SOLUTIONS[str(minimiser.attributes["solution"])],
            **{
                SOLUTIONS.get(key, "principal components"): value
                for key, value in minimiser.attributes["likeness"].items()
            },
        },
        "distilled": reproduced if distilled.attributes["defined"] else {},
        "deletion": {str(key): value for key, value in flipped.items()},
        "convex": dict(examples.attributes["r_squared"]),
    }


def read_concepts(store: StoreReader, rows: Any) -> rendering.Concepts | None:
    """The concepts with scores of some audited rows; None if none was named.

    Args:
        store: of the stage concepts.
        rows: index of the audited samples to show.
    """
    names = tuple(store.attributes["names"])
    if not names:
        return None
    is_trusted = store.array("trusted") == 1
    controls = {key: store.array(key) for key in CONCEPT_CONTROLS}
    # 0: the inputs are too long for a classifier
    if not controls["accuracy_inputs"].any():
        del controls["accuracy_inputs"]
    scores = np.where(is_trusted, store.array("score")[rows], np.nan)
    return rendering.Concepts(
        names,
        store.array("accuracy"),
        scores,
        is_trusted,
        controls,
        store.array("landmark_score"),
    )
