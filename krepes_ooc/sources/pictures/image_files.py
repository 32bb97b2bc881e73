"""Picture files of a folder: which names count, which links are followed, what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from krepes_ooc.core.files import unreadable

SUFFIXES = {
    ".bmp",
    ".gif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
}
# Folders that archives and file managers write beside the data.
_SYSTEM_FOLDERS = {"__MACOSX"}


@dataclass(frozen=True)
class FolderListing:
    """Names below a folder, relative to it.

    Args:
        pictures: files with the suffix of a picture, sorted.
        left_out: number of other files by suffix ("" for none).
        hidden: files and folders that were skipped by name.
        broken_links: links with the suffix of a picture that lead nowhere, sorted.
        repeated_links: links to folders that are read under another name already, sorted.
    """

    pictures: tuple[str, ...]
    left_out: dict[str, int]
    hidden: int
    broken_links: tuple[str, ...]
    repeated_links: tuple[str, ...]

    def describe_left_out(self) -> str:
        """Number of other files and their suffixes; empty if there are none."""
        total = sum(self.left_out.values())
        if not total:
            return ""
        counts = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        suffixes = ", ".join(f"{suffix or 'no suffix'} {count}" for suffix, count in counts)
        return f"{total:,} other file{'s' if total > 1 else ''} left out ({suffixes})"


def list_pictures(folder: Path) -> FolderListing:
    """All pictures below a folder; links to folders are followed, each folder once.

    Names that begin with a dot and ``__MACOSX`` are skipped: thumbnails, checkpoints of notebooks
    and forks of a file system are no samples.

    Raises:
        SourceError: a folder cannot be listed.
    """
    pictures: list[str] = []
    broken: list[str] = []
    repeated: list[str] = []
    left_out: Counter[str] = Counter()
    hidden = 0
    # Real folders before links: what lies inside the tree keeps the name that it has there.
    seen: set[tuple[int, int]] = set()
    links: list[Path] = [folder]
    while links:
        start = links.pop(0)
        if start != folder and _identity(start) in seen:
            repeated.append(start.relative_to(folder).as_posix())
            continue
        for prefix, entry in _walk(start, folder, seen, links):
            # Plain strings: path objects would cost half as much as a small picture.
            name = entry.name
            # A name with a dot in front is no sample, whatever its suffix.
            if name[0] == "." or name in _SYSTEM_FOLDERS:
                hidden += 1
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix not in SUFFIXES:
                left_out[suffix] += 1
            elif _is_file(entry):
                pictures.append(prefix + name)
            else:
                broken.append(prefix + name)
    return FolderListing(
        tuple(sorted(pictures)),
        dict(left_out),
        hidden,
        tuple(sorted(broken)),
        tuple(sorted(repeated)),
    )


def _walk(
    start: Path, folder: Path, seen: set[tuple[int, int]], links: list[Path]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Entries below a folder that are no folders, or are skipped by name, with their folder's name.

    Names of folders end in a slash and begin below ``folder``. Folders that are walked go into
    ``seen``, links to folders into ``links``, in sorted order.
    """
    pending = [start]
    while pending:
        parent = pending.pop()
        seen.add(_identity(parent))
        folders = []
        prefix = "" if parent == folder else f"{parent.relative_to(folder).as_posix()}/"
        for entry in _entries(parent):
            # Plain files first: most entries are.
            if not _is_folder(entry) or entry.name[0] == "." or entry.name in _SYSTEM_FOLDERS:
                yield prefix, entry
            elif entry.is_symlink():
                links.append(parent / entry.name)
            else:
                folders.append(parent / entry.name)
        pending += reversed(folders)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error, source=True) from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        # A link that leads to itself.
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads to itself.
        return False


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino
