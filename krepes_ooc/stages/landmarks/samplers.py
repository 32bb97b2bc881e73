"""The k-means samplers over the feature store: a few passes, each resumable.

``KmeansParallel`` is k-means||: Bahmani, Moseley, Vattani, Kumar and Vassilvitskii (2012),
"Scalable k-means++". ``KmeansPlusPlus`` is the sequential original on a uniform pool: Arthur and
Vassilvitskii (2007). Squared distances are 2 - 2 k^ of the centred cosine kernel on view 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.blocks import Block
from krepes_ooc.core.files import read_arrays, write_arrays
from krepes_ooc.stages.landmarks.passes import Float, Ids, SelectionPasses
from krepes_ooc.stages.landmarks.sampling import (
    Seeding,
    choose_uniform,
    closest,
    extend_seeding,
    gumbel_keys,
    oversample,
    pilot_damping,
    pilot_whitening,
    reduce_candidates,
    seeding_trials,
    top_m,
    unit_scores,
)

POOL = 20
ROUND = 64
_FIRST_STREAM = 302
Distance = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Candidates:
    """What the rounds have found: candidates, and every sample's nearest one.

    Args:
        candidates: store rows, ascending.
        distance: squared distance to the nearest candidate [sample].
        owner: store row of that candidate [sample]; of equal ones the first that was drawn.
    """

    candidates: Ids
    distance: Distance
    owner: Ids

    def weights(self) -> Float:
        """Number of samples nearest to every candidate."""
        index = np.searchsorted(self.candidates, self.owner)
        return np.bincount(index, minlength=len(self.candidates)).astype(np.float64)


class KmeansParallel(SelectionPasses):
    """Candidates drawn in a few passes, then reduced by weighted k-means++."""

    def choose(self) -> tuple[Ids, Float]:
        """Store rows of the chosen candidates and the samples that each stands for."""
        rounds, n = self.context.settings.rounds, self.context.plan.n_samples
        self.context.progress.begin("landmarks", rounds + 2, 0)
        first = int(counter_rng.integers(self.seed, n, _FIRST_STREAM))
        new = np.array([first], dtype=np.int64)
        found = _Candidates(
            new[:0], np.full(n, np.inf, dtype=np.float32), np.zeros(n, dtype=np.int64)
        )
        for turn in range(rounds + 1):
            found = self._round(turn, found, new)
            self.context.progress.advance(1)
            if turn < rounds:
                new = np.setdiff1d(self._drawn(turn, found.distance), found.candidates)
        chosen, weight = reduce_candidates(
            self.kernel_to(found.candidates), found.weights(), self.count, self.seed
        )
        self.context.progress.advance(1)
        return found.candidates[chosen], weight

    def _round(self, turn: int, found: _Candidates, new: Ids) -> _Candidates:
        """Add the new candidates and update every sample's nearest; one pass, kept on disk."""
        path = self.partial(f"round-{turn:03d}")
        known = read_arrays(path)
        if known is not None:
            return _Candidates(**known)
        candidates = np.union1d(found.candidates, new).astype(np.int64)
        distance, owner = found.distance.copy(), found.owner.copy()
        if len(new):
            near = self.map(new)

            def update(block: Block) -> Float:
                return self.per_rows(block, near, closest)

            blocks = list(self.context.plan.blocks())
            for block, away in zip(
                blocks, self.context.executor().map(update, blocks), strict=True
            ):
                closer = np.flatnonzero(away[:, 0] < distance[block.start : block.stop])
                distance[block.start + closer] = away[closer, 0]
                owner[block.start + closer] = new[away[closer, 1].astype(np.int64)]
        result = _Candidates(candidates, distance, owner)
        write_arrays(path, vars(result), self.context.record.temp)
        return result

    def _drawn(self, turn: int, distance: Distance) -> Ids:
        """Store rows that one round draws, keyed by sample id."""
        total = float(distance.sum(dtype=np.float64))
        if total <= 0:
            return np.empty(0, dtype=np.int64)
        expected = self.context.settings.oversampling * self.count
        drawn = [
            block.start
            + np.flatnonzero(
                oversample(
                    distance[block.start : block.stop].astype(np.float64),
                    np.array(self.features.block("sample_id", block)),
                    total,
                    expected,
                    self.seed,
                    turn,
                )
            )
            for block in self.context.plan.blocks()
        ]
        return np.concatenate(drawn).astype(np.int64)


