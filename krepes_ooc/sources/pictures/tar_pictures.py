"""Pictures in tar shards, as WebDataset writes them: indexed once, then read by their offset."""

from __future__ import annotations

import tarfile
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath

from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.pictures.image_files import SUFFIXES

MAX_LABEL_BYTES = 1024
LABEL = "cls"
_PIECE_BYTES = 2**20


@dataclass
class TarIndex:
    """Pictures of one shard in its order.

    Args:
        names: of the members [picture].
        offsets: of their first bytes in the file [picture].
        sizes: in bytes [picture].
        labels: text of the label member beside each [picture], or None.
        left_out: number of other members by extension.
    """

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def index_tar(path: Path, key: str, label: str) -> TarIndex:
    """Index of the pictures of a shard; members of one sample share all up to the first dot.

    Args:
        path: the shard, not compressed.
        key: extension of the members that are the pictures; empty: the only one of a picture.
        label: extension of the members that hold labels; empty: ``cls``.

    Raises:
        SourceError: the file cannot be read, is no tar or cut short; or samples have several
            pictures and no key says which.
    """
    index = TarIndex()
    texts: dict[str, str] = {}
    extensions: Counter[str] = Counter()
    stems: list[str] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                stem, extension = split_name(member.name)
                if not member.isreg() or PurePosixPath(member.name).name.startswith("."):
                    continue
                if extension == (label or LABEL) and member.size <= MAX_LABEL_BYTES:
                    file = archive.extractfile(member)
                    texts[stem] = "" if file is None else file.read().decode("utf-8").strip()
                elif extension == key or (not key and _is_picture(extension)):
                    extensions[extension] += 1
                    stems.append(stem)
                    index.names.append(member.name)
                    index.offsets.append(member.offset_data)
                    index.sizes.append(member.size)
                else:
                    index.left_out[extension] = index.left_out.get(extension, 0) + 1
        _check_end(path, archive.offset)
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise unreadable(path, error, source=True) from error
    if len(set(stems)) < len(stems):
        listed = ", ".join(f"{name} ({count:,})" for name, count in sorted(extensions.items()))
        raise SourceError(
            f"samples hold several pictures: {listed}",
            where=str(path),
            expected="one picture a sample, or source.key",
            advice=f"set source.key: {min(extensions)}",
        )
    index.labels = [texts.get(stem) for stem in stems]
    return index


def _check_end(path: Path, end: int) -> None:
    """Raise unless zero bytes alone follow the last member, at least one block of them.

    The module ``tarfile`` takes a damaged header, or a file that is cut between two members, for
    the end of the archive.

    Raises:
        SourceError: members are lost.
    """
    with path.open("rb") as stream:
        stream.seek(end)
        first = stream.read(tarfile.BLOCKSIZE)
        pieces = chain([first], iter(lambda: stream.read(_PIECE_BYTES), b""))
        if len(first) == tarfile.BLOCKSIZE and not any(map(any, pieces)):
            return
    cut = len(first) < tarfile.BLOCKSIZE
    raise SourceError(
        "the file is cut short" if cut else f"a damaged header, or another archive, at byte {end}",
        where=str(path),
        expected="one whole tar with its end mark",
        advice="copy or write the shard again",
    )


def split_name(name: str) -> tuple[str, str]:
    """Name of the sample and extension of a member: ``a/b.seg.png`` is ``a/b`` and ``seg.png``."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _is_picture(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in SUFFIXES
