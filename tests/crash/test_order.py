"""What reaches the disk before what: the promises that a power loss tests, seen call by call."""

from __future__ import annotations

from pathlib import Path

from krepes_ooc.core.files import write_atomic
from tests.crash.disk import FailingDisk
from tests.storage import stores
from tests.storage.stores import BLOCKS


class Trace(FailingDisk):
    """A disk that never fails and remembers."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.seen: list[tuple[str, str]] = []

    def call(self, kind: str, path: object) -> bool:
        self.seen.append((kind, str(Path(str(path)).relative_to(self.root))))
        return super().call(kind, path)


def places(trace: Trace, kind: str, words: str) -> list[int]:
    return [i for i, (what, name) in enumerate(trace.seen) if what == kind and words in name]


def test_file_is_flushed_before_its_name_and_its_folder_after(tmp_path: Path) -> None:
    (tmp_path / "temp").mkdir()
    with Trace(tmp_path) as trace:
        write_atomic(tmp_path / "record", b"1", tmp_path / "temp", sync=True)
    kinds = [kind for kind, _ in trace.seen if kind in ("write", "fsync", "rename")]
    assert kinds == ["write", "fsync", "rename", "fsync"]


def test_chunks_come_before_their_journal_line_and_all_before_the_seal(tmp_path: Path) -> None:
    space = stores.open_workspace(tmp_path)
    with Trace(tmp_path) as trace:
        record, writer = stores.begin(space)
        stores.finish(record, writer)
    begun = places(trace, "rename", "begun.json")
    chunks = places(trace, "rename", "/values/c/")
    lines = places(trace, "write", "journal-")
    flushed = places(trace, "fsync", "/values/c/")
    (seal,) = places(trace, "rename", "seal.json")
    assert len(begun) == 1
    assert len(chunks) == 2 * len(BLOCKS)
    assert {trace.seen[i][1] for i in chunks} <= {trace.seen[i][1] for i in flushed}
    assert len(lines) == len(BLOCKS)
    assert begun[0] < min(chunks)
    assert all(max(chunks[2 * i : 2 * i + 2]) < line for i, line in enumerate(lines))
    assert max(flushed) < seal
    assert max(lines) < max(places(trace, "fsync", "journal-")) < seal
    assert seal < max(places(trace, "fsync", "stages"))


def test_block_is_journalled_after_its_chunks_by_every_stage(tmp_path: Path) -> None:
    from tests import small

    with Trace(tmp_path) as trace:
        small.audit(tmp_path, workers=1, until="features")
    lines = places(trace, "write", "features/journal-")
    chunks = places(trace, "rename", "features/values/c/")
    assert len(chunks) == 2 * len(lines) > 0
    assert all(max(chunks[2 * i : 2 * i + 2]) < line for i, line in enumerate(lines))
