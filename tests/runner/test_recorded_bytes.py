"""A file must be the one that was recorded, not only whole; what is unknown equals nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.errors import WorkspaceError
from krepes_ooc.stages.audited.stage import ROLES
from krepes_ooc.storage.export import export_store
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.crash.compare import differences

CHECKPOINT = ".krepes/checkpoints/network.safetensors"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed audit, in several blocks."""
    folder = tmp_path_factory.mktemp("clean")
    small.audit(folder, "source.limit=700", "stages.features.block_rows=256")
    return folder


@pytest.fixture(scope="module")
def other_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same audit under another seed: whole chunks of the same sizes, with other values."""
    folder = tmp_path_factory.mktemp("other")
    changes = ("source.limit=700", "stages.features.block_rows=256", "seed=7")
    small.audit(folder, *changes, until="moments")
    return folder


def krepes(capsys: Any, folder: Path, *extra: str) -> small.Outcome:
    changes = ("source.limit=700", "stages.features.block_rows=256")
    return small.krepes(capsys, *small.arguments(folder, "--workers", "1", *extra, changes=changes))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def exchange(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    assert len(first) == len(second)
    assert first != second
    one.write_bytes(second)
    two.write_bytes(first)


@pytest.mark.parametrize("how", ["flipped", "replaced"])
def test_a_checkpoint_that_is_not_the_sealed_one_is_refused(
    tmp_path: Path, clean: Path, other_seed: Path, capsys: Any, how: str
) -> None:
    assert krepes(capsys, tmp_path, "--until", "pretrain").code == 0
    if how == "flipped":
        flip(tmp_path / CHECKPOINT)
    else:
        shutil.copy(other_seed / CHECKPOINT, tmp_path / CHECKPOINT)
    refused = krepes(capsys, tmp_path)
    assert refused.code == 5
    assert "network.safetensors" in refused.line
    assert "krepes run --repair" in refused.line
    assert krepes(capsys, tmp_path, "--repair").code == 0
    assert differences(clean, tmp_path) == []


CHUNKS = ["features/values/c/0", "kernel/values/c/1"]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("how", ["exchanged", "replayed"])
def test_a_whole_chunk_that_was_not_written_here_is_refused(
    tmp_path: Path, clean: Path, other_seed: Path, capsys: Any, chunks: str, how: str
) -> None:
    stage = chunks.partition("/")[0]
    assert krepes(capsys, tmp_path, "--until", stage).code == 0
    folder = tmp_path / "audit.zarr" / chunks
    one, two = (folder / name / "0" for name in ("0", "1"))
    if how == "exchanged":
        exchange(one, two)
    else:
        shutil.copy(other_seed / "audit.zarr" / chunks / "1" / "0", two)
    refused = krepes(capsys, tmp_path)
    assert refused.code == 5
    assert f"{chunks}/" in refused.line
    assert "not the one written here" in refused.line
    assert krepes(capsys, tmp_path, "--repair").code == 0
    assert differences(clean, tmp_path) == []


def test_explain_and_export_refuse_an_exchanged_chunk(
    tmp_path: Path, clean: Path, capsys: Any
) -> None:
    shutil.copytree(clean, tmp_path / "audit")
    stores = tmp_path / "audit/audit.zarr/influence"
    exchange(stores / "score/c/0/0", stores / "contribution/c/0/0")
    audited = Workspace(tmp_path / "audit").reader("audited")
    sample = audited.array("sample_id")[audited.array("role") == ROLES["audit"]][0]
    where = ("-w", str(tmp_path / "audit"))
    assert small.krepes(capsys, "explain", *where, "--sample", str(sample)).code == 5
    out = ("--store", "influence", "--format", "csv", "--out", str(tmp_path / "out.csv"))
    assert small.krepes(capsys, "export", *where, *out).code == 5


def test_the_digest_of_a_stage_that_turned_out_sealed_is_known_to_its_readers(
    tmp_path: Path, clean: Path, capsys: Any
) -> None:
    change = ("--set", "stages.landmarks.count=20")
    assert krepes(capsys, tmp_path).code == 0
    assert krepes(capsys, tmp_path, "--restart-stale", *change, "--until", "landmarks").code == 0
    assert krepes(capsys, tmp_path, "--restart-stale").code == 0
    assert krepes(capsys, tmp_path).code == 0
    assert differences(clean, tmp_path) == []


def test_views_to_and_fro_leave_nothing_of_the_other_views(
    tmp_path: Path, clean: Path, capsys: Any
) -> None:
    change = ("--set", "views.noise=0.3")
    assert krepes(capsys, tmp_path).code == 0
    for extra in (
        ("--restart-stale", *change, "--until", "kernel"),
        ("--restart-stale", "--until", "kernel"),
        ("--restart-stale", *change, "--until", "landmarks"),
        ("--restart-stale",),
        (),
    ):
        assert krepes(capsys, tmp_path, *extra).code == 0
    assert differences(clean, tmp_path) == []


def test_a_store_that_is_replaced_while_it_is_exported_is_refused(
    tmp_path: Path, clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seal is looked at again after the load, whatever the load met."""
    shutil.copytree(clean, tmp_path / "audit")
    space = Workspace(tmp_path / "audit")
    real = Workspace.__getitem__

    def replaced(self: Workspace, store: str) -> Any:
        dataset = real(self, store)
        seal = self.record(store, store).folder / "seal.json"
        seal.unlink()
        shutil.rmtree(self.audit / store / "score")
        return dataset

    monkeypatch.setattr(Workspace, "__getitem__", replaced)
    with pytest.raises(WorkspaceError, match="replaced while it was read"):
        export_store(space, "influence", tmp_path / "out.csv", "csv")
    assert not (tmp_path / "out.csv").exists()
