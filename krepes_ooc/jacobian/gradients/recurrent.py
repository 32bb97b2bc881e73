"""Recurrent layers whose products with their weights can be recorded.

torch's LSTM, GRU and RNN run all steps in one call, so that no hook sees a step. Here they run step
by step, with the same parameters, arguments and result. With d_t the gradient at W_ih x_t and e_t
that at W_hh h_{t-1}, dL/dW_ih = sum_t d_t x_t^T and dL/dW_hh = sum_t e_t h_{t-1}^T: outer products
over steps, as those of a linear layer over positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from krepes_ooc.jacobian.gradients.attention import Projection, ProjectionRecorder

_KINDS = (nn.LSTM, nn.GRU, nn.RNN)
State = tuple[torch.Tensor, ...]
# Gates from the input, product of the hidden state, state; returns the next state, h first.
Cell = Callable[[torch.Tensor, torch.Tensor, State], State]


class Recorder(Protocol):
    """Recorder of one layer: the projection, what it reads, and the tensor at its graph edge."""

    def __call__(
        self, projection: Projection, inputs: torch.Tensor, result: torch.Tensor
    ) -> torch.Tensor:
        """The result with the edge that is kept."""


def can_record(layer: nn.Module) -> bool:
    """Whether the layer is torch's LSTM, GRU or RNN, without a subclass of its own."""
    return type(layer) in _KINDS


def record_recurrent(layer: nn.Module, name: str, record: ProjectionRecorder) -> None:
    """Make torch's recurrent layer run step by step, in place, and tell its products."""
    assert isinstance(layer, nn.RNNBase)
    plain = layer.forward
    recorder: Recorder = partial(record, name)

    def forward(input: Any, hx: Any = None) -> Any:
        # Packed sequences and single ones are left to torch, and to another way.
        if not isinstance(input, torch.Tensor) or input.ndim != 3:
            return plain(input, hx)
        return _run(layer, recorder, input, hx)

    layer.forward = forward


def _run(layer: nn.RNNBase, record: Recorder, inputs: torch.Tensor, start: Any) -> tuple[Any, Any]:
    """Result and last states, as torch's layer in eval mode returns them."""
    # Everything below is [sample, step, entry].
    x = inputs if layer.batch_first else inputs.transpose(0, 1)
    first = _first_states(layer, x, start)
    ends: list[State] = []
    for index in range(layer.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: 1 + layer.bidirectional]:
            state = tuple(part[len(ends)] for part in first)
            output, end = _run_direction(layer, record, x, f"_l{index}{suffix}", state)
            outputs.append(output)
            ends.append(end)
        x = torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]
    last = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
    result = x if layer.batch_first else x.transpose(0, 1)
    return result, last if len(last) > 1 else last[0]


def _first_states(layer: nn.RNNBase, x: torch.Tensor, start: Any) -> State:
    """First states [layer and direction, sample, entry]; zeros where none is given."""
    if start is not None:
        return tuple(start) if isinstance(layer, nn.LSTM) else (start,)
    count = layer.num_layers * (1 + layer.bidirectional)
    hidden = x.new_zeros(count, len(x), layer.proj_size or layer.hidden_size)
    if not isinstance(layer, nn.LSTM):
        return (hidden,)
    return hidden, x.new_zeros(count, len(x), layer.hidden_size)


