"""Lay whole files in the place of others; find it or be unharmed, repair, compare every bit.

    python -m tests.crash.replay --cases 1000 --seed 0

Every file is whole by its own checksum, but not the one that was recorded: two chunks of one array
are exchanged, a file comes from the same audit with another seed and another table, or from an
earlier state of the same audit; checkpoints and training states are also flipped. It is done to
sealed stages before their readers run, to stages whose last unit is on disk but not their seal, and
to finished audits. A run may then name the file, or give the bits of a clean run. The commands that
read finished audits may do the same. One ``--repair`` run brings back the clean bits: of the file,
of all that was made of it, and of the seals. Exit 1 if anything was wrong in silence or stayed so.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from krepes_ooc.errors import DamageError, KrepesError, WorkspaceError
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import read_verdict
from krepes_ooc.runner.workspace import Workspace
from krepes_ooc.storage.export import LARGE, export_store
from krepes_ooc.storage.workspace import Workspace as Space
from tests import small
from tests.crash.compare import differences
from tests.crash.damage import kind_of, named, owner
from tests.crash.replayed_files import (
    ROWS,
    TINY,
    TRAINED,
    Case,
    States,
    depth,
    do_harm,
    harms_of,
    link,
)


@dataclass
class Tally:
    """What happened.

    Args:
        harms: cases of each kind.
        files: cases by kind of file.
        states: cases by the state of the stage: started, sealed, finished.
        named: cases in which the first run or command named the file.
        stale: cases in which it named the record of a stage as of other settings.
        unharmed: cases in which it gave the bits of a clean run.
        unread: cases in which it did not read the file, which a verification names.
        silent: wrong bits without a word.
        not_repaired: what a repair left.
    """

    harms: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    named: int = 0
    stale: int = 0
    unharmed: int = 0
    unread: int = 0
    silent: list[str] = field(default_factory=list)
    not_repaired: list[str] = field(default_factory=list)


@dataclass
class Campaign:
    """Two audits, each with its copies and those of another seed and another table.

    Args:
        root: where everything lies.
        draw: of the cases and of the bits that are flipped.
        trained: with the audit whose network is trained there.
    """

    root: Path
    draw: random.Random
    trained: bool = True
    tally: Tally = field(default_factory=Tally)
    answers: dict[tuple[Path, str], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The other table has another seed of its numbers and the same columns.
        own = [
            small.own_recipe(self.root / f"recipe-{seed}", small.rows_csv(ROWS, seed))
            for seed in (0, 1)
        ]
        pairs = [
            [Recipe.load(str(own[i]), (*TINY, f"seed={7 * i}")) for i in (0, 1)],
        ]
        if self.trained:
            changes = (*TINY, *TRAINED)
            pairs.append([small.recipe(*changes, f"seed={7 * i}") for i in (0, 1)])
        self.audits = [
            [States(self.root / f"audit-{i}-{j}", recipe) for j, recipe in enumerate(pair)]
            for i, pair in enumerate(pairs)
        ]

    def cases(self, count: int) -> list[Case]:
        """So many of all cases; every kind of file and harm has its turn."""
        groups: dict[tuple[str, ...], list[Case]] = {}
        for audit, (states, other) in enumerate(self.audits):
            for state in sorted(states.folder.iterdir()):
                for case in harms_of(audit, states, other, state):
                    array = case.file.partition("/c/")[0]
                    key = (str(audit), case.harm, state.name.partition("-")[0], array)
                    groups.setdefault(key, []).append(case)
        for group in groups.values():
            self.draw.shuffle(group)
        order = list(groups.values())
        self.draw.shuffle(order)
        turns = itertools.zip_longest(*order)
        every = [case for turn in turns for case in turn if case is not None]
        return every[:count]

    def try_case(self, case: Case) -> None:
        """One case from harm to repair."""
        states = self.audits[case.audit][0]
        workspace = self.root / "harmed"
        shutil.rmtree(workspace, ignore_errors=True)
        shutil.copytree(states.folder / case.state, workspace, copy_function=link)
        do_harm(workspace, case, self.draw)
        kind, _, number = case.state.partition("-")
        index = int(number)
        finished = states.folder / case.state == states.finished
        self.tally.harms[case.harm] += 1
        self.tally.files["partial" if "/partials/" in case.file else kind_of(case.file)] += 1
        self.tally.states["finished" if finished else kind] += 1
        where = f"audit {case.audit}, {case.state}, {case.file}, {case.harm}"
        # Stages that start from a state before the seal end it, then the first reader runs.
        target = states.reader_of(index)
        clean = states.path("sealed", target)
        told = self._run(states, workspace, target)
        if finished and told is None:
            self._read(case, clean, workspace, where)
        self._judge(case, clean, workspace, where, told)
        for problem in self._repaired(states, workspace, target, clean, told):
            self.tally.not_repaired.append(f"{where}: {problem}")

    def _run(self, states: States, workspace: Path, target: int) -> KrepesError | None:
        try:
            run(states.recipe, workspace, Options(workers=1, until=states.names[target]))
        except KrepesError as error:
            return error
        return None

    def _judge(
        self, case: Case, clean: Path, workspace: Path, where: str, told: KrepesError | None
    ) -> None:
        """Whether the run named the file or was unharmed; every other end is silent."""
        laid = {case.file}
        if case.harm == "exchange" and case.other is not None:
            laid.add(case.other.relative_to(case.other.parents[depth(case.other)]).as_posix())
        if case.file.endswith(("begun.json", "seal.json")):
            # The two are compared: which of them is of another run, neither says.
            laid.add(f"{case.file.rpartition('/')[0]}/seal.json")
        found = set(named(workspace, owner(case.file)))
        if told is not None:
            self.tally.named += isinstance(told, DamageError)
            self.tally.stale += isinstance(told, WorkspaceError)
            known = any(file in str(told).replace("\n", " ") for file in laid) or laid & found
            if not known and not isinstance(told, WorkspaceError):
                self.tally.silent.append(f"{where}: refused, but not by its name: {told}")
            if not isinstance(told, DamageError | WorkspaceError):
                self.tally.silent.append(f"{where}: {type(told).__name__}: {told}")
            return
        wrong = set(changed(clean, workspace))
        self.tally.unharmed += not wrong
        self.tally.unread += bool(wrong)
        for file in sorted(wrong - found):
            self.tally.silent.append(f"{where}: exit 0, {file} differs and is not named")

    def _repaired(
        self, states: States, workspace: Path, target: int, clean: Path, told: KrepesError | None
    ) -> Iterator[str]:
        """What a repair leaves."""
        until = states.names[target]
        # What is of other settings by its own record is computed again as such.
        restart = isinstance(told, WorkspaceError)
        options = Options(workers=1, until=until, repair=True, restart_stale=restart)
        try:
            run(states.recipe, workspace, options)
        except Exception as error:
            yield f"repair: {type(error).__name__}: {error}"
            return
        yield from changed(clean, workspace)
        yield from (f"{file}: still named" for file in named(workspace, None))
        if small.seals(workspace) != small.seals(clean):
            yield "seals differ"

    def _read(self, case: Case, clean: Path, workspace: Path, where: str) -> None:
        """Commands on a finished audit: each names the damage or gives what it gives of a clean."""
        store = owner(case.file)
        stores = [store] if store in Space(clean).stores() else ["influence"]
        for question in questions(self.root / "answers", stores):
            try:
                answer = question(workspace)
            except (DamageError, WorkspaceError):
                continue
            name = f"{getattr(question, '__name__', '')} of {stores[0]}"
            if (clean, name) not in self.answers:
                self.answers[clean, name] = question(clean)
            if not same(answer, self.answers[clean, name]):
                self.tally.silent.append(f"{where}: {name} answers otherwise")


def questions(folder: Path, stores: list[str]) -> Iterator[Callable[[Path], Any]]:
    """Ways to read stores of a finished audit."""
    for store in stores:

        def load(workspace: Path, store: str = store) -> Any:
            data = Workspace(workspace)[store].load()
            facts = {k: v for k, v in data.attrs.items() if k != "figures"}
            return {name: data[name].values for name in data}, str(sorted(facts.items()))

        def export(workspace: Path, store: str = store) -> Any:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            export_store(Space(workspace), store, folder / "out.zarr", "zarr")
            files = [p for p in folder.rglob("*") if p.is_file() and "c" in p.parts]
            return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}

        yield load
        if store not in LARGE:
            yield export
        if store == "verdict":

            def verdict(workspace: Path) -> Any:
                return read_verdict(workspace).to_json()

            yield verdict


def same(one: Any, two: Any) -> bool:
    """Whether two answers hold the same bits."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    return bool(one == two)


