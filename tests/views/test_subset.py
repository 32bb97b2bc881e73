"""Some samples of a source: indices from 0, views of their positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.open import open_source
from krepes_ooc.views.spec import ViewSpec
from krepes_ooc.views.subset import SourceSubset
from krepes_ooc.views.views import Views


def test_a_subset_gives_samples_and_views_of_its_positions(tmp_path: Path):
    source = open_source(SourceSpec("digits", limit=50), tmp_path, tmp_path)
    drawn = Views(ViewSpec(count=2, shift=1, noise=0.1), source, 7)
    subset = SourceSubset(source, np.array([3, 8, 40]), drawn)
    assert len(subset) == 3
    np.testing.assert_array_equal(subset.read([2, 0]), source.read(np.array([40, 3])))
    np.testing.assert_array_equal(subset.inputs(1), source.encode(source.read(np.array([8]))))
    wanted = drawn.batch(np.array([40, 8]), 5)
    for found, view in zip(subset.views([2, 1], 5), wanted, strict=True):
        np.testing.assert_array_equal(found, view)
    other = Views(drawn.spec, source, 9).batch(np.array([3]), 0)
    np.testing.assert_array_equal(drawn.with_seed(9).batch(np.array([3]), 0)[0], other[0])
    assert drawn.seed == 7
    for index in (3, -1, [0, 3]):
        with pytest.raises(IndexError, match="of 3 samples"):
            subset.read(index)
