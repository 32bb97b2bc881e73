"""Block kernels speak the array API alone: no host array and no host number inside them.

Two nets, each shown to catch a planted hole: a lint for ``np.`` and ``float()``, and
array-api-strict on a device that is not the host's.
"""

from __future__ import annotations

import ast
import types
from pathlib import Path
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

import krepes_ooc.algebra
from krepes_ooc.algebra import moments

FOLDER = Path(krepes_ooc.algebra.__file__).parent
# What runs inside a task on blocks; all else in these modules runs once, on the host.
KERNELS = {
    "kernel": [
        *("gram", "unscale", "self_kernel", "centre_sum", "centre_kernel", "landmark_tile"),
        *("rows", "centre_rows", "_moments", "_row_dot", "_sum", "_added", "_float64"),
    ],
    "normalisation": [
        *("normalise", "normalised_self", "centred_self", "is_collapsed", "_inverse_root"),
        "_centred",
    ],
    "moments": [
        *("block_shift", "moment_sums", "merge", "finish", "cross_sums", "merge_cross"),
        "finish_cross",
    ],
}
HOST = ("np.", "numpy.")
NUMBERS = ("float", "complex", "item", "tolist")


def host_calls(text: str, names: list[str]) -> list[str]:
    """Uses of NumPy, and conversions of arrays to host numbers, in the named functions."""
    found, seen = [], set()
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef) or function.name not in names:
            continue
        seen.add(function.name)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(HOST):
                found.append(f"{function.name}: {ast.unparse(node)}")
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func).rpartition(".")[2]
                if called in NUMBERS:
                    found.append(f"{function.name}: {called}()")
    assert seen == set(names), f"no such kernels: {set(names) - seen}"
    return found


@pytest.mark.parametrize("module", KERNELS)
def test_kernels_hold_no_host_arrays_and_no_host_numbers(module: str):
    assert host_calls((FOLDER / f"{module}.py").read_text(), KERNELS[module]) == []


def planted(line: str) -> str:
    """The module of the moments with one more line in its kernel."""
    text = (FOLDER / "moments.py").read_text()
    before = "    xp = array_namespace(*views)\n    (rows, m), pairs"
    assert before in text
    return "import numpy as np\n" + text.replace(before, f"    {line}\n{before}").replace(
        "from __future__ import annotations\n", ""
    )


@pytest.mark.parametrize(
    "line",
    [
        "views = [np.asarray(K) for K in views]",
        "scale = float(views[0][0, 0])",
        "scale = views[0][0, 0].item()",
        "views = [np.ascontiguousarray(K) for K in views]",
    ],
)
def test_the_lint_finds_a_planted_hole(line: str):
    assert host_calls(planted(line), KERNELS["moments"])
    assert not host_calls(planted("views = list(views)"), KERNELS["moments"])


def run_planted(line: str) -> Any:
    module = types.ModuleType("planted")
    module.__dict__["__name__"] = "krepes_ooc.algebra.moments"
    exec(compile(planted(line), "planted", "exec"), module.__dict__)
    there = [strict.asarray(np.eye(4, dtype="f4"), device=strict.Device("device1"))] * 2
    return module.__dict__["moment_sums"](there, moments.block_shift(there), 2)


@pytest.mark.parametrize(
    "line",
    [
        "views = [np.asarray(K) for K in views]",
        "views = [K + array_namespace(K).zeros((4, 4), dtype=K.dtype) for K in views]",
    ],
)
def test_the_strict_device_stops_a_planted_transfer(line: str):
    assert run_planted("views = list(views)").sums.device == strict.Device("device1")
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        run_planted(line)
