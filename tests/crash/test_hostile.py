"""A workspace made by an attacker, opened by every command: one line, no wait, no write, no leak.

What is in it: pipes, sockets, devices, folders, loops of links and files of holes in the place of
every kind of file; codecs and shapes that grow; records of odd types with the right checksum; a
recipe that names a private table.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.core.files import checksum, checksummed_json
from krepes_ooc.storage.sealed_list import record_texts
from tests import small

SECONDS = 10
LOOKS = (
    ("status",),
    ("verify",),
    ("verdict",),
    ("explain", "--sample", "{audited}"),
    ("export", "--store", "influence", "--format", "csv", "--out", "influence.csv"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace as its sender has it, beside the files of its recipe."""
    from krepes_ooc.runner.audit import Options
    from krepes_ooc.runner.recipe import Recipe
    from krepes_ooc.runner.run import run

    folder = tmp_path_factory.mktemp("sender")
    for library in ("xarray", "zarr", "pyarrow.csv"):  # loading them is no part of a time limit
        importlib.import_module(library)
    run(Recipe.load(str(small.own_recipe(folder))), folder / "w", Options(workers=1))
    gc.freeze()  # runs look for cycles: not among the modules, each time anew
    return folder


@pytest.fixture
def sent(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace as it came; one for all tests, of which only what was changed is made anew."""
    folder = finished / "received"
    folder.mkdir(exist_ok=True)
    for path in list(folder.iterdir()):
        if path.name != "w":
            remove(path)
    as_sent(finished, folder / "w")
    monkeypatch.chdir(folder)
    return folder / "w"


def as_sent(finished: Path, workspace: Path) -> None:
    """Make a workspace what the sender has: what differs is copied, what is new is removed."""
    workspace.mkdir(exist_ok=True)
    theirs, ours = tree(finished / "w"), tree(workspace)
    for name in sorted(ours.keys() - theirs.keys()):
        remove(workspace / name)
    for name, (mode, size, time) in sorted(theirs.items()):
        path = workspace / name
        if stat.S_ISDIR(mode):
            if not path.is_dir() or path.is_symlink():
                remove(path)
                path.mkdir(parents=True)
        elif ours.get(name) != (mode, size, time):
            remove(path)
            shutil.copy2(finished / "w" / name, path)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- what is in the place of a file --------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("x")


def link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # as /dev/zero, which never ends
    except PermissionError:
        path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # the whole path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


def holes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


KINDS = (pipe, folder, link_loop, device, a_socket, holes)
PLACES = (
    "audit.zarr/zarr.json",
    "audit.zarr/influence/zarr.json",
    "audit.zarr/influence/score/zarr.json",
    "audit.zarr/influence/score/c/0/0",
    "audit.zarr/influence/stranger",
    "audit.zarr/influence/score/c",
    ".krepes/stages/influence",
    ".krepes/stages/influence/seal.json",
    ".krepes/stages/influence/begun.json",
    ".krepes/stages/features/journal-0000.jsonl",
    ".krepes/recipe.json",
    ".krepes/recipe-text.json",
    ".krepes/network.json",
    ".krepes/lock",
    ".krepes/lease",
    ".krepes/runs/99990101T000000Z-1.json",
    ".krepes/cache/fingerprint.json",
    "report.html",
)


def put(path: Path, make: Callable[[Path], None]) -> None:
    """Something else in the place of a file or a folder."""
    remove(path)
    make(path)


@contextmanager
def a_limit_of_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tried(capsys: Any, given: tuple[str, ...]) -> small.Outcome:
    """One command: it ends in time, with one line or with what it found."""
    with a_limit_of_time():
        outcome = small.krepes(capsys, *given)
    assert outcome.code in (0, 1, 2, 4, 5), (given, outcome)
    assert "unexpected" not in outcome.err, (given, outcome)
    assert "Traceback" not in outcome.err, (given, outcome)
    assert outcome.err.count("\n") <= 1, (given, outcome)
    return outcome


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Kind, size and time of everything below a folder, by its path from there."""
    found, todo = {}, [""]
    while todo:
        below = todo.pop()
        with os.scandir(folder / below) if folder.is_dir() else nullcontext(()) as entries:
            for entry in entries:
                name, state = below + entry.name, entry.stat(follow_symlinks=False)
                found[name] = (state.st_mode, state.st_size, state.st_mtime_ns)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(f"{name}/")
    return found


def audited_sample(workspace: Path) -> str:
    from krepes_ooc.storage.workspace import Workspace

    return str(Workspace(workspace).reader("audited").array("sample_id")[0])


def filled(command: str, sent: Path, sample: str) -> tuple[str, ...]:
    """The command line of one looking command."""
    (sent.parent / "influence.csv").unlink(missing_ok=True)
    given = next(look for look in LOOKS if look[0] == command)
    return (command, "-w", str(sent), *(part.format(audited=sample) for part in given[1:]))


def look_at(capsys: Any, sent: Path, sample: str) -> dict[str, small.Outcome]:
    """Every looking command; none of them writes into the workspace."""
    before = tree(sent)
    outcomes = {}
    for command in (look[0] for look in LOOKS):
        outcomes[command] = tried(capsys, filled(command, sent, sample))
        assert tree(sent) == before, command
    return outcomes


@pytest.mark.parametrize("make", KINDS, ids=[make.__name__ for make in KINDS])
def test_no_command_waits_for_what_is_no_file(
    capsys: Any, finished: Path, sent: Path, make: Callable[[Path], None]
) -> None:
    own, sample = str(finished / "own.yaml"), audited_sample(sent)
    # Pipes and files of holes everywhere; others, refused by the same line, in a third.
    third = KINDS.index(make) % 3
    for place in PLACES if make in (pipe, holes) else PLACES[third::3]:
        as_sent(finished, sent)
        put(sent / place, make)
        outcomes = look_at(capsys, sent, sample)
        if "audit.zarr" in place or "seal" in place:
            assert outcomes["verify"].code in (4, 5), place
        if "audit.zarr" not in place:
            tried(capsys, ("run", own, "-w", str(sent), "--quiet"))


# --- what is in a file ---------------------------------------------------------------------------


def forge(path: Path, **changes: Any) -> None:
    """Change a record and give it the right checksum."""
    body = json.loads(path.read_bytes())["body"] | changes
    path.write_bytes(checksummed_json(body))


def forge_text(sent: Path, **changes: Any) -> None:
    """Change the recorded text of the recipe, and the record that has its checksum."""
    path = sent / ".krepes/recipe-text.json"
    forge(path, **changes)
    record_texts(sent / ".krepes", checksum(path.read_bytes()))


def forge_document(sent: Path, key: str, **changes: Any) -> None:
    """Change a document of store influence, and the seal so that it says the same."""
    path = sent / "audit.zarr/influence" / key
    if changes:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    seal = sent / ".krepes/stages/influence/seal.json"
    files = json.loads(seal.read_bytes())["body"]["files"]
    files[key] = [path.stat().st_size, checksum(path.read_bytes())]
    forge(seal, files=files)


ODD: tuple[Any, ...] = ("x" * 50, -1.5, True, [1], None)
RECORDS = (
    *(("seal.json", key) for key in ("files", "journals", "bytes", "seconds", "begun", "inputs")),
    *(("begun.json", key) for key in ("digest", "units", "versions", "settings", "inputs")),
)


@pytest.mark.parametrize("value", ODD, ids=[type(value).__name__ for value in ODD])
def test_odd_types_in_records_with_the_right_checksum(
    capsys: Any, finished: Path, sent: Path, value: Any
) -> None:
    sample = audited_sample(sent)
    for name, key in RECORDS[ODD.index(value) % 2 :: 2]:
        as_sent(finished, sent)
        forge(sent / ".krepes/stages/influence" / name, **{key: value})
        for command in ("status", "verify", "export"):
            tried(capsys, filled(command, sent, sample))
    for key in ("text", "base"):
        forge_text(sent, **{key: value})
        look_at(capsys, sent, sample)
    forge(sent / ".krepes/recipe.json", sealed=value, recipe=value, texts=value)
    look_at(capsys, sent, sample)
    (sent / ".krepes/lease").write_text(json.dumps({"host": socket.gethostname(), "pid": value}))
    tried(capsys, ("run", str(finished / "own.yaml"), "-w", str(sent), "--quiet"))


GROWING = {
    "gzip": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}],
    "blosc": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "blosc"}],
    "sharding": [{"name": "sharding_indexed", "configuration": {"chunk_shape": [1, 1]}}],
}


