from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.core.files import Files, checksummed_json
from krepes_ooc.core.partial_files import write_arrays
from krepes_ooc.errors import DamageError
from krepes_ooc.storage.journal import Unit
from krepes_ooc.storage.stage_record import StageRecord, discard
from krepes_ooc.storage.workspace import Workspace
from tests.storage import stores
from tests.storage.stores import BEGUN, BLOCKS


def rename_until(count: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process that dies just before its ``count``-th rename; whether it died."""

    def die() -> None:
        done, real = 0, Path.rename

        def rename(self: Path, target: Path) -> Path:
            nonlocal done
            done += 1
            if done == count:
                os._exit(9)
            return real(self, target)

        Path.rename = rename  # type: ignore[method-assign,assignment]
        work()

    process = stores.start(die)
    process.join(20)
    assert process.exitcode in (0, 9)
    return bool(process.exitcode == 9)


def write_some(record: StageRecord, space: Workspace, count: int) -> None:
    writer = space.writer(stores.SPEC, "d1")
    for block in BLOCKS[:count]:
        stores.write_unit(record, writer, block)
    record.journal.close()


def rejournal(record: StageRecord, boot: str) -> None:
    """Write the journal anew as if it came from another boot."""
    units = record.units()[0].values()
    lines = [
        checksummed_json(
            {
                "unit": unit.name,
                "files": {key: list(value) for key, value in unit.files.items()},
                "boot": boot,
                "numerics": unit.numerics,
                "content": unit.content,
            }
        )
        for unit in units
    ]
    record.journal.path.write_bytes(b"".join(lines))


def read_all(space: Workspace) -> dict[str, np.ndarray]:
    space.drop_reader("features")
    return {name: space.reader("features").array(name) for name in stores.ARRAYS}


def check_complete(space: Workspace, record: StageRecord) -> None:
    assert record.is_sealed()
    for name, values in read_all(space).items():
        np.testing.assert_array_equal(values, stores.ARRAYS[name])


def test_nothing_is_known_of_a_stage_that_never_began(tmp_path: Path):
    record = stores.open_workspace(tmp_path).record("features", "features")
    assert record.begun() is None
    assert record.seal() is None
    assert not record.is_sealed()
    assert record.units() == ({}, 0)
    assert record.done() == {}


def test_begun_units_and_seal(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record, writer = stores.begin(space)
    assert record.begun() == BEGUN
    write_some(record, space, 2)
    assert sorted(record.done()) == ["block 0", "block 1"]
    assert record.seal() is None
    files = stores.finish(record, writer)
    seal = record.seal()
    assert seal is not None
    assert {key: tuple(value) for key, value in seal["files"].items()} == files
    assert set(files) == set(stores.files_in(space.audit / "features"))
    assert {key: seal[key] for key in BEGUN} == BEGUN
    assert seal["seconds"] == 1.0
    check_complete(space, record)


def test_missing_or_short_chunk_is_not_done(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record, _ = stores.begin(space)
    write_some(record, space, 3)
    (space.audit / "features/values/c/1/0/0").unlink()
    path = space.audit / "features/sample_id/c/2"
    path.write_bytes(path.read_bytes()[:-1])
    assert list(record.done()) == ["block 1"]


def test_later_unit_of_the_same_name_counts(tmp_path: Path):
    record, _ = stores.begin(stores.open_workspace(tmp_path))
    record.journal.append(Unit("block 0", {"values/c/0/0/0": (1, 2)}))
    record.journal.append(Unit("block 0", {}))
    record.journal.close()
    assert record.done()["block 0"].files == {}


@pytest.mark.parametrize("boot", ["another", ""])
def test_after_a_reboot_the_checksum_decides(tmp_path: Path, boot: str):
    space = stores.open_workspace(tmp_path)
    record, _ = stores.begin(space)
    write_some(record, space, 3)
    zeroed = space.audit / "features/self_kernel/c/0/1"
    zeroed.write_bytes(bytes(zeroed.stat().st_size))
    assert len(record.done()) == 3, "the same boot trusts the size"
    rejournal(record, boot)
    assert sorted(record.done()) == ["block 0", "block 2"]
    stores.flip(space.audit / "features/values/c/0/2/0", 8 * 3)
    assert sorted(record.done()) == ["block 0"]
    stores.finish(record, space.writer(stores.SPEC, "d1"))
    check_complete(space, record)


def test_damaged_journal_line_is_a_unit_to_do(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record, writer = stores.begin(space)
    write_some(record, space, 3)
    lines = record.journal.path.read_bytes().splitlines(keepends=True)
    stores.flip(record.journal.path, 8 * (len(lines[0]) + 40))
    assert sorted(record.done()) == ["block 0", "block 2"]
    assert record.units()[1] == 1
    stores.finish(record, writer)
    check_complete(space, record)


def test_begin_clears_a_store_journals_and_partials_without_record(tmp_path: Path):
    space, record = stores.sealed(tmp_path)
    write_arrays(record.partials / "centre-000000.npz", {"a": np.ones(3)}, record.temp)
    (record.folder / "begun.json").unlink()
    record = space.record("features", "features")
    record.begin({**BEGUN, "digest": "d2"})
    assert not (space.audit / "features").exists()
    assert [path.name for path in record.folder.iterdir()] == ["begun.json"]
    assert list(record.temp.iterdir()) == []


def test_begin_does_not_follow_a_link_in_place_of_the_store(tmp_path: Path):
    space = stores.open_workspace(tmp_path / "w")
    record = space.record("features", "features")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("data")
    (space.audit / "features").symlink_to(outside)
    record.begin(BEGUN)
    assert (outside / "precious").read_text() == "data"
    assert not os.path.lexists(space.audit / "features")


def test_seal_refuses_what_is_gone(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record, writer = stores.begin(space)
    files: Files = {}
    for block in BLOCKS:
        files |= stores.write_unit(record, writer, block)
    path = space.audit / "features/values/c/1/1/0"
    good = path.read_bytes()
    for damage, told in ((good[:-1], f"{len(good) - 1} bytes"), (None, "the file is missing")):
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(DamageError) as caught:
            record.seal_with(files, {})
        assert str(caught.value) == (
            f"{path}: {told}; expected {len(good)} bytes, as written; "
            "run the same command again: it is computed anew"
        )
        assert not record.is_sealed()
    stores.finish(record, writer)
    check_complete(space, record)


def test_record_without_store(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record = space.record("report", None)
    record.begin({**BEGUN, "stage": "report"})
    (tmp_path / "report.html").write_text("page")
    with pytest.raises(DamageError, match="2 bytes, as written"):
        record.seal_with({"report.html": (2, 0)}, {})
    record.seal_with({"report.html": (4, 0)}, {})
    assert record.is_sealed()
    record.archive_previous()
    assert record.begun() is None
    assert (tmp_path / "report.html").exists()


def test_damaged_seal_is_told_and_deleting_it_reseals_without_work(tmp_path: Path):
    space, record = stores.sealed(tmp_path)
    before = stores.files_in(space.audit)
    stores.flip(record.folder / "seal.json", 999)
    assert not record.is_sealed()
    with pytest.raises(DamageError, match="krepes run --repair"):
        record.seal()
    (record.folder / "seal.json").unlink()
    assert len(record.done()) == len(BLOCKS)
    stores.finish(record, space.writer(stores.SPEC, "d1"))
    assert stores.files_in(space.audit) == before


def test_deleting_damaged_chunk_and_seal_repairs_that_block_alone(tmp_path: Path):
    space, record = stores.sealed(tmp_path)
    before = stores.files_in(space.audit)
    other = (space.audit / "features/values/c/0/0/0").stat()
    (space.audit / "features/values/c/0/1/0").unlink()
    (record.folder / "seal.json").unlink()
    assert sorted(record.done()) == ["block 0", "block 2"]
    stores.finish(record, space.writer(stores.SPEC, "d1"))
    assert stores.files_in(space.audit) == before
    assert (space.audit / "features/values/c/0/0/0").stat() == other


def test_parked_store_goes_with_the_new_seal_and_not_before(tmp_path: Path):
    space, record = stores.sealed(tmp_path)
    old = stores.files_in(space.audit / "features")
    record.archive_previous()
    assert record.begun() is None
    assert not (space.audit / "features").exists()
    assert stores.files_in(record.previous / "store") == old
    record, writer = stores.begin(space, "d2")
    assert stores.files_in(record.previous / "store") == old
    stores.finish(record, writer)
    assert not record.previous.exists()
    assert list(record.temp.iterdir()) == []
    check_complete(space, record)


def test_parked_sealed_store_outlives_an_unfinished_one(tmp_path: Path):
    space, record = stores.sealed(tmp_path)
    old = stores.files_in(space.audit / "features")
    record.archive_previous()
    record, writer = stores.begin(space, "d2")
    stores.write_unit(record, writer, BLOCKS[0])
    record.journal.close()
    record.archive_previous()
    assert stores.files_in(record.previous / "store") == old
    assert record.begun() is None
    assert not (space.audit / "features").exists()


def test_rest_of_a_kill_after_sealing_gives_way_to_the_sealed_store(tmp_path: Path):
    space, record = stores.sealed(tmp_path)
    new = stores.files_in(space.audit / "features")
    (record.previous / "record").mkdir(parents=True)
    (record.previous / "store").mkdir()
    record.archive_previous()
    assert stores.files_in(record.previous / "store") == new
    assert record.begun() is None


def test_unsealed_store_is_parked_too_if_nothing_better_is(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record, writer = stores.begin(space)
    stores.write_unit(record, writer, BLOCKS[0])
    record.archive_previous()
    assert (record.previous / "store" / "zarr.json").exists()
    assert (record.previous / "record" / "begun.json").exists()


def test_kill_anywhere_while_parking_leaves_a_consistent_state(tmp_path: Path):
    """Either the old record still stands, or the stage is missing and its old store is parked."""
    for count in range(1, 9):
        space, _ = stores.sealed(tmp_path / str(count))
        old = stores.files_in(space.audit / "features")

        def restart(space: Workspace = space) -> None:
            fresh = space.record("features", "features")
            fresh.archive_previous()
            fresh.begin({**BEGUN, "digest": "d2"})

        died = rename_until(count, restart)
        again = space.record("features", "features")
        if again.begun() == BEGUN:
            again.archive_previous()
        if again.begun() is None:
            again.begin({**BEGUN, "digest": "d2"})
        assert stores.files_in(again.previous / "store") == old
        assert not (space.audit / "features").exists()
        writer = space.writer(stores.SPEC, "d2")
        writer.create()
        stores.finish(again, writer)
        check_complete(space, again)
        assert not again.previous.exists()
        if not died:
            break
    assert not died
    assert count > 2


def test_kill_between_seal_and_tidying_is_tidied_by_the_next_sweep(tmp_path: Path):
    space, record = stores.sealed(tmp_path)
    shutil.copytree(space.audit / "features", record.previous / "store")
    write_arrays(record.partials / "centre.npz", {"a": np.ones(3)}, record.temp)
    with space.lock():
        space.remove_stale_files()
    assert not record.previous.exists()
    assert not record.partials.exists()
    check_complete(space, record)


def test_sweep_keeps_what_an_unsealed_stage_needs(tmp_path: Path):
    space, record = stores.sealed(tmp_path)
    record.archive_previous()
    record, _ = stores.begin(space, "d2")
    write_arrays(record.partials / "centre.npz", {"a": np.ones(3)}, record.temp)
    with space.lock():
        space.remove_stale_files()
    assert (record.previous / "store").exists()
    assert (record.partials / "centre.npz").exists()


def test_reset_drops_store_and_journal_and_keeps_partials(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record, _ = stores.begin(space)
    write_some(record, space, 2)
    write_arrays(record.partials / "sums.npz", {"a": np.ones(3)}, record.temp)
    record.reset()
    assert not (space.audit / "features").exists()
    assert record.done() == {}
    assert record.begun() == BEGUN
    assert (record.partials / "sums.npz").exists()
    record.reset()


def test_discarded_folder_is_whole_or_gone(tmp_path: Path):
    folder, temp = tmp_path / "folder", tmp_path / "temp"
    discard(folder, temp)
    folder.mkdir()
    (folder / "file").write_text("x")
    assert rename_until(1, lambda: discard(folder, temp))
    assert (folder / "file").exists()
    assert not rename_until(2, lambda: discard(folder, temp))
    assert not folder.exists()
    assert list(temp.iterdir()) == []
