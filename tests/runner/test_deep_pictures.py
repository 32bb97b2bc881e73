"""Audits of the same pictures with 16 and with 8 bit: the depth of a file changes no finding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.workspace import Workspace

LEVELS = {"dim": (3000, 9000), "bright": (30000, 60000)}
PER_CLASS = 60


def cells(folder: Path, shift: int) -> Path:
    """A recipe of two classes that only brightness tells apart, with 16 - shift bits."""
    draw = np.random.default_rng(7)
    for name, (low, high) in LEVELS.items():
        (folder / "img" / name).mkdir(parents=True)
        for index in range(PER_CLASS):
            picture = draw.integers(40, 200, (16, 16))
            y, x = draw.integers(2, 11, 2)
            picture[y : y + 4, x : x + 4] = draw.integers(low, high, (4, 4))
            stored = (picture >> shift).astype(np.uint8 if shift else np.uint16)
            Image.fromarray(stored).save(folder / "img" / name / f"{index:02}.png")
    recipe = {
        "recipe": "cells",
        "source": {"kind": "images", "path": "img"},
        "views": {"count": 2},
        "network": {
            "factory": "krepes_ooc.network.zoo:small_cnn",
            "arguments": {"channels": 1, "width": 4, "outputs": 8},
            "weights": "pretrain",
        },
        "stages": {
            "landmarks": {"count": 32},
            "audited": {"audit": 24, "fit": 40},
            "spectrum": {"components": 8},
            "pretrain": {"objective": "barlow-twins", "epochs": 5, "batch": 32},
        },
    }
    path = folder / "cells.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("shift", [0, 8], ids=["16 bit", "8 bit"])
def test_the_strongest_landmark_has_the_class_of_the_sample(tmp_path: Path, shift: int) -> None:
    """Clipped at 255, the bright cells look like the dim ones: about half would share the class."""
    workspace = tmp_path / "w"
    run(Recipe.load(str(cells(tmp_path, shift))), workspace, Options(workers=1, until="influence"))
    stores = Workspace(workspace)
    audited, landmarks = stores.reader("audited"), stores.reader("landmarks")
    top = stores.reader("influence").array("top_landmark")[:, 0]
    explained = audited.array("sample_id")[: len(top)]
    # Names are sorted: the bright ones come first.
    classes = (np.arange(2 * PER_CLASS) >= PER_CLASS).astype(int)
    np.testing.assert_array_equal(audited.array("label")[: len(top)], classes[explained])
    strongest = classes[landmarks.array("sample_id")[top]]
    assert (strongest == classes[explained]).mean() >= 0.95
