"""Whole audits of networks that no batched Jacobian takes: exact rows, and the slow way is told."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.engine.run_control import Silent
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.plan import make_plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.stages.features import inner_products
from krepes_ooc.storage.workspace import Workspace
from krepes_ooc.views.spec import CLEAN
from tests import small

FACTORIES = {
    "accumulating": """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.taps, self.head = torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Linear(3, 3)
    def forward(self, x):
        found = torch.zeros(len(x), 3, dtype=x.dtype)
        for place in range(3):
            found[:, place] += (x[:, place : place + 4] * self.taps[:, place]).sum(dim=1)
        return self.head(found.tanh())
""",
    "branching": """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.head = torch.nn.Linear(6, 3)
    def forward(self, x):
        rows = []
        for row in x:
            row = (self.high if bool(row.sum() > 1) else self.low)(row).tanh()
            if bool(row[0] > 0):
                row = self.low(row).tanh()
            rows.append(row)
        return self.head(torch.stack(rows))
""",
}
SLOW = {
    "accumulating": "the whole network run again, one sample at a time (last resort, slow): taps",
    "branching": "the whole network run again, one sample at a time (last resort, slow): ",
}
MAKE = """
def net():
    torch.manual_seed(0)
    return Net()
"""
CHANGES = (
    "network.weights=factory",
    "stages.landmarks.count=16",
    "stages.kernel.normalise=none",
    "stages.audited={audit: 12, fit: 40}",
    "stages.spectrum.components=3",
    "stages.features={block_rows: 256, forward_batch: 32, probes: 2}",
)


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("name", FACTORIES)
def test_the_kernel_is_exact_and_the_slow_way_is_told(tmp_path: Path, name: str) -> None:
    path = small.own_recipe(tmp_path, small.rows_csv(120))
    (tmp_path / "net.py").write_text(FACTORIES[name] + MAKE)
    recipe, heard = Recipe.load(str(path), CHANGES), Listener()
    planned = make_plan(recipe, tmp_path / "w", Options(), timed=True)["rows"]
    summary = run(recipe, tmp_path / "w", Options(workers=2), heard)
    assert summary.left == []
    said = "is run again, one sample at a time, a pass for each sample and probe: slow"
    assert any(said in note for note in heard.notes)
    workspace = Workspace(tmp_path / "w")
    features = workspace.reader("features")
    assert said in features.attributes["self_check"]["words"]
    assert said in (tmp_path / "w" / "report.html").read_text()
    log = next(note for note in heard.notes if note.startswith("parameters: "))
    page = (tmp_path / "w" / "report.html").read_text()
    for told in ("; ".join(f"{key}: {text}" for key, text in planned.items()), log, page):
        assert SLOW[name] in told
        factor = re.search(r"of processor time a row, ([\d.,]+) times a plain forward", told)
        assert factor is not None
        assert float(factor[1].replace(",", "")) > 2
        assert "2 directions in output space" in told
    inputs = Audit(recipe, workspace).inputs
    ids = features.array("sample_id")
    exact = autograd_kernel(inputs.network, inputs.encode(ids, 0)[0], features.attributes["probes"])
    layout = FeatureLayout.from_attributes(features.attributes["layout"])
    rows = inputs.open_features(recipe.settings["features"]).rows(inputs.encode(ids, 0)[0])[0]
    found = inner_products.gram(rows.astype(float), rows.astype(float), layout)
    assert np.linalg.norm(found - exact) <= 1e-6 * np.linalg.norm(exact)
    stored = inner_products.unscale(features.array("values")[0].astype(float), layout)
    rounded = inner_products.gram(stored, stored, layout)
    assert np.linalg.norm(rounded - exact) <= 1e-3 * np.linalg.norm(exact)
    assert_kernel_store(workspace, inputs)


def assert_kernel_store(workspace: Workspace, inputs: AuditInputs) -> None:
    """The kernel on the disk, view by view, against autograd on views and landmarks."""
    features, landmarks, store = (
        workspace.reader(name) for name in ("features", "landmarks", "kernel")
    )
    chosen = inputs.encode(landmarks.array("sample_id"), CLEAN)[0]
    for view in range(2):
        rows = inputs.encode(store.array("sample_id"), view)[0]
        both = np.concatenate([rows, chosen])
        gram = autograd_kernel(inputs.network, both, features.attributes["probes"])
        exact, found = gram[: len(rows), len(rows) :], store.whole("values")[view].astype(float)
        assert np.linalg.norm(found - exact) <= 2e-3 * np.linalg.norm(exact)


def autograd_kernel(network: torch.nn.Module, inputs: np.ndarray, probes: object) -> np.ndarray:
    """sum over probes of <v J(x), v J(x')>, by one backward pass for each sample and probe."""
    own = network.deep_copy().double()  # type: ignore[operator]
    parameters = [p.requires_grad_(True) for p in own.parameters()]
    total = np.zeros((len(inputs), len(inputs)))
    for probe in torch.tensor(probes, dtype=torch.float64):
        rows = []
        for sample in torch.tensor(inputs, dtype=torch.float64):
            value = own(sample[None])[0] @ probe
            found = torch.autograd.grad(value, parameters, materialize_grads=True)
            rows.append(torch.cat([gradient.reshape(-1) for gradient in found]))
        wide = torch.stack(rows).numpy()
        total += wide @ wide.T
    return total
