"""A file read once from its first byte to its last, hashed on the way."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa

# Arrow's names of how a file is packed, by suffix.
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


class HashedStream:
    """Bytes of a file in order, for readers that read ahead in threads of their own.

    Arrow's CSV reader may still have a read under way when it is closed. On a plain file that read
    would take bytes from whatever file is opened next under the same number.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        self._ended = False

    @property
    def closed(self) -> bool:
        """Whether nothing is read any more."""
        return self._file.closed

    def arrow(self) -> Any:
        """Arrow stream of the bytes, unpacked as the suffix says; it closes the file."""
        codec = CODECS.get(self._path.suffix.lower())
        return pa.input_stream(pa.PythonFile(self, "r"), compression=codec)

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most ``size`` of them; none at the end and once closed."""
        with self._lock:
            if self._file.closed:
                return b""
            content = self._file.read(size)
            self._hash.update(content)
            self._ended |= not content and size != 0
            return content

    def close(self) -> None:
        """End reading; a read that is under way is waited for."""
        with self._lock:
            self._file.close()

    def sha256(self) -> str | None:
        """sha256 of the whole file; None if it was not read to its end."""
        return self._hash.hexdigest() if self._ended else None
