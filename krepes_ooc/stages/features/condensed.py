"""Condensed rows: a short sketch of feature rows, from which landmarks are chosen.

Where feature rows are not stored, the landmark samplers still need distances between samples. A
condensed row has a few hundred columns, and inner products of condensed rows estimate the kernel.
For a sketch it is a count sketch of the row (Charikar et al. 2002); for exact factors the sum over
layers of a TensorSketch of [a, bias] (x) d (Pham and Pagh 2013): a circular convolution of two
count sketches, linear in the feature moment as the kernel is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.feature_layout import CONDENSED_WIDTH, FeatureLayout

_STREAM = 231
_LEFT = 0
_RIGHT = 1
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CountSketch:
    """The linear map from feature rows to condensed rows, fixed by its seed.

    Args:
        layout: the factors of a feature row.
        seed: key of positions and signs.
        n_columns: columns of a condensed row.
    """

    layout: FeatureLayout
    seed: int
    n_columns: int = CONDENSED_WIDTH

    def rows(self, features: Rows) -> Rows:
        """Condensed rows [sample, column] of unscaled feature rows [sample, feature]."""
        total = np.zeros((len(features), self.n_columns), dtype=np.float32)
        for factor, (left, right) in zip(self.layout.factors, self._maps, strict=True):
            # Count sketch of the gradients d of all probes.
            start = factor.gradients[0][0]
            stop = factor.gradients[-1][1]
            gradients = (right @ features[:, start:stop].T).T
            if left is None:
                total += gradients
                continue
            # Count sketch of the layer's input with its bias, [a, 1].
            assert factor.inputs is not None
            entry = features[:, slice(*factor.inputs)]
            if factor.bias:
                entry = np.concatenate([entry, np.ones((len(entry), 1), np.float32)], axis=1)
            # The sketch of the outer product is their circular convolution: a product of spectra.
            spectrum = np.fft.rfft((left @ entry.T).T) * np.fft.rfft(gradients)
            total += np.fft.irfft(spectrum, self.n_columns).astype(np.float32)
        return total

    @cached_property
    def _maps(self) -> list[tuple[Any, Any]]:
        """For each factor the count sketches of its input, if it has one, and of its gradients."""
        maps = []
        for index, factor in enumerate(self.layout.factors):
            width = sum(stop - start for start, stop in factor.gradients)
            left = None
            if factor.inputs is not None:
                entries = factor.inputs[1] - factor.inputs[0] + int(factor.bias)
                left = self._count_sketch(entries, index, _LEFT)
            maps.append((left, self._count_sketch(width, index, _RIGHT)))
        return maps

    def _count_sketch(self, width: int, *keys: int) -> Any:
        """The sparse matrix [column, entry] with one random sign in every column."""
        from scipy import sparse

        # Column and sign of an entry depend on seed, layer and side alone, not on the block.
        entry = np.arange(width)
        column = counter_rng.integers(self.seed, self.n_columns, _STREAM, *keys, _LEFT, entry)
        bit = counter_rng.bits(self.seed, _STREAM, *keys, _RIGHT, entry) >> np.uint64(63)
        signs = (1.0 - 2.0 * bit.astype(np.float64)).astype(np.float32)
        return sparse.csr_matrix((signs, (column, entry)), shape=(self.n_columns, width))