@pytest.mark.parametrize("codec", GROWING)
def test_codecs_that_grow_are_not_decoded(capsys: Any, sent: Path, codec: str) -> None:
    """The seal says the same: what is decoded is what the writer writes, whoever sealed it."""
    import gzip

    chunk = sent / "audit.zarr/influence/score/c/0/0"
    chunk.write_bytes(gzip.compress(bytes(2**20)))
    forge_document(sent, "score/c/0/0")
    forge_document(sent, "score/zarr.json", codecs=GROWING[codec])
    outcomes = look_at(capsys, sent, audited_sample(sent))
    for name in ("explain", "export"):
        assert outcomes[name].code == 5, outcomes[name]
    assert "codecs" in outcomes["export"].err


@pytest.mark.parametrize("shape", [[2**52, 2**52], [2**40, 0], ["a", 1], [-1, 3], {}, 7, [True, 1]])
def test_absurd_shapes_that_are_sealed(capsys: Any, sent: Path, shape: Any) -> None:
    sample = audited_sample(sent)
    forge_document(sent, "score/zarr.json", shape=shape)
    look_at(capsys, sent, sample)
    forge_document(sent, "zarr.json", attributes=shape)
    look_at(capsys, sent, sample)


# --- what it leads to ----------------------------------------------------------------------------


