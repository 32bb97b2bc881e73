"""Data of a report: small plain arrays and words, named as in the stores.

Only ``subject`` is required. Every other part may be missing (None or empty); its panel then says
so in one sentence. A number that was not measured is NaN; a label that is unknown is -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from krepes_ooc.core.figures import Curve, Figure
from krepes_ooc.core.verdict import Verdict
from krepes_ooc.rendering.measured import Alignment, Concepts, Groups
from krepes_ooc.rendering.overview import (
    ClassFigures,
    DiscoveredConcepts,
    EmbeddingMap,
    GroupEffects,
    OddTable,
    SampleFigures,
)
from krepes_ooc.rendering.sample_concepts import SampleConcepts

Array = npt.NDArray[Any]
# A value that was not measured is shown in words, never as a number
NOT_MEASURED = float("nan")


@dataclass(frozen=True, eq=False)
class Subject:
    """Subject of the audit, in words and counts.

    Args:
        recipe: name of the recipe.
        network: the network in words, such as ``examples:encoder, 3 layers``.
        source: the data in words, such as ``digits (inside scikit-learn)``.
        objective: the self-supervised objective in words.
        counts: what was counted, such as ``{"samples": 1797, "views": 2}``, in reading order.
        about: one line about the audit.
        rows: what the Jacobian rows are made of and what they cost, in words by name.
        training: objective that trained the network, where the recipe says it or it differs.
        embedding: module or entry of the output that is audited; empty: the network's output.
    """

    recipe: str
    network: str
    source: str
    objective: str
    counts: Mapping[str, int] = field(default_factory=dict)
    about: str = ""
    rows: Mapping[str, str] = field(default_factory=dict)
    training: str = ""
    embedding: str = ""


@dataclass(frozen=True, eq=False)
class Column:
    """One column of a table.

    Args:
        name: the column's name.
        kind: ``number`` or ``category``.
        categories: names of the codes 0, 1, ... of a category.
        words: words for numbers that are codes.
    """

    name: str
    kind: str = "number"
    categories: tuple[str, ...] = ()
    words: Mapping[float, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Samples:
    """Visible columns of some samples.

    Args:
        sample_id: position in the source, [sample].
        sample_name: the user's own name, [sample]; None: the position is shown.
        label: class code, [sample]; -1: no label.
        image: [sample, y, x] or [sample, y, x, channel] with 1, 3 or 4 channels, uint8.
        values: [sample, column], float64; a category is its code, NaN is missing.
        text: [sample].
    """

    sample_id: Array
    sample_name: Array | None = None
    label: Array | None = None
    image: Array | None = None
    values: Array | None = None
    text: Array | None = None


@dataclass(frozen=True, eq=False)
class Landmarks(Samples):
    """The landmark rows; rows of one sample's views share their ``sample_id``.

    Args:
        weight: how many samples a landmark stands for, [landmark].
        view: [landmark]; -1: the clean sample.
    """

    weight: Array | None = None
    view: Array | None = None


@dataclass(frozen=True, eq=False)
class Audited(Samples):
    """The audited samples that are handed over, in the order of the store.

    Args:
        role: [audited]; 0 audit, 1 fit, 2 concept only; None: all are role 0.
    """

    role: Array | None = None


@dataclass(frozen=True, eq=False)
class OddSamples:
    """Odd samples with what is visible of them.

    Args:
        samples: audited samples and landmarks of all tables.
        tables: by key of ``ODD_TABLES``.
    """

    samples: Samples
    tables: Mapping[str, OddTable]


@dataclass(frozen=True, eq=False)
class Influence:
    """Influence of landmarks on the audited samples, one row for each row of ``audited``.

    Args:
        top_landmark: [audited, rank], index among landmark SAMPLES (distinct ``sample_id`` in order
            of first appearance); -1: no further landmark.
        score: [audited, rank], the measure that ranks.
        contribution: [audited, rank], above 0 attraction, below 0 repulsion; None: unsigned.
        measure: ``is``, ``aligned``, ``unique`` or ``kernel``.
        kernel: [audited, landmark]; None: kernel values are not shown.
        embedding: [audited, component].
        repelling_landmark: [audited, repelled], the most repelling landmark samples,
            strongest first; -1: no further one repels; None: not measured.
        repelling: [audited, repelled], their signed values, below 0; 0 beside -1.
    """

    top_landmark: Array
    score: Array
    contribution: Array | None = None
    measure: str = "is"
    kernel: Array | None = None
    embedding: Array | None = None
    repelling_landmark: Array | None = None
    repelling: Array | None = None


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The landmark kernel's spectrum.

    Args:
        eigenvalues: [landmark], descending.
        rank: usable rank; -1: unknown.
        n_components: components kept; -1: unknown.
        nystrom_error: relative error of the Nystrom kernel on held-out samples.
        effective_dimension: at the damping that was used.
        entropy: normalised spectral entropy by name, such as ``{"start": .9, "step": .6}``.
    """

    eigenvalues: Array
    rank: int = -1
    n_components: int = -1
    nystrom_error: float = NOT_MEASURED
    effective_dimension: float = NOT_MEASURED
    entropy: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Newton:
    """The damped step, its sweep over dampings and its solver.

    Args:
        attributes: those of the store: objective, damping, damping_relative, metric, tolerance,
            loss_start, loss_step, predicted_decrease, rho, iterations, residual_norm, trusted, ...
        step: [landmark, component]; None: no gallery.
        residual: relative residual norm, [iteration]; None: direct solve.
        sweep: arrays over [damping] by name: damping, loss, predicted, rho, step_norm, stability.
    """

    attributes: Mapping[str, Any]
    step: Array | None = None
    residual: Array | None = None
    sweep: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StageRecord:
    """Cost of one stage: wall seconds, blocks, bytes written and in memory, digest, version, notes.

    ``peak_memory`` is anonymous memory at its peak, ``planned_memory`` what the plan counted.
    """

    name: str
    seconds: float = NOT_MEASURED
    blocks: int = -1
    bytes_written: int = -1
    digest: str = ""
    version: int = -1
    note: str = ""
    peak_memory: int = -1
    planned_memory: int = -1


