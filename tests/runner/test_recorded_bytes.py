"""A file must be the one that was recorded, not only whole; what is unknown equals nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.errors import DamageError, WorkspaceError
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import verify_workspace
from krepes_ooc.runner.workspace import Workspace as Stores
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


def sealed_until(clean: Path, folder: Path, stage: str) -> Path:
    """A copy in which nothing after a stage is begun."""
    names = [each.name for each in small.recipe().stages]
    return small.copy_before(clean, folder, names[names.index(stage) + 1])


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
    workspace = sealed_until(clean, tmp_path / "w", "pretrain")
    if how == "flipped":
        flip(workspace / CHECKPOINT)
    else:
        shutil.copy(other_seed / CHECKPOINT, workspace / CHECKPOINT)
    refused = krepes(capsys, workspace)
    assert refused.code == 5
    assert "network.safetensors" in refused.line
    assert "krepes run --repair" in refused.line
    assert krepes(capsys, workspace, "--repair").code == 0
    assert differences(clean, workspace) == []


CHUNKS = ["features/values/c/0", "kernel/values/c/1"]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("how", ["exchanged", "replayed"])
def test_a_whole_chunk_that_was_not_written_here_is_refused(
    tmp_path: Path, clean: Path, other_seed: Path, capsys: Any, chunks: str, how: str
) -> None:
    stage = chunks.partition("/")[0]
    workspace = sealed_until(clean, tmp_path / "w", stage)
    folder = workspace / "audit.zarr" / chunks
    one, two = (folder / name / "0" for name in ("0", "1"))
    if how == "exchanged":
        exchange(one, two)
    else:
        shutil.copy(other_seed / "audit.zarr" / chunks / "1" / "0", two)
    refused = krepes(capsys, workspace)
    assert refused.code == 5
    assert f"{chunks}/" in refused.line
    assert "not the one written here" in refused.line
    assert krepes(capsys, workspace, "--repair").code == 0
    assert differences(clean, workspace) == []


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
    workspace = Path(shutil.copytree(clean, tmp_path / "w"))
    assert krepes(capsys, workspace, "--restart-stale", *change, "--until", "landmarks").code == 0
    assert krepes(capsys, workspace, "--restart-stale").code == 0
    assert krepes(capsys, workspace).code == 0
    assert differences(clean, workspace) == []


def test_views_to_and_fro_leave_nothing_of_the_other_views(
    tmp_path: Path, clean: Path, capsys: Any
) -> None:
    change = ("--set", "views.noise=0.3")
    workspace = Path(shutil.copytree(clean, tmp_path / "w"))
    for extra in (
        ("--restart-stale", *change, "--until", "kernel"),
        ("--restart-stale", "--until", "kernel"),
        ("--restart-stale", *change, "--until", "landmarks"),
        ("--restart-stale",),
        (),
    ):
        assert krepes(capsys, workspace, *extra).code == 0
    assert differences(clean, workspace) == []


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


def record(folder: Path, stage: str, name: str) -> Path:
    return folder / ".krepes/stages" / stage / name


def unseal(folder: Path, stage: str) -> None:
    """The stage as a kill before its seal leaves it."""
    space = Workspace(folder)
    space.record(stage, stage).unseal()


def test_a_journal_of_another_seed_vouches_for_nothing(
    tmp_path: Path, clean: Path, other_seed: Path, capsys: Any
) -> None:
    """Its chunks are whole, and just those that it names."""
    workspace = sealed_until(clean, tmp_path / "w", "features")
    unseal(workspace, "features")
    name = "journal-0000.jsonl"
    shutil.copy(record(other_seed, "features", name), record(workspace, "features", name))
    for array in ("values", "self_kernel", "sample_id"):
        chunks = f"audit.zarr/features/{array}/c"
        shutil.copytree(other_seed / chunks, workspace / chunks, dirs_exist_ok=True)
    assert krepes(capsys, workspace).code == 0
    assert differences(clean, workspace) == []


@pytest.mark.parametrize("stage", ["pretrain", "features", "moments"])
@pytest.mark.parametrize("name", ["seal.json", "begun.json"])
def test_a_record_of_another_seed_is_refused(
    tmp_path: Path, clean: Path, other_seed: Path, capsys: Any, stage: str, name: str
) -> None:
    """A checkpoint is laid in with its seal: the two agree."""
    shutil.copytree(clean, tmp_path / "w")
    workspace = tmp_path / "w"
    shutil.copy(record(other_seed, stage, name), record(workspace, stage, name))
    if (stage, name) == ("pretrain", "seal.json"):
        shutil.copy(other_seed / CHECKPOINT, workspace / CHECKPOINT)
    refused = krepes(capsys, workspace)
    assert refused.code == 5
    assert f"stages/{stage}/seal.json" in refused.line
    assert krepes(capsys, workspace, "--repair").code == 0
    assert differences(clean, workspace) == []
    assert (workspace / CHECKPOINT).read_bytes() == (clean / CHECKPOINT).read_bytes()
    assert small.seals(workspace) == small.seals(clean)
    assert verify_workspace(workspace).damage == ()


def test_a_record_of_another_stage_is_refused(tmp_path: Path, clean: Path, capsys: Any) -> None:
    shutil.copytree(clean, tmp_path / "w")
    for name in ("seal.json", "begun.json"):
        shutil.copy(record(clean, "moments", name), record(tmp_path / "w", "spectrum", name))
    refused = krepes(capsys, tmp_path / "w")
    assert refused.code == 5
    assert "the record of stage moments" in refused.line
    assert krepes(capsys, tmp_path / "w", "--repair").code == 0
    assert differences(clean, tmp_path / "w") == []


def test_a_document_of_an_earlier_state_is_refused(
    tmp_path: Path, clean: Path, capsys: Any
) -> None:
    """A verdict is read from the document of its store, and from nothing else."""
    shutil.copytree(clean, tmp_path / "w")
    document = tmp_path / "w/audit.zarr/verdict/zarr.json"
    said = small.krepes(capsys, "verdict", "-w", str(tmp_path / "w"))
    word = said.out.split()[0].encode()
    assert word in document.read_bytes()
    document.write_bytes(document.read_bytes().replace(word, b"X" * len(word)))
    refused = small.krepes(capsys, "verdict", "-w", str(tmp_path / "w"))
    assert refused.code == 5
    assert "verdict/zarr.json" in refused.line


@pytest.mark.parametrize("how", ["exchanged", "missing"])
def test_a_dataset_gives_only_what_was_sealed(tmp_path: Path, clean: Path, how: str) -> None:
    """Zarr would read the one, and fill the other with NaN."""
    shutil.copytree(clean, tmp_path / "w")
    chunks = tmp_path / "w/audit.zarr/kernel/values/c/0"
    assert Stores(tmp_path / "w")["kernel"].load().equals(Stores(clean)["kernel"].load())
    if how == "exchanged":
        exchange(chunks / "0/0", chunks / "1/0")
    else:
        (chunks / "1/0").unlink()
    dataset = Stores(tmp_path / "w")["kernel"]
    with pytest.raises(DamageError, match=r"kernel/values/c/0/./0"):
        dataset.load()


def test_a_scan_of_another_table_is_no_scan_of_this_one(tmp_path: Path) -> None:
    """Two tables of the same columns: the scan holds their means and their marginals."""
    recipes = []
    for seed in (0, 1):
        table = small.rows_csv(60, seed).replace("z,", "w," if seed else "z,")
        path = small.own_recipe(tmp_path / f"recipe-{seed}", table)
        changes = ("stages.features.block_rows=32", "stages.features.forward_batch=32")
        recipes.append(Recipe.load(str(path), changes))
        run(recipes[seed], tmp_path / f"w{seed}", Options(workers=1, until="features"))
    scans = [next((tmp_path / f"w{seed}").glob(".krepes/cache/scan-*")) for seed in (0, 1)]
    shutil.copytree(tmp_path / "w0", tmp_path / "w")
    laid = tmp_path / "w/.krepes/cache" / scans[0].name
    for path in scans[1].iterdir():
        shutil.copy(path, laid / path.name)
    (damage, *_) = verify_workspace(tmp_path / "w").damage
    assert str(laid) in damage.file
    run(recipes[0], tmp_path / "w", Options(workers=1, until="landmarks"))
    run(recipes[0], tmp_path / "w0", Options(workers=1, until="landmarks"))
    assert differences(tmp_path / "w0", tmp_path / "w") == []
    assert verify_workspace(tmp_path / "w").damage == ()


def test_a_document_of_another_seed_in_an_unsealed_store_is_repaired(
    tmp_path: Path, clean: Path, other_seed: Path, capsys: Any
) -> None:
    """No seal lists it yet; the store's own stamp says whose it is."""
    workspace = sealed_until(clean, tmp_path / "w", "features")
    unseal(workspace, "features")
    document = "audit.zarr/features/zarr.json"
    shutil.copy(other_seed / document, workspace / document)
    refused = krepes(capsys, workspace)
    assert refused.code == 4
    assert "features: the store was written as" in refused.line
    assert [damage.file for damage in verify_workspace(workspace, "features").damage] == [
        "zarr.json"
    ]
    assert krepes(capsys, workspace, "--repair").code == 0
    assert differences(clean, workspace) == []