def test_looking_opens_no_table_that_the_user_has_not_named(
    capsys: Any, finished: Path, sent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = sent.parent / "private"
    private.mkdir()
    (private / "salaries.csv").write_text(small.rows_csv())
    (private / "own.yaml").write_text(
        small.OWN.replace("rows.csv", "salaries.csv").replace(
            "net.py:net", "krepes_ooc.network.zoo:mlp"
        )
    )
    text = (private / "own.yaml").read_text()
    forge_text(sent, text=text, base=str(private))
    opened = []
    really = os.open

    def watched(path: Any, *more: Any, **named: Any) -> int:
        opened.append(os.fsdecode(path))
        return really(path, *more, **named)

    monkeypatch.setattr(os, "open", watched)
    (sent.parent / "new.csv").write_text("a,b,c,town\n1,2,3,x\n")
    before = tree(sent)
    sample = audited_sample(sent)
    for given in (
        *LOOKS,
        ("status", "--set", "seed=3"),
        ("explain", "--sample", "299"),
        ("explain", "--input", "new.csv"),
        ("report", "--quiet"),
    ):
        (sent.parent / "influence.csv").unlink(missing_ok=True)
        parts = tuple(part.format(audited=sample) for part in given[1:])
        told = tried(capsys, (given[0], "-w", str(sent), *parts))
        assert tree(sent) == before, given
        assert not [path for path in opened if "salaries" in path], given
        if given[0] == "report":
            assert told.code == 2
            assert f"names a file, {private / 'salaries.csv'}" in told.line
    told = tried(capsys, ("status", "-w", str(sent)))
    assert "shown without comparison" in told.out


def test_no_permission_is_not_called_damage(
    capsys: Any, sent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, really = audited_sample(sent), os.open

    def refuse(path: Any, *more: Any, **named: Any) -> int:
        if os.fsdecode(path).endswith("influence/score/c/0/0"):
            raise PermissionError(13, "Permission denied", path)
        return really(path, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    outcomes = look_at(capsys, sent, sample)
    for name in ("verify", "explain"):
        assert outcomes[name].code == 2, outcomes[name]
        assert "cannot be read (Permission denied)" in outcomes[name].line
    assert outcomes["export"].code == 2


def test_files_of_a_workspace_follow_the_umask(finished: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for base, _, files in os.walk(finished / "w"):
        for name in files:
            assert os.stat(Path(base, name)).st_mode & 0o777 == 0o666 & ~umask, Path(base, name)


# --- what is printed -----------------------------------------------------------------------------


def test_advice_about_strangers_and_damaged_seals_can_work(capsys: Any, sent: Path) -> None:
    (sent / "audit.zarr/influence/stray\x1b[2J").write_text("x")
    told = tried(capsys, ("verify", "-w", str(sent)))
    assert told.code == 5
    assert "\x1b" not in told.out
    assert r"stray\u001b[2J: not written by krepes" in told.out
    assert "remove the files named as not written by krepes" in told.line
    assert "--repair" not in told.line
    seal = sent / ".krepes/stages/influence/seal.json"
    seal.write_bytes(seal.read_bytes().replace(b"influence", b"inflvence"))
    told = tried(capsys, ("verify", "-w", str(sent)))
    assert "krepes run --repair" in told.line


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", r"'\u0009=1"),
        ("\r=1", r"'\u000d=1"),
        ("a\x1b[2J", r"a\u001b[2J"),
        ("-1.5e3", "-1.5e3"),
        ("plain é", "plain é"),
    ],
)
def test_cells_of_csv_files_are_escaped(tmp_path: Path, text: str, cell: str) -> None:
    import csv

    from krepes_ooc.storage.export import _write_table

    table = {text: [text, None], "number": [-1.5, 2.0]}
    _write_table(table, {}, tmp_path / "t.csv", "csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        head, row, _ = csv.reader(file)
    assert head == [cell, "number"]
    assert row == [cell, "-1.5"]


def test_a_path_that_is_too_long_is_no_failing_disk(tmp_path: Path) -> None:
    from krepes_ooc.core.files import write_atomic
    from krepes_ooc.errors import UsageError

    with pytest.raises(UsageError, match=r"the path is too long.*choose a shorter --workspace"):
        write_atomic(tmp_path / ("x" * 300), b"", tmp_path, sync=False)
