"""Every picture of a folder decoded and hashed once; unchanged files are not read again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from krepes_ooc.core.digests import canonical_digest, write_cache_file
from krepes_ooc.core.files import remove_leftover, unreadable
from krepes_ooc.errors import DataError
from krepes_ooc.sources.arrays.array_rows import FileSignature
from krepes_ooc.sources.cache import read_scan_result, write_scan_result
from krepes_ooc.sources.image_pixels import PictureFacts, inspect_picture

CHECK_VERSION = 3
MAX_NAMED = 20
_READERS = 4
# Pictures of fewer bytes on average cost more in threads than they gain.
_SMALL_BYTES = 4_096
_PER_TASK = 32
_TASK_BYTES = 2**20
_IN_HAND = 2 * _READERS
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


_NOWHERE = PictureCheck("", None, "a link that leads nowhere")
KnownChecks = dict[str, tuple[FileSignature, PictureCheck]]


def checks_to_json(checks: Sequence[PictureCheck]) -> dict[str, Any]:
    """Checks as plain values: facts that many pictures share are written once."""
    # By identity: most pictures share one object.
    different = {id(check.facts): check.facts for check in checks if check.facts is not None}
    places = {id(None): -1} | {key: index for index, key in enumerate(different)}
    return {
        "sha256": [check.sha256 for check in checks],
        "facts": [places[id(check.facts)] for check in checks],
        "different": [[getattr(f, name) for name in _FACT_NAMES] for f in different.values()],
        "problems": [[i, check.problem] for i, check in enumerate(checks) if check.problem],
    }


def checks_from_json(values: dict[str, Any]) -> list[PictureCheck]:
    """The checks that ``checks_to_json`` wrote."""
    # The last entry is that of index -1.
    different = [*(PictureFacts(*facts) for facts in values["different"]), None]
    problems = dict(values["problems"])
    pairs = zip(values["sha256"], values["facts"], strict=True)
    return [
        PictureCheck(sha256, different[place], problems.get(index, ""))
        for index, (sha256, place) in enumerate(pairs)
    ]


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
    digest = canonical_digest([CHECK_VERSION, str(folder), page])
    records = _CheckRecords(cache, f"pictures-{digest[:16]}")
    known = records.read()
    # Plain strings: path objects would cost half as much as a small picture.
    root = os.path.join(folder, "")
    signatures = [_signature(root + name) for name in files]
    known |= {
        name: (_NO_FILE, _NOWHERE)
        for name, signature in zip(files, signatures, strict=True)
        if signature == _NO_FILE
    }
    fresh = [
        index
        for index, name in enumerate(files)
        if name not in known or known[name][0] != signatures[index]
    ]
    # Groups, so that a run that is stopped among millions of pictures keeps what it has checked.
    for start in range(0, len(fresh), _PER_RECORD):
        group = fresh[start : start + _PER_RECORD]
        checked: KnownChecks = {}
        try:
            paths = [root + files[index] for index in group]

            def check_paths(start: int, stop: int, paths: list[str] = paths) -> list[PictureCheck]:
                return [check_picture(path, page) for path in paths[start:stop]]

            sizes = [signatures[index][0] for index in group]
            checks = run_checks(sizes, check_paths, check_stop)
            for index, check in zip(group, checks, strict=True):
                checked[files[index]] = signatures[index], check
        finally:
            records.add(checked)
            known |= checked
    return [known[name][1] for name in files], signatures


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

    def read(self) -> KnownChecks:
        """All checks: signature and result of every file that was read."""
        known: KnownChecks = {}
        paths = sorted(self._cache.glob(f"{self._stem}-*.json"))
        damaged = False
        for path in paths:
            record = read_scan_result(path)
            damaged |= not record
            if record:
                # Four numbers for each file, one behind the other.
                numbers = iter(record["signatures"])
                signatures = zip(numbers, numbers, numbers, numbers, strict=True)
                pairs = zip(signatures, checks_from_json(record["checks"]), strict=True)
                known |= zip(record["names"], pairs, strict=True)
        self._next = len(paths)
        # Many small records, of files that were mended one after the other, become few.
        in_order = [self._path(index) for index in range(len(paths))] == paths
        if damaged or not in_order or len(paths) > _MOST_RECORDS + len(known) // _PER_RECORD:
            self._rewrite(known, paths)
        return known

    def add(self, checked: KnownChecks) -> None:
        """Write the checks of further files."""
        if checked:
            record = {
                "names": list(checked),
                "signatures": [n for signature, _ in checked.values() for n in signature],
                "checks": checks_to_json([check for _, check in checked.values()]),
            }
            write_scan_result(self._path(self._next), record)
            self._next += 1

    def _rewrite(self, known: KnownChecks, paths: list[Path]) -> None:
        """Write all checks anew; the old records go last, so that a kill loses none."""
        self._next = 0
        names = list(known)
        for start in range(0, len(names), _PER_RECORD):
            self.add({name: known[name] for name in names[start : start + _PER_RECORD]})
        for path in set(paths) - {self._path(index) for index in range(self._next)}:
            remove_leftover(path)

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
    sizes: Sequence[int],
    check: Callable[[int, int], list[PictureCheck]],
    check_stop: Callable[[], None],
) -> Iterator[PictureCheck]:
    """Checks of pictures in order; several at once, if they are large.

    When the run is to stop, only tasks that are begun are finished: up to ``_PER_TASK`` pictures,
    or ``_TASK_BYTES`` bytes, for each reader.

    Args:
        sizes: of the pictures in bytes.
        check: checks the pictures [start, stop).
        check_stop: raises when the run is to stop.
    """
    tasks = _divide(sizes)
    # Decoders release the interpreter lock, but small pictures hold it for most of their time.
    if sum(sizes) < _SMALL_BYTES * len(sizes):
        for start, stop in tasks:
            check_stop()
            yield from check(start, stop)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        pending: deque[Future[list[PictureCheck]]] = deque()
        try:
            while True:
                free = _IN_HAND - len(pending)
                pending.extend(pool.submit(check, *task) for task in islice(tasks, free))
                if not pending:
                    return
                checks = pending.popleft().result()
                check_stop()
                yield from checks
        except BaseException:
            # A run that is to stop does not wait for pictures that are not begun.
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _divide(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Start and stop of the pictures of each task: one for each would cost more than a picture."""
    start = 0
    n_bytes = 0
    for index, size in enumerate(sizes, 1):
        n_bytes += size
        if index - start == _PER_TASK or n_bytes >= _TASK_BYTES or index == len(sizes):
            yield start, index
            start = index
            n_bytes = 0
