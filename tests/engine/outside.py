"""A scheduler and workers of Distributed in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import small


def wait_for(true: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.05)


def start(command: str, *arguments: str) -> subprocess.Popen[bytes]:
    """``dask_scheduler`` or ``dask_worker``, the leader of a process group."""
    line = [sys.executable, "-m", f"distributed.cli.{command}", *arguments, "--no-dashboard"]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(line, cwd=small.ROOT, start_new_session=True, **quiet)


@contextlib.contextmanager
def scheduler(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A scheduler on the loopback and its address; killed with its group at the end."""
    file = folder / "scheduler.json"
    process = start(
        "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)
    )
    try:
        wait_for(lambda: file.exists() and file.read_text(), "the scheduler")
        yield process, str(json.loads(file.read_text())["address"])
    finally:
        end(process)


@contextlib.contextmanager
def workers(address: str, folder: Path, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Workers, each with its nanny, that come and look for the scheduler."""
    where = ("--nthreads", "1", "--local-directory", str(folder), "--host", "127.0.0.1")
    found = [
        start("dask_worker", address, *where, "--name", f"worker-{i}", "--death-timeout", "60")
        for i in range(count)
    ]
    try:
        yield found
    finally:
        for process in found:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
