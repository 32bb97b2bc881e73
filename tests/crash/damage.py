"""Flip, cut and delete what finished audits left; find all of it, repair, compare every bit.

    python -m tests.crash.damage --flips 1000 --cuts 200 --deletions 200 --seed 0

Half of the harm is done to an audit of digits with a network that was trained there, half to one of
a user's table with a checkpoint, which has a cache. Every file of all stores, records, journals,
seals and of the cache has its turn; the rest are drawn. Right after
each harm the stage that owns the file is verified: exactly this file must be named. After a batch
the whole workspace is verified, which must name the batch and nothing else; one ``--repair`` run
follows, which may compute only the blocks that were harmed; then every byte is compared with the
undisturbed workspace. Exit 1 if anything was missed, left or lost.
"""

from __future__ import annotations

import argparse
import filecmp
import gc
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from krepes_ooc.engine.run_control import Silent
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import verify_workspace
from tests import small
from tests.crash.compare import differences

BATCH = 24
# Deleting these is no damage: what needs them makes them anew, or does without.
LEARNED = ("recipe-text.json", "network.json", "row-cost.json")
MAY_BE_ABSENT = (*(f".krepes/{name}" for name in LEARNED), ".krepes/cache/")
REGISTER = ".krepes/recipe.json"
Harm = Callable[[Path, random.Random], str]


def flip(path: Path, draw: random.Random) -> str:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit} flipped"


def cut(path: Path, draw: random.Random) -> str:
    """Keep the beginning only."""
    data = path.read_bytes()
    keep = draw.randrange(len(data))
    path.write_bytes(data[:keep])
    return f"cut to {keep} bytes"


def delete(path: Path, _draw: random.Random) -> str:
    """Remove the file."""
    path.unlink()
    return "deleted"


@dataclass
class Tally:
    """What happened.

    Args:
        harms: how many of each kind.
        files: harms by kind of file.
        repairs: batches that were repaired.
        recomputed: blocks that repairs computed again.
        harmed_blocks: blocks that had been harmed.
        wrong: what was missed, not repaired, or computed again without need.
    """

    harms: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    repairs: int = 0
    recomputed: int = 0
    harmed_blocks: int = 0
    wrong: list[str] = field(default_factory=list)


class Listener(Silent):
    """Blocks that each stage found missing."""

    def __init__(self) -> None:
        self.missing: dict[str, int] = {}

    def begin(self, stage: str, total: int, done: int) -> None:
        """Note it."""
        self.missing[stage] = total - done


def harmed_files(workspace: Path) -> list[str]:
    """Files that krepes answers for: stores, records, seals, checkpoints, cache, the report."""
    private = workspace / ".krepes"
    own = (private / name for name in ("stages", "checkpoints", "cache"))
    folders = (workspace / "audit.zarr", *own)
    found = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
    found += [private / name for name in ("recipe.json", *LEARNED)]
    found += [workspace / name for name in ("report.html", "report.json")]
    return sorted(p.relative_to(workspace).as_posix() for p in found if p.stat().st_size)


def owner(file: str) -> str | None:
    """Stage that answers for a file; None for those of the workspace."""
    parts = file.split("/")
    if parts[0] == "audit.zarr":
        return parts[1] if len(parts) > 2 else None
    if parts[0] == ".krepes":
        return {"stages": parts[2], "checkpoints": "pretrain"}.get(parts[1]) if parts[2:] else None
    return "report"


def kind_of(file: str) -> str:
    """What a file is, for the tally."""
    name = file.rsplit("/", 1)[-1]
    if "/c/" in file:
        return "chunk"
    if "/cache/" in file:
        return "cache"
    return "checkpoint" if "/checkpoints/" in file else name


def block_of(file: str) -> str:
    """Number of the block that a chunk of features or kernel belongs to, else nothing."""
    if not file.startswith(("audit.zarr/features/", "audit.zarr/kernel/")):
        return ""
    array, _, at = file.partition("/c/")
    name = array.rsplit("/", 1)[-1]
    if name in ("values", "self_kernel"):
        return at.split("/")[1]
    return at if name == "sample_id" else ""


