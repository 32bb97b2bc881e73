"""Attention and recurrent layers as they are recorded equal those of torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from krepes_ooc.jacobian.gradients import attention, recurrent

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # vmap tells where it is slow


def masks(n_samples: int, n_queries: int, n_keys: int) -> dict[str, dict[str, object]]:
    padding = torch.zeros(n_samples, n_keys, dtype=torch.bool)
    padding[0, -1] = True
    return {
        "plain": {},
        "weights of heads": {"average_attn_weights": False},
        "no weights": {"need_weights": False},
        "padding": {"key_padding_mask": padding},
        "additive padding, no weights": {
            "key_padding_mask": torch.randn(n_samples, n_keys),
            "need_weights": False,
        },
        "mask": {"attn_mask": torch.ones(n_queries, n_keys).triu(1).bool()},
        "mask a head, padding": {
            "attn_mask": torch.randn(2 * n_samples, n_queries, n_keys),
            "key_padding_mask": padding,
            "need_weights": False,
        },
        "causal": {
            "attn_mask": torch.ones(n_queries, n_keys).triu(1).bool(),
            "is_causal": True,
            "need_weights": False,
        },
    }


@pytest.mark.parametrize("mask", masks(3, 4, 4))
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("same", [True, False], ids=["self", "cross"])
def test_recorded_attention_is_torch_attention(mask: str, batch_first: bool, same: bool) -> None:
    torch.manual_seed(0)
    n_keys = 4 if same else 5
    layer = nn.MultiheadAttention(6, 2, batch_first=batch_first).eval().requires_grad_(False)
    query, memory = torch.randn(3, 4, 6), torch.randn(3, n_keys, 6)
    provided = [query, query, query] if same else [query, memory, memory]
    if not batch_first:
        query, memory = query.transpose(0, 1), memory.transpose(0, 1)
        provided = [query, query, query] if same else [query, memory, memory]
    options = masks(3, 4, n_keys)[mask]
    expected = layer(*provided, **options)
    seen: list[str] = []

    def note(name, projection, inputs, result):
        seen.append(projection.weight)
        return result

    attention.record_attention(layer, "it", note)
    actual = layer(*provided, **options)
    assert seen == ["in_proj_weight"] * (1 if same else 3) + ["out_proj.weight"]
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    assert (actual[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-6)


def test_recorded_attention_without_a_batch() -> None:
    layer = nn.MultiheadAttention(6, 2, bias=False).eval()
    tokens, padding = torch.randn(4, 6), torch.tensor([False, True, False, False])
    expected = layer(tokens, tokens, tokens, key_padding_mask=padding)
    attention.record_attention(layer, "it", lambda name, projection, inputs, result: result)
    actual = layer(tokens, tokens, tokens, key_padding_mask=padding)
    for one, two in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


RECURRENT = {
    "lstm": lambda **kw: nn.LSTM(4, 3, 2, **kw),
    "shorter lstm": lambda **kw: nn.LSTM(4, 3, proj_size=2, **kw),
    "gru": lambda **kw: nn.GRU(4, 3, 2, **kw),
    "rnn": lambda **kw: nn.RNN(4, 3, **kw),
    "relu rnn": lambda **kw: nn.RNN(4, 3, nonlinearity="relu", **kw),
}


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}])
def test_recorded_recurrent_layers_are_torch_layers(kind: str, given: bool, options: dict) -> None:
    torch.manual_seed(0)
    layer = RECURRENT[kind](**options).double().eval()
    x = torch.randn(5, 5, 4, dtype=torch.float64)
    result, last = layer(x)
    is_lstm = isinstance(last, tuple)
    start = None
    if given:
        parts = [torch.randn_like(part) for part in (last if is_lstm else (last,))]
        start = tuple(parts) if is_lstm else parts[0]
        result, last = layer(x, start)
    told: list[tuple[str, tuple[int, ...]]] = []

    def record(name, projection, inputs, value):
        told.append((projection.weight, tuple(inputs.shape)))
        return value

    recurrent.record_recurrent(layer, "rnn", record)
    actual, actual_last = layer(x, start)
    torch.testing.assert_close(actual, result, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(actual_last, last, rtol=1e-12, atol=1e-14)
    weights = [name for name, _ in layer.named_parameters() if name.startswith("weight")]
    assert sorted(name for name, _ in told) == sorted(weights)
    assert {shape[:2] for _, shape in told} == {(5, 5)}
