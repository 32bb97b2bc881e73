"""The leverage sampler over the feature store: a uniform pilot, then one scoring pass.

Source: Musco and Musco (2017); Rudi, Calandriello, Carratino and Rosasco (2018), in the centred
cosine kernel on view 0, where k(x, x) = 1.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from krepes_ooc import counter
from krepes_ooc.algebra.landmarks import (
    choose_uniform,
    gumbel_keys,
    pilot_damping,
    pilot_whitening,
    top_m,
    unit_scores,
)
from krepes_ooc.blocks import Block
from krepes_ooc.stages.passes import Float, Ids, Passes
from krepes_ooc.storage.files import read_arrays, write_arrays

PILOT = 2
_PILOT_STREAM = 303
Best = tuple[Float, Ids]


class Leverage(Passes):
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
            n, min(n, PILOT * self.count), int(counter.bits(self.seed, _PILOT_STREAM))
        )
        pilot_kernel = self.kernel_between(pilot)
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

        return self.context.executor().fold(best, list(self.context.plan.blocks()), merge)[1]
