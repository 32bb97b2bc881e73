"""Records of runs: stages, options, machine, versions, times and outcome, one small file a run."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krepes_ooc.core.files import read_small, to_json, write_atomic
from krepes_ooc.core.settings import to_mapping
from krepes_ooc.engine import machine
from krepes_ooc.errors import KrepesError
from krepes_ooc.runner.audit import Options
from krepes_ooc.storage.workspace import Workspace

FOLDER = "runs"
MAX_RUN_BYTES = 2**24


@contextlib.contextmanager
def recorded_run(space: Workspace, options: Options, summary: Summary) -> Iterator[None]:
    """Write the record of a run when it ends, however it ends; a run that did nothing leaves none.

    A record that cannot be written fails no run: it is for people, and nothing reads it back to
    decide anything.
    """
    now = datetime.datetime.now(datetime.UTC)
    started = time.monotonic()
    started_cpu = time.process_time()
    # What stands if the run ends by anything else than its end or an error raised on purpose.
    outcome = "killed by an unexpected error"
    try:
        yield
        outcome = "done"
    except KrepesError as error:
        outcome = f"{type(error).__name__}: {error}"
        raise
    finally:
        facts = {
            "begun": now.isoformat(timespec="seconds"),
            "outcome": outcome,
            "ran": summary.ran,
            "seconds": time.monotonic() - started,
            "cpu_seconds": time.process_time() - started_cpu,
            "peak_bytes": machine.peak_bytes(),
            "options": {
                key: getattr(value, "name", None) or to_mapping(value)
                for key, value in vars(options).items()
                if value is not None
            },
            "machine": _machine(),
            "versions": machine.recorded_versions(),
        }
        # A file of its own for every run: two processes may end at once.
        if summary.ran or outcome != "done":
            name = f"{now:%Y%m%dT%H%M%SZ}-{os.getpid()}.json"
            with contextlib.suppress(KrepesError, OSError):
                data = (to_json(facts) + "\n").encode()
                (space.private / FOLDER).mkdir(exist_ok=True)
                write_atomic(
                    space.private / FOLDER / name, data, space.private / "temp", sync=False
                )


def read_last(space: Workspace) -> dict[str, Any] | None:
    """The record of the last run, or None if there is none that can be read."""
    # Names begin with the time.
    for path in sorted((space.private / FOLDER).glob("*.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            record = json.loads(read_small(path, MAX_RUN_BYTES))
            if isinstance(record, dict):
                return record
    return None


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "cores": machine.cores(),
        "memory_available": machine.available_bytes(),
        "numerics": machine.numerics(),
    }


@dataclass
class Summary:
    """Outcome of a run.

    Args:
        workspace: its folder.
        ran: stages that were sealed, in order.
        skipped: stages that were sealed before.
        left: stages of the recipe that are not sealed.
        seconds: wall time.
        peak_bytes: largest resident memory of the process.
        trusted: whether the Newton step is trusted; None while there is none.
        verdict: status of the audit; empty while there is no verdict.
        verdict_sentence: the same in one sentence, with its reasons.
        shard: the shard of one stage that was computed, if not all of it.
    """

    workspace: Path
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0
    trusted: bool | None = None
    verdict: str = ""
    verdict_sentence: str = ""
    shard: str = ""
