"""Audits of objects that a script holds: they run, resume, are read by commands, not computed."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import krepes_ooc
from krepes_ooc.core.live_objects import LIVE, object_sha256
from krepes_ooc.errors import NetworkError, UsageError, WorkspaceError
from krepes_ooc.network.live_module import copy_module, name_factory
from krepes_ooc.runner.live import LiveAudit
from krepes_ooc.storage.workspace import Workspace
from tests import small

STAGES = {
    "features": {"block_rows": 256},
    "landmarks": {"count": 8},
    "audited": {"audit": 60, "fit": 10},
    "spectrum": {"components": 3},
}
SCRIPT = """
import sys

import numpy as np
import torch
from torch import nn

import krepes_ooc


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.out = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.out(torch.tanh(self.up(x)))


class Samples:
    def __init__(self, rows):
        self.x = np.random.default_rng(0).normal(size=(rows, 6)).astype("f4")
        self.targets = np.arange(rows) % 2

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.targets[i])


def view(x, sample_id, view_id, seed):
    noise = np.random.default_rng((seed, view_id, sample_id)).normal(0, 0.1, x.shape)
    return x + noise.astype("f4")


def audit(workspace, rows, stages, **more):
    torch.manual_seed(0)
    return krepes_ooc.Audit(
        Net(), Samples(rows), views=view, objective="vicreg", workspace=workspace, stages=stages,
        **more,
    )


if __name__ == "__main__":
    audit(sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])).run(until=sys.argv[4], workers=1)
"""


class Net(nn.Module):
    """A network of this module, which can be imported."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(6, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.up(x)))


def shifted(x: Any, sample_id: int, view_id: int, seed: int) -> Any:
    """A view of this module, which can be imported."""
    return x + view_id


