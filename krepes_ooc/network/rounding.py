"""The stored form of feature rows where torch has computed them: rounded and looked at there."""

from __future__ import annotations

import torch

from krepes_ooc.layout import FeatureLayout
from krepes_ooc.network.features import SUBNORMAL_SHARE

_MAGNITUDE, _INFINITY, _NORMAL = 0x7FFF, 0x7C00, 0x400  # bits of float16


def rounded_there(features: torch.Tensor, layout: FeatureLayout) -> tuple[torch.Tensor, bool]:
    """The bits of ``store_rows``, on the device of the rows, and whether nothing is suspicious.

    Where something is, ``store_rows`` decides and says what: only that bit comes to the host.

    Args:
        features: unscaled rows [sample, feature], float32.
        layout: the layout with its calibrated scales.
    """
    scale = torch.empty(layout.n_features, dtype=torch.float32, device=features.device)
    for start, stop, exponent in layout.scales:
        scale[start:stop] = 2.0**exponent
    scaled = features * scale
    stored = scaled.to(torch.float16)
    magnitude = stored.view(torch.int16) & _MAGNITUDE
    subnormal = torch.count_nonzero((magnitude > 0) & (magnitude < _NORMAL))
    lost = subnormal + torch.count_nonzero(scaled) - torch.count_nonzero(magnitude)
    narrowest = min(stop - start for start, stop, _ in layout.scales) * len(stored)
    wrong = (magnitude >= _INFINITY).any() | (lost > SUBNORMAL_SHARE * narrowest)
    return stored, not bool(wrong)
