"""Acts of a user, a tool or a stranger on a small workspace: each has a clear outcome."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import verify_workspace
from krepes_ooc.stages.features.stage import FeatureShards
from krepes_ooc.storage.locks import WorkspaceLock
from tests import small
from tests.crash.compare import differences
from tests.crash.test_hostile import a_limit_of_time, holes, pipe

LAST = "landmarks"
CHANGES = ("stages.features.block_rows=64", "stages.features.forward_batch=32")
SETS = [part for change in CHANGES for part in ("--set", change)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.own_recipe(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def clean(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("clean") / "w"
    go_on(files, workspace)
    return workspace


@pytest.fixture
def workspace(clean: Path, tmp_path: Path) -> Path:
    shutil.copytree(clean, tmp_path / "w")
    return tmp_path / "w"


def go_on(files: Path, workspace: Path, **options: Any) -> Any:
    recipe = Recipe.load(str(files), CHANGES)
    return run(recipe, workspace, Options(**{"workers": 1, "until": LAST, **options}))


def krepes(capsys: Any, files: Path, workspace: Path, *extra: str) -> small.Outcome:
    """The run from the command line, which ends in one line and in time."""
    given = ("run", str(files), "-w", str(workspace), "--quiet", "--workers", "1", *SETS)
    outcome = small.krepes(capsys, *given, "--until", LAST, *extra)
    assert "unexpected" not in outcome.err, outcome
    assert outcome.err.count("\n") <= 1, outcome
    return outcome


def repaired(capsys: Any, files: Path, workspace: Path, clean: Path) -> None:
    """A repair brings the bits of a clean run, and nothing is named after it."""
    outcome = krepes(capsys, files, workspace, "--repair")
    assert outcome.code == 0, outcome
    assert differences(clean, workspace) == []
    assert verify_workspace(workspace).damage == ()


def during_the_third_block(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    block = FeatureShards._block

    def acted(shards: FeatureShards, at: Any) -> Any:
        if at.index == 2:
            act()
        return block(shards, at)

    monkeypatch.setattr(FeatureShards, "_block", acted)


# Copies ------------------------------------------------------------------------------------------


def test_a_copy_by_hard_links_leaves_the_first_workspace_alone(
    workspace: Path, files: Path, clean: Path, capsys: Any
) -> None:
    """As backups and ``cp -al`` make them: one file under two names."""
    copy = workspace.with_name("copy")
    shutil.copytree(workspace, copy, copy_function=os.link)
    (copy / "audit.zarr/features/values/c/0/1/0").unlink()
    before = {p: p.read_bytes() for p in workspace.rglob("*") if p.is_file()}
    # The lock is one file too: only its holder knows who that is.
    (copy / ".krepes/lock").unlink()
    repaired(capsys, files, copy, clean)
    assert {p: p.read_bytes() for p in workspace.rglob("*") if p.is_file()} == before
    assert verify_workspace(workspace).damage == ()


@pytest.mark.parametrize("with_record", [False, True])
def test_a_store_of_a_copy_whose_source_differs_in_one_byte(
    workspace: Path, files: Path, clean: Path, capsys: Any, tmp_path: Path, with_record: bool
) -> None:
    other = tmp_path / "other"
    shutil.copytree(files.parent, other)
    table = (other / "rows.csv").read_text()
    at = table.index("\n", 40) - 3
    (other / "rows.csv").write_text(
        f"{table[:at]}{'x' if table[at] != 'x' else 'y'}{table[at + 1 :]}"
    )
    shutil.copytree(workspace, tmp_path / "copy")
    changed = krepes(capsys, other / files.name, tmp_path / "copy", "--restart-stale")
    assert changed.code == 0, changed
    for place in ("audit.zarr/features", *[".krepes/stages/features"] * with_record):
        shutil.rmtree(workspace / place)
        shutil.copytree(tmp_path / "copy" / place, workspace / place)
    told = krepes(capsys, files, workspace, "--until", "kernel")
    assert told.code == (4 if with_record else 5), told
    assert "features" in told.line
    if with_record:
        assert krepes(capsys, files, workspace, "--restart-stale").code == 0
    else:
        repaired(capsys, files, workspace, clean)
    assert differences(clean, workspace) == []


def test_an_edited_source_whose_time_was_set_back(
    workspace: Path, files: Path, capsys: Any, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(files.parent, own)
    assert krepes(capsys, own / files.name, workspace).code == 0
    table = own / "rows.csv"
    state, text = table.stat(), table.read_text()
    at = text.index("\n", 40) - 3
    table.write_text(f"{text[:at]}{'x' if text[at] != 'x' else 'y'}{text[at + 1 :]}")
    os.utime(table, ns=(state.st_atime_ns, state.st_mtime_ns))
    told = krepes(capsys, own / files.name, workspace)
    assert told.code == 4
    assert "source changed" in told.line


# While a run works -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["audit.zarr", ".krepes/stages/features", ".krepes", "."])
@pytest.mark.parametrize("how", ["removed", "moved away"])
def test_folders_that_vanish_under_a_run(
    tmp_path: Path,
    files: Path,
    clean: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    how: str,
) -> None:
    workspace = tmp_path / "w"

    def act() -> None:
        if how == "removed":
            shutil.rmtree(workspace / what)
        else:
            (workspace / what).rename(tmp_path / "away")

    with monkeypatch.context() as patch:
        during_the_third_block(patch, act)
        told = krepes(capsys, files, workspace)
    assert told.code in (1, 2, 4, 5), told
    told = krepes(capsys, files, workspace)
    if told.code:
        assert "--repair" in told.line or "run again" in told.line, told
        told = krepes(capsys, files, workspace, "--repair")
    assert told.code == 0, told
    assert differences(clean, workspace) == []
    if how == "moved away" and what == ".":
        repaired(capsys, files, tmp_path / "away", clean)


def test_the_clock_is_set_back_under_a_run(
    tmp_path: Path, files: Path, clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    with monkeypatch.context() as patch:
        during_the_third_block(patch, lambda: patch.setattr(time, "time", lambda: now() - 10**8))
        go_on(files, tmp_path / "w")
    assert differences(clean, tmp_path / "w") == []
    with WorkspaceLock(tmp_path / "w/.krepes/lock"):
        pass


# Files and folders in each other's place ---------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["temp", "stages", "cache", "runs", "openings", "checkpoints", "parked", "stages/features"],
)
def test_a_file_in_the_place_of_a_folder(
    workspace: Path, files: Path, capsys: Any, name: str
) -> None:
    place = workspace / ".krepes" / name
    shutil.rmtree(place, ignore_errors=True)
    place.write_text("x")
    for given in (("status",), ("verify",)):
        look = small.krepes(capsys, *given, "-w", str(workspace))
        assert "unexpected" not in look.err, look
    told = krepes(capsys, files, workspace, "--repair")
    assert not told.code or str(place) in told.line or name in told.line, told


@pytest.mark.parametrize("name", ["audit.zarr/features", "audit.zarr", "report.html"])
def test_a_file_in_the_place_of_a_store(
    workspace: Path, files: Path, clean: Path, capsys: Any, name: str
) -> None:
    place = workspace / name
    shutil.rmtree(place, ignore_errors=True)
    place.write_text("x")
    for given in (("status",), ("verify",)):
        look = small.krepes(capsys, *given, "-w", str(workspace))
        assert "unexpected" not in look.err, look
    told = krepes(capsys, files, workspace, "--repair")
    assert not told.code or str(place) in told.line, told


@pytest.mark.parametrize("content", ["", "{", '{"attributes": 3}', "[]", '{"zarr_format": 2}'])
def test_a_group_that_krepes_did_not_write(
    workspace: Path, files: Path, clean: Path, capsys: Any, content: str
) -> None:
    """Stray groups beside the stores and in one: named at most, never in the way."""
    for place in ("audit.zarr/mine", "audit.zarr/features/mine"):
        (workspace / place).mkdir()
        (workspace / place / "zarr.json").write_text(content)
    told = krepes(capsys, files, workspace, "--restart-stale", "--set", "seed=3")
    assert told.code == 0, told
    found = {str(damage) for damage in verify_workspace(workspace).damage}
    assert not [text for text in found if "not written by krepes" not in text], found


@pytest.mark.parametrize("make", [pipe, holes, "deep", "list", "link"])
def test_named_concepts_that_are_no_file_of_names(
    workspace: Path, files: Path, capsys: Any, make: Any
) -> None:
    place = workspace / "concepts.json"
    texts = {"deep": "[" * 100_000, "list": "[1]"}
    if make == "link":
        place.symlink_to(files)
    elif isinstance(make, str):
        place.write_text(texts[make])
    else:
        make(place)
    with a_limit_of_time():
        told = krepes(capsys, files, workspace)
    assert told.code == 4
    assert "the named concepts cannot be read" in told.line
    place.unlink()
    assert krepes(capsys, files, workspace).code == 0


@pytest.mark.parametrize("name", ["rows.csv", "weights.safetensors", "net.py"])
def test_a_pipe_in_the_place_of_a_file_of_the_user(
    tmp_path: Path, files: Path, capsys: Any, name: str
) -> None:
    own = tmp_path / "own"
    shutil.copytree(files.parent, own)
    (own / name).unlink()
    os.mkfifo(own / name)
    with a_limit_of_time():
        told = krepes(capsys, own / files.name, tmp_path / "w")
    assert told.code in (1, 2), told
    assert name in told.line


# The process -------------------------------------------------------------------------------------


def limited(kind: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (value, value))


def command(files: Path, workspace: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-m", "krepes_ooc", "run", str(files), "-w", str(workspace), *SETS]
    given += ["--until", LAST, "--quiet", "--workers", "2"]
    return subprocess.run(given, text=True, capture_output=True, timeout=110, check=False, **more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "value"), [(resource.RLIMIT_NOFILE, 24), (resource.RLIMIT_FSIZE, 4096)]
)
def test_limits_of_the_process(
    tmp_path: Path, files: Path, clean: Path, capsys: Any, kind: int, value: int
) -> None:
    done = command(files, tmp_path / "w", cwd=small.ROOT, preexec_fn=limited(kind, value))
    assert done.returncode in (0, 1, 2), done
    assert "unexpected" not in done.stderr, done
    assert done.stderr.count("\n") <= 1, done
    repaired(capsys, files, tmp_path / "w", clean)


@pytest.mark.slow
def test_a_path_and_columns_of_other_letters_under_a_plain_locale(
    tmp_path: Path, clean: Path
) -> None:
    own = small.own_recipe(tmp_path / "größe", small.rows_csv().replace("town", "stäöd", 1))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command(own, tmp_path / "wörk", cwd=small.ROOT, env=environment)
    # Libraries cannot open such paths: this is said.
    assert done.returncode == 2, done
    assert "a name has bytes that are no UTF-8" in done.stderr
    done = command(own, tmp_path / "wörk", cwd=small.ROOT)
    assert done.returncode == 0, done
    assert verify_workspace(tmp_path / "wörk").damage == ()


@pytest.mark.slow
def test_an_output_that_takes_nothing_and_a_folder_that_is_gone(workspace: Path) -> None:
    here = workspace.with_name("gone")
    here.mkdir()
    lines = (
        f"cd {here}; rmdir {here}; {sys.executable} -m krepes_ooc status -w {workspace}",
        f"{sys.executable} -m krepes_ooc status -w {workspace} > /dev/full",
    )
    for line in lines:
        environment = {**os.environ, "PYTHONPATH": str(small.ROOT)}
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, env=environment, check=False
        )
        assert "unexpected" not in done.stderr, done
        assert "Traceback" not in done.stderr, done
        assert "Exception ignored" not in done.stderr, done


def test_a_file_with_an_odd_name_is_named_in_one_line(workspace: Path, capsys: Any) -> None:
    (workspace / "audit.zarr/features/a\nb\x1b[31m").write_text("x")
    told = small.krepes(capsys, "verify", "-w", str(workspace))
    assert told.code == 5
    assert "\x1b" not in told.out + told.err
    assert "a b\\u001b[31m" in told.out


def test_both_records_of_the_recipe_are_deleted(
    workspace: Path, files: Path, clean: Path, capsys: Any
) -> None:
    for name in ("recipe.json", "recipe-text.json"):
        (workspace / ".krepes" / name).unlink()
    (damage,) = verify_workspace(workspace).damage
    assert damage.file.endswith("recipe.json")
    assert small.krepes(capsys, "report", "-w", str(workspace)).code in (2, 4)
    repaired(capsys, files, workspace, clean)
    body = json.loads((workspace / ".krepes/recipe.json").read_bytes())["body"]
    assert body["sealed"] == ["features", "landmarks"]
