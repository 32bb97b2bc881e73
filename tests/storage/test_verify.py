from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.core.files import checksummed_json
from krepes_ooc.errors import KrepesError
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.verify import Damage, Verification, verify
from krepes_ooc.storage.workspace import Workspace
from tests.storage import stores
from tests.storage.stores import BEGUN, BLOCKS


@pytest.fixture
def record(tmp_path: Path) -> StageRecord:
    return stores.sealed(tmp_path)[1]


def damage_in(record: StageRecord) -> dict[str, str]:
    return {item.file: item.problem for item in verify([record]).damage}


def test_whole_workspace_verifies(tmp_path: Path):
    space, record = stores.sealed(tmp_path)
    seen: list[int] = []
    found = verify([record, space.record("kernel", "kernel")], seen.append)
    files = stores.files_in(space.audit / "features")
    n_bytes = sum(map(len, files.values()))
    assert found == Verification(("features",), len(files), n_bytes, ())
    assert seen == sorted(seen)
    assert seen[-1] == n_bytes
    space.consolidate()
    assert verify([record]).damage == ()


def test_workspace_that_is_begun_verifies_what_is_journalled(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    assert verify([]).damage == ()
    assert verify([space.record("features", "features")]).stages == ()
    record, writer = stores.begin(space)
    assert verify([record]) == Verification(("features",), 0, 0, ())
    stores.write_unit(record, writer, BLOCKS[1])
    record.journal.close()
    assert verify([record]).files == 5
    assert verify([record]).damage == ()
    stores.flip(writer.path / "values/c/1/1/0", 9)
    assert damage_in(record) == {
        "values/c/1/1/0": "the bytes differ from the checksum recorded",
    }


def test_each_kind_of_damage_is_named(record: StageRecord):
    assert record.store is not None
    (record.store / "values/c/0/0/0").unlink()
    path = record.store / "values/c/0/1/0"
    path.write_bytes(path.read_bytes()[:100])
    path = record.store / "values/c/0/2/0"
    path.write_bytes(bytes(path.stat().st_size))
    stores.flip(record.store / "self_kernel/c/1/0", 5)
    stores.flip(record.store / "self_kernel/c/1/1", 8 * 256 * 8 + 1)
    stores.flip(record.store / "centre/zarr.json", 300)
    (record.store / "values/c/0/9").mkdir()
    (record.store / "values/c/0/9/0").write_text("x")
    (record.store / "notes.txt").write_text("x")
    found = verify([record])
    told = "features: centre/zarr.json: the bytes differ from the checksum recorded"
    assert told in map(str, found.damage)
    assert {item.file: item.problem for item in found.damage if item.stage == "features"} == {
        "values/c/0/0/0": "missing",
        "values/c/0/1/0": "100 bytes instead of 2564",
        "values/c/0/2/0": "the bytes differ from the checksum recorded",
        "self_kernel/c/1/0": "the bytes differ from the checksum recorded",
        "self_kernel/c/1/1": "the checksum suffix is damaged",
        "centre/zarr.json": "the bytes differ from the checksum recorded",
        "notes.txt": "not written by krepes",
        "values/c/0/9/0": "not written by krepes",
    }


def test_missing_store_lists_every_file(record: StageRecord):
    assert record.store is not None
    names = set(stores.files_in(record.store))
    shutil.rmtree(record.store)
    found = {item.file for item in verify([record]).damage if item.stage == "features"}
    assert found == names


def test_three_hundred_flipped_bits_are_all_found(tmp_path: Path):
    """One bit anywhere in chunks, metadata, journal, records, root document or seal."""
    space, record = stores.sealed(tmp_path)
    space.consolidate()
    paths = [tmp_path / name for name in stores.files_in(tmp_path)]
    names = {path.name for path in paths}
    assert {"seal.json", "begun.json", "journal-0000.jsonl", "recipe.json", "zarr.json"} < names
    assert len(paths) == 26
    chance = random.Random(11)
    for turn in range(300):
        path = paths[turn] if turn < len(paths) else chance.choice(paths)
        bit = chance.randrange(8 * path.stat().st_size)
        stores.flip(path, bit)
        damage: tuple[Damage, ...] = ()
        try:
            damage = verify([Workspace(tmp_path).record("features", "features")]).damage
        except KrepesError as error:
            assert path == space.audit / "zarr.json"
            damage = (Damage("workspace", error.where, error.what),)
        assert any(item.file.endswith(path.name) for item in damage), (path, bit)
        stores.flip(path, bit)
    assert verify([record]).damage == ()


def test_flipped_bits_of_an_unsealed_journal_are_all_found(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record, writer = stores.begin(space)
    for block in BLOCKS:
        stores.write_unit(record, writer, block)
    record.journal.close()
    path, chance = record.journal.path, random.Random(5)
    ends = [8 * i for i, byte in enumerate(path.read_bytes()) if byte == ord("\n")]
    for bit in [*ends, *(chance.randrange(8 * path.stat().st_size) for _ in range(100))]:
        stores.flip(path, bit)
        assert damage_in(record)["journal"].endswith("damaged lines")
        stores.flip(path, bit)
    assert verify([record]).damage == ()


def test_torn_journal_tail_is_no_damage(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record, writer = stores.begin(space)
    for block in BLOCKS[:2]:
        stores.write_unit(record, writer, block)
    record.journal.close()
    path = record.journal.path
    path.write_bytes(path.read_bytes()[:-1])
    assert verify([record]).damage == ()
    assert verify([record]).files == 5


def test_damaged_seal_falls_back_to_the_journal(record: StageRecord):
    assert record.store is not None
    stores.flip(record.folder / "seal.json", 700)
    stores.flip(record.store / "values/c/0/0/0", 3)
    assert damage_in(record) == {
        str(record.folder / "seal.json"): "the record does not match its checksum",
        "values/c/0/0/0": "the bytes differ from the checksum recorded",
    }


def test_lost_record_of_a_sealed_stage_is_told(record: StageRecord):
    (record.folder / "begun.json").unlink()
    assert damage_in(record) == {str(record.folder / "begun.json"): "missing"}


@pytest.mark.parametrize(
    "manifest",
    [
        {"files": {"/etc/passwd": [1, 2]}, "journals": {}},
        {"files": {"../../../../etc/passwd": [1, 2]}, "journals": {}},
        {"files": {"a": [1]}, "journals": {}},
        {"files": {}, "journals": {"../seal.json": [1, 2]}},
        {"files": {}},
        {"files": [1], "journals": {}},
        {},
    ],
)
def test_hostile_manifest_is_one_clear_damage(record: StageRecord, manifest: dict[str, Any]):
    seal = record.folder / "seal.json"
    seal.write_bytes(checksummed_json(manifest))
    found = verify([record])
    assert found.damage == (Damage("features", str(seal), "the manifest has another form"),)
    assert found.files == 0


def test_root_document_is_compared_with_the_sealed_stores(tmp_path: Path):
    space, record = stores.sealed(tmp_path)
    root = space.audit / "zarr.json"
    good = root.read_bytes()
    for bad in (
        good.replace(b"600", b"601"),
        good.replace(b'"features/values"', b'"features/valuer"'),
        good.replace(b'"features/values"', b'"../../values"'),
        good.replace(b'"inline"', b'"other"'),
        good + b" ",
        good.replace(b'"consolidated_metadata"', b'"consolidated_metadatb"'),
    ):
        assert bad != good
        root.write_bytes(bad)
        (item,) = verify([record]).damage
        assert item.stage == "workspace"
        assert "audit.zarr" in item.file
    root.write_bytes(good)
    assert verify([record]).damage == ()


def test_copies_of_a_store_that_is_being_written_may_lag(tmp_path: Path):
    space, record = stores.sealed(tmp_path)
    record.archive_previous()
    record = space.record("features", "features")
    record.begin({**BEGUN, "digest": "d2"})
    assert b"features/values" in (space.audit / "zarr.json").read_bytes()
    assert verify([record]).damage == ()


def test_damaged_recipe_record_is_told(tmp_path: Path):
    _, record = stores.sealed(tmp_path)
    stores.flip(tmp_path / ".krepes" / "recipe.json", 99)
    (item,) = verify([record]).damage
    assert str(item) == (
        f"workspace: {tmp_path / '.krepes' / 'recipe.json'}: the record does not match its checksum"
    )


def test_stage_without_store_is_verified_in_the_workspace(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record = space.record("report", None)
    record.begin({**BEGUN, "stage": "report"})
    (tmp_path / "report.html").write_bytes(b"123456789")
    record.seal_with({"report.html": (9, 0xE3069283)}, {})
    assert verify([record]) == Verification(("report",), 1, 9, ())
    (tmp_path / "report.html").write_bytes(b"123456780")
    assert damage_in(record) == {"report.html": "the bytes differ from the checksum recorded"}
