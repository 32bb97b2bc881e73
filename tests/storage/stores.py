"""A small features store, written by the real writer, and what tests need around it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from krepes_ooc.core.blocks import Block
from krepes_ooc.core.files import Files
from krepes_ooc.storage.contracts import StoreSpec, load_contract
from krepes_ooc.storage.journal import Unit
from krepes_ooc.storage.stage_record import StageRecord
from krepes_ooc.storage.store_writer import StoreWriter
from krepes_ooc.storage.workspace import Workspace

ROWS, SAMPLES, VIEWS, FEATURES, MOMENTS = 256, 600, 2, 5, 3
SIZES = {"view": VIEWS, "sample": SAMPLES, "feature": FEATURES, "moment": MOMENTS}
KEPT = ("values", "self_kernel", "sample_id", "centre")
SPEC = StoreSpec(load_contract("features"), SIZES, block_rows=ROWS, arrays=KEPT)
BLOCKS = [
    Block(i, start, min(start + ROWS, SAMPLES)) for i, start in enumerate(range(0, SAMPLES, ROWS))
]
ATTRIBUTES: dict[str, Any] = {name: {"of": name} for name in SPEC.contract.attributes}
BEGUN = {
    "stage": "features",
    "digest": "d1",
    "settings": {"persist": "always"},
    "inputs": {"source": "s1"},
    "versions": {"stage": 1, "contract": 1},
}
_rng = np.random.default_rng(7)
VALUES = _rng.normal(size=(VIEWS, SAMPLES, FEATURES)).astype(np.float16)
SELF_KERNEL = _rng.normal(size=(VIEWS, SAMPLES))
SAMPLE_ID = _rng.permutation(SAMPLES).astype(np.int64)
CENTRE = _rng.normal(size=MOMENTS)
ARRAYS: dict[str, npt.NDArray[Any]] = {
    "values": VALUES,
    "self_kernel": SELF_KERNEL,
    "sample_id": SAMPLE_ID,
    "centre": CENTRE,
}


def open_workspace(root: Path) -> Workspace:
    space = Workspace(root)
    space.create("digits")
    return space


def begin(space: Workspace, digest: str = "d1") -> tuple[StageRecord, StoreWriter]:
    record = space.record("features", "features")
    record.begin({**BEGUN, "digest": digest})
    writer = space.writer(SPEC, digest)
    writer.create()
    return record, writer


def write_block(writer: StoreWriter, block: Block) -> Files:
    rows, files = slice(block.start, block.stop), {}
    for view in range(VIEWS):
        files |= writer.write_block("values", block, VALUES[view, rows], view)
        files |= writer.write_block("self_kernel", block, SELF_KERNEL[view, rows], view)
    return files | writer.write_block("sample_id", block, SAMPLE_ID[rows])


def write_unit(record: StageRecord, writer: StoreWriter, block: Block) -> Files:
    files = write_block(writer, block)
    record.journal.append(Unit(f"block {block.index}", files, numerics="test"))
    return files


def finish(record: StageRecord, writer: StoreWriter) -> Files:
    """Write what is missing and seal, as a stage does."""
    done = {name: dict(unit.files) for name, unit in record.done().items()}
    for block in BLOCKS:
        if f"block {block.index}" not in done:
            done[f"block {block.index}"] = write_unit(record, writer, block)
    files = {key: value for unit in done.values() for key, value in unit.items()}
    files |= writer.write_array("centre", CENTRE)
    writer.set_attributes(ATTRIBUTES)
    files |= writer.metadata_files()
    record.seal_with(files, {"seconds": 1.0})
    return files


def sealed(root: Path) -> tuple[Workspace, StageRecord]:
    """A workspace with a sealed store: a copy of one that is written once a process."""
    shutil.copytree(_sealed_once().name, root, dirs_exist_ok=True)
    space = Workspace(root)
    return space, space.record("features", "features")


@cache
def _sealed_once() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="krepes-test-")
    record, writer = begin(open_workspace(Path(folder.name)))
    finish(record, writer)
    return folder


def sized(**sizes: int) -> StoreSpec:
    return replace(SPEC, sizes={**SIZES, **sizes})


def files_in(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file in place."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def start(work: Callable[[], object]) -> Any:
    """Run ``work`` in a forked process."""
    process = get_context("fork").Process(target=work, daemon=True)
    process.start()
    return process


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A real file system of that size; skips where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount a small disk: {error}")
    if made.returncode:
        pytest.skip(f"cannot mount a small disk: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def fill_disk(folder: Path, leave: int) -> Path:
    """Fill a small disk up to ``leave`` bytes."""
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    filler.write_bytes(bytes(max(0, free - leave)))
    return filler
