"""Every picture of a folder decoded and hashed once; unchanged files are not read again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krepes_ooc.core.digests import canonical_digest, write_cache_file
from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import DataError
from krepes_ooc.sources.array_rows import FileSignature
from krepes_ooc.sources.cache import read_scan_result, write_scan_result
from krepes_ooc.sources.image_pixels import PictureFacts, inspect_picture

MAX_NAMED = 20
_READERS = 4
_PER_TASK = 32
_PER_RECORD = 20_000
_MOST_RECORDS = 32
_NO_FILE: FileSignature = (0, 0, 0, 0)
_FACT_NAMES = tuple(field.name for field in dataclasses.fields(PictureFacts))


@dataclass(frozen=True)
class PictureCheck:
    """Result of reading one file whole.

    Args:
        sha256: of the file's bytes.
        facts: header and extremes; None if it cannot be decoded.
        problem: why it cannot be decoded; empty if it can.
    """

    sha256: str
    facts: PictureFacts | None
    problem: str = ""

    def to_json(self) -> list[Any]:
        """The check as plain values."""
        facts = self.facts
        listed = None if facts is None else [getattr(facts, name) for name in _FACT_NAMES]
        return [self.sha256, listed, self.problem]

    @classmethod
    def from_json(cls, values: list[Any]) -> PictureCheck:
        """The check that ``to_json`` wrote."""
        sha256, facts, problem = values
        return cls(sha256, None if facts is None else PictureFacts(*facts), problem)


_NOWHERE = PictureCheck("", None, "a link that leads nowhere")


def check_pictures(
    folder: Path,
    files: Sequence[str],
    page: int | None,
    cache: Path,
    check_stop: Callable[[], None] = lambda: None,
) -> tuple[list[PictureCheck], list[FileSignature]]:
    """Checks and signatures of all files, in their order.

    A file whose size, times and inode are those of its last check is not read again.

    Args:
        folder: where the names begin.
        files: names in the folder.
        page: page of files that hold several, or None.
        cache: where the checks are kept.
        check_stop: raises when the run is to stop; what is checked by then is kept.

    Raises:
        SourceError: a file cannot be read, or the cache not be written.
    """
    records = _CheckRecords(cache, f"pictures-{canonical_digest([str(folder), page])[:16]}")
    known = records.read()
    # Plain strings: path objects would cost half as much as a small picture.
    root = os.path.join(folder, "")
    signatures = [_signature(root + name) for name in files]
    fresh = [
        index
        for index, name in enumerate(files)
        if signatures[index] != _NO_FILE and known.get(name, [None])[0] != list(signatures[index])
    ]
    results = {index: _NOWHERE for index, each in enumerate(signatures) if each == _NO_FILE}
    # Groups, so that a run that is stopped among millions of pictures keeps what it has checked.
    for start in range(0, len(fresh), _PER_RECORD):
        group = fresh[start : start + _PER_RECORD]
        checked: dict[str, list[Any]] = {}
        try:
            paths = [root + files[index] for index in group]

            def check_paths(start: int, stop: int, paths: list[str] = paths) -> list[PictureCheck]:
                return [check_picture(path, page) for path in paths[start:stop]]

            checks = run_checks(len(group), check_paths, check_stop)
            for index, check in zip(group, checks, strict=True):
                checked[files[index]] = [list(signatures[index]), *check.to_json()]
                results[index] = check
        finally:
            records.add(checked)
            known |= checked
    checks_in_order = [
        results.get(index) or PictureCheck.from_json(known[name][1:])
        for index, name in enumerate(files)
    ]
    return checks_in_order, signatures


class _CheckRecords:
    """Checks of files by name, in records of up to ``_PER_RECORD`` files; later ones count.

    Args:
        cache: folder of the records.
        stem: what their names begin with.
    """

    def __init__(self, cache: Path, stem: str) -> None:
        self._cache = cache
        self._stem = stem
        self._next = 0

    def read(self) -> dict[str, list[Any]]:
        """All checks: signature, digest, facts and problem of every file that was read."""
        known: dict[str, list[Any]] = {}
        paths = sorted(self._cache.glob(f"{self._stem}-*.json"))
        damaged = False
        for path in paths:
            pictures = read_scan_result(path).get("pictures", {})
            damaged |= not pictures
            known |= pictures
        self._next = len(paths)
        # Many small records, of files that were mended one after the other, become few.
        in_order = [self._path(index) for index in range(len(paths))] == paths
        if damaged or not in_order or len(paths) > _MOST_RECORDS + len(known) // _PER_RECORD:
            self._rewrite(known, paths)
        return known

    def add(self, checked: dict[str, list[Any]]) -> None:
        """Write the checks of further files."""
        if checked:
            write_scan_result(self._path(self._next), {"pictures": checked})
            self._next += 1

    def _rewrite(self, known: dict[str, list[Any]], paths: list[Path]) -> None:
        """Write all checks anew; the old records go last, so that a kill loses none."""
        self._next = 0
        names = list(known)
        for start in range(0, len(names), _PER_RECORD):
            self.add({name: known[name] for name in names[start : start + _PER_RECORD]})
        for path in set(paths) - {self._path(index) for index in range(self._next)}:
            path.unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self._cache / f"{self._stem}-{index:06d}.json"


def _signature(path: str) -> FileSignature:
    """Signature of a file; ``_NO_FILE`` for a link that leads nowhere.

    Raises:
        SourceError: the file is gone, or cannot be reached.
    """
    try:
        state = os.stat(path)
    except OSError as error:
        # A link to a file that may not be reached is no damaged file.
        if os.path.islink(path) and not isinstance(error, PermissionError):
            return _NO_FILE
        raise unreadable(Path(path), error, source=True) from error
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def refuse_damaged(
    folder: Path, problems: Sequence[tuple[str, str]], n_files: int, cache: Path
) -> None:
    """Raise with the names of all damaged files; a long list is written into the cache.

    Raises:
        DataError: there is a damaged file.
    """
    if not problems:
        return
    named = "; ".join(f"{name} ({problem})" for name, problem in problems[:MAX_NAMED])
    rest = ""
    # One line holds twenty names; all of them stand in a file.
    if len(problems) > MAX_NAMED:
        path = cache / "damaged-pictures.txt"
        lines = "".join(f"{json.dumps(name)}\t{problem}\n" for name, problem in problems)
        write_cache_file(path, lines.encode())
        rest = f" and {len(problems) - MAX_NAMED} more, all listed in {path}"
    raise DataError(
        f"{len(problems):,} of {n_files:,} pictures cannot be decoded: {named}{rest}",
        where=str(folder),
        expected="images",
        advice="repair or remove the files, or leave them out by source.skip_damaged: true",
    )


def check_picture(path: str, page: int | None) -> PictureCheck:
    """Digest and facts of one file, whose bytes are read once.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            content = stream.readall()
    except OSError as error:
        raise unreadable(Path(path), error, source=True) from error
    return check_content(content, page)