def plan(
    files: list[str], harms: dict[Harm, int], draw: random.Random
) -> Iterator[list[tuple[str, Harm]]]:
    """Batches of files with what is done to them.

    A file is harmed once in a batch, and where the record of a stage is harmed nothing else of that
    stage is, because the record says what belongs to it. For the same reason no seal is deleted in
    a batch in which the register of the workspace, which lists the seals, is harmed.
    """
    todo = [harm for harm, count in harms.items() for _ in range(count)]
    draw.shuffle(todo)
    # One file of every kind comes first, so that a short campaign has them all.
    turns = list({kind_of(file): file for file in draw.sample(files, len(files))}.values())
    while todo:
        batch: dict[str, Harm] = {}
        for _ in range(3 * BATCH):
            if not todo or len(batch) == BATCH:
                break
            turns = turns or draw.sample(files, len(files))
            file = turns.pop(0)
            deletes = {name for name, harm in batch.items() if harm is delete}
            deletes |= {file} if todo[-1] is delete else set()
            lists = REGISTER in (file, *batch) and any("seal.json" in name for name in deletes)
            others = {other for other in batch if owner(other) == owner(file) is not None}
            alone = any("/stages/" in name for name in (file, *others))
            if (
                file in batch
                or lists
                or (others and alone)
                or (file.startswith(MAY_BE_ABSENT) and todo[-1] is delete)
                or {f"{file}.sums", file.removesuffix(".sums")} & batch.keys()
            ):
                turns.append(file)
                # Another harm may suit the only file that is left.
                todo.insert(0, todo.pop())
            else:
                batch[file] = todo.pop()
        yield list(batch.items())


def named(workspace: Path, only: str | None) -> list[str]:
    """Damaged files by their path in the workspace."""
    found = []
    for item in verify_workspace(workspace, only).damage:
        place = Path(item.file)
        if not place.is_absolute():
            store = workspace / "audit.zarr" / item.stage
            place = (store if item.stage not in ("pretrain", "report") else workspace) / place
        found.append(place.relative_to(workspace).as_posix())
    return found


def harm_batch(
    workspace: Path, batch: list[tuple[str, Harm]], draw: random.Random, tally: Tally
) -> dict[str, set[str]]:
    """Do the harm, one by one, looking at once; the harmed blocks by stage."""
    blocks: dict[str, set[str]] = defaultdict(set)
    for file, harm in batch:
        told = harm(workspace / file, draw)
        tally.harms[harm.__name__] += 1
        tally.files[kind_of(file)] += 1
        stage = owner(file)
        if file not in named(workspace, stage):
            tally.wrong.append(f"{file}: {told}: not found")
        if stage is not None and block_of(file):
            blocks[stage].add(block_of(file))
    return blocks


def repaired(
    recipe: Recipe,
    sealed: Path,
    workspace: Path,
    batch: list[tuple[str, Harm]],
    blocks: dict[str, set[str]],
    tally: Tally,
) -> Iterator[str]:
    """Repair a batch; what is wrong afterwards."""
    harmed = {file for file, _ in batch}
    found = set(named(workspace, None))
    yield from (f"{file}: not named among others" for file in harmed - found)
    yield from (f"{file}: named, and was not harmed" for file in found - harmed)
    listener = Listener()
    summary = run(recipe, workspace, Options(repair=True, workers=1), listener)
    tally.repairs += 1
    touched = {owner(file) for file in harmed} - {None}
    yield from (f"{stage}: computed again without need" for stage in set(summary.ran) - touched)
    for stage in ("features", "kernel"):
        mine = [file for file in harmed if owner(file) == stage]
        if mine and all(map(block_of, mine)):
            tally.harmed_blocks += len(blocks[stage])
            tally.recomputed += listener.missing[stage]
            if listener.missing[stage] != len(blocks[stage]):
                yield f"{stage}: {listener.missing[stage]} blocks for {len(blocks[stage])} harmed"
    yield from differences(sealed, workspace)
    for file in harmed:
        if "/cache/" in file and not filecmp.cmp(sealed / file, workspace / file, shallow=False):
            yield f"{file}: made anew, and differs"
    yield from map(str, verify_workspace(workspace).damage)
    if small.seals(workspace) != small.seals(sealed):
        yield "seals differ"


def campaign(root: Path, flips: int, cuts: int, deletions: int, seed: int) -> Tally:
    """Harm and repair two workspaces many times."""
    tally, draw = Tally(), random.Random(seed)
    gc.freeze()  # runs look for cycles: not among the modules, each time anew
    own = Recipe.load(str(small.own_recipe(root / "recipe")))
    for half, recipe in enumerate((small.recipe(), own)):
        sealed, workspace = root / f"sealed-{half}", root / f"harmed-{half}"
        run(recipe, sealed, Options(workers=1))
        shutil.copytree(sealed, workspace)
        harms = {flip: flips, cut: cuts, delete: deletions}
        share = {harm: (count + half) // 2 for harm, count in harms.items()}
        for batch in plan(harmed_files(sealed), share, draw):
            blocks = harm_batch(workspace, batch, draw, tally)
            tally.wrong += repaired(recipe, sealed, workspace, batch, blocks, tally)
    return tally


def main() -> None:
    """Run a campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--deletions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="krepes-damage-") as root:
        tally = campaign(Path(root), given.flips, given.cuts, given.deletions, given.seed)
    print(json.dumps(vars(tally) | {"seconds": time.monotonic() - begin}, indent=1))
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
