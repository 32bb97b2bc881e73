"""Cost of checking a source beside the floor: one read, hash and decode of its files.

    python -m benchmarks.sources --out benchmarks/results/sources.json

Pictures: the floor is sha256 and one decode of every file by the same libraries. Table: the floor
is one parse of the whole file into columns by the reader that the source uses, which hashes the
file on the way; beside it stands pyarrow's own parse, which infers types block by block. Each is
the least of the rounds, which alternate; CPU-seconds are those of all threads of the process. A
second opening, from the cache, stands beside the first.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
from PIL import Image

from krepes_ooc.engine import machine
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.sources.open import open_source
from krepes_ooc.sources.tables.csv_batches import CsvBatches, csv_format

SIDE = 32
FOLDERS = 100
COLUMNS = 10
LIMIT = 1.15


def write_pictures(folder: Path, count: int) -> None:
    """JPEG pictures of the size of CIFAR-10, in folders."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    for name in range(min(FOLDERS, count)):
        (folder / f"{name:02}").mkdir(parents=True)
    for index in range(count):
        image = Image.fromarray(np.roll(pixels, index, axis=0) ^ np.uint8(index % 251))
        path = folder / f"{index % FOLDERS:02}" / f"{index:06}.jpg"
        image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=90)


def write_table(path: Path, rows: int) -> None:
    """A CSV file of numbers, texts of a few categories, and a label."""
    draw = np.random.default_rng(0)
    words = np.asarray([f"word {i}" for i in range(20)])
    columns: dict[str, Any] = {f"x{i}": draw.normal(size=rows) for i in range(COLUMNS)}
    columns |= {f"c{i}": words[draw.integers(0, 20, rows)] for i in range(3)}
    columns["label"] = words[draw.integers(0, 2, rows)]
    pyarrow.csv.write_csv(pyarrow.table(columns), path)


def hash_and_decode(folder: Path) -> None:
    """sha256 and one decode of every picture."""
    for path in sorted(folder.rglob("*.jpg")):
        content = path.read_bytes()
        hashlib.sha256(content).hexdigest()
        Image.open(io.BytesIO(content)).load()


def parse(path: Path, spec: SourceSpec) -> None:
    """One parse of a CSV file by the reader of the source, in blocks, into columns."""
    for _ in CsvBatches(path, csv_format(path, spec), {spec.label: pyarrow.string()}):
        pass


def parse_by_pyarrow(path: Path) -> None:
    """One parse of a CSV file by pyarrow, in blocks."""
    with pyarrow.csv.open_csv(path) as reader:
        for _ in reader:
            pass


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """CPU-seconds of this process, and elapsed ones."""
    cpu = time.process_time()
    elapsed = time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - elapsed


def compare(
    floors: dict[str, Callable[[], Any]], spec: SourceSpec, folder: Path, rounds: int
) -> dict[str, Any]:
    """Seconds of the floors, of a first opening and of a second one, and their ratios."""
    best: dict[str, tuple[float, float]] = {}
    for index in range(rounds):
        cache = folder / f"cache-{index}"
        works = floors | {
            "first": lambda cache=cache: open_source(spec, folder, cache),
            "second": lambda cache=cache: open_source(spec, folder, cache),
        }
        for name, work in works.items():
            found = seconds(work)
            cpu, elapsed = best.get(name, found)
            best[name] = min(cpu, found[0]), min(elapsed, found[1])
        shutil.rmtree(cache)
    kinds = {"cpu": 0, "elapsed": 1}
    return {
        "seconds": {name: dict(zip(kinds, values, strict=True)) for name, values in best.items()},
        "first_over": {
            name: {kind: best["first"][i] / best[name][i] for kind, i in kinds.items()}
            for name in floors
        },
        "second_over_first": {
            kind: best["second"][i] / best["first"][i] for kind, i in kinds.items()
        },
        "limit": LIMIT,
    }


def measure(folder: Path, pictures: int, rows: int, rounds: int) -> dict[str, Any]:
    """Ratios of pictures in a folder and of a CSV table."""
    write_pictures(folder / "img", pictures)
    write_table(folder / "t.csv", rows)
    images = SourceSpec(kind="images", path="img")
    table = SourceSpec(kind="table", path="t.csv", label="label")
    decoding = {"sha256_and_decode": lambda: hash_and_decode(folder / "img")}
    parsing = {
        "parse": lambda: parse(folder / "t.csv", table),
        "parse_by_pyarrow": lambda: parse_by_pyarrow(folder / "t.csv"),
    }
    return {
        "cores": machine.cores(),
        "pictures": {"count": pictures} | compare(decoding, images, folder, rounds),
        "table": {"rows": rows} | compare(parsing, table, folder, rounds),
    }


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="krepes-sources-", dir=given.work) as folder:
        found = measure(Path(folder), given.pictures, given.rows, given.rounds)
    text = json.dumps(found, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
