"""A disk that fails on purpose: the n-th write, rename, fsync, read ... below one folder."""

from __future__ import annotations

import builtins
import errno
import io
import mmap
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ERRORS = {
    "create": errno.ENOSPC,
    "write": errno.ENOSPC,
    "mkdir": errno.ENOSPC,
    "rename": errno.EIO,
    "unlink": errno.EIO,
    "fsync": errno.EIO,
    "read": errno.EIO,
}
KINDS = tuple(ERRORS)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FailingDisk:
    """Within its context the system calls of this process on files below ``root`` can fail.

    A failing write takes the first half of its bytes, as a disk that fills up does. A read is every
    opening for reading, every read of an open file, every memory map, and what Arrow and
    safetensors open and read in C++ and Rust. What a memory map reads once it is there cannot fail
    this way: then the kernel kills the process, which other tests do.

    Args:
        root: folder of the disk.
        kind: which calls fail, one of ``KINDS``; others are counted only.
        at: the first call that fails, from 1; 0: none.
        lasting: whether all later calls of that kind fail too.
        inputs: a further folder on the disk, such as that of a source.
    """

    def __init__(
        self,
        root: Path,
        kind: str = "",
        at: int = 0,
        *,
        lasting: bool = False,
        inputs: Path | None = None,
    ) -> None:
        self.root, self.kind, self.at, self.lasting = os.fspath(root), kind, at, lasting
        self._folders = tuple(f"{folder}{os.sep}" for folder in (root, inputs) if folder)
        self.calls: Counter[str] = Counter()
        self.failed: list[str] = []
        self._lock = threading.Lock()
        self._real: dict[tuple[Any, str], Any] = {}
        self._arrow_files: dict[int, str] = {}

    def __enter__(self) -> Self:
        import pyarrow.parquet
        import safetensors.torch

        self._replace(io, "open", self._open_file)
        self._replace(builtins, "open", self._open_file)
        for name in ("read", "pread", "preadv", "readv"):
            self._replace(os, name, self._descriptor(os, name))
        self._replace(mmap, "mmap", self._descriptor(mmap, "mmap"))
        self._replace(safetensors.torch, "safe_open", self._reader(safetensors.torch, "safe_open"))
        parquet = pyarrow.parquet.ParquetFile
        for name in ("__init__", "read_row_group", "iter_batches"):
            self._replace(parquet, name, self._arrow(parquet, name))
        self._replace(os, "open", self._open)
        self._replace(os, "fsync", self._fsync)
        for name in ("rename", "replace"):
            self._replace(os, name, self._pair(name))
        for name, kind in (("unlink", "unlink"), ("remove", "unlink"), ("mkdir", "mkdir")):
            self._replace(os, name, self._single(name, kind))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for (module, name), real in self._real.items():
            setattr(module, name, real)

    def call(self, kind: str, path: object) -> bool:
        """Count one call; whether it is to fail."""
        with self._lock:
            self.calls[kind] += 1
            number = self.calls[kind]
            hit = kind == self.kind and self.at > 0
            hit = hit and (number >= self.at if self.lasting else number == self.at)
            if hit:
                self.failed.append(f"{kind} {number}: {path}")
            return hit

    def check(self, kind: str, path: object) -> None:
        """Count one call and let it fail if it is its turn."""
        if self.call(kind, path):
            raise self.error(kind, path)

    def error(self, kind: str, path: object) -> OSError:
        """The error of a kind of call."""
        return OSError(ERRORS[kind], os.strerror(ERRORS[kind]), os.fspath(str(path)))

    def _replace(self, module: Any, name: str, function: Callable[..., Any]) -> None:
        self._real[module, name] = getattr(module, name)
        setattr(module, name, function)

    def _inside(self, path: Any) -> str | None:
        """The path as text if it lies below the folder."""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return None
        text = os.fspath(path)
        text = os.fsdecode(text)
        return text if (text + os.sep).startswith(self._folders) else None

    def _open(self, path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if more.get("dir_fd") is None and (inside := self._inside(path)) is not None:
            self.check("create" if flags & _WRITES else "read", inside)
        return int(self._real[os, "open"](path, flags, *rest, **more))

    def _fsync(self, descriptor: int) -> None:
        if (inside := self._inside(descriptor)) is not None:
            self.check("fsync", inside)
        self._real[os, "fsync"](descriptor)

    def _pair(self, name: str) -> Callable[..., None]:
        def call(source: Any, target: Any, **more: Any) -> None:
            if (inside := self._inside(target)) is not None:
                self.check("rename", inside)
            self._real[os, name](source, target, **more)

        return call

    def _single(self, name: str, kind: str) -> Callable[..., None]:
        def call(path: Any, *rest: Any, **more: Any) -> None:
            if more.get("dir_fd") is None and (inside := self._inside(path)) is not None:
                self.check(kind, inside)
            self._real[os, name](path, *rest, **more)

        return call

    def _descriptor(self, module: Any, name: str) -> Callable[..., Any]:
        """A call whose first argument is an open file; -1 for a map of no file."""

        def call(descriptor: int, *rest: Any, **more: Any) -> Any:
            if descriptor >= 0 and (inside := self._inside(descriptor)) is not None:
                self.check("read", inside)
            return self._real[module, name](descriptor, *rest, **more)

        return call

    def _reader(self, module: Any, name: str) -> Callable[..., Any]:
        """A call of another language whose first argument is the path that it reads."""

        def call(path: Any, *rest: Any, **more: Any) -> Any:
            if (inside := self._inside(path)) is not None:
                self.check("read", inside)
            return self._real[module, name](path, *rest, **more)

        return call

    def _arrow(self, parquet: Any, name: str) -> Callable[..., Any]:
        """A method of Arrow's reader of one file."""

        def call(file: Any, *rest: Any, **more: Any) -> Any:
            if name == "__init__" and isinstance(rest[0], str | os.PathLike):
                self._arrow_files[id(file)] = os.fspath(rest[0])
            path = self._arrow_files.get(id(file))
            if path is not None and (inside := self._inside(path)) is not None:
                self.check("read", inside)
            return self._real[parquet, name](file, *rest, **more)

        return call

    def _open_file(
        self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any
    ) -> Any:
        inside = self._inside(file)
        if inside is None:
            return self._real[io, "open"](file, mode, buffering, *rest, **more)
        plain = mode.replace("b", "").replace("t", "")
        if not isinstance(file, int) and plain != "r":
            self.check("create", inside)
        raw = _File(self, inside, file, plain, closefd=more.get("closefd", True))
        if buffering == 0:
            return raw
        kind = io.BufferedReader if plain == "r" else io.BufferedWriter
        buffered = io.BufferedRandom(raw) if "+" in plain else kind(raw)
        if "b" in mode:
            return buffered
        keys = ("encoding", "errors", "newline")
        return io.TextIOWrapper(buffered, **{key: more[key] for key in keys if key in more})


class _File(io.FileIO):
    """A file whose reads and writes may fail."""

    def __init__(self, disk: FailingDisk, inside: str, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._disk, self._inside = disk, inside

    def write(self, data: Any) -> int:
        if not self._disk.call("write", self._inside):
            return int(super().write(data) or 0)
        super().write(memoryview(data).cast("B")[: len(memoryview(data).cast("B")) // 2])
        raise self._disk.error("write", self._inside)

    def readinto(self, buffer: Any) -> int:
        self._check()
        return int(super().readinto(buffer) or 0)

    def readall(self) -> bytes:
        self._check()
        return bytes(super().readall() or b"")

    def _check(self) -> None:
        # The question whether a file has ended reads nothing.
        if self.tell() < os.fstat(self.fileno()).st_size:
            self._disk.check("read", self._inside)
