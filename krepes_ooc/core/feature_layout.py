"""The layout of a feature row: which columns are which factor of the kernel.

A feature row is either a sketch (the kernel is a plain inner product) or the exact per-layer
factors of an all-Linear network, where for layers l and probes r

    k(x, x') = sum_l (<a_l, a'_l> + bias_l) sum_r <d_lr, d'_lr>

with a_l the input of layer l and d_lr the gradient of probe r at its output. A sketch is the
special case of one layer without input factor. Source of the identity: the chain rule; the gradient
with respect to a Linear layer's weight is the outer product of d and a, to its bias it is d.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONDENSED_WIDTH = 256


@dataclass(frozen=True)
class LayerFactor:
    """One layer: columns [start, stop) of its input and of each probe's gradient.

    Args:
        inputs: columns of a_l, or None if the layer has no input factor.
        bias: whether 1 is added to <a, a'> (the layer's bias, or a plain sketch).
        gradients: columns of d_lr, one range for each probe r.
    """

    inputs: tuple[int, int] | None
    bias: bool
    gradients: tuple[tuple[int, int], ...]

    @property
    def moment_size(self) -> int:
        """Numbers of mean([a, bias]^T d) summed over probes."""
        # [a, bias]^T d has one row for each input column and one for the bias.
        rows = (self.inputs[1] - self.inputs[0] if self.inputs else 0) + int(self.bias)
        return rows * sum(stop - start for start, stop in self.gradients)


@dataclass(frozen=True)
class FeatureLayout:
    """All factors of a feature row and the power-of-two scale of every column range.

    Args:
        factors: the layers, in network order.
        scales: (start, stop, exponent) for every column range; a stored value is
            2**exponent times the feature.
    """

    factors: tuple[LayerFactor, ...]
    scales: tuple[tuple[int, int, int], ...]

    @property
    def n_features(self) -> int:
        """Columns of a feature row."""
        return max(stop for _, stop, _ in self.scales)

    @property
    def n_moments(self) -> int:
        """Numbers in the centre: the feature itself for a sketch, a matrix a layer for factors."""
        return sum(factor.moment_size for factor in self.factors)

    @property
    def is_sketch(self) -> bool:
        """Whether the kernel is the plain inner product of two rows."""
        return len(self.factors) == 1 and self.factors[0].inputs is None

    def with_scales(self, exponents: tuple[int, ...]) -> FeatureLayout:
        """The same layout with new exponents, one for each column range.

        Raises:
            ValueError: the number of exponents is not the number of ranges.
        """
        if len(exponents) != len(self.scales):
            raise ValueError(f"{len(exponents)} exponents for {len(self.scales)} column ranges")
        pairs = zip(self.scales, exponents, strict=True)
        return FeatureLayout(self.factors, tuple((a, b, int(e)) for (a, b, _), e in pairs))

    def to_attributes(self) -> dict[str, Any]:
        """The layout as JSON, for the store's attributes."""
        # Spelled out rather than by asdict: these keys are stored and read by later versions.
        factors = [
            {
                "inputs": f.inputs and list(f.inputs),
                "bias": f.bias,
                "gradients": [list(g) for g in f.gradients],
            }
            for f in self.factors
        ]
        return {"factors": factors, "scales": [list(scale) for scale in self.scales]}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> FeatureLayout:
        """The layout that a store was written with."""
        # JSON has lists only: ranges become tuples again, so that layouts compare and hash.
        factors = tuple(
            LayerFactor(
                inputs=tuple(f["inputs"]) if f["inputs"] else None,
                bias=bool(f["bias"]),
                gradients=tuple((int(a), int(b)) for a, b in f["gradients"]),
            )
            for f in attributes["factors"]
        )
        return cls(factors, tuple((int(a), int(b), int(e)) for a, b, e in attributes["scales"]))


def sketch_layout(n_features: int) -> FeatureLayout:
    """The layout of a plain sketch of ``n_features`` columns, unscaled."""
    # Without an input factor, <a, a'> + bias is the constant 1.
    return FeatureLayout((LayerFactor(None, True, ((0, n_features),)),), ((0, n_features, 0),))


def exponent_for(largest: float, target: float = 256.0) -> int:
    """The exponent e for which 2**e times ``largest`` is nearest below ``target`` (0 for 0)."""
    return math.floor(math.log2(target / largest)) if largest > 0 and math.isfinite(largest) else 0
