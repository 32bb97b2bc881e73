"""How near verification comes to the rate of the checksum itself, on a store of some gibibytes.

    python -m benchmarks.verify --gib 2

The floor is google_crc32c over the same bytes in memory, one thread of the same process; beside it
stands what reading the files alone costs. CPU-seconds are compared, since others use the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from krepes_ooc.core.blocks import Block
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.journal import Unit
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.verify import verify
from krepes_ooc.storage.workspace import Workspace

ROWS, FEATURES = 4096, 2048  # chunks of 16 MiB, as the default block target makes them
PIECE_BYTES = 2**20
KEPT = ("values", "self_kernel", "sample_id", "centre")


def write_store(root: Path, blocks: int) -> StageRecord:
    """A journalled features store of two views of float16 rows."""
    space = Workspace(root)
    space.create("digits")
    record = space.record("features", "features")
    record.begin({"stage": "features", "digest": "d"})
    sizes = {"view": 2, "sample": blocks * ROWS, "feature": FEATURES, "moment": 1}
    spec = StoreSpec(load_contract("features"), sizes, block_rows=ROWS, arrays=KEPT)
    writer = space.writer(spec, "d")
    writer.create()
    draw = np.random.default_rng(0)
    for index in range(blocks):
        block = Block(index, index * ROWS, (index + 1) * ROWS)
        files = {}
        for view in range(2):
            values = draw.standard_normal((ROWS, FEATURES), dtype=np.float32).astype(np.float16)
            files |= writer.write_block("values", block, values, view)
        record.journal.append(Unit(f"block {block.index}", files))
    record.journal.close()
    return record


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU-seconds of this process, seconds, and the result."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return time.process_time() - cpu, time.perf_counter() - wall, found


def measure(root: Path, blocks: int) -> dict[str, Any]:
    """Rates in bytes for a CPU-second, and what verification takes beside the checksum alone."""
    record = write_store(root, blocks)
    paths = sorted((root / "audit.zarr/features/values/c").rglob("*"))
    files = [path for path in paths if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    buffer = np.empty(PIECE_BYTES, dtype=np.uint8)

    def checksum() -> None:
        """The same count of bytes, from memory."""
        for _ in range(size // PIECE_BYTES):
            google_crc32c.value(buffer)

    def read() -> None:
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    buffer[:] = np.random.default_rng(1).integers(0, 256, PIECE_BYTES, dtype=np.uint8)
    read()
    best: dict[str, tuple[float, float]] = {}
    for _ in range(3):
        for name, work in {"checksum": checksum, "read": read}.items():
            cpu, wall, _ = timed(work)
            best[name] = min(best.get(name, (cpu, wall)), (cpu, wall))
        cpu, wall, found = timed(lambda: verify([record]))
        assert not found.damage
        best["verify"] = min(best.get("verify", (cpu, wall)), (cpu, wall))
    floor = best["checksum"][0] + best["read"][0]
    return {
        "bytes": size,
        "files": len(files),
        "seconds": {name: wall for name, (_, wall) in best.items()},
        "cpu_seconds": {name: cpu for name, (cpu, _) in best.items()},
        "verify_over_checksum": best["verify"][0] / best["checksum"][0],
        "verify_over_checksum_and_read": best["verify"][0] / floor,
    }


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--work", type=Path, default=None)
    given = parser.parse_args()
    blocks = max(1, round(given.gib * 2**30 / (2 * ROWS * FEATURES * 2)))
    with tempfile.TemporaryDirectory(prefix="krepes-verify-", dir=given.work) as root:
        print(json.dumps(measure(Path(root), blocks), indent=1))


if __name__ == "__main__":
    main()
