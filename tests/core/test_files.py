from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core import files
from krepes_ooc.core.files import (
    boot_id,
    checksum,
    checksummed_json,
    disk_errors,
    read_bytes,
    read_checksummed,
    read_checksummed_file,
    sync_path,
    to_json,
    write_atomic,
)
from krepes_ooc.errors import DamageError, KrepesError, StageFailed, UsageError
from tests.storage import stores

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def slow_crc32c(data: bytes) -> int:
    """Bit by bit from the Castagnoli polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


@given(st.binary(max_size=64))
def test_checksum_is_crc32c(data: bytes):
    assert checksum(data) == slow_crc32c(data)
    assert checksum(np.frombuffer(data, dtype=np.uint8)) == slow_crc32c(data)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8"])
def test_checksum_of_an_array_is_that_of_its_bytes(dtype: str):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    assert checksum(values) == slow_crc32c(values.tobytes())


def test_file_is_replaced_as_a_whole(tmp_path: Path):
    path, temp = tmp_path / "a" / "b" / "file", tmp_path / "temp"
    write_atomic(path, b"old", temp, sync=False)
    write_atomic(path, (memoryview(b"ne"), b"w"), temp, sync=True)
    assert path.read_bytes() == b"new"
    assert list(temp.iterdir()) == []


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path):
    path, temp = tmp_path / "file", tmp_path / "temp"
    write_atomic(path, b"old", temp, sync=True)
    with pytest.raises(TypeError):
        write_atomic(path, (b"new", 3), temp, sync=True)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(temp.iterdir()) == []


def test_flush_tells_the_size(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"four")
    assert sync_path(tmp_path / "file") == 4
    sync_path(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_path(tmp_path / "none")


def test_full_disk_says_needed_and_free_bytes(tmp_path: Path):
    with stores.mounted(tmp_path / "disk", "1m") as disk:
        write_atomic(disk / "file", b"old", disk / "temp", sync=True)
        filler = stores.fill_disk(disk, 64 * 1024)
        with pytest.raises(StageFailed) as caught:
            write_atomic(disk / "file", bytes(2**18), disk / "temp", sync=False)
        assert str(caught.value) == (
            f"{disk / 'file'}: the disk is full: 256.0 KiB needed, 64.0 KiB free; "
            "free some space and run the same command again: it resumes"
        )
        assert caught.value.exit_code == 1
        assert (disk / "file").read_bytes() == b"old"
        assert list((disk / "temp").iterdir()) == []
        filler.unlink()
        write_atomic(disk / "file", bytes(2**18), disk / "temp", sync=False)


def test_read_only_disk_is_a_usage_error(tmp_path: Path):
    with stores.mounted(tmp_path / "disk", "1m") as disk:
        stores.make_read_only(disk)
        with pytest.raises(UsageError) as caught:
            write_atomic(disk / "file", b"new", disk / "temp", sync=False)
    assert str(caught.value) == (
        f"{tmp_path / 'disk' / 'file'}: cannot write (Read-only file system); "
        "expected a folder you may write to; choose another --workspace"
    )


@pytest.mark.parametrize(
    ("number", "kind", "told"),
    [
        (errno.ENOSPC, StageFailed, "the disk is full: 4.0 KiB needed"),
        (errno.EDQUOT, StageFailed, "the disk is full"),
        (errno.EACCES, UsageError, "cannot write (Permission denied)"),
        (errno.EROFS, UsageError, "cannot write (Read-only file system)"),
        (errno.ENOTDIR, UsageError, "cannot write (Not a directory)"),
        (errno.EEXIST, UsageError, "cannot write (File exists)"),
        (errno.EIO, StageFailed, "the disk fails (Input/output error); look at the disk"),
    ],
)
def test_every_disk_error_is_one_clear_line(number: int, kind: type[KrepesError], told: str):
    with pytest.raises(kind) as caught, disk_errors(Path("/tmp/none/file")):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"/tmp/none/file: {told}")


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), disk_errors(Path("x")):
        raise ZeroDivisionError


def test_file_in_the_way_is_a_usage_error(tmp_path: Path):
    (tmp_path / "way").write_bytes(b"")
    with pytest.raises(UsageError, match="way/file: cannot write"):
        write_atomic(tmp_path / "way" / "file", b"", tmp_path / "temp", sync=False)


def test_canonical_json():
    value = {
        "b": np.float32(0.5),
        "a": (np.int64(3), float("nan"), np.array([[1.0, np.inf]]), np.bool_(True)),
        3: Path("x"),
        "c": None,
    }
    assert to_json(value) == '{"3":"x","a":[3,null,[[1.0,null]],true],"b":0.5,"c":null}'
    with pytest.raises(TypeError):
        to_json({"a": object()})


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_signed_line_comes_back(value: dict[str, Any]):
    line = checksummed_json(value)
    assert line.count(b"\n") == 1
    assert read_checksummed(line) == value
    assert json.loads(line)["body"] == value


def test_every_flipped_bit_and_every_cut_of_a_signed_line_is_seen():
    line = checksummed_json({"unit": "block 3", "files": {"a/c/0": [12, 345]}, "é": 1.5})
    for bit in range(8 * len(line)):
        data = bytearray(line)
        data[bit // 8] ^= 1 << bit % 8
        assert read_checksummed(bytes(data)) is None
    for end in range(len(line)):
        assert read_checksummed(line[:end]) is None
    assert read_checksummed(line + b"\n") is None
    assert read_checksummed(line + line) is None


@pytest.mark.parametrize("body", [b"[1]", b"3", b"{", b"[" * 100_000, b"\xff"])
def test_signed_lines_of_another_form_are_refused(body: bytes):
    assert read_checksummed(b'{"crc32c":%d,"body":%b}\n' % (checksum(body), body)) is None


def test_signed_file(tmp_path: Path):
    path = tmp_path / "seal.json"
    assert read_checksummed_file(path) is None
    path.write_bytes(checksummed_json({"a": 1}))
    assert read_checksummed_file(path) == {"a": 1}
    stores.flip(path, 100)
    with pytest.raises(DamageError) as caught:
        read_checksummed_file(path)
    assert str(caught.value) == (
        f"{path}: the record does not match its checksum; expected the line that was written; "
        "`krepes run --repair` mends it: what it recorded is computed anew"
    )
    assert caught.value.exit_code == 5


def test_unreadable_and_endless_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DamageError, match=r"cannot be read \(a folder instead of a file\)"):
        read_bytes(tmp_path)
    monkeypatch.setattr(files, "MAX_RECORD_BYTES", 10)
    (tmp_path / "long").write_bytes(bytes(11))
    with pytest.raises(DamageError, match="the file is too large; expected at most 10 B"):
        read_bytes(tmp_path / "long")
    (tmp_path / "long").write_bytes(bytes(10))
    assert read_bytes(tmp_path / "long") == bytes(10)


def test_missing_permission_is_a_usage_error(tmp_path: Path):
    path = tmp_path / "seal.json"
    path.write_bytes(checksummed_json({}))
    path.chmod(0)
    tmp_path.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        told = r"cannot (be read|write) \(Permission denied\)"
        for work in (
            lambda: read_bytes(path),
            lambda: write_atomic(tmp_path / "new", b"", tmp_path / "temp", sync=False),
        ):
            with pytest.raises(UsageError, match=told):
                work()
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


def test_boot_id_is_the_kernels():
    assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_line_of_another_key_is_refused() -> None:
    line = checksummed_json({"a": 1}, "cache/scan-1.json")
    assert read_checksummed(line, "cache/scan-1.json") == {"a": 1}
    assert read_checksummed(line, "cache/scan-2.json") is None
    assert read_checksummed(line) is None
    # Lines of earlier versions have no key.
    assert read_checksummed(checksummed_json({"a": 1}), "cache/scan-1.json") == {"a": 1}