def check_content(content: bytes, page: int | None) -> PictureCheck:
    """Digest and facts of one picture."""
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return PictureCheck(digest, None, "the file is empty")
    try:
        return PictureCheck(digest, inspect_picture(content, page))
    except Exception as error:
        # Pillow's decoders raise exceptions of any class; the text names a buffer in memory.
        text = str(error)
        if "cannot identify image file" in text:
            text = "cannot identify image file"
        return PictureCheck(digest, None, " ".join(f"{type(error).__name__}: {text}".split()))


def run_checks(
    n_pictures: int,
    check: Callable[[int, int], list[PictureCheck]],
    check_stop: Callable[[], None],
) -> Iterator[PictureCheck]:
    """Checks of pictures in order, several at once: most decoders release the interpreter lock.

    Args:
        n_pictures: number of pictures.
        check: checks the pictures [start, stop).
        check_stop: raises when the run is to stop.
    """
    # A task for each picture would cost more than a small picture.
    starts = range(0, n_pictures, _PER_TASK)
    stops = [min(start + _PER_TASK, n_pictures) for start in starts]
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            for checks in pool.map(check, starts, stops):
                check_stop()
                yield from checks
        except BaseException:
            # A run that is to stop does not wait for pictures that are not begun.
            pool.shutdown(wait=True, cancel_futures=True)
            raise
