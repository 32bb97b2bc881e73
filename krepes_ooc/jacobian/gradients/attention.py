"""Multi-head attention whose projections can be recorded.

torch's layer applies its projections functionally, so that no hook sees them. This one has the same
parameters, the same arguments and the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Projection:
    """Rows of a weight and of a bias, by their names inside the attention layer.

    Args:
        weight: name of the weight.
        bias: name of the bias, if there is one.
        weight_start: first row of the weight.
        bias_start: first entry of the bias.
        size: number of rows.
    """

    weight: str
    bias: str | None
    weight_start: int
    bias_start: int
    size: int


ProjectionRecorder = Callable[[str, Projection, torch.Tensor, torch.Tensor], torch.Tensor]


def can_record(layer: nn.Module) -> bool:
    """Whether the layer is torch's attention without bias_k, bias_v and add_zero_attn."""
    return type(layer) is nn.MultiheadAttention and layer.bias_k is None and not layer.add_zero_attn


def record_attention(layer: nn.Module, name: str, record: ProjectionRecorder) -> None:
    """Replace the class of torch's attention layer, in place, by one that records projections."""
    # The parameters stay where they are, so names and weights are the user's.
    layer.__class__ = RecordedAttention
    layer._krepes_name = name  # type: ignore[assignment]
    layer._krepes_record = record  # type: ignore[assignment]


class RecordedAttention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` in eval mode, with recorded projections."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention result and weights, as ``torch.nn.MultiheadAttention`` returns them."""
        # Identity must be seen before the tensors are reshaped.
        same = query is key and key is value
        batched = query.ndim == 3
        # Everything below is [sample, token, entry].
        if not batched:
            query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
        elif not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        mask = self._mask(attn_mask, key_padding_mask, query)
        q, k, v = (self._heads(x) for x in self._inputs(query, key, value, same))
        if is_causal and attn_mask is None:
            # -inf above the diagonal: no token sees a later one.
            causal = q.new_full((q.shape[2], k.shape[2]), -torch.inf).triu(1)
            mask = causal if mask is None else causal + mask
        if need_weights:
            # softmax(q k^T / sqrt(d)) v, written out because the weights are returned.
            scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            mixed = weights @ v
            returned = weights.mean(dim=1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask)
            returned = None
        # Heads back to one axis, then the output projection.
        mixed = mixed.transpose(1, 2).flatten(2)
        out = self.out_proj
        result = self._project(mixed, "out_proj.weight", "out_proj.bias", out.weight, out.bias)
        if not batched:
            return result.squeeze(0), None if returned is None else returned.squeeze(0)
        return result if self.batch_first else result.transpose(0, 1), returned

    def _inputs(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, same: bool
    ) -> tuple[torch.Tensor, ...]:
        """Query, key and value after their input projections [sample, token, entry]."""
        size = self.embed_dim
        weight = self.in_proj_weight
        bias = self.in_proj_bias
        if same and self._qkv_same_embed_dim:
            # Self-attention: one product with the stacked weights, as torch does it.
            joint = self._project(query, "in_proj_weight", "in_proj_bias", weight, bias)
            return joint.chunk(3, dim=-1)
        results = []
        for index, (letter, inputs) in enumerate(zip("qkv", (query, key, value), strict=True)):
            start = index * size
            part_bias = None if bias is None else bias[start : start + size]
            # Weights are rows of one stacked matrix, or three matrices; biases are always stacked.
            if self._qkv_same_embed_dim:
                leaf = "in_proj_weight"
                first = start
                part = weight[start : start + size]
            else:
                leaf = f"{letter}_proj_weight"
                first = 0
                part = getattr(self, leaf)
            results.append(
                self._project(inputs, leaf, "in_proj_bias", part, part_bias, (first, start))
            )
        return tuple(results)

    def _project(
        self,
        inputs: torch.Tensor,
        weight_name: str,
        bias_name: str,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        starts: tuple[int, int] = (0, 0),
    ) -> torch.Tensor:
        """A linear projection of inputs[..., entry], recorded under its parameters' names."""
        result = functional.linear(inputs, weight, bias)
        projection = Projection(
            weight_name, None if bias is None else bias_name, *starts, weight.shape[0]
        )
        record: Any = self._krepes_record
        # The recorder returns the tensor whose graph edge it keeps.
        recorded: torch.Tensor = record(self._krepes_name, projection, inputs, result)
        return recorded

    def _heads(self, joint: torch.Tensor) -> torch.Tensor:
        """[sample, token, entry] -> [sample, head, token, entry of the head]."""
        shape = (*joint.shape[:2], self.num_heads, self.head_dim)
        return joint.reshape(shape).transpose(1, 2)

    def _mask(
        self,
        attn_mask: torch.Tensor | None,
        key_padding_mask: torch.Tensor | None,
        query: torch.Tensor,
    ) -> torch.Tensor | None:
        """One additive mask that broadcasts against scores[sample, head, query, key]."""
        total = None
        if attn_mask is not None:
            total = _additive(attn_mask, query.dtype)
            # Masks per head come as [sample * head, query, key].
            if total.ndim == 3:
                total = total.reshape(query.shape[0], self.num_heads, *total.shape[1:])
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, query.dtype)[:, None, None, :]
            total = padding if total is None else total + padding
        return total


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