@dataclass(frozen=True, eq=False)
class AuditData:
    """Everything that the report shows.

    Args:
        classes: class names; a label is an index into them.
        columns: the table's columns, in the order of ``values``.
        fidelity: figures by key, in reading order.
        curves: measured curves by key, in reading order.
        groups: group tables by column name.
        verdict: checks with a criterion each; None: the stage has not run.
        warnings: sentences, worst first.
        recipe_text: the recipe as it was run.
        versions: program or library -> version.
        record: anything else for the provenance panel: name -> words.
        cards: how many audited samples get a card of their own.
        embedding_map: the embeddings on a plane; None: it was not computed.
        discovered: concepts found without labels; None: the stage has not run.
        group_effects: effects of leaving out groups; None: the stage has not run.
        class_figures: landmarks of every class; None: no labels.
        sample_figures: figures of the samples that get a card.
        sample_concepts: concepts of the first samples, those that get a card; empty: not measured.
        odd: odd samples.
        random_weights: figures of networks with random weights: key -> label, value, most.
        random_fidelity: the same for figures of ``fidelity``: key -> value of the audited network
            on the rows of the comparison, draws, and low and high, a 95 % prediction interval.
        further: figures of the solution, distilled coefficients, deletions, convex weights.
        audited_columns: columns that the recipe audits; their rows stand on every table card.
        hidden: whether samples are hidden: aggregates only.
    """

    subject: Subject
    landmarks: Landmarks | None = None
    audited: Audited | None = None
    influence: Influence | None = None
    spectrum: Spectrum | None = None
    newton: Newton | None = None
    fidelity: Mapping[str, Figure] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    alignment: Alignment | None = None
    groups: Mapping[str, Groups] = field(default_factory=dict)
    concepts: Concepts | None = None
    verdict: Verdict | None = None
    stages: tuple[StageRecord, ...] = ()
    classes: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    warnings: tuple[str, ...] = ()
    recipe_text: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, str] = field(default_factory=dict)
    cards: int = 24
    embedding_map: EmbeddingMap | None = None
    discovered: DiscoveredConcepts | None = None
    group_effects: GroupEffects | None = None
    class_figures: ClassFigures | None = None
    sample_figures: SampleFigures | None = None
    sample_concepts: tuple[SampleConcepts, ...] = ()
    odd: OddSamples | None = None
    random_weights: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    random_fidelity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    further: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    audited_columns: tuple[str, ...] = ()
    hidden: bool = False
