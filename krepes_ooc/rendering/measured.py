"""Results of the last stages: alignment gaps, group tables, concepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# The controls of an alignment gap, by field of ``Alignment``: the head of a column, and what it is.
ALIGNMENT_CONTROLS = {
    "chance": ("chance", "how far the gap scatters if the column is shuffled over the landmarks"),
    "kernel_only": ("plain kernel", "ranked by the kernel value alone, no objective"),
    "network_gap": ("by network", "ranked by the centred cosine of the network's own embeddings"),
    "input_gap": (
        "by inputs",
        "ranked by the cosine of the inputs, without any network: what is no larger than this was "
        "in the data before",
    ),
    "random_most": (
        "random weights",
        "the most that one more network with random weights would reach (95 % prediction interval)",
    ),
    "weighted": ("weighted", "both means weighted by |k|"),
    "paper": ("paper", "the literal form of the paper: the gap of |k| times the agreement"),
    "repelling": ("repelling", "the gap of the most repelling landmarks"),
    "repelling_kernel": (
        "least kernel",
        "the gap of the landmarks of smallest kernel: the control of repelling, without the step",
    ),
}
# The controls of a concept's accuracy, by their key: the head of a column.
CONCEPT_CONTROLS = {
    "chance": "random concepts",
    "chance_high": "random, at most",
    "p_value": "p",
    "accuracy_start": "at the start",
    "accuracy_network": "network",
    "accuracy_inputs": "inputs",
}


@dataclass(frozen=True, eq=False)
class Alignment:
    """Alignment gaps and their controls, each [column] (NaN: not measured; None: no such control).

    Args:
        gap: agreement with the top landmarks minus agreement with all.
        stderr: its standard error over samples.
        kernel_only: the gap with landmarks ranked by the kernel alone.
        weighted: both means weighted by the kernel's size.
        chance: scatter of the gap if the column is shuffled over the landmarks.
        difference_stderr: standard error of gap minus kernel_only.
        network_gap: ranked by the network's own embeddings.
        input_gap: ranked by the network's inputs.
        repelling: the gap of the landmarks that repel most.
        repelling_kernel: of the landmarks of smallest kernel, its control.
        paper: the gap in the paper's literal form, of |k| times the agreement.
        random_most: upper end of the 95 % prediction interval of a network with random weights.
        names: what is aligned; empty: ``columns``. The last one may be the label.
        notes: name -> why its gap is not defined.
    """

    gap: Array
    stderr: Array
    kernel_only: Array
    weighted: Array | None = None
    chance: Array | None = None
    difference_stderr: Array | None = None
    network_gap: Array | None = None
    input_gap: Array | None = None
    repelling: Array | None = None
    names: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    repelling_kernel: Array | None = None
    paper: Array | None = None
    random_most: Array | None = None


@dataclass(frozen=True, eq=False)
class Groups:
    """Group table of one column, from the group of the sample to that of the landmark.

    Args:
        categories: names; none: the table is not defined, and ``note`` says why.
        samples: audited samples of every group, [group].
        landmarks: landmarks of every group, [group].
        share: of the top landmarks' influence, [group, group]; NaN: no sample.
        stderr: its standard error over samples, [group, group].
        kernel_only: the same share ranked by the kernel alone, [group, group].
        chance: share of every group among the landmarks, [group].
        note: what a reader must know.
        by_network: share among the nearest landmarks in the network's embedding, [group, group].
        by_inputs: the same in the network's inputs; None: inputs are long, or an earlier version.
        random_weights: share among the top landmarks of networks with random weights, mean over
            the networks, [group, group].
    """

    categories: tuple[str, ...] = ()
    samples: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    landmarks: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    share: Array = field(default_factory=lambda: np.zeros((0, 0)))
    stderr: Array = field(default_factory=lambda: np.zeros((0, 0)))
    kernel_only: Array = field(default_factory=lambda: np.zeros((0, 0)))
    chance: Array = field(default_factory=lambda: np.zeros(0))
    note: str = ""
    by_network: Array | None = None
    by_inputs: Array | None = None
    random_weights: Array | None = None

    @classmethod
    def from_attributes(cls, table: Mapping[str, Any]) -> Groups:
        """A table as a store keeps it; one that is not defined has its note alone."""
        if "share" not in table:
            return cls(note=table["note"])
        # Audits of earlier versions lack the shares of other rankings
        others = [name for name in ("by_network", "by_inputs") if name in table]
        shares = ("share", "stderr", "kernel_only", "chance", *others)
        return cls(
            categories=tuple(table["categories"]),
            note=table["note"],
            **{key: np.array(table[key], dtype=np.int64) for key in ("samples", "landmarks")},
            **{key: np.array(table[key], dtype=np.float64) for key in shares},
        )


@dataclass(frozen=True, eq=False)
class Concepts:
    """Concepts and whether they are recognised.

    Args:
        names: of the concepts.
        accuracy: held-out accuracy of the concept vector, [concept].
        score: displacement of a sample by the step along the concept, [audited, concept]; None:
            samples are hidden.
        trusted: whether it is recognised better than by chance, [concept]; None: all are.
        controls: key of ``CONCEPT_CONTROLS`` -> [concept]; NaN: not measured.
        landmark_score: [concept, landmark]; None: not shown.
        mean_score: mean over the explained samples where ``score`` is hidden, [concept].
    """

    names: tuple[str, ...]
    accuracy: Array
    score: Array | None
    trusted: Array | None = None
    controls: Mapping[str, Array] = field(default_factory=dict)
    landmark_score: Array | None = None
    mean_score: Array | None = None
