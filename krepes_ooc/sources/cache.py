"""What was learned about a source and is kept between runs: every file answers for its bytes.

Short findings are one signed line. A table or an array that was converted or unpacked has a list of
checksums beside it, one for every ``PIECE_BYTES``; a piece is checked when a process first reads
it. What is damaged when a source is opened is made again; what is damaged later ends the run.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.digests import canonical_digest, file_sha256, write_cache_file
from krepes_ooc.core.files import checksum, checksummed_json, publish, read_checksummed
from krepes_ooc.errors import DamageError

PIECE_BYTES = 2**20
SUMS = ".sums"
LEFT_SECONDS = 3600.0
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CachedFile:
    """A large file of the cache, whose pieces are checked when they are first read.

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
        """Reach another process with nothing checked."""
        return CachedFile, (self.path, self.size, self.checksums)

    def check(self, start: int, stop: int) -> None:
        """Check the bytes from ``start`` to ``stop``.

        Raises:
            DamageError: they are not what was written.
        """
        self.check_all(np.asarray([start]), np.asarray([stop]))

    def check_all(self, starts: Int64, stops: Int64) -> None:
        """Check many ranges of bytes, none of them empty.

        Another process may have published the same bytes once more meanwhile: that is no change.

        Raises:
            DamageError: the first piece that is not what was written.
        """
        if what := self._wrong_size():
            raise self._damaged(what)
        touched = np.zeros(len(self.checksums) + 1, dtype=np.int64)
        np.add.at(touched, starts // PIECE_BYTES, 1)
        np.add.at(touched, (stops - 1) // PIECE_BYTES + 1, -1)
        for piece in np.flatnonzero(np.cumsum(touched[:-1])).tolist():
            if piece not in self._checked:
                if what := self._wrong(piece):
                    raise self._damaged(what)
                self._checked.add(piece)

    def damage(self, pieces: int | None = None) -> str:
        """What is wrong with the file, or its first pieces, in words; empty if nothing is."""
        found = map(self._wrong, range(len(self.checksums[:pieces])))
        return next(filter(None, found), "")

    def _damaged(self, what: str) -> DamageError:
        return DamageError(
            what,
            where=str(self.path),
            expected="what was converted from the source",
            advice="run again with --repair: it is made anew",
        )

    def _wrong_size(self) -> str:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return f"{size} bytes instead of {self.size}" if size != self.size else ""

    def _wrong(self, piece: int) -> str:
        start = piece * PIECE_BYTES
        wanted = min(PIECE_BYTES, self.size - start)
        if what := self._wrong_size():
            return what
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(start)
                found = file.read(wanted)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if len(found) == wanted and checksum(found) == self.checksums[piece]:
            return ""
        return f"bytes {start} to {start + wanted} differ from the checksum recorded"


def find_cached(path: Path) -> CachedFile | None:
    """A file that an earlier run kept, or None if it is not there or was cut."""
    found = read_scan_result(path.with_name(path.name + SUMS))
    try:
        size, sums = int(found["bytes"]), tuple(map(int, found["crc32c"]))
        if path.stat().st_size != size or len(sums) != -(-size // PIECE_BYTES):
            return None
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return CachedFile(path, size, sums)


@contextlib.contextmanager
def writing_cached(path: Path) -> Iterator[Path]:
    """A temporary file that becomes ``path`` with its checksums if nothing goes wrong.

    Raises:
        OSError: the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sums = list(_sums(temporary))
        size = temporary.stat().st_size
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # The checksums complete the file: without them it is made again.
    _write_sums(path, size, sums)


def cache_file(path: Path, content: bytes) -> None:
    """Keep some bytes with their checksums.

    Raises:
        SourceError: the cache folder cannot be written.
    """
    write_cache_file(path, content)
    pieces = range(0, len(content), PIECE_BYTES)
    _write_sums(path, len(content), [checksum(content[i : i + PIECE_BYTES]) for i in pieces])


def write_scan_result(path: Path, findings: Mapping[str, Any]) -> None:
    """Keep short findings as one signed line.

    Raises:
        SourceError: the cache folder cannot be written.
    """
    write_cache_file(path, checksummed_json(findings))


def read_scan_result(path: Path) -> dict[str, Any]:
    """Findings that an earlier run kept; nothing if there are none or they are damaged."""
    try:
        return read_checksummed(path.read_bytes()) or {}
    except OSError:
        return {}


def folder_sha256(
    folder: Path, files: list[str], seals: tuple[tuple[int, ...], ...], cache: Path
) -> str:
    """sha256 over names and contents of files, read again only if their listing changed.

    Args:
        folder: where the names begin.
        files: names in the folder.
        seals: ``stat_seal`` of each file.
        cache: where the digest is kept.

    Raises:
        SourceError: a file cannot be read, or the cache not be written.
    """
    listing = canonical_digest([str(folder), files, [list(seal) for seal in seals]])
    memory = cache / f"folder-{listing[:16]}.json"
    if known := read_scan_result(memory).get("sha256"):
        return str(known)
    digest = canonical_digest([[name, file_sha256(folder / name)] for name in files])
    write_scan_result(memory, {"sha256": digest})
    return digest


def damaged_files(cache: Path) -> list[tuple[Path, str]]:
    """Files of the cache that are not what was written, each with what is wrong in words.

    A file that is gone is made again and harms nobody, and so is one without checksums.
    """
    damage = []
    for path in sorted(cache.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix in (".json", SUMS):
            try:
                whole = read_checksummed(path.read_bytes()) is not None
            except OSError as error:
                damage.append((path, f"cannot be read ({error.strerror})"))
                continue
            damage += [] if whole else [(path, "the record does not match its checksum")]
        found = read_scan_result(path.with_name(path.name + SUMS))
        with contextlib.suppress(KeyError, TypeError, ValueError):
            kept = CachedFile(path, int(found["bytes"]), tuple(map(int, found["crc32c"])))
            damage += [(path, what)] if (what := kept.damage()) else []
    return damage


def remove_stale_files(cache: Path) -> None:
    """Remove what killed processes left unfinished; the file system's own clock tells ages."""
    leftovers = [path for path in cache.glob("**/.*") if path.is_file()]
    if leftovers:
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=cache) as now:
            for path in leftovers:
                if os.fstat(now.fileno()).st_mtime - path.stat().st_mtime > LEFT_SECONDS:
                    path.unlink(missing_ok=True)


def _write_sums(path: Path, size: int, sums: list[int]) -> None:
    write_scan_result(path.with_name(path.name + SUMS), {"bytes": size, "crc32c": sums})


def _sums(path: Path) -> Iterator[int]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            yield checksum(piece)