class KmeansPlusPlus(SelectionPasses):
    """One landmark after the other, each drawn by its distance to those before it."""

    def choose(self) -> tuple[Ids, Float]:
        """Store rows in order of choice and the samples that each stands for."""
        pool = choose_uniform(self.context.plan.n_samples, self.pool_size, self.seed)
        self.context.progress.begin("landmarks", -(-self.count // ROUND) + 2, 0)
        chosen = pool[self._seeded(pool).chosen]
        weights = self.weights(chosen)
        self.context.progress.advance(1)
        return chosen, weights

    @property
    def pool_size(self) -> int:
        """Samples that may become landmarks."""
        return min(self.context.plan.n_samples, POOL * self.count)

    def _seeded(self, pool: Ids) -> Seeding:
        """The choice, ``ROUND`` landmarks at a time, each round kept on disk."""
        against = self.kernel_among(self.read_rows(pool))
        ones, path = np.ones(len(pool)), self.partial("seeding")
        known = read_arrays(path)
        seeding = Seeding.begin(len(pool)) if known is None else Seeding(**known)
        while len(seeding.chosen) < self.count:
            self.context.stop.check()
            upto = min(self.count, len(seeding.chosen) + ROUND)
            trials = seeding_trials(self.count)
            seeding = extend_seeding(seeding, against, ones, ones, upto, self.seed, trials)
            write_arrays(path, vars(seeding), self.context.record.temp)
            self.context.progress.advance(1)
        return seeding


PILOT = 2
_PILOT_STREAM = 303
Best = tuple[Float, Ids]


class Leverage(SelectionPasses):
    """Landmarks drawn without replacement by approximate ridge leverage scores."""

    def choose(self) -> tuple[Ids, Float]:
        """Store rows of the landmarks and the samples that each stands for."""
        self.context.progress.begin("landmarks", 3, 0)
        path = self.partial("scores")
        known = read_arrays(path)
        if known is None:
            known = {"rows": self._drawn()}
            write_arrays(path, known, self.context.record.temp)
        self.context.progress.advance(1)
        weights = self.weights(known["rows"])
        self.context.progress.advance(1)
        return known["rows"], weights

    def _drawn(self) -> Ids:
        """The store rows with the largest keys; one pass."""
        n = self.context.plan.n_samples
        pilot = choose_uniform(
            n, min(n, PILOT * self.count), int(counter_rng.bits(self.seed, _PILOT_STREAM))
        )
        pilot_kernel = self.kernel_to(pilot)
        values = np.linalg.eigvalsh(pilot_kernel).astype(np.float64)
        damping = pilot_damping(values, n, len(pilot), self.count)
        whitening, mapped = pilot_whitening(pilot_kernel, n, damping), self.map(pilot)
        score = partial(unit_scores, whitening=whitening, damping=damping)

        def best(block: Block) -> Best:
            scores = self.per_rows(block, mapped, score)
            keys = gumbel_keys(np.log(scores), self.features.block("sample_id", block), self.seed)
            return top_m(keys, np.arange(block.start, block.stop), self.count)

        def merge(left: Best, right: Best) -> Best:
            keys, rows = np.append(left[0], right[0]), np.append(left[1], right[1])
            return top_m(keys, rows, self.count)

        return self.context.executor().reduce(best, list(self.context.plan.blocks()), merge)[1]
