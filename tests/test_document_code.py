"""Python of the documents is run here, but for that of explain.md (tests/test_documents.py)."""

from __future__ import annotations

import io
import re
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import krepes_ooc
from tests import small

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Where each block is run
RUN = {
    "concepts.md": ["test_wrong_labels"],
    "explain.md": ["tests/test_documents.py"] * 3,
    "networks.md": ["test_objects_of_a_script"],
    "own.md": ["test_shards_of_pictures", "test_pictures_of_any_store"],
    "workspace.md": ["test_a_workspace_without_krepes"],
}


def blocks(name: str) -> list[str]:
    path = ROOT / name if name == "README.md" else ROOT / "docs" / name
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def execute(text: str, space: dict[str, Any] | None = None) -> dict[str, Any]:
    found = {} if space is None else space
    exec(compile(text, "document", "exec"), found)
    return found


def test_every_block_is_run_somewhere() -> None:
    counts = {path.name: len(blocks(path.name)) for path in DOCUMENTS if blocks(path.name)}
    assert counts == {name: len(places) for name, places in RUN.items()}
    here = {name for name in globals() if name.startswith("test_")}
    assert {place for places in RUN.values() for place in places} - here == {
        "tests/test_documents.py"
    }


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents") / "my-audit"
    small.audit(folder, until="influence")
    return folder


def test_a_workspace_without_krepes(workspace: Path) -> None:
    (text,) = blocks("workspace.md")
    assert "DIR/audit.zarr" in text
    space = execute(text.replace("DIR/", f"{workspace}/"))
    assert space["tree"]["influence/top_landmark"].dims == ("audited", "rank")
    assert space["values"].dtype == np.float16
    assert space["values"].attrs["long_name"]


class CleanLearning:
    """Stand-in for cleanlab, which is not installed: samples whose nearest one differs."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def find_label_issues(self, features: Any, labels: Any) -> Any:
        import pandas

        assert features.dtype == np.float32
        assert (labels >= 0).all()
        assert len(features) == len(labels)
        far = ((features[:, None] - features[None]) ** 2).sum(axis=2)
        np.fill_diagonal(far, np.inf)
        return pandas.DataFrame({"is_label_issue": labels[far.argmin(axis=1)] != labels})


def test_wrong_labels(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("cleanlab.classification")
    module.CleanLearning = CleanLearning  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cleanlab", ModuleType("cleanlab"))
    monkeypatch.setitem(sys.modules, "cleanlab.classification", module)
    monkeypatch.chdir(workspace.parent)
    (text,) = blocks("concepts.md")
    space = execute(text)
    known = krepes_ooc.Workspace(workspace)["audited"]["sample"].values
    assert set(space["wrong"]) < set(known)


class Branched(torch.nn.Module):
    """A backbone and a projection head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16))
        self.head = torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Output of the head."""
        return self.head(self.backbone(x))


def test_objects_of_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = blocks("networks.md")
    assert '{"count": 256}' in text
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    pictures = rng.random((120, 1, 8, 8), dtype=np.float32)
    space = {"model": Branched(), "dataset": (pictures, rng.integers(0, 3, 120))}
    execute(text.replace('{"count": 256}', '{"count": 16}'), space)
    assert "influence" in krepes_ooc.Workspace("audit")
    assert len(space["audit"].explain(sample=17)) == 1


def test_shards_of_pictures(tmp_path: Path) -> None:
    space = execute(blocks("own.md")[0])
    png = picture(7)
    space["write_shard"](tmp_path / "shard.tar", [(png, 3), (png, 5)])
    with tarfile.open(tmp_path / "shard.tar") as shard:
        names = shard.getnames()
        assert names == [f"{i:09}.{kind}" for i in range(2) for kind in ("png", "cls")]
        assert shard.extractfile(names[0]).read() == png  # type: ignore[union-attr]
        assert shard.extractfile(names[3]).read() == b"5"  # type: ignore[union-attr]


def test_pictures_of_any_store() -> None:
    space = execute(blocks("own.md")[1])
    records = space["Records"]({"a": picture(9), "b": picture(200)}, ["a", "b"], [0, 1])
    pixels, label = records[1]
    assert len(records) == 2
    assert pixels.shape == (3, 4, 5)
    assert (pixels == 200).all()
    assert label == 1


def picture(level: int) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(np.full((4, 5), level, dtype=np.uint8)).save(target, "PNG")
    return target.getvalue()
