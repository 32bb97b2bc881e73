"""Cases, draws and distances with which the algebra is compared with the dense oracle.

The oracle (tests/dense/) was written from the published formulas without a look at the package.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from krepes_ooc.stages.moments import sums
from krepes_ooc.stages.moments.moments import Moments
from tests import cases

TABLE = cases.cases()
every_case = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def relative(found: object, expected: object) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300))


def moments_of(case: cases.Case, block_rows: int = 8, sub_rows: int = 4) -> Moments:
    """The package's moments: blocks, sub-blocks, shifted sums, merged pairwise in a tree."""
    views, n_samples = list(case.kernels), case.kernels.shape[1]
    cuts = [slice(i, i + block_rows) for i in range(0, n_samples, block_rows)]
    shift = sums.block_shift([K[cuts[0]] for K in views])
    parts = [sums.moment_sums([K[cut] for K in views], shift, sub_rows) for cut in cuts]
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [sums.merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return Moments(*sums.finish(parts[0]), n_samples)
