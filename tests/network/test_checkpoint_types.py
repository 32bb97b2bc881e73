"""Types of numbers in checkpoints: read where no value changes, else refused by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from krepes_ooc.errors import NetworkError
from tests.network.checkpoints import FACTORIES, assert_same, built, load, refusal

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(FACTORIES)
    return tmp_path


def quantised(v: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(v, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: (v * 100).to(torch.int8), "int8"),
        (lambda v: v * (0.5 + 1j), "complex64"),
        (lambda v: v > 0, "bool"),
        (lambda v: (v * 100).long(), "int64"),
        (quantised, "quantised (qint8)"),
        (lambda v: v.to_sparse(), "sparse (sparse_coo, float32)"),
        (lambda v: v.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda v: v.to("meta"), "float32 without values (meta)"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_other_types_are_refused_with_key_and_both_types(
    folder: Path, change: Any, word: str
) -> None:
    torch.save({k: change(v) for k, v in built("linear").state_dict().items()}, folder / "w.pth")
    told = refusal(folder, "linear", "w.pth")
    assert f"weight is {word}; expected float32 as the factory builds it" in told


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_lengths_of_numbers_are_read(folder: Path, kind: torch.dtype) -> None:
    state = {k: v.to(kind) for k, v in built("linear").state_dict().items()}
    torch.save(state, folder / "w.pth")
    network = load(folder, "linear", "w.pth")
    assert torch.equal(network.inner.weight, state["weight"].float())


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("mask", torch.ones(12, dtype=torch.uint8), True),
        ("mask", torch.full((12,), 2, dtype=torch.uint8), False),
        ("mask", torch.ones(12), False),
        ("place", torch.arange(8, dtype=torch.int32), True),
        ("place", torch.arange(8.0), False),
        ("place", torch.arange(8) + 0j, False),
    ],
)
def test_whole_numbers_keep_their_values(
    folder: Path, name: str, value: torch.Tensor, fits: bool
) -> None:
    net = built("Masked")
    torch.save({**net.state_dict(), name: value}, folder / "w.pth")
    if fits:
        assert_same(load(folder, "Masked", "w.pth"), net)
    else:
        told = refusal(folder, "Masked", "w.pth")
        assert f"{name} is {str(value.dtype).removeprefix('torch.')}; expected" in told


def test_a_network_error_is_told_for_each_of_these(folder: Path) -> None:
    with pytest.raises(NetworkError):
        load(folder, "linear", "nets.py")
