from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.core.files import boot_id, checksummed_json
from krepes_ooc.errors import StageFailed
from krepes_ooc.storage import journal as journal_module
from krepes_ooc.storage.journal import Journal, Unit, read_journal
from tests.storage import stores

UNITS = [
    Unit(f"block {i}", {f"values/c/0/{i}/0": (100 + i, 7 * i)}, "", "numpy", f"hash{i}")
    for i in range(5)
]


def write(path: Path, units: list[Unit]) -> None:
    journal = Journal(path)
    for unit in units:
        journal.append(unit)
    journal.close()


def names(path: Path) -> list[str]:
    return [unit.name for unit in read_journal(path)[0]]


def body(**changes: Any) -> dict[str, Any]:
    files = {"values/c/0": [3, 4]}
    return {"unit": "u", "files": files, "boot": "b", "numerics": "", "content": ""} | changes


def test_units_come_back_in_order_with_this_boot(tmp_path: Path):
    path = tmp_path / "journal"
    assert read_journal(path) == ([], 0)
    write(path, UNITS[:2])
    write(path, UNITS[2:])
    units, damaged = read_journal(path)
    assert damaged == 0
    assert [unit.name for unit in units] == [unit.name for unit in UNITS]
    assert [unit.files for unit in units] == [unit.files for unit in UNITS]
    assert {unit.boot for unit in units} == {boot_id()}
    assert units[3].content == "hash3"
    assert units[3].numerics == "numpy"


def test_unit_is_on_record_before_append_returns(tmp_path: Path):
    journal = Journal(tmp_path / "journal")
    journal.append(UNITS[0])
    assert names(journal.path) == ["block 0"]
    journal.close()
    journal.close()
    journal.append(UNITS[1])
    journal.close()
    assert names(journal.path) == ["block 0", "block 1"]


def test_threads_append_whole_lines(tmp_path: Path):
    journal = Journal(tmp_path / "journal")
    units = [Unit(f"block {i}", {f"c/{i}": (i, i)}) for i in range(400)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(journal.append, units))
    journal.close()
    found, damaged = read_journal(journal.path)
    assert damaged == 0
    assert sorted(unit.name for unit in found) == sorted(unit.name for unit in units)


def test_one_thread_writes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    writing, real = threading.Lock(), Journal._write

    def write_alone(journal: Journal, line: bytes) -> None:
        assert writing.acquire(blocking=False)
        real(journal, line)
        time.sleep(0.001)
        writing.release()

    monkeypatch.setattr(Journal, "_write", write_alone)
    journal = Journal(tmp_path / "journal")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(journal.append, UNITS * 4))
    journal.close()
    assert len(names(journal.path)) == 20


def test_lines_reach_the_disk_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flushed, real = [], os.fsync
    monkeypatch.setattr(journal_module.os, "fsync", lambda fd: flushed.append(fd) or real(fd))
    journal = Journal(tmp_path / "journal")
    for unit in UNITS:
        journal.append(unit)
    at_first = len(flushed)
    assert at_first <= 3
    monkeypatch.setattr(journal_module, "COMMIT_SECONDS", 0.0)
    journal.append(UNITS[0])
    assert len(flushed) == at_first + 1
    journal.close()
    assert len(flushed) == at_first + 2


def test_torn_tail_is_dropped_wherever_it_was_cut(tmp_path: Path):
    path = tmp_path / "journal"
    write(path, UNITS[:3])
    whole = path.read_bytes()
    begin = whole[:-1].rindex(b"\n") + 1
    for end in [*range(begin, len(whole), 9), len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:end])
        units, damaged = read_journal(path)
        assert [unit.name for unit in units] == ["block 0", "block 1"]
        assert damaged == 0
        write(path, [UNITS[4]])
        assert names(path) == ["block 0", "block 1", "block 4"]
        assert read_journal(path)[1] == 0