def _run_direction(
    layer: nn.RNNBase, record: Recorder, x: torch.Tensor, suffix: str, state: State
) -> tuple[torch.Tensor, State]:
    """One layer in one direction: outputs [sample, step, entry] and the last state."""
    weights = [getattr(layer, f"weight_{part}{suffix}") for part in ("ih", "hh")]
    biases: list[Any] = [None, None]
    if layer.bias:
        biases = [getattr(layer, f"bias_{part}{suffix}") for part in ("ih", "hh")]
    n_samples, n_steps, _ = x.shape
    # W_ih x_t for all steps at once.
    gates = functional.linear(x, weights[0], biases[0])
    gates = record(_projection(layer, "ih", suffix, weights[0]), x, gates)
    # Zeros whose gradients are those at W_hh h_{t-1}: one edge for all steps.
    hidden_edge = _zeros_with_edge(x, n_samples, n_steps, len(weights[1]))
    shortening = _Shortening(layer, suffix, x) if layer.proj_size else None
    cell = _cell(layer)
    hidden_inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    steps = list(zip(gates.unbind(1), hidden_edge.unbind(1), range(n_steps), strict=True))
    is_reverse = suffix.endswith("_reverse")
    for at_input, at_hidden, step in reversed(steps) if is_reverse else steps:
        hidden_inputs.append(state[0].detach())
        product = functional.linear(state[0], weights[1], biases[1]) + at_hidden
        state = cell(at_input, product, state)
        if shortening is not None:
            state = (shortening.run(state[0], step), *state[1:])
        outputs.append(state[0])
    if is_reverse:
        hidden_inputs.reverse()
        outputs.reverse()
    read = torch.stack(hidden_inputs, dim=1)
    record(_projection(layer, "hh", suffix, weights[1]), read, hidden_edge)
    if shortening is not None:
        shortening.record(record)
    return torch.stack(outputs, dim=1), state


class _Shortening:
    """The product h_t = W_hr m_t of an LSTM with ``proj_size``."""

    def __init__(self, layer: nn.RNNBase, suffix: str, x: torch.Tensor) -> None:
        self.weight: torch.Tensor = getattr(layer, f"weight_hr{suffix}")
        self.projection = Projection(f"weight_hr{suffix}", None, 0, 0, len(self.weight))
        self.edge = _zeros_with_edge(x, *x.shape[:2], len(self.weight))
        self._edges = self.edge.unbind(1)
        self._read: dict[int, torch.Tensor] = {}

    def run(self, hidden: torch.Tensor, step: int) -> torch.Tensor:
        """The shorter hidden state of one step."""
        self._read[step] = hidden.detach()
        return functional.linear(hidden, self.weight) + self._edges[step]

    def record(self, record: Recorder) -> None:
        """Tell the product of all steps."""
        read = [self._read[step] for step in sorted(self._read)]
        record(self.projection, torch.stack(read, dim=1), self.edge)


def _projection(layer: nn.RNNBase, part: str, suffix: str, weight: torch.Tensor) -> Projection:
    bias = f"bias_{part}{suffix}" if layer.bias else None
    return Projection(f"weight_{part}{suffix}", bias, 0, 0, len(weight))


def _zeros_with_edge(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Zeros that carry a gradient; a clone, because a leaf has no edge of its own."""
    return like.new_zeros(shape).requires_grad_(torch.is_grad_enabled()).clone()


def _cell(layer: nn.RNNBase) -> Cell:
    """The equations of one step, as torch documents them."""
    if isinstance(layer, nn.LSTM):
        return _lstm_cell
    if isinstance(layer, nn.GRU):
        return _gru_cell
    squash = torch.tanh if layer.mode == "RNN_TANH" else torch.relu
    return lambda gates, product, state: (squash(gates + product),)


def _lstm_cell(gates: torch.Tensor, product: torch.Tensor, state: State) -> State:
    read, forget, candidate, out = (gates + product).chunk(4, dim=1)
    # c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)
    memory = forget.sigmoid() * state[1] + read.sigmoid() * candidate.tanh()
    return out.sigmoid() * memory.tanh(), memory


def _gru_cell(gates: torch.Tensor, product: torch.Tensor, state: State) -> State:
    reset, update, candidate = gates.chunk(3, dim=1)
    reset_hidden, update_hidden, candidate_hidden = product.chunk(3, dim=1)
    # n = tanh(W_in x + r (W_hn h));  h_t = (1 - z) n + z h_{t-1}
    new = torch.tanh(candidate + (reset + reset_hidden).sigmoid() * candidate_hidden)
    keep = (update + update_hidden).sigmoid()
    return ((1 - keep) * new + keep * state[0],)
