"""The engine's speed beside its limits, in CPU-seconds of one process.

    python benchmarks/engine.py --samples 65536 --landmarks 1000

Every ratio is taken in the same process against a rate measured in it: the sgemm rate, the rate at
which memory is read (a dot product), the naive dask.array expression. CPU-seconds are what a busy
machine does not stretch; run it alone all the same.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from krepes_ooc.core.blocks import BlockPlan, choose_block_plan  # noqa: E402
from krepes_ooc.core.float16 import to_float32  # noqa: E402
from krepes_ooc.engine import machine  # noqa: E402
from krepes_ooc.engine.budget import base_bytes, bound_allocator  # noqa: E402
from krepes_ooc.engine.calibration import calibrate, fastest  # noqa: E402
from krepes_ooc.engine.executor import Executor  # noqa: E402
from krepes_ooc.network.torch_device import one_torch_thread  # noqa: E402
from krepes_ooc.stages.moments.stage import GRAM_ROWS  # noqa: E402
from krepes_ooc.stages.moments.sums import block_shift, moment_sums  # noqa: E402
from krepes_ooc.storage.chunk_readers import DirectReader, MmapReader  # noqa: E402
from krepes_ooc.storage.contracts import StoreSpec, load_contract  # noqa: E402
from krepes_ooc.storage.store_reader import StoreReader  # noqa: E402
from krepes_ooc.storage.workspace import Workspace  # noqa: E402

COMPONENTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=65_536)
    parser.add_argument("--landmarks", type=int, default=1000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/engine.json")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="engine-", dir=asked.folder))
    bound_allocator()  # as a run does
    try:
        with machine.one_blas_thread(), one_torch_thread():
            rows = Bench(folder, asked.samples, asked.landmarks).run()
    finally:
        shutil.rmtree(folder)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({**vars(asked), "rows": rows}, indent=1, default=str) + "\n")
    print(f"{'figure':<46}{'measured':>12}{'limit':>12}{'ratio':>9}{'goal':>9}")
    for row in rows:
        mark = "" if row["reached"] is None else (" ok" if row["reached"] else " BELOW")
        print(
            f"{row['figure']:<46}{row['measured']:>12.4g}{row['limit']:>12.4g}"
            f"{row['ratio']:>9.3g}{row['goal']:>9}{mark}"
        )


class Bench:
    """A synthetic float16 kernel store and every figure about it."""

    def __init__(self, folder: Path, samples: int, landmarks: int) -> None:
        self.folder, self.m = folder, landmarks
        self.plan = choose_block_plan(samples, 2 * landmarks, sub_row_bytes=4 * landmarks)
        self.rates = calibrate(folder)
        self.reader, self.write_rate = write_kernel(folder, self.plan, landmarks)
        self.rows: list[dict[str, Any]] = []
        draw = np.random.default_rng(1)
        self.V = draw.normal(size=(landmarks, COMPONENTS)).astype(np.float32)
        self.Q = draw.normal(size=(COMPONENTS, COMPONENTS)).astype(np.float32)
        self.bytes = 2 * samples * landmarks * 2

    def run(self) -> list[dict[str, Any]]:
        self.reading()
        self.widening()
        streamed = self.streaming()
        self.gram()
        self.against_dask(streamed)
        self.overhead()
        self.note("chunk write, CPU-GB/s beside a plain write", self.write_rate, self.rates.write)
        self.plan_time()
        return self.rows

    def note(
        self,
        figure: str,
        measured: float,
        limit: float,
        goal: float | None = None,
        *,
        most: bool = False,
    ) -> None:
        """One line: measured beside its limit, and whether the ratio reaches its goal."""
        ratio = measured / limit
        reached = None if goal is None else (ratio <= goal if most else ratio >= goal)
        shown = "" if goal is None else f"{'<=' if most else '>='} {goal:g}"
        self.rows.append(
            {
                "figure": figure,
                "measured": measured,
                "limit": limit,
                "ratio": ratio,
                "goal": shown,
                "reached": reached,
            }
        )

    def blocks(self, reader: StoreReader) -> list[np.ndarray]:
        """All blocks of both views, maps kept."""
        return [
            reader.block("values", block, view) for block in self.plan.blocks() for view in (0, 1)
        ]

    def reading(self) -> None:
        """Blocks consumed by a dot product: kept maps, fresh maps, direct reads."""
        kept = [block.reshape(-1).view(np.float32) for block in self.blocks(self.reader)]
        count = sum(block.size for block in kept)
        ram = [np.ones(block.size, dtype=np.float32) for block in kept]
        limit, seconds = (fastest(lambda them=them: dots(them), 3) for them in (ram, kept))
        self.note(
            "mapped read of kept blocks, GB/cpu-s",
            4e-9 * count / seconds,
            4e-9 * count / limit,
            0.70,
        )

        def fresh(reader: StoreReader) -> None:
            for block in self.plan.blocks():
                for view in (0, 1):
                    part = reader.block("values", block, view).reshape(-1).view(np.float32)
                    part @ part

        for name, above in (("mapped", None), ("direct", 0)):
            reader = StoreReader(self.reader.path, above)
            way = reader._way("values", reader.info("values"))
            assert isinstance(way, MmapReader if above is None else DirectReader)
            seconds = fastest(lambda reader=reader: fresh(reader), 2)
            self.note(
                f"{name} read of fresh blocks, GB/cpu-s",
                1e-9 * self.bytes / seconds,
                4e-9 * count / limit,
                0.20 if above is None else None,
            )

    def widening(self) -> None:
        """float16 to float32, in GB of float32 written; sub-block and whole block."""
        block = np.array(self.reader.block("values", self.plan.block(0)))
        for name, rows in (("sub-block", self.plan.sub_rows), ("whole block", len(block))):
            part = np.ascontiguousarray(block[:rows])

            def often(part: np.ndarray = part) -> None:
                for _ in range(20):  # each result is dropped before the next, as in a kernel
                    to_float32(part)

            seconds = fastest(often, 5) / 20
            self.note(
                f"float16 to float32, {name}, GB/cpu-s",
                2e-9 * part.nbytes / seconds,
                15.0,
                1.0 if rows == self.plan.sub_rows else None,
            )

    def product(self, K: np.ndarray) -> np.ndarray:
        """K^T ((K V) Q) of one stored block, sub-block by sub-block."""
        total = np.zeros(self.V.shape)
        for start in range(0, len(K), self.plan.sub_rows):
            rows = to_float32(K[start : start + self.plan.sub_rows])
            total += rows.T @ ((rows @ self.V) @ self.Q)
        return total

    def streaming(self) -> float:
        """The fused product over the stored kernel on threads; CPU-seconds of one pass."""
        units = [(block, view) for block in self.plan.blocks() for view in (0, 1)]
        run = Executor(workers=machine.cores())

        def work() -> Any:
            return run.reduce(
                lambda unit: self.product(self.reader.block("values", *unit)), units, np.add
            )

        seconds = fastest(work, 3)
        m, h = self.V.shape
        flops = 2 * self.plan.n_samples * (4 * m * h + 2 * h * h)
        self.note(
            "streaming product, GFLOP/cpu-s", 1e-9 * flops / seconds, 1e-9 * self.rates.single, 0.58
        )
        return seconds

    def gram(self) -> None:
        """The moments of one view by syrk (half the flops of a product), then of two views."""
        for views, name in ((1, "Gram (syrk)"), (2, "moments of two views")):
            stored = [
                [self.reader.block("values", b, v) for v in range(views)]
                for b in self.plan.blocks()
            ]
            shift = block_shift([to_float32(K) for K in stored[0]])

            def work(stored: Any = stored, shift: Any = shift) -> None:
                for block in stored:
                    moment_sums([to_float32(K) for K in block], shift, GRAM_ROWS)

            seconds = fastest(work, 2)
            # syrk: n m^2 for each own product, 2 n m^2 for the cross product.
            flops = self.plan.n_samples * self.m**2 * (1.0 if views == 1 else 4.0)
            self.note(
                f"{name}, GFLOP/cpu-s", 1e-9 * flops / seconds, 1e-9 * self.rates.single, 0.70
            )

    def against_dask(self, streamed: float) -> None:
        """The naive dask.array expression for the same product: CPU and anonymous memory."""
        ours = in_process(fused, self.folder, self.plan, self.V, self.Q)
        naive = in_process(naive_dask, self.folder, self.plan, self.V, self.Q)
        assert np.allclose(ours["norm"], naive["norm"], rtol=1e-3)
        self.note("CPU-s of naive dask.array beside ours", naive["cpu"], ours["cpu"], 1.6)
        self.note(
            "anonymous MiB of naive dask.array, ours",
            naive["anonymous"] / 2**20,
            ours["anonymous"] / 2**20,
            4.0,
        )

    def overhead(self) -> None:
        """CPU-seconds of Dask for a block that does nothing, beside the time of a real block."""
        items, run = list(range(1000)), Executor(workers=machine.cores())
        empty = fastest(lambda: run.run(lambda _: None, items), 3) / len(items)
        block = self.reader.block("values", self.plan.block(0))
        self.note(
            "Dask overhead a block, microseconds",
            1e6 * empty,
            1e6 * fastest(lambda: self.product(block), 3),
            0.02,
            most=True,
        )

    def plan_time(self) -> None:
        """A second calibration beside the first: the error of the predicted time."""
        again = calibrate(self.folder)
        self.note("calibration again, GFLOP/cpu-s", again.single * 1e-9, self.rates.single * 1e-9)


def write_kernel(folder: Path, plan: BlockPlan, m: int) -> tuple[StoreReader, float]:
    """A kernel store by the real writer, and bytes a CPU-second of writing it."""
    space = Workspace(folder / "w")
    space.create("bench")
    spec = StoreSpec(
        load_contract("kernel"),
        {"view": 2, "sample": plan.n_samples, "landmark": m},
        {"values": "float16"},
        plan.block_rows,
    )
    writer = space.writer(spec, "d")
    writer.create()
    draw, seconds, written = np.random.default_rng(0), 0.0, 0
    for block in plan.blocks():
        for view in (0, 1):
            rows = np.tanh(draw.standard_normal((block.rows, m), dtype=np.float32)) * 0.3
            half = rows.astype(np.float16)
            begin = time.process_time()
            files = writer.write_block("values", block, half, view)
            seconds += time.process_time() - begin
            written += sum(size for size, _ in files.values())
        writer.write_block("sample_id", block, np.arange(block.start, block.stop))
    return StoreReader(writer.path), written / seconds


def dots(blocks: list[np.ndarray]) -> None:
    for block in blocks:
        block @ block


def fused(folder: Path, plan: BlockPlan, V: np.ndarray, Q: np.ndarray) -> float:
    """The product of view 0 with the engine."""
    bench = Bench.__new__(Bench)
    bench.plan, bench.V, bench.Q = plan, V, Q
    reader = StoreReader(folder / "w/audit.zarr/kernel")
    run = Executor(workers=machine.cores())
    blocks = list(plan.blocks())
    found = run.reduce(lambda block: bench.product(reader.block("values", block)), blocks, np.add)
    return float(np.linalg.norm(found))


def naive_dask(folder: Path, plan: BlockPlan, V: np.ndarray, Q: np.ndarray) -> float:
    """The same product as one would write it with dask.array over Zarr."""
    import dask
    import dask.array as da

    K = da.from_zarr(str(folder / "w/audit.zarr/kernel/values"))[0].astype(np.float32)
    with dask.config.set(scheduler="threads", num_workers=machine.cores()):
        return float(np.linalg.norm((K.T @ ((K @ V) @ Q)).compute()))


def in_process(function: Callable[..., float], *given: Any) -> dict[str, float]:
    """CPU-seconds and peak anonymous memory of a function in a fresh process, after a trial."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=_measured, args=(there, function, *given)
    )
    child.start()
    found: dict[str, float] = here.recv()
    child.join()
    return found


def _measured(pipe: Any, function: Callable[..., float], *given: Any) -> None:
    import dask.array  # noqa: F401  libraries do not count
    import zarr  # noqa: F401

    base_bytes()
    with machine.one_blas_thread(), one_torch_thread():
        before, peak, done = machine.anonymous_bytes(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                peak[0] = max(peak[0], machine.anonymous_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin = time.process_time()
        norm = function(*given)
        cpu = time.process_time() - begin
        done.set()
        watcher.join()
    pipe.send({"norm": norm, "cpu": cpu, "anonymous": max(1, peak[0] - before)})


if __name__ == "__main__":
    main()