def test_zeros_that_a_power_loss_leaves_are_dropped(tmp_path: Path):
    path = tmp_path / "journal"
    write(path, UNITS[:2])
    with path.open("ab") as file:
        file.write(bytes(4096))
    assert names(path) == ["block 0", "block 1"]
    assert read_journal(path)[1] == 0
    write(path, UNITS[2:])
    assert names(path) == [unit.name for unit in UNITS]


def test_every_flipped_bit_costs_its_unit_and_is_counted(tmp_path: Path):
    path = tmp_path / "journal"
    write(path, UNITS[:3])
    good = path.read_bytes()
    ends = [i for i, byte in enumerate(good) if byte == ord("\n")]
    bits = {8 * end + bit for end in ends for bit in range(8)} | set(range(0, 8 * len(good), 7))
    for bit in sorted(bits):
        stores.flip(path, bit)
        units, damaged = read_journal(path)
        hit = sum(bit // 8 > end for end in ends)
        lost = {f"block {hit}"} | ({f"block {hit + 1}"} if bit // 8 in ends else set())
        assert {unit.name for unit in units} == {unit.name for unit in UNITS[:3]} - lost
        assert damaged
        path.write_bytes(good)


def test_damaged_line_does_not_stop_the_next_units(tmp_path: Path):
    path = tmp_path / "journal"
    write(path, UNITS[:3])
    stores.flip(path, 8 * (path.stat().st_size // 2))
    write(path, [UNITS[1]])
    units, damaged = read_journal(path)
    assert [unit.name for unit in units] == ["block 0", "block 2", "block 1"]
    assert damaged == 1


@pytest.mark.parametrize(
    "value",
    [
        body(files={"/etc/passwd": [1, 2]}),
        body(files={"../../x": [1, 2]}),
        body(files={"a": [1]}),
        body(files={"a": "long"}),
        body(files=[1]),
        {"unit": "u"},
        {},
    ],
)
def test_signed_line_of_another_form_is_damaged(tmp_path: Path, value: dict[str, Any]):
    path = tmp_path / "journal"
    path.write_bytes(checksummed_json(body()) + checksummed_json(value))
    units, damaged = read_journal(path)
    assert [unit.name for unit in units] == ["u"]
    assert damaged == 1


def test_endless_line_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(journal_module, "MAX_LINE_BYTES", 512)
    path = tmp_path / "journal"
    path.write_bytes(b"x" * 5000 + b"\n" + checksummed_json(body()))
    assert names(path) == ["u"]
    assert read_journal(path)[1] == 1


def test_full_disk_leaves_whole_lines_and_resumes(tmp_path: Path):
    units = [Unit(f"block {i}", {f"values/c/{j}": (j, i) for j in range(40)}) for i in range(200)]
    with stores.mounted(tmp_path / "disk", "256k") as disk:
        filler = stores.fill_disk(disk, 16 * 1024)
        journal = Journal(disk / "journal")
        with pytest.raises(StageFailed, match=r"the disk is full: .* needed, .* free"):
            list(map(journal.append, units))
        kept = names(journal.path)
        assert 0 < len(kept) < 200
        assert journal.path.read_bytes().endswith(b"\n")
        filler.unlink()
        for unit in units[len(kept) :]:
            journal.append(unit)
        journal.close()
        assert names(journal.path) == [unit.name for unit in units]
        assert read_journal(journal.path)[1] == 0


def test_lines_of_another_digest_are_no_units_of_this_one(tmp_path: Path) -> None:
    """A journal of another run vouches for nothing, even where its chunks are whole."""
    path = tmp_path / "journal-0000.jsonl"
    journal = Journal(path, "d1")
    for unit in UNITS:
        journal.append(unit)
    journal.close()
    assert len(read_journal(path, "d1")[0]) == len(UNITS)
    assert read_journal(path, "d2") == ([], len(UNITS))
    # An unknown digest is not compared.
    assert len(read_journal(path)[0]) == len(UNITS)
