"""Commands in forked children: libraries are loaded once, a kill is a kill, nothing stays behind.

    done = command(["run", ...], kill_at=17)      # SIGKILL before the 17th change of a file

Flushing to the disk is left out, because a killed process loses nothing that it wrote.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from krepes_ooc.stages.registry import STAGES

LIBRARIES = ("dask.threaded", "pyarrow.csv", "scipy.linalg", "sklearn.linear_model", "torch")
CHANGES = ("replace", "rename", "mkdir", "unlink", "remove", "link")


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, or minus the signal, and what it printed."""

    code: int
    text: str


def load() -> None:
    """Import what every command needs, so that no child does, and leave it to no collection."""
    import threadpoolctl

    for library in (*LIBRARIES, "krepes_ooc.cli.main"):
        __import__(library)
    for stage in STAGES:
        __import__(stage.run.__module__)
    threadpoolctl.threadpool_limits(limits=1)
    gc.freeze()


def command(given: Sequence[str], kill_at: int = 0) -> Done:
    """Run a command in a child.

    Args:
        given: arguments of ``krepes``.
        kill_at: number of the change of a file, from 1, before which the child is killed; 0: none.
    """
    with tempfile.TemporaryFile() as text:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            code = 99
            try:
                os.dup2(text.fileno(), 1)
                os.dup2(text.fileno(), 2)
                sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
                code = _in_child(given, kill_at)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        text.seek(0)
        return Done(os.waitstatus_to_exitcode(status), text.read().decode())


def _in_child(given: Sequence[str], kill_at: int) -> int:
    from krepes_ooc.cli import main

    os.fsync = lambda _: None
    if kill_at:
        _kill_before(kill_at)
    try:
        main(list(given))
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def _kill_before(number: int) -> None:
    """Kill this process before its n-th change of a file."""
    count = 0

    def counted(really: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return really(*given, **named)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
