"""Cache of source scans and converted files; every file is checksummed.

A short result is one line of JSON with its checksum. A table or an array that was converted or
unpacked has a list of checksums beside it, one for every ``PIECE_BYTES``; a piece is checked when a
process first reads it. Damage found when a source is opened is repaired by converting again; damage
found later ends the run.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.digests import (
    cache_key,
    canonical_digest,
    file_sha256,
    write_cache_file,
)
from krepes_ooc.core.files import (
    MAX_RECORD_BYTES,
    checksum,
    checksummed_json,
    open_binary,
    publish,
    read_checksummed,
    read_small,
    remove_leftover,
    unreadable,
)
from krepes_ooc.errors import DamageError

PIECE_BYTES = 2**20
CHECKSUM_SUFFIX = ".sums"
STALE_SECONDS = 3600.0
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CachedFile:
    """A large file of the cache; each piece is checked when it is first read.

    Args:
        path: the file.
        size: bytes that it must have.
        checksums: crc32c of every piece.
    """

    path: Path
    size: int
    checksums: tuple[int, ...]
    _checked: set[int] = field(default_factory=set, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the record of checked pieces: another process checks for itself."""
        return CachedFile, (self.path, self.size, self.checksums)

    def check(self, start: int, stop: int) -> None:
        """Check the bytes from ``start`` to ``stop``.

        Raises:
            DamageError: they fail their checksum.
        """
        self.check_all(np.asarray([start]), np.asarray([stop]))

    def check_all(self, starts: Int64, stops: Int64) -> None:
        """Check many ranges of bytes, none of them empty.

        Another process may publish the same bytes again meanwhile: that is no change.

        Raises:
            DamageError: names the first piece that fails its checksum.
        """
        if problem := self._size_problem():
            raise self._damage_error(problem)
        # Count how many ranges cover each piece: +1 where one starts, -1 behind its end.
        touched = np.zeros(len(self.checksums) + 1, dtype=np.int64)
        np.add.at(touched, starts // PIECE_BYTES, 1)
        np.add.at(touched, (stops - 1) // PIECE_BYTES + 1, -1)
        for piece in np.flatnonzero(np.cumsum(touched[:-1])).tolist():
            # A set is enough between threads: at worst a piece is checked twice.
            if piece not in self._checked:
                if problem := self._piece_problem(piece):
                    raise self._damage_error(problem)
                self._checked.add(piece)

    def problem(self, pieces: int | None = None) -> str:
        """Damage of the file, or of its first pieces, in words; empty if it is intact."""
        problems = map(self._piece_problem, range(len(self.checksums[:pieces])))
        return next(filter(None, problems), "")

    def _damage_error(self, problem: str) -> DamageError:
        return DamageError(
            problem,
            where=str(self.path),
            expected="what was converted from the source",
            advice="run again with --repair: it is made anew",
        )

    def _size_problem(self) -> str:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return f"{size} bytes instead of {self.size}" if size != self.size else ""

    def _piece_problem(self, piece: int) -> str:
        start = piece * PIECE_BYTES
        length = min(PIECE_BYTES, self.size - start)
        if problem := self._size_problem():
            return problem
        try:
            with open_binary(self.path) as file:
                file.seek(start)
                content = file.read(length)
        except PermissionError as error:
            raise unreadable(self.path, error) from error
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if len(content) == length and checksum(content) == self.checksums[piece]:
            return ""
        return f"bytes {start} to {start + length} differ from the checksum recorded"


def find_cached(path: Path) -> CachedFile | None:
    """File that an earlier run cached, or None if it is missing or truncated.

    Raises:
        UsageError: no permission to read it.
    """
    record = read_scan_result(path.with_name(path.name + CHECKSUM_SUFFIX))
    try:
        size = int(record["bytes"])
        sums = tuple(map(int, record["crc32c"]))
        # Size alone: the contents are checked piece by piece when they are read.
        with open_binary(path) as file:
            if os.fstat(file.fileno()).st_size != size or len(sums) != -(-size // PIECE_BYTES):
                return None
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return CachedFile(path, size, sums)


@contextlib.contextmanager
def writing_cached(path: Path, named: Callable[[], Path] | None = None) -> Iterator[Path]:
    """Temporary file that becomes ``path``, with its checksums, on success.

    Args:
        path: the file.
        named: gives another name in the same folder, once the file is written.

    Raises:
        OSError: the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename is atomic on one file system only.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.touch()  # with the umask of the process, as for all other files
        yield temporary
        # Checksums of what the disk holds, before the name is given away.
        sums = list(_sums(temporary))
        size = temporary.stat().st_size
        path = path if named is None else named()
        publish(temporary, path)
    finally:
        remove_leftover(temporary)
    # The checksums complete the file: without them it is made again.
    _write_sums(path, size, sums)


def cache_file(path: Path, content: bytes) -> None:
    """Write bytes and their checksums.

    Raises:
        SourceError: the cache folder cannot be written.
    """
    write_cache_file(path, content)
    pieces = range(0, len(content), PIECE_BYTES)
    _write_sums(path, len(content), [checksum(content[i : i + PIECE_BYTES]) for i in pieces])


def write_scan_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a short result as one line of checksummed JSON.

    Raises:
        SourceError: the cache folder cannot be written.
    """
    write_cache_file(path, checksummed_json(result, cache_key(path)))


def read_scan_result(path: Path) -> dict[str, Any]:
    """Result that an earlier run wrote; {} if it is missing or damaged."""
    try:
        return read_checksummed(read_small(path, MAX_RECORD_BYTES), cache_key(path)) or {}
    except OSError:
        return {}


def folder_sha256(
    folder: Path, files: list[str], signatures: tuple[tuple[int, ...], ...], cache: Path
) -> str:
    """sha256 over names and contents of files, read again only if their listing changed.

    Args:
        folder: where the names begin.
        files: names in the folder.
        signatures: ``stat_signature`` of each file.
        cache: where the digest is cached.

    Raises:
        SourceError: a file cannot be read, or the cache not be written.
    """
    # Size, times and inode of every file: reading millions of pictures again takes hours.
    listing = canonical_digest([str(folder), files, [list(signature) for signature in signatures]])
    record = cache / f"folder-{listing[:16]}.json"
    if known := read_scan_result(record).get("sha256"):
        return str(known)
    digest = canonical_digest([[name, file_sha256(folder / name)] for name in files])
    write_scan_result(record, {"sha256": digest})
    return digest


def damaged_files(cache: Path) -> list[tuple[Path, str]]:
    """Files of the cache that fail their checksum, each with the problem in words.

    A missing file, or one without checksums, is no damage: it is converted again.

    Raises:
        UsageError: no permission to read a file, which is no damage.
    """
    damage = []
    for path in sorted(cache.rglob("*")):
        # Names with a dot are temporary files of a process that may still run.
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.is_symlink() or not path.is_file():
            damage.append((path, "no file and no folder"))
            continue
        if path.suffix in (".json", CHECKSUM_SUFFIX):
            try:
                line = read_small(path, MAX_RECORD_BYTES)
                intact = read_checksummed(line, cache_key(path)) is not None
            except PermissionError as error:
                raise unreadable(path, error) from error
            except OSError as error:
                damage.append((path, f"cannot be read ({error.strerror})"))
                continue
            damage += [] if intact else [(path, "the record does not match its checksum")]
        # A file without a record beside it is skipped here by the KeyError.
        record = read_scan_result(path.with_name(path.name + CHECKSUM_SUFFIX))
        with contextlib.suppress(KeyError, TypeError, ValueError):
            cached = CachedFile(path, int(record["bytes"]), tuple(map(int, record["crc32c"])))
            damage += [(path, problem)] if (problem := cached.problem()) else []
    return damage


def remove_stale_files(cache: Path) -> None:
    """Remove temporary files of killed processes that are older than ``STALE_SECONDS``."""
    leftovers = [path for path in cache.glob("**/.*") if path.is_file()]
    if leftovers:
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=cache) as now:
            for path in leftovers:
                # Ages by the clock of the file system, which may differ from this machine's.
                if os.fstat(now.fileno()).st_mtime - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink(missing_ok=True)


def _write_sums(path: Path, size: int, sums: list[int]) -> None:
    write_scan_result(path.with_name(path.name + CHECKSUM_SUFFIX), {"bytes": size, "crc32c": sums})


def _sums(path: Path) -> Iterator[int]:
    with open_binary(path) as file:
        # Unbuffered: a piece is read once and dropped.
        while piece := file.read(PIECE_BYTES):
            yield checksum(piece)
