"""One audit with every part, small and reproducible; and a strict reader of the page."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from typing import Any

import numpy as np

from krepes_ooc.core.figures import curve
from krepes_ooc.core.verdict import Check, Verdict
from krepes_ooc.rendering.data import (
    AuditData,
    Audited,
    Column,
    Influence,
    Landmarks,
    Newton,
    OddSamples,
    Samples,
    Spectrum,
    StageRecord,
    Subject,
)
from krepes_ooc.rendering.measured import Alignment, Concepts, Groups
from krepes_ooc.rendering.overview import (
    ClassFigures,
    ColumnDifference,
    DiscoveredConcepts,
    EmbeddingMap,
    GroupEffects,
    OddTable,
    Plane,
    SampleFigures,
)
from tests.figures import complete

HOSTILE = "<script>alert('x')</script>\"&\x00‮"
N_LANDMARKS, N_AUDITED, N_RANKS, N_COMPONENTS = 9, 7, 4, 3
# Audited samples of role audit
N_EXPLAINED = 5
VOID = {"img", "input", "meta", "br", "hr", "link"}


def full_audit(**changes: Any) -> AuditData:
    """Image samples, all parts present."""
    rng = np.random.default_rng(7)
    top = np.array([rng.permutation(N_LANDMARKS)[:N_RANKS] for _ in range(N_AUDITED)])
    damping = np.array([0.01, 0.1, 1.0, 10.0])
    pushing, pushes = _pushing()
    parts: dict[str, Any] = {
        "subject": Subject("digits", "an encoder", "digits", "Barlow Twins", {"samples": 1797}),
        "landmarks": Landmarks(
            np.arange(100, 100 + N_LANDMARKS),
            label=np.arange(N_LANDMARKS) % 3,
            image=rng.integers(0, 256, (N_LANDMARKS, 5, 6), dtype=np.uint8),
            weight=rng.integers(1, 50, N_LANDMARKS),
            view=np.full(N_LANDMARKS, -1),
        ),
        "audited": Audited(
            np.arange(N_AUDITED),
            np.array([f"name {i}" for i in range(N_AUDITED)]),
            np.arange(N_AUDITED) % 3,
            rng.integers(0, 256, (N_AUDITED, 5, 6, 3), dtype=np.uint8),
            role=np.array([0, 0, 0, 0, 0, 1, 2]),
        ),
        "influence": Influence(
            top,
            rng.random((N_AUDITED, N_RANKS)),
            rng.normal(size=(N_AUDITED, N_RANKS)),
            "is",
            rng.normal(size=(N_AUDITED, N_LANDMARKS)),
            repelling_landmark=pushing,
            repelling=pushes,
        ),
        "spectrum": Spectrum(
            np.sort(rng.random(N_LANDMARKS))[::-1], 8, N_COMPONENTS, 0.11, 5.5, {"start": 0.9}
        ),
        "newton": Newton(
            {
                "objective": "barlow_twins",
                "objective_settings": {"off_diagonal": 0.0051},
                "damping": 1.0,
                "tolerance": 1e-3,
                "loss_start": 20.73,
                "loss_step": 8.81,
                "predicted_decrease": 19.5,
                "rho": 0.611,
                "iterations": 11,
                "residual_norm": 7.3e-4,
                "trusted": True,
            },
            rng.normal(size=(N_LANDMARKS, N_COMPONENTS)),
            np.array([1.0, 0.3, 0.01, 7.3e-4]),
            {
                "damping": damping,
                "loss": np.array([30.0, 20.0, 8.81, 9.0]),
                "predicted": np.array([20.0, 19.9, 19.5, 10.0]),
                "rho": np.array([np.nan, 0.1, 0.611, 0.9]),
                "step_norm": np.array([9.0, 3.0, 1.0, 0.1]),
            },
        ),
        "fidelity": {
            "ridge_ceiling": complete("ridge_ceiling", 0.918, (0.9, 0.93), start=0.71),
            "confidence_drop": complete("confidence_drop", 0.153, random=0.0008),
        },
        "curves": {
            "tau_over_components": curve(
                "tau_over_components", [4, 8, 16], {"step": [0.1, 0.2, 0.3]}
            )
        },
        "verdict": Verdict(
            (
                Check(
                    "step", "Step", "lowers the loss", "pass", "rho {rho}.", {"rho": 0.611}, True
                ),
                Check("nystrom", "Nystrom error", "at most .2", "fail", "It is {e}.", {"e": 0.31}),
            )
        ),
        "stages": (
            StageRecord(
                "features", 41.25, 8, 122_000_000, digest="9f" * 32, version=1, note="note"
            ),
            StageRecord("newton", 1.5, 1, 2_000, digest="6f" * 32, version=1),
        ),
        "classes": ("cat", "dog", "hen"),
        "warnings": ("rows in source order",),
        "recipe_text": "stages:\n  features: {}\n",
        "versions": {"python": "3.11"},
        "record": {"seed": "0"},
        **_overview(),
    }
    return AuditData(**{**parts, **changes})


def _overview() -> dict[str, Any]:
    """Map, concepts, group effects, classes and odd samples of the five explained samples."""
    rng = np.random.default_rng(11)
    planes = [
        Plane(rng.normal(size=(N_EXPLAINED, 2)), rng.normal(size=(N_LANDMARKS, 2)), (0.5, 0.25))
        for _ in range(2)
    ]
    difference = ColumnDifference("colour", "red", 1.5, 0.81, 0.33)
    odd = Samples(
        np.array([0, 3, 6, 102]),
        label=np.array([0, 0, 0, 2]),
        image=rng.integers(0, 256, (4, 5, 6), dtype=np.uint8),
        values=rng.random((4, 3)),
    )
    return {
        "embedding_map": EmbeddingMap(*planes, likeness=0.625),
        "discovered": DiscoveredConcepts(
            names=("concept 0", "concept 1"),
            share=np.array([0.7, 0.3]),
            stability=np.array([0.6, 0.95]),
            stable=np.array([False, True]),
            view_agreement=np.array([0.5, np.nan]),
            best_class=np.array([0, 2]),
            precision=np.array([0.41, 0.93]),
            top_samples=np.array([[0, 3, -1], [4, 1, 2]]),
            top_landmark=np.array([[0], [1]]),
            differences=((difference,), ()),
            figures={"average_precision": {"concepts": 0.67, "random": 0.5, "inputs": 0.71}},
        ),
        "group_effects": GroupEffects(
            names=("label = cat", "label = dog", "cluster 0"),
            partition=("label", "label", "landmarks"),
            count=np.array([30, 4, 11]),
            mean=np.array([0.2, 0.05, 0.3]),
            stderr=np.array([0.01, 0.02, 0.03]),
            residual=np.array([0.1, -0.02, np.nan]),
            by_group=rng.random((3, 3)),
            effect=rng.random((3, N_EXPLAINED)),
            reasons={"label = hen": "no sample"},
            converged=False,
        ),
        "class_figures": ClassFigures(
            samples=np.array([40, 15, 3]),
            first_same=np.array([30, 15, 0]),
            prototypes=np.array([[0, 3], [1, -1], [-1, -1]]),
            confusing=np.array([[1, 2], [0, -1], [-1, -1]]),
        ),
        "sample_figures": SampleFigures(
            closeness=np.array([0.5, 0.2, 0.9, 0.7, 0.1]),
            mixing=np.array([0.0, 0.6, 0.1, 0.2, 0.3]),
            concept=np.array([0, 0, 1, 0, 1]),
            own_landmark=np.full(N_EXPLAINED, -1),
        ),
        "odd": OddSamples(
            odd,
            {
                "novel": OddTable(np.array([[1], [2]]), np.array([0.11, 0.12])),
                "duplicate": OddTable(np.array([[0, 1]]), np.array([0.013])),
                "mixed": OddTable(np.zeros((0, 1), dtype=np.int64), np.zeros(0)),
                "lonely": OddTable(np.array([[3]]), np.array([0.21])),
            },
        ),
        "random_weights": {
            "cka": {"label": "similarity", "value": 0.82, "most": 0.52, "learned": True}
        },
        "further": {"convex": {"ranking": 0.94, "random": 0.61}},
    }


def _pushing() -> tuple[np.ndarray, np.ndarray]:
    """Three landmarks that repel each sample; the third has one, the fourth none."""
    rng = np.random.default_rng(9)
    landmark = np.array([rng.permutation(N_LANDMARKS)[:3] for _ in range(N_AUDITED)])
    pull = -np.sort(rng.random((N_AUDITED, 3)))[:, ::-1]
    landmark[2, 1:], landmark[3] = -1, -1
    return landmark, np.where(landmark < 0, 0.0, pull)


def table_audit(**changes: Any) -> AuditData:
    """The same audit of table rows, with alignment, groups and concepts."""
    audit = full_audit()
    rng = np.random.default_rng(8)
    columns = (Column("age"), Column("colour", "category", ("red", "blue")), Column("constant"))
    assert audit.landmarks is not None
    assert audit.audited is not None
    assert audit.odd is not None

    def values(rows: int) -> np.ndarray:
        return np.c_[rng.normal(40, 10, rows), rng.integers(0, 2, rows), np.ones(rows)]

    theirs, mine = values(N_LANDMARKS), values(N_AUDITED)
    mine[0, 0] = np.nan
    parts: dict[str, Any] = {
        "columns": columns,
        "landmarks": dataclasses.replace(audit.landmarks, image=None, values=theirs),
        "audited": dataclasses.replace(audit.audited, image=None, values=mine),
        "odd": dataclasses.replace(
            audit.odd, samples=dataclasses.replace(audit.odd.samples, image=None)
        ),
        "audited_columns": ("colour",),
        "alignment": Alignment(
            np.array([0.3, -0.1, np.nan, 0.12]),
            np.array([0.02, 0.02, np.nan, 0.01]),
            np.array([0.28, 0.0, np.nan, 0.11]),
            np.array([0.31, -0.11, np.nan, 0.13]),
            np.array([0.011, 0.012, np.nan, 0.013]),
            np.array([0.006, 0.006, np.nan, 0.02]),
            np.array([0.25, 0.01, np.nan, 0.115]),
            np.array([0.36, 0.015, np.nan, 0.09]),
            np.array([-0.04, -0.05, np.nan, -0.06]),
            (*(column.name for column in columns), "label"),
            {"constant": "the column is constant"},
            random_most=np.array([0.2, 0.03, np.nan, 0.2]),
        ),
        "groups": {
            "colour": Groups(
                ("red", "blue", "green", "grey"),
                np.array([3, 2, 0, 0]),
                np.array([4, 4, 1, 0]),
                np.array([[0.7, 0.2, 0.1, 0], [0.4, 0.55, 0.05, 0], *np.full((2, 4), np.nan)]),
                np.full((4, 4), 0.03),
                np.array([[0.68, 0.22, 0.1, 0], [0.35, 0.6, 0.05, 0], *np.full((2, 4), np.nan)]),
                np.array([4, 4, 1, 0]) / 9,
                "1 of 2 groups have no landmark",
            ),
            "label": Groups(note="no group is known"),
        },
        "concepts": Concepts(
            ("old", "noise"),
            np.array([0.9, 0.52]),
            np.c_[rng.normal(size=N_AUDITED), np.full(N_AUDITED, np.nan)],
            np.array([True, False]),
            {"chance": np.array([0.501, 0.502]), "accuracy_network": np.array([0.8, np.nan])},
            np.stack([rng.normal(size=N_LANDMARKS), np.zeros(N_LANDMARKS)]),
        ),
    }
    return dataclasses.replace(audit, **{**parts, **changes})


class Page(HTMLParser):
    """Reads a page and refuses unbalanced tags."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.joined = False
        # Plain text: parts of Markup would escape what is joined to them
        self.feed(str(html))
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute stands twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        # A defined term is no word of its own
        self.joined = tag == "abbr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"{tag} closed but never opened"
        assert self.open.pop() == tag
        self.joined = tag == "abbr"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            if self.joined and self.words:
                self.words[-1] += data
            else:
                self.words.append(data)
            self.joined = False

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def numbers_in(value: Any) -> set[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        return set().union(*map(numbers_in, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(numbers_in, value)) if value else set()
    return {float(value)} if isinstance(value, int | float) else set()
