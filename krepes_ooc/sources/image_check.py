"""Every picture of a folder decoded and hashed once; unchanged files are not read again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
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
_PER_RECORD = 20_000


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


def check_pictures(
    folder: Path,
    files: Sequence[str],
    signatures: Sequence[FileSignature],
    page: int | None,
    cache: Path,
) -> list[PictureCheck]:
    """Checks of all files, in their order; from the cache where size, times and inode are the same.

    Raises:
        SourceError: a file cannot be read, or the cache not be written.
    """
    record = cache / f"pictures-{canonical_digest([str(folder), page])[:16]}.json"
    known = read_scan_result(record).get("pictures", {})
    fresh = [
        index
        for index, name in enumerate(files)
        if known.get(name, [None])[0] != list(signatures[index])
    ]
    # Groups, so that a run that is stopped among millions of pictures keeps what it has checked.
    for start in range(0, len(fresh), _PER_RECORD):
        group = fresh[start : start + _PER_RECORD]
        checks = _read_all([folder / files[index] for index in group], page)
        for index, check in zip(group, checks, strict=True):
            known[files[index]] = [list(signatures[index]), *_to_json(check)]
        write_scan_result(record, {"pictures": known})
    return [_from_json(known[name][1:]) for name in files]


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


def check_picture(path: Path, page: int | None) -> PictureCheck:
    """Digest and facts of one file, whose bytes are read once.

    Raises:
        SourceError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, source=True) from error
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


def _read_all(paths: list[Path], page: int | None) -> Iterator[PictureCheck]:
    # Hashing and most decoders release the interpreter lock.
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(lambda path: check_picture(path, page), paths)


def _to_json(check: PictureCheck) -> list[Any]:
    facts = None if check.facts is None else list(dataclasses.astuple(check.facts))
    return [check.sha256, facts, check.problem]


def _from_json(values: list[Any]) -> PictureCheck:
    sha256, facts, problem = values
    return PictureCheck(sha256, None if facts is None else PictureFacts(*facts), problem)
