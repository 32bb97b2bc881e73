"""Features of a vision transformer and of a text encoder: one result in every way of running."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from krepes_ooc.engine.run_control import StopFlag
from krepes_ooc.errors import Stopped
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.workspace import Workspace
from tests.crash.compare import differences

CODE = """
import numpy as np, torch
from krepes_ooc.core import counter_rng as counter
from krepes_ooc.network.zoo import small_vit

class Texts:
    def __len__(self): return 300
    def __getitem__(self, i): return counter.integers(5, 30, i, np.arange(9)).astype(np.int64)

def drop(x, sample_id, view_id, seed):
    return np.where(counter.uniform(seed, view_id, sample_id, np.arange(len(x))) < 0.2, 0, x)

class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(30, 8)
        self.places = torch.nn.Parameter(0.1 * torch.randn(1, 9, 8))
        self.mix = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = torch.nn.Linear(8, 6)
    def forward(self, x):
        hidden = self.words(x.long()) + self.places
        return self.head((hidden + self.mix(hidden, hidden, hidden)[0]).mean(dim=1))

def text():
    torch.manual_seed(0)
    return Encoder()

def vit():
    torch.manual_seed(0)
    return small_vit(1, 8, 6, 4, 8, 1, 2)
"""
SOURCES = {
    "text": "source: {kind: factory, factory: 'code.py:Texts'}\n"
    "views: {function: 'code.py:drop'}\n",
    "vit": "source: {kind: digits, limit: 300}\nviews: {crop: 0.7, noise: 0.1}\n",
}
REST = """
recipe: bits
network: {{factory: 'code.py:{kind}', weights: factory}}
stages:
  features: {{sketch: 64, block_rows: {rows}, forward_batch: 32, probes: 2, deflated_probes: 1}}
  landmarks: {{count: 16}}
  spectrum: {{components: 4}}
"""


def audit(
    folder: Path, kind: str, rows: int = 256, workers: int = 2, stop: StopFlag | None = None
) -> StoreReader:
    (folder / "code.py").write_text(CODE)
    text = SOURCES[kind] + REST.format(kind=kind, rows=rows)
    recipe = Recipe.parse(text, folder, "bits")
    run(recipe, folder / "w", Options(workers=workers, until="features"), stop=stop)
    return Workspace(folder / "w").reader("features")


class AfterOneBlock(StopFlag):
    """Stops a run as soon as a block of features is in the journal."""

    def __init__(self, workspace: Path) -> None:
        super().__init__()
        self.record = Workspace(workspace).record("features", "features")

    def check(self) -> None:
        if self.record.done():
            self.request("the test is impatient")
        super().check()


@pytest.mark.parametrize("kind", SOURCES)
def test_threads_blocks_and_kills_change_no_bit(tmp_path: Path, kind: str) -> None:
    folders = [tmp_path / name for name in ("whole", "killed", "wide")]
    for folder in folders:
        folder.mkdir()
    whole = audit(folders[0], kind)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(before, 2))
        with pytest.raises(Stopped):
            audit(folders[1], kind, workers=1, stop=AfterOneBlock(folders[1] / "w"))
        audit(folders[1], kind, workers=1)
    finally:
        torch.set_num_threads(before)
    assert differences(folders[0] / "w", folders[1] / "w") == []
    wide = audit(folders[2], kind, rows=512)
    for name in ("values", "self_kernel", "sample_id"):
        assert whole.array(name).tobytes() == wide.array(name).tobytes()
    assert len(whole.attributes["probes"]) == 3
