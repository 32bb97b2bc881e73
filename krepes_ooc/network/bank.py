"""The bank of rows: those with the smallest keyed hash.

A uniform draw without replacement that depends on the number of rows alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from krepes_ooc import counter

Int64 = npt.NDArray[np.int64]
BANK_ROWS = 4_096
_BANK_SEED, _HASH_ROWS = 0x6B72, 2**20


def bank_positions(n_samples: int) -> Int64:
    """Positions of the bank's rows, ascending: those with the smallest keyed hash."""
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, n_samples, _HASH_ROWS):
        kept = np.concatenate([kept, np.arange(start, min(start + _HASH_ROWS, n_samples))])
        if kept.size > BANK_ROWS:
            order = np.argsort(counter.bits(_BANK_SEED, kept), kind="stable")
            kept = kept[order[:BANK_ROWS]]
    return np.sort(kept)
