"""What a task does on a worker process: a range of the work that the worker was lent."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from krepes_ooc import catalogue
from krepes_ooc.engine import machine
from krepes_ooc.engine.arrayfiles import put_away
from krepes_ooc.engine.executor import tree_fold
from krepes_ooc.engine.meter import Meter
from krepes_ooc.engine.station import Call, Part, Work, station
from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.network.threads import one_torch_thread


def perform(call: Call, start: int, stop: int) -> Part:
    """The results of a range of items, as a list; none for work that is done for its effect."""
    return _result(call, lambda work: [work.function(item) for item in work.items[start:stop]])


def perform_fold(call: Call, start: int, stop: int) -> Part:
    """The sum of a range of items that is a whole branch of the reduction tree."""

    def fold(work: Work) -> Any:
        assert work.add is not None
        return tree_fold(stop - start, lambda i: work.function(work.items[start + i]), work.add)

    return _result(call, fold, keep=True)


def perform_add(call: Call, left: Part, right: Part) -> Part:
    """The sum of two sums, which other workers may have computed."""

    def add(work: Work) -> Any:
        assert work.add is not None
        return work.add(left.value, right.value)

    done = _result(call, add, keep=True)
    peak = max(left.anonymous, right.anonymous, done.anonymous)
    return Part(done.value, left.told + right.told + done.told, peak)


def hand_over(call: Call, part: Part) -> Part:
    """A sum on its way to the client: a file if it is large."""
    return Part(put_away(part.value, Path(call.folder)), part.told, part.anonymous)


def _result(call: Call, compute: Callable[[Work], Any], *, keep: bool = False) -> Part:
    check_worker(call)
    here = station()
    here.progress.collect()
    with machine.one_blas_thread(), one_torch_thread(), Meter() as meter:
        work = here.work(call)
        try:
            value = compute(work)
        finally:
            if work.finish is not None:
                work.finish()
    value = value if keep else put_away(value, Path(call.folder))
    return Part(value, here.progress.collect(), int(meter.facts()["anonymous_peak"]))


def check_worker(call: Call) -> None:
    """Refuse to work with other code, or with libraries that give other bits.

    Raises:
        UsageError: this worker's krepes_ooc is not the client's.
        WorkspaceError: its libraries or processor are not those of the client.
    """
    if package_sha256() != call.package:
        raise UsageError(
            f"krepes_ooc of the worker on {socket.gethostname()} has digest "
            f"{package_sha256()[:12]}",
            where="--cluster",
            expected=f"{call.package[:12]}, as here",
            advice="install the same version where the workers start",
        )
    if call.numerics and machine.numerics() != call.numerics:
        raise WorkspaceError(
            f"the worker on {socket.gethostname()} computes with {machine.numerics()!r}",
            where="--cluster",
            expected=f"{call.numerics!r}",
            advice="start krepes on the same kind of machine, or accept other bits with "
            "--allow-mixed-numerics",
        )


@cache
def package_sha256() -> str:
    """Digest of the package's code and of the declarations it ships."""
    root, digest = Path(str(files("krepes_ooc"))), hashlib.sha256()
    stores = catalogue.folder("stores")
    for path in (*sorted(root.rglob("*.py")), *sorted(stores.glob("*.yaml"))):
        name = path.relative_to(stores if path.parent == stores else root)
        with contextlib.suppress(OSError):
            digest.update(str(name).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