def start(folder: Path, workspace: str, rows: int, until: str) -> subprocess.Popen[bytes]:
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", workspace, str(rows), repr(STAGES), until]
    path = os.pathsep.join([str(small.ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": path})


def arrays(workspace: Path, store: str) -> dict[str, bytes]:
    reader = Workspace(workspace).reader(store)
    return {name: reader.whole(name).tobytes() for name in reader.names()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of a script up to the influence."""
    folder = tmp_path_factory.mktemp("live")
    assert start(folder, "w", 80, "influence").wait() == 0
    return folder / "w"


def test_a_killed_script_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Killed once blocks of the features are on disk, then run again."""
    rows = 2_000
    assert start(tmp_path, "whole", rows, "landmarks").wait() == 0
    process = start(tmp_path, "killed", rows, "landmarks")
    stage = tmp_path / "killed/.krepes/stages/features"
    while process.poll() is None and not list(stage.glob("journal*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "landmarks" not in small.seals(tmp_path / "killed")
    assert start(tmp_path, "killed", rows, "landmarks").wait() == 0
    for store in ("features", "landmarks"):
        assert arrays(tmp_path / "whole", store) == arrays(tmp_path / "killed", store)
    assert small.seals(tmp_path / "whole") == small.seals(tmp_path / "killed")


def test_commands_read_a_live_workspace_and_compute_nothing(capsys: Any, finished: Path) -> None:
    folder = str(finished)
    assert "influence" in small.seals(finished)
    assert small.krepes(capsys, "verify", "-w", folder).code == 0
    state = small.krepes(capsys, "status", "-w", folder)
    assert state.code == 0
    assert "source.factory: is a live object of the script" in state.out
    ids = Workspace(finished).reader("audited").array("sample_id")
    audited = int(ids[0])
    assert small.krepes(capsys, "explain", "-w", folder, "--sample", str(audited)).code == 0
    other = min(set(range(80)) - set(ids.tolist()))
    stored = [path for path in (finished / "audit.zarr").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in stored}
    for given in (("explain", "--sample", str(other)), ("report",)):
        told = small.krepes(capsys, *given, "-w", folder)
        assert told.code == 2
        assert "is a live object of the script that made this workspace" in told.line
    assert {path: path.stat().st_mtime_ns for path in stored} == before


def test_the_script_itself_explains_any_sample(finished: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__", "sys": sys}
    exec(SCRIPT.partition('if __name__ == "__main__"')[0], space)
    audit = space["audit"](finished, 80, STAGES)
    ids = set(Workspace(finished).reader("audited").array("sample_id").tolist())
    assert len(audit.explain(sample=min(set(range(80)) - ids))) == 1
    # Other weights, or another network, are another audit.
    torch.manual_seed(1)
    other = krepes_ooc.Audit(
        space["Net"](), space["Samples"](80), views=space["view"], objective="vicreg",
        workspace=finished, stages=STAGES,
    )  # fmt: skip
    with pytest.raises(WorkspaceError, match=r"stale: features.*network.weights changed"):
        other.run(until="features")
    with pytest.raises(WorkspaceError, match=r"written by recipe 'live'"):
        space["audit"](finished, 80, STAGES, name="other").run()


def audit_of(model: nn.Module, dataset: Any, workspace: Path, **more: Any) -> LiveAudit:
    return LiveAudit(model, dataset, workspace=workspace, **more)


def test_what_can_be_imported_is_named(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 6)).astype("f4")
    audit = audit_of(Net(), (x, [*range(40)]), tmp_path / "a", views=shifted)
    assert audit.recipe.network.factory == f"{__name__}:Net"
    assert audit.recipe.views.function == f"{__name__}:shifted"
    assert audit.recipe.source.factory == LIVE
    # Built otherwise, frozen in part, or changed after it was built: the object itself.
    frozen = Net()
    frozen.up.weight.requires_grad_(False)
    hooked = Net()
    hooked.out.register_forward_hook(lambda module, given, output: 2 * output)
    for number, model in enumerate((Net(13), frozen, hooked, nn.Sequential(Net()))):
        folder = tmp_path / f"live{number}"
        assert audit_of(model, x, folder).recipe.network.factory == LIVE


def test_the_model_of_the_script_is_never_changed(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 6)).astype("f4")
    model = nn.Sequential(Net(), nn.Dropout()).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    audit = audit_of(model, torch.tensor(x), tmp_path, views=3, source={"limit": 30})
    network = audit.recipe.live.model
    assert network is model
    draws = torch.get_rng_state()
    inputs = krepes_ooc.runner.audit.Audit(audit.recipe, audit.workspace).inputs
    assert inputs.network.inner is not model
    assert inputs.source.n_samples == 30
    assert audit.recipe.views.count == 3
    assert torch.equal(draws, torch.get_rng_state())
    assert model.training
    assert all(p.requires_grad and p.dtype == torch.float64 for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_data_frame_with_an_encoding_is_a_table(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "a": draw.normal(size=50),
            "town": draw.choice(["x", "y", "z"], 50),
            "kind": ["p", "q"] * 25,
        }
    )
    frame = frame[frame.index % 5 > 0]
    audit = audit_of(nn.Linear(4, 3), frame, tmp_path, encoding={"label": "kind"})
    inputs = krepes_ooc.runner.audit.Audit(audit.recipe, audit.workspace).inputs
    assert [column.name for column in inputs.source.columns] == ["a", "town"]
    assert inputs.source.classes == ("p", "q")
    assert inputs.source.n_samples == 40
    # The same frame is the same file; the recipe names it, so that commands can read the data.
    assert audit_of(nn.Linear(4, 3), frame, tmp_path, encoding={}).recipe.source.path
    assert len(list((tmp_path / ".krepes/live").glob("table-*.parquet"))) == 1
    arrow = pytest.importorskip("pyarrow").Table.from_pandas(frame, preserve_index=False)
    again = audit_of(nn.Linear(4, 3), arrow, tmp_path, encoding={"label": "kind"})
    assert again.recipe.source.path == audit.recipe.source.path
    with pytest.raises(UsageError, match=r"a DataFrame without encoding"):
        audit_of(nn.Linear(4, 3), frame, tmp_path)
    frame["odd"] = [{1}, 2] * 20
    with pytest.raises(UsageError, match=r"dataset: the data frame cannot be saved"):
        _ = audit_of(nn.Linear(4, 3), frame, tmp_path, encoding={}).recipe


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (torch.utils.data.DataLoader([torch.zeros(3)]), "DataLoader is no map-style.*pass its dat"),
        ({"x": 1}, "a dict is no map-style data set"),
        (iter([1]), "a list_iterator is no map-style data set"),
        ((np.zeros(3), np.zeros(4)), "a tuple is no map-style data set"),
        ("x.npy", "a str is no map-style data set"),
    ],
)
def test_other_data_is_refused(tmp_path: Path, dataset: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        audit_of(nn.Linear(3, 2), dataset, tmp_path)


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    x = np.zeros((40, 6), "f4")
    with pytest.raises(UsageError, match=r"encoding means nothing for a ndarray"):
        audit_of(Net(), x, tmp_path, encoding={})
    with pytest.raises(UsageError, match=r"views of type list"):
        audit_of(Net(), x, tmp_path, views=[1])
    with pytest.raises(UsageError, match=r"workers of a cluster cannot reach the objects"):
        audit_of(Net(), x, tmp_path).run(cluster=object())
    with pytest.raises(NetworkError, match=r"a compiled module hides its layers"):
        _ = audit_of(torch.compile(Net()), x, tmp_path).recipe
    with pytest.raises(UsageError, match=r"source.factory: is a live object"):
        small.run(krepes_ooc.Recipe.parse(audit_of(Net(), x, tmp_path).recipe.text, tmp_path, "r"))


def test_each_value_of_an_array_counts(tmp_path: Path) -> None:
    """The samples that a data set is known by are 64 of them; an array is known whole."""
    x = np.random.default_rng(0).normal(size=(300, 6)).astype("f4")
    other = x.copy()
    other[1, 2] += 1
    digests = set()
    for values in (x, other, x.copy()):
        audit = audit_of(nn.Linear(6, 3), values, tmp_path)
        inputs = krepes_ooc.runner.audit.Audit(audit.recipe, audit.workspace).inputs
        digests.add(str(inputs.source.fingerprint()))
    assert len(digests) == 2


def test_code_of_objects() -> None:
    """Constants and instructions count; names of files and lines, and addresses, do not."""

    def variant(body: str) -> Any:
        space: dict[str, Any] = {"torch": torch, "nn": nn, "__name__": "own"}
        exec(f"class Net(nn.Linear):\n    def forward(self, x):\n        {body}\n", space)
        return space["Net"](2, 2)

    first = object_sha256(variant("return torch.tanh(x) * 2"))
    assert object_sha256(variant("# twice\n\n        return torch.tanh(x) * 2")) == first
    for other in ("return torch.tanh(x) * 3", "return torch.sin(x) * 2", "return (lambda y: y)(x)"):
        assert object_sha256(variant(other)) != first
    assert object_sha256(shifted) != object_sha256(variant)


STRENGTH = 0.1


class Shift:
    """A view with a setting."""

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, x: Any, sample_id: int, view_id: int, seed: int) -> Any:
        return x + self.by


def helper(x: Any) -> Any:
    return x * 2


def test_values_that_a_view_holds_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(strength: Any, default: int = 1) -> Any:
        def view(x: Any, sample_id: int, view_id: int, seed: int, by: int = default) -> Any:
            return helper(x) + STRENGTH * strength * by

        return view

    first = object_sha256(make(1.0))
    assert object_sha256(make(1.0)) == first
    assert object_sha256(make(2.0)) != first
    assert object_sha256(make(1.0, 2)) != first
    assert object_sha256(functools.partial(make(1.0), by=3)) != object_sha256(
        functools.partial(make(1.0), by=4)
    )
    assert object_sha256(Shift(1)) == object_sha256(Shift(1)) != object_sha256(Shift(2))
    assert object_sha256(Shift(1).__call__) != object_sha256(Shift(2).__call__)
    monkeypatch.setattr(sys.modules[__name__], "STRENGTH", 0.2)
    assert object_sha256(make(1.0)) != first
    monkeypatch.undo()
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda x: x * 3)
    assert object_sha256(make(1.0)) != first
    monkeypatch.undo()
    assert object_sha256(make(1.0)) == first


def test_a_network_of_older_norms_and_one_with_a_lock() -> None:
    with pytest.warns(FutureWarning):
        old = nn.utils.weight_norm(nn.Linear(3, 2))
    x = torch.randn(4, 3)
    assert torch.equal(copy_module(old)(x), old(x))
    old.lock = threading.Lock()
    with pytest.raises(NetworkError, match=r"the network cannot be copied"):
        copy_module(old)
    assert name_factory(old, x.numpy()) == (LIVE, {})
