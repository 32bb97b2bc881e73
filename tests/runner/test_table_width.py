"""A network that does not take the inputs of a table: both sides are named before any stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import small

ROWS = "tall,wide,deep,kind,l\n" + "".join(
    f"{i}.5,{-i}.25,{i * i},{'abc'[i % 3]},{i % 2}\n" for i in range(24)
)
BUILDERS = """
from torch import nn
def flat():
    return nn.Linear(4, 3)
def deep():
    return nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 3))
"""


@pytest.mark.parametrize(("builder", "width"), [("flat", 4), ("deep", 7)])
def test_inputs_by_column_and_width_of_the_network(
    tmp_path: Path, capsys: Any, builder: str, width: int
) -> None:
    (tmp_path / "d.csv").write_text(ROWS)
    (tmp_path / "own.py").write_text(BUILDERS)
    recipe = {
        "recipe": "width",
        "source": {"kind": "table", "path": "d.csv", "label": "l"},
        "views": {"count": 2},
        "network": {"factory": f"own.py:{builder}", "weights": "factory"},
        "stages": {"landmarks": {"count": 4}, "audited": {"audit": 9, "fit": 9}},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    arguments = (str(tmp_path / "r.yaml"), "-w", str(tmp_path / "ws"), "--workers", "1")
    outcome = small.krepes(capsys, "run", *arguments)
    assert outcome.code == 1
    message = outcome.err.splitlines()[-1]
    assert "6 inputs (tall, wide, deep, 3 codes of kind)" in message
    assert f"{width} inputs to its first linear layer" in message
    assert not list((tmp_path / "ws").rglob("seal.json"))
