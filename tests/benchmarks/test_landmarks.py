from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.stages import audits

PATH = Path(__file__).parents[2] / "benchmarks" / "landmarks.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("landmarks_benchmark", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_every_sampler_is_measured(benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = str(audits.write_recipe(tmp_path))
    benchmark.main([recipe, "--counts", "8", "24", "--samplers", "kmeans++", "uniform", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["sampler"], row["landmarks"]) for row in rows] == [
        ("kmeans++", 8),
        ("uniform", 8),
        ("kmeans++", 24),
        ("uniform", 24),
    ]
    for error in ("trace_error", "frobenius_error"):
        assert all(0 < row[error] < 1 for row in rows)
        assert rows[2][error] < rows[0][error]
    assert all(row["classes"] == 2 for row in rows)


def test_the_table_has_a_head_and_a_line_for_each_row(
    benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = str(audits.write_recipe(tmp_path))
    benchmark.main(
        [recipe, "--counts", "8", "--samplers", "uniform", "--workspace", str(tmp_path / "w")]
    )
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == list(benchmark.COLUMNS)
    assert line.split()[:2] == ["uniform", "8"]
    assert (tmp_path / "w").is_dir()