def changed(clean: Path, workspace: Path) -> list[str]:
    """Files of stores, checkpoints and caches that are not those of the clean workspace."""
    found = [f"audit.zarr/{line.partition(': ')[2]}" for line in differences(clean, workspace)]
    for folder in ("checkpoints", "cache"):
        for path in sorted((clean / ".krepes" / folder).rglob("*")):
            file = path.relative_to(clean).as_posix()
            # Where an earlier state of the cache was right too, it is written again.
            if path.is_file() and path.name != "fingerprint.json":
                mine = workspace / file
                if mine.is_file() and mine.read_bytes() != path.read_bytes():
                    found.append(file)
    return found


def campaign(root: Path, cases: int, seed: int, *, trained: bool = True) -> Tally:
    """So many cases."""
    gc.freeze()
    made = Campaign(root, random.Random(seed), trained)
    for number, case in enumerate(made.cases(cases), 1):
        made.try_case(case)
        if number % 50 == 0:
            print(number, json.dumps(vars(made.tally)), file=sys.stderr, flush=True)
    return made.tally


def main() -> None:
    """Run a campaign from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="krepes-replay-") as root:
        tally = campaign(Path(root), given.cases, given.seed)
    print(json.dumps(vars(tally) | {"seconds": time.monotonic() - begin}, indent=1))
    sys.exit(1 if tally.silent or tally.not_repaired else 0)


if __name__ == "__main__":
    main()
