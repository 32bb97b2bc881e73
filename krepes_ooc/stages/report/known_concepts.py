"""Concepts of explained samples: how far landmarks move them along given and discovered ones.

    s_ct = sum_l k_lt <dA_l, v_c>          displacement of sample t by the step along concept c

For a given concept v_c is the unit normal of its classifier, in store concepts. For a discovered
one it is the unit direction of the embedding in which its activation rises,

    v_c ~ sum_t (f_t - mean f) (a_tc - mean a_c)          over the audited samples,

the pattern that belongs to a linear activation (Haufe et al. 2014, "On the interpretation of weight
vectors of linear models in multivariate neuroimaging"). Only small stores are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.kernel_values import FAR
from krepes_ooc.rendering.data import Landmarks
from krepes_ooc.rendering.drawing.sample_view import LandmarkSamples
from krepes_ooc.rendering.sample_concepts import ConceptScore, SampleConcepts
from krepes_ooc.stages.discovery.concept_map import ConceptMap
from krepes_ooc.stages.discovery.stored_concepts import read_concept_map
from krepes_ooc.stages.influence.scores import unit_rows
from krepes_ooc.storage.store_reader import StoreReader

GIVEN = "given"
DISCOVERED = "discovered"
Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KnownConcepts:
    """Concepts of an audit.

    Args:
        names: of all, given ones first.
        kinds: ``given`` or ``discovered``.
        kept_as: names that people gave.
        reliable: recognised, or stable.
        vectors: v_c [concept, component]; 0 for a given one that is not recognised.
        activation: of the discovered ones; None: there are none.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    kept_as: tuple[tuple[str, ...], ...]
    reliable: tuple[bool, ...]
    vectors: Float
    activation: ConceptMap | None

    @classmethod
    def of_stores(
        cls,
        influence: StoreReader,
        concepts: StoreReader | None,
        discovery: StoreReader | None,
        examples: StoreReader | None,
        kept_as: Mapping[int, tuple[str, ...]],
    ) -> KnownConcepts | None:
        """The concepts of an audit; None: it has none yet.

        Args:
            influence: store, for the embedding of the audited samples.
            concepts: given concepts; None: not computed.
            discovery: discovered concepts; None: not computed.
            examples: activations of the audited samples; None: they are computed here.
            kept_as: number of a discovered concept -> names that people gave.
        """
        given = None if concepts is None else _given(concepts)
        found = None if discovery is None else _discovered(discovery, influence, examples, kept_as)
        parts = [part for part in (given, found) if part is not None]
        if not parts:
            return None
        return cls(
            tuple(name for part in parts for name in part.names),
            tuple(kind for part in parts for kind in part.kinds),
            tuple(names for part in parts for names in part.kept_as),
            tuple(each for part in parts for each in part.reliable),
            np.concatenate([part.vectors for part in parts]),
            found.activation if found is not None else None,
        )

    def of_samples(
        self, kernel: Float, step: Float, landmarks: Landmarks, by_landmark: bool = True
    ) -> list[SampleConcepts]:
        """Concepts of some samples.

        Args:
            kernel: normalised kernel rows [sample, landmark].
            step: dA [landmark, component].
            landmarks: as people see them; rows of one sample's views are added.
            by_landmark: whether the part of every landmark is given too.
        """
        along = self.vectors @ step.T
        rows = LandmarkSamples(landmarks)
        n_given = self.kinds.count(GIVEN)
        activation = None if self.activation is None else self.activation.activation(kernel)
        found = []
        for i, k in enumerate(kernel):
            # k_lt <dA_l, v_c> [concept, landmark], then by landmark sample
            parts = rows.total(k * along)
            a = np.full(len(self.names), np.nan)
            if activation is not None:
                a[n_given:] = activation[i]
            # A sample that no landmark is near shows no concept: its activation is a constant.
            near = activation is not None and float(np.abs(k).max()) >= FAR
            shown = n_given + int(np.argmax(a[n_given:])) if near else -1
            found.append(
                SampleConcepts(
                    self._scores(parts.sum(axis=1), a, shown),
                    self._by_landmark(parts, rows.first_row) if by_landmark else {},
                )
            )
        return found

    def _by_landmark(self, parts: Float, first_row: Index) -> dict[int, dict[str, float]]:
        """Landmark row -> name of the concept -> its part of the score."""
        return {
            int(row): dict(zip(self.names, parts[:, place].tolist(), strict=True))
            for place, row in enumerate(first_row)
        }

    def _scores(self, total: Float, activation: Float, shown: int) -> Sequence[ConceptScore]:
        """Scores of one sample, one for each concept."""
        return [
            ConceptScore(
                name,
                self.kinds[c],
                self.kept_as[c],
                self.reliable[c],
                float(total[c]),
                float(activation[c]),
                c == shown,
            )
            for c, name in enumerate(self.names)
        ]


def discovered_directions(embedding: Float, activation: Float) -> Float:
    """Unit directions v_c in which activations rise [concept, component]; 0 where they do not.

    Args:
        embedding: f of samples [sample, component].
        activation: a of the same samples [sample, concept].
    """
    rising = (activation - activation.mean(axis=0)).T @ (embedding - embedding.mean(axis=0))
    return np.asarray(unit_rows(rising))


def _given(store: StoreReader) -> KnownConcepts:
    names = tuple(str(name) for name in store.attributes["names"])
    return KnownConcepts(
        names,
        (GIVEN,) * len(names),
        ((),) * len(names),
        tuple(bool(value) for value in store.array("trusted")),
        store.array("vector"),
        None,
    )


def _discovered(
    store: StoreReader,
    influence: StoreReader,
    examples: StoreReader | None,
    kept_as: Mapping[int, tuple[str, ...]],
) -> KnownConcepts | None:
    """Discovered concepts, under their numbers; None: discovery found none."""
    if not store.attributes["defined"]:
        return None
    concepts = read_concept_map(store)
    # Stage examples has them already; kernel rows are the larger read.
    if examples is not None:
        activation = examples.array("activation")
    else:
        activation = concepts.activation(influence.whole("kernel"))
    count = len(concepts.const)
    return KnownConcepts(
        tuple(f"concept {number}" for number in range(count)),
        (DISCOVERED,) * count,
        tuple(kept_as.get(number, ()) for number in range(count)),
        tuple(bool(value) for value in store.array("stable")),
        discovered_directions(influence.array("embedding"), activation),
        concepts,
    )
