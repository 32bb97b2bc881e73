"""Rows rounded where torch has them: the bits of the host, and its word where a row is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from krepes_ooc.core.feature_layout import FeatureLayout, sketch_layout
from krepes_ooc.errors import DataError, StageFailed
from krepes_ooc.jacobian.float16_rows import store_rows, store_rows_on_device

LAYOUT = FeatureLayout(sketch_layout(400).factors, ((0, 100, 3), (100, 400, -2)))


def rows(count: int = 50) -> np.ndarray:
    draw = np.random.default_rng(0)
    return (draw.normal(size=(count, 400)) * 2.0 ** draw.integers(-3, 3, 400)).astype(np.float32)


def test_the_bits_are_those_of_the_host():
    result, sound = store_rows_on_device(torch.from_numpy(rows()), LAYOUT)
    assert sound
    assert result.dtype == torch.float16
    assert result.numpy().tobytes() == store_rows(rows(), LAYOUT).tobytes()


@pytest.mark.parametrize(
    ("value", "error"), [(np.nan, DataError), (np.inf, DataError), (1e5, StageFailed)]
)
def test_a_wrong_row_is_left_to_the_host(value: float, error: type[Exception]):
    wrong = rows()
    wrong[7, 3] = value
    assert not store_rows_on_device(torch.from_numpy(wrong), LAYOUT)[1]
    with pytest.raises(error):
        store_rows(wrong, LAYOUT)


@pytest.mark.parametrize(("share", "sound"), [(0.005, True), (0.02, False)])
def test_what_is_lost_to_subnormals_is_counted_as_on_the_host(share: float, sound: bool):
    small = rows()
    small[:, :100].ravel()[:0] = 0  # zeros are no loss
    small[:5, 200:] = 0.0
    lost = int(share * 100 * len(small))
    small[np.arange(lost) % len(small), np.arange(lost) // len(small)] = 1e-7
    assert store_rows_on_device(torch.from_numpy(small), LAYOUT)[1] == sound
    if sound:
        store_rows(small, LAYOUT)
    else:
        with pytest.raises(StageFailed, match="subnormal"):
            store_rows(small, LAYOUT)


def test_nothing_but_the_verdict_comes_to_the_host():
    """torch's meta device has no numbers: all but the last line works there."""
    with pytest.raises(RuntimeError, match="meta"):
        store_rows_on_device(torch.empty(4, 400, device="meta"), LAYOUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__bool__", lambda tensor: False)
        result, sound = store_rows_on_device(torch.empty(4, 400, device="meta"), LAYOUT)
    assert sound
    assert result.device.type == "meta"
