"""Audits of which every state is kept, and whole files of one state laid in another."""

from __future__ import annotations

import functools
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.storage.stage_record import StageRecord
from tests.crash.damage import LEARNED, kind_of, owner

TINY = (
    "stages.features.block_rows=16",
    "stages.features.forward_batch=16",
    "stages.landmarks.count=8",
    "stages.audited.audit=6",
    "stages.audited.fit=20",
    "stages.spectrum.components=2",
    "stages.discovery.concepts=2",
    "stages.groups.clusters=2",
    "stages.group_influence.max_evaluations=4",
    "stages.minimiser.max_evaluations=4",
    "stages.randomised.draws=3",
    "stages.report.samples=2",
)
TRAINED = (
    "source.limit=100",
    "stages.features.block_rows=32",
    "stages.features.forward_batch=32",
    "stages.pretrain.epochs=2",
)
ROWS = 60
# Locks, and what people are shown of earlier runs: no result depends on them.
FREE = ("lock", "lease", "runs", "temp")
# Folders whose files are named after what they hold.
NAMED = ("cache", "openings")


@dataclass(frozen=True)
class Case:
    """One file that is replaced.

    Args:
        audit: number of the audit.
        state: folder of the workspace that is harmed.
        file: its path in the workspace.
        harm: exchange, replay, earlier or flip.
        other: file that takes its place; of an exchange, the second one.
    """

    audit: int
    state: str
    file: str
    harm: str
    other: Path | None = None


class States:
    """Copies of one audit: before the seal of each stage, and after it.

    Args:
        folder: where the copies lie.
        recipe: of the audit.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.names = [stage.name for stage in recipe.stages]
        seal, workspace = StageRecord.seal_with, folder / "workspace"

        def copy(kind: str, name: str) -> None:
            ignored = shutil.ignore_patterns("lock", "temp")
            target = self.path(kind, self.names.index(name))
            shutil.copytree(workspace, target, ignore=ignored)

        def copied(record: StageRecord, *rest: Any) -> None:
            copy("started", record.name)
            seal(record, *rest)
            copy("sealed", record.name)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StageRecord, "seal_with", copied)
            run(recipe, workspace, Options(workers=1))
        shutil.rmtree(workspace)

    def path(self, kind: str, index: int) -> Path:
        """Folder of one copy."""
        return self.folder / f"{kind}-{index:02d}"

    @property
    def finished(self) -> Path:
        """The workspace of the whole audit."""
        return self.path("sealed", len(self.names) - 1)

    def reader_of(self, index: int) -> int:
        """First stage that reads what a stage writes; the next one if none does."""
        readers = (
            later
            for later, stage in enumerate(self.recipe.stages)
            if later > index and self.names[index] in stage.reads
        )
        return next(readers, min(index + 1, len(self.names) - 1))


def files_of(workspace: Path) -> list[str]:
    """Files of a workspace whose bytes decide about results."""
    found = (p.relative_to(workspace) for p in workspace.rglob("*") if p.is_file())
    return sorted(
        p.as_posix() for p in found if not (p.parts[0] == ".krepes" and p.parts[1] in FREE)
    )


def harms_of(audit: int, states: States, other: States, state: Path) -> Iterator[Case]:
    """All cases of one copy."""
    index = int(state.name[-2:])
    files = files_of(state)
    finished = state == states.finished
    stage = states.names[index]
    mine = [file for file in files if finished or owner(file) in (stage, None)]
    for file in mine:
        bytes_here = (state / file).read_bytes()
        make = functools.partial(Case, audit, state.name, file)
        # Exchange: with another chunk of the array, or another file of the cache of its kind.
        array = file.partition("/c/")[0] if "/c/" in file else ""
        for second in files:
            of_array = bool(array) and second.startswith(f"{array}/c/")
            of_cache = any(f"/{name}/" in file and f"/{name}/" in second for name in NAMED)
            alike = (of_array or of_cache) and Path(file).suffix == Path(second).suffix
            if alike and second > file and (state / second).read_bytes() != bytes_here:
                yield make("exchange", state / second)
        replayed = counterpart(file, other.folder / state.name)
        if replayed is not None and replayed.read_bytes() != bytes_here:
            yield make("replay", replayed)
        # The last earlier state in which the file was another one.
        before = (
            states.path(kind, i) / file
            for i in range(index, -1, -1)
            for kind in ("sealed", "started")
            if states.path(kind, i).name != state.name
        )
        earlier = next((p for p in before if p.is_file() and p.read_bytes() != bytes_here), None)
        if earlier is not None:
            yield make("earlier", earlier)
        kinds = ("checkpoint", "training.pt", "cache", "zarr.json", *LEARNED)
        if kind_of(file) in kinds or "/partials/" in file or "/openings/" in file:
            yield make("flip")


def counterpart(file: str, other: Path) -> Path | None:
    """The file of another audit that stands for the same thing; names of caches hold digests."""
    if (other / file).is_file():
        return other / file
    folder = next((name for name in NAMED if f"/{name}/" in file), None)
    if folder is None:
        return None
    if folder == "openings":
        return next((other / ".krepes/openings").glob("*"), None)
    name = Path(file).name
    prefix = name.partition("-")[0]
    alike = [
        path
        for path in sorted((other / ".krepes/cache").rglob("*"))
        if path.is_file()
        and path.name.partition("-")[0] == prefix
        and "".join(path.suffixes) == "".join(Path(name).suffixes)
    ]
    return alike[0] if alike else None


def link(source: str, target: str) -> None:
    """Give a file a second name; those that are written in place are copied."""
    if Path(source).suffix == ".jsonl":
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def _write(path: Path, data: bytes) -> None:
    """Replace a file, of which the copies have other names."""
    path.unlink()
    path.write_bytes(data)


def do_harm(workspace: Path, case: Case, draw: random.Random) -> None:
    """Replace the file; that of an exchange and its second one take each other's place."""
    path = workspace / case.file
    data = path.read_bytes()
    if case.harm == "flip":
        new = bytearray(data)
        bit = draw.randrange(8 * len(new))
        new[bit // 8] ^= 1 << bit % 8
        _write(path, new)
        return
    assert case.other is not None
    _write(path, case.other.read_bytes())
    if case.harm == "exchange":
        second = workspace / case.other.relative_to(case.other.parents[depth(case.other)])
        _write(second, data)


def depth(path: Path) -> int:
    """Number of the parent that is a workspace."""
    return next(i for i, p in enumerate(path.parents) if p.name.startswith(("sealed-", "started-")))
