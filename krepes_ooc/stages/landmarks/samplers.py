"""Samplers of landmarks over the features store: a few passes, each resumable.

``KmeansParallel`` is k-means||: Bahmani, Moseley, Vattani, Kumar and Vassilvitskii (2012),
"Scalable k-means++". ``KmeansPlusPlus`` is the sequential original on a uniform pool: Arthur and
Vassilvitskii (2007). ``Leverage`` draws by approximate ridge leverage scores. Squared distances are
2 - 2 k^ of the centred cosine kernel on view 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.blocks import Block
from krepes_ooc.stages.base.writing import read_partial, write_partial
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

POOL = 20  # samples of the pool of k-means++ per landmark
ROUND = 64  # landmarks of k-means++ between two checkpoints
PILOT = 2  # pilot samples of the leverage scores per landmark
_FIRST_STREAM = 302
_PILOT_STREAM = 303
Distance = npt.NDArray[np.float32]
LargestKeys = tuple[Float, Ids]


@dataclass(frozen=True)
class _Candidates:
    """Candidates of k-means|| so far, and the nearest one of every sample.

    Args:
        candidates: store rows, ascending.
        distance: squared distance to the nearest candidate [sample].
        owner: store row of that candidate [sample]; of equally near ones the first drawn.
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

    def choose(self) -> Ids:
        """Store rows of the chosen candidates, in order of choice."""
        rounds = self.context.settings.rounds
        n_samples = self.context.plan.n_samples
        self.context.progress.begin("landmarks", rounds + 3, 0)
        # The first candidate is uniform; each round draws the next ones by squared distance.
        first = int(counter_rng.integers(self.seed, n_samples, _FIRST_STREAM))
        new = np.array([first], dtype=np.int64)
        state = _Candidates(
            new[:0],
            np.full(n_samples, np.inf, dtype=np.float32),
            np.zeros(n_samples, dtype=np.int64),
        )
        for turn in range(rounds + 1):
            state = self._round(turn, state, new)
            self.context.progress.advance(1)
            if turn < rounds:
                new = np.setdiff1d(self._drawn(turn, state.distance), state.candidates)
        # Weighted k-means++ among the candidates, each weighted by the samples nearest to it.
        chosen, _ = reduce_candidates(
            self.kernel_among(state.candidates), state.weights(), self.count, self.seed
        )
        self.context.progress.advance(1)
        return state.candidates[chosen]

    def _round(self, turn: int, state: _Candidates, new: Ids) -> _Candidates:
        """Add new candidates and update the nearest one of every sample; one pass, checkpointed."""
        path = self.partial(f"round-{turn:03d}")
        known = read_partial(self.context, path)
        if known is not None:
            return _Candidates(**known)
        candidates = np.union1d(state.candidates, new).astype(np.int64)
        distance = state.distance.copy()
        owner = state.owner.copy()
        if len(new):
            to_new = self.kernel_to(new)

            def closest_new(block: Block) -> Float:
                return self.per_rows(block, to_new, closest)

            blocks = list(self.context.plan.blocks())
            results = self.context.executor().map(closest_new, blocks)
            for block, nearest_new in zip(blocks, results, strict=True):
                # Strictly closer: of equally near candidates the earlier one stays the owner.
                closer = np.flatnonzero(nearest_new[:, 0] < distance[block.start : block.stop])
                distance[block.start + closer] = nearest_new[closer, 0]
                owner[block.start + closer] = new[nearest_new[closer, 1].astype(np.int64)]
        result = _Candidates(candidates, distance, owner)
        write_partial(self.context, path, vars(result))
        return result

    def _drawn(self, turn: int, distance: Distance) -> Ids:
        """Store rows that one round draws, keyed by sample id."""
        total = float(distance.sum(dtype=np.float64))
        if total <= 0:
            return np.empty(0, dtype=np.int64)
        # p_i = min(1, l d_i / sum d), independent for every sample.
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

    def choose(self) -> Ids:
        """Store rows in order of choice."""
        pool = choose_uniform(self.context.plan.n_samples, self.pool_size, self.seed)
        self.context.progress.begin("landmarks", -(-self.count // ROUND) + 1, 0)
        return pool[self._seeded(pool).chosen]

    @property
    def pool_size(self) -> int:
        """Number of samples that landmarks are chosen from."""
        return min(self.context.plan.n_samples, POOL * self.count)

    def _seeded(self, pool: Ids) -> Seeding:
        """The seeding of k-means++ on the pool, checkpointed every ``ROUND`` landmarks."""
        kernel_rows = self.kernel_rows_among(self.read_rows(pool))
        ones = np.ones(len(pool))
        path = self.partial("seeding")
        known = read_partial(self.context, path)
        seeding = Seeding.begin(len(pool)) if known is None else Seeding(**known)
        while len(seeding.chosen) < self.count:
            self.context.stop.check()
            target = min(self.count, len(seeding.chosen) + ROUND)
            trials = seeding_trials(self.count)
            # k(x, x) is 1 in the cosine kernel, and so is the weight of a sample of the pool.
            seeding = extend_seeding(seeding, kernel_rows, ones, ones, target, self.seed, trials)
            write_partial(self.context, path, vars(seeding))
            self.context.progress.advance(1)
        return seeding


class Leverage(SelectionPasses):
    """Landmarks drawn without replacement by approximate ridge leverage scores."""

    def choose(self) -> Ids:
        """Store rows of the landmarks, largest key first."""
        self.context.progress.begin("landmarks", 2, 0)
        path = self.partial("scores")
        known = read_partial(self.context, path)
        if known is None:
            known = {"rows": self._drawn()}
            write_partial(self.context, path, known)
        self.context.progress.advance(1)
        chosen: Ids = known["rows"]
        return chosen

    def _drawn(self) -> Ids:
        """The store rows with the largest keys; one pass."""
        # A uniform pilot sample stands for the kernel of all n samples.
        n = self.context.plan.n_samples
        pilot_seed = int(counter_rng.bits(self.seed, _PILOT_STREAM))
        pilot = choose_uniform(n, min(n, PILOT * self.count), pilot_seed)
        pilot_kernel = self.kernel_among(pilot)
        values = np.linalg.eigvalsh(pilot_kernel).astype(np.float64)
        # Ridge leverage scores with the damping at which about m of them are large.
        damping = pilot_damping(values, n, len(pilot), self.count)
        whitening = pilot_whitening(pilot_kernel, n, damping)
        score = partial(unit_scores, whitening=whitening, damping=damping)
        to_pilot = self.kernel_to(pilot)

        def largest(block: Block) -> LargestKeys:
            # The m largest Gumbel keys are a draw without replacement in proportion to the scores.
            scores = self.per_rows(block, to_pilot, score)
            keys = gumbel_keys(np.log(scores), self.features.block("sample_id", block), self.seed)
            return top_m(keys, np.arange(block.start, block.stop), self.count)

        def merge(left: LargestKeys, right: LargestKeys) -> LargestKeys:
            keys = np.append(left[0], right[0])
            rows = np.append(left[1], right[1])
            return top_m(keys, rows, self.count)

        return self.context.executor().reduce(largest, list(self.context.plan.blocks()), merge)[1]
