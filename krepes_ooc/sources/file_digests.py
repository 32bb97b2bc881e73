"""Digests of the single files of a source: which samples are the same in two versions of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.digests import canonical_digest
from krepes_ooc.sources.base import Source
from krepes_ooc.sources.cache import read_scan_result, write_scan_result

MAX_NAMED = 5
# Keys of a fingerprint that follow from the digests of the files.
_CONTENT_KEYS = {"sha256", "rows", "skipped", "positions"}


@dataclass(frozen=True)
class FileDigests:
    """Files of one version of a source, in the order of its positions.

    Args:
        rest: digest of all else that identifies the source: decoding, shape, scaling.
        names: of the files [position].
        sha256: of their bytes [position]; empty for a file that is skipped.
    """

    rest: str
    names: tuple[str, ...]
    sha256: tuple[str, ...]

    def changed(self, other: FileDigests) -> npt.NDArray[np.bool_] | None:
        """Positions [position] whose file differs; None if the sources differ in more than files.

        Args:
            other: another version of the source.
        """
        # A file that is new or gone moves all files behind it to other positions.
        if (self.rest, len(self.names)) != (other.rest, len(other.names)):
            return None
        ours = zip(self.names, self.sha256, strict=True)
        theirs = zip(other.names, other.sha256, strict=True)
        return np.fromiter(map(_differ, ours, theirs), dtype=np.bool_, count=len(self.names))


def record_file_digests(
    source: Source, names: Sequence[str], sha256: Sequence[str], cache: Path
) -> None:
    """Keep the digests of all files under the digest of the source, once for each version of it.

    Args:
        source: the open source.
        names: of all files [position].
        sha256: of all files [position]; empty for those that are skipped.
        cache: where they are kept.

    Raises:
        SourceError: the cache cannot be written.
    """
    fingerprint = source.fingerprint()
    record = _record(cache, canonical_digest(fingerprint))
    if not record.is_file():
        rest = {key: value for key, value in fingerprint.items() if key not in _CONTENT_KEYS}
        files = {"names": list(names), "sha256": list(sha256)}
        write_scan_result(record, {"rest": canonical_digest(rest), **files})


def read_file_digests(cache: Path, source_digest: object) -> FileDigests | None:
    """Files of the version of the source with this digest; None where they were not recorded.

    Args:
        cache: where they are kept.
        source_digest: digest of the source's fingerprint, as a stage records it.
    """
    if not isinstance(source_digest, str):
        return None
    record = read_scan_result(_record(cache, source_digest))
    if not record:
        return None
    return FileDigests(str(record["rest"]), tuple(record["names"]), tuple(record["sha256"]))


def describe_change(then: FileDigests, now: FileDigests) -> str:
    """Differences between two versions of a source, file by file, in words.

    Args:
        then: the version that a stage was made of.
        now: the version that the recipe declares now.
    """
    old = dict(zip(then.names, then.sha256, strict=True))
    new = dict(zip(now.names, now.sha256, strict=True))
    both = [name for name in now.names if name in old and old[name] != new[name]]
    kinds = {
        "differ": [name for name in both if old[name] and new[name]],
        "mended, skipped until now": [name for name in both if not old[name]],
        "damaged and skipped now": [name for name in both if not new[name]],
        "new": [name for name in now.names if name not in old],
        "gone": [name for name in then.names if name not in new],
    }
    found = [f"{_listed(names)} {words}" for words, names in kinds.items() if names]
    if then.rest != now.rest:
        found.append("all are decoded otherwise")
    return f"source changed: of {len(now.names):,} files {', '.join(found)}" if found else ""


def _differ(one: tuple[str, str], other: tuple[str, str]) -> bool:
    return one != other


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return f"{len(names):,} ({', '.join(names[:MAX_NAMED])}{more})"


def _record(cache: Path, source_digest: str) -> Path:
    return cache / f"files-{source_digest[:16]}.json"
