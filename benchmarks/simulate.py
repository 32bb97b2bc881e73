"""The plan of a very large audit, without its kernels: waves, tasks, memory of the client, files.

    python benchmarks/simulate.py                     1e6 to 1e9 samples
    python benchmarks/simulate.py --samples 1e9 --landmarks 31623 --block-rows 4096

The block plan, the waves, the graphs and their pickled size are the engine's own; tasks are not
run: each answers with the records of the files that it would have written. The memory is that of
the client for the stage with the most files, the kernel: measured, not predicted.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from krepes_ooc.core.blocks import BlockPlan, choose_block_plan, format_bytes  # noqa: E402
from krepes_ooc.engine import machine  # noqa: E402
from krepes_ooc.engine.budget import release  # noqa: E402
from krepes_ooc.engine.cluster.cluster_executor import ClusterExecutor, TransferFolder, task_items  # noqa: E402
from krepes_ooc.engine.cluster.worker import TaskPayload, TaskResult  # noqa: E402

VIEWS, ITEM = 2, 2  # of a float16 kernel
HEAD = ("samples", "landmarks", "block rows", "blocks", "shards", "tasks", "waves", "graph")
TAIL = ("client", "seconds", "files", "kernel")


class Idle:
    """Workers that answer at once with what a task would have written."""

    def __init__(self, workers: int) -> None:
        self.n_workers, self.tasks, self.waves, self.graph_bytes = workers, 0, 0, 0

    @contextlib.contextmanager
    def publish(self, folder: Path, key: str, payload: TaskPayload) -> Iterator[None]:
        yield

    def compute(
        self,
        graph: Any,
        names: Sequence[str],
        check: Callable[[], None],
        notify: Callable[[str], None],
    ) -> Iterator[tuple[str, TaskResult]]:
        self.waves, self.tasks = self.waves + 1, self.tasks + len(names)
        self.graph_bytes = max(self.graph_bytes, len(pickle.dumps(graph)))
        for name in names:
            check()
            _, _, start, stop = graph[name]
            yield name, TaskResult([records(index) for index in range(start, stop)])


def records(index: int) -> tuple[str, dict[str, tuple[int, int]]]:
    """What a block of the kernel leaves in the seal."""
    values = {f"values/c/{view}/{index}/0": (2**24 + 4, 12345) for view in range(VIEWS)}
    return f"block {index}", values | {f"sample_id/c/{index}": (2**15 + 4, 12345)}


def simulate(plan: BlockPlan, workers: int) -> dict[str, Any]:
    pool = Idle(workers)
    release()
    before, begun = machine.anonymous_bytes(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        transfer = TransferFolder.open(Path(folder), "")
        blocks, found = list(plan.blocks()), {}
        for _, files in ClusterExecutor(workers, pool=pool, transfer=transfer).map(records, blocks):
            found |= files
    peak = machine.anonymous_bytes() - before
    return {
        "tasks": pool.tasks,
        "waves": pool.waves,
        "graph": pool.graph_bytes,
        "client": peak,
        "seconds": time.monotonic() - begun,
        "files": len(found),
        "items": task_items(plan.n_blocks, workers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=float, nargs="+", default=[1e6, 1e7, 1e8, 1e9])
    parser.add_argument("--landmarks", type=int, help="default sqrt(samples), at least 1000")
    parser.add_argument("--block-rows", type=int, help="default: chunks of at most 16 MiB")
    parser.add_argument("--workers", type=int, default=64)
    asked = parser.parse_args()
    print("".join(f" {name:>13}" for name in (*HEAD, *TAIL)))
    for n in map(int, asked.samples):
        m = asked.landmarks or max(1000, math.isqrt(n))
        plan = choose_block_plan(n, ITEM * m, block_rows=asked.block_rows)
        found = simulate(plan, asked.workers)
        row = (n, m, plan.block_rows, plan.n_blocks, plan.n_shards, found["tasks"], found["waves"])
        numbers = [f"{value:,}" for value in row]
        sizes = [format_bytes(found["graph"]), format_bytes(found["client"])]
        last = [f"{found['seconds']:.1f}", f"{found['files']:,}"]
        size = format_bytes(float(n) * VIEWS * m * ITEM)
        print("".join(f" {text:>13}" for text in (*numbers, *sizes, *last, size)), flush=True)


if __name__ == "__main__":
    main()
