"""Every example is run: the scripts as their first lines say, the notebook cell by cell."""

from __future__ import annotations

import io
import json
import re
import runpy
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from krepes_ooc.network.zoo import small_vit
from krepes_ooc.runner.recipe import Recipe
from tests.notebook import NOTEBOOK, run_cells

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = ("audit_digits", "own_table", "open_workspace")


def run_script(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [f"{name}.py", str(folder)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_scripts(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(SCRIPTS)
    run_script("audit_digits", tmp_path / "digits", monkeypatch)
    told = capsys.readouterr().out
    assert re.search(r"\b\d\d stages, ", told)
    assert "ridge_ceiling" in told
    run_script("open_workspace", tmp_path / "digits", monkeypatch)
    told = capsys.readouterr().out
    assert "alignment, audited, concepts" in told
    error = float(told.split("rebuilt within ")[1].split()[0])
    assert error < 1e-9 * np.sqrt(64)
    run_script("own_table", tmp_path / "own", monkeypatch)
    assert capsys.readouterr().out.count("agrees in") == 3
    assert (tmp_path / "own" / "influence.parquet").stat().st_size > 1000


def test_scripts_say_how_they_are_run() -> None:
    for name in SCRIPTS:
        assert f"python examples/{name}.py " in (EXAMPLES / f"{name}.py").read_text()


def test_notebook(capsys: Any) -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    space, outputs = run_cells(notebook)
    stored = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # Figures differ between machines; kinds of outputs do not
    kinds = [[sorted(output["data"]) for output in cell] for cell in stored]
    assert kinds == [[sorted(output["data"]) for output in cell] for cell in outputs]
    assert sum("image/png" in kind for cell in kinds for kind in cell) == 1
    assert all(cell for cell in stored)
    assert not re.search(r"/tmp/|/home/|/root/", json.dumps(stored))
    assert len(space["one"].record()["landmarks"]) == 5
    assert space["embedding"].shape == (2, 400, 6)


def test_reviews_that_were_not_fetched_say_how(tmp_path: Path) -> None:
    shutil.copytree(
        EXAMPLES / "minilm-reviews", tmp_path / "r", ignore=shutil.ignore_patterns(".cache")
    )
    reviews = runpy.run_path(str(tmp_path / "r" / "reviews.py"))
    with pytest.raises(FileNotFoundError, match=r"fetch them: python .*/r/fetch\.py"):
        reviews["Reviews"]()


def test_emoji_are_sorted_into_a_folder_for_each_category(tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLES / "vision-transformer" / "emoji.py"))
    listed = [
        {"image": "1.png", "category": "Flags", "has_img_twitter": True},
        {"image": "2.png", "category": "Food & Drink", "has_img_twitter": True},
        {"image": "3.png", "category": "Flags", "has_img_twitter": False},
        {"image": "4.png", "category": "Component", "has_img_twitter": True},
    ]
    files = {"package/emoji.json": json.dumps(listed).encode()}
    # The last two are other skin tones and components
    files |= {f"package/img/twitter/64/{i}.png": bytes([i]) for i in (1, 2, 3, 4, 5)}
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    assert example["unpack"](tmp_path / "p.tgz", tmp_path / "emoji") == 2
    found = sorted(path.relative_to(tmp_path / "emoji") for path in tmp_path.rglob("*.png"))
    assert found == [Path("Flags/1.png"), Path("Food & Drink/2.png")]
    assert (tmp_path / "emoji/Flags/1.png").read_bytes() == b"\x01"


@pytest.mark.parametrize("name", ["fashion-mnist", "emoji"])
def test_recipes_of_the_vision_transformer_are_valid(name: str) -> None:
    recipe = Recipe.load(str(EXAMPLES / "vision-transformer" / f"{name}.yaml"))
    arguments = recipe.network.arguments
    assert arguments["size"] % arguments["patch"] == 0
    images = torch.zeros(2, arguments["channels"], arguments["size"], arguments["size"])
    assert small_vit(**arguments)(images).shape == (2, arguments["outputs"])
