"""Every bad input: one line on stderr, the right exit code, nothing half-sealed, never a NaN."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import small

HEAD, *ROWS = small.rows_csv().splitlines()
EQUAL = "\n".join([HEAD, *ROWS[:1] * small.ROWS]) + "\n"
FACTORY = ("network.weights=factory",)


def table(*rows: str) -> str:
    return "\n".join([HEAD, *rows]) + "\n"


def with_cell(text: str) -> str:
    rows = list(ROWS)
    rows[16] = text + "," + rows[16].split(",", 1)[1]
    return table(*rows)


def go(capsys: Any, folder: Path, *changes: str, extra: tuple[str, ...] = ()) -> small.Outcome:
    sets = [part for change in changes for part in ("--set", change)]
    given = ("run", str(folder / "own.yaml"), "-w", str(folder / "w"), *sets, *extra)
    return small.krepes(capsys, *given, "--quiet")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def unreadable(folder: Path) -> None:
    (folder / "rows.csv").unlink()
    (folder / "rows.csv").mkdir()


def lacking(folder: Path) -> None:
    small.write_weights(folder, 1.0, drop="0.bias")


def spoiled(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"no tensors")


def poisoned(folder: Path) -> None:
    small.write_weights(folder, float("nan"))


FILES = [
    (without("rows.csv"), 2, "rows.csv: no such file; expected an existing file"),
    (unreadable, 2, "rows.csv"),
    (without("weights.safetensors"), 2, "weights.safetensors: no such file"),
    (without("net.py"), 2, "net.py: no such file"),
    (lacking, 1, "1 keys missing (0.bias)"),
    (spoiled, 1, "weights.safetensors"),
    (poisoned, 1, "finite"),
]


@pytest.mark.parametrize(("change", "code", "words"), FILES)
def test_files(
    capsys: Any, tmp_path: Path, change: Callable[[Path], None], code: int, words: str
) -> None:
    small.own_recipe(tmp_path)
    change(tmp_path)
    outcome = go(capsys, tmp_path)
    assert outcome.code == code
    assert words in outcome.line
    assert small.seals(tmp_path / "w") == {}


TABLES = [
    (with_cell("nan"), 1, "row 16 (from 0), column 'a': a missing value in a numeric column"),
    (with_cell(""), 1, "row 16 (from 0), column 'a': a missing value in a numeric column"),
    (table(*ROWS[:9], "1,2"), 2, "Expected 5 columns, got 2"),
    (table(), 2, "no rows"),
    ("", 2, "Empty CSV file"),
    (table(ROWS[0]), 2, "1 sample; expected at least"),
]


@pytest.mark.parametrize(("text", "code", "words"), TABLES)
def test_tables(capsys: Any, tmp_path: Path, text: str, code: int, words: str) -> None:
    small.own_recipe(tmp_path, text)
    outcome = go(capsys, tmp_path)
    assert outcome.code == code
    assert words in outcome.line
    assert small.seals(tmp_path / "w") == {}


CHANGES = [
    ("source.label=nix", 2, "no column 'nix' (source.label); expected one of 'a', 'b'"),
    ("source.exclude=[nix]", 2, "no column 'nix' (source.exclude)"),
    ("stages.landmarks.count=301", 2, "301 landmarks of 300 samples; expected at most 300"),
    ("stages.landmarks.count=300", 2, "all 300 samples are landmarks, none is left to explain"),
    ("stages.spectrum.components=25", 2, "25 components of 24 landmarks; expected at most 24"),
    ("stages.audited.sample_ids=[300]", 2, "no sample 300; expected 0 to 299"),
    ("network.arguments.inputs=7", 1, "0.weight has shape (16, 6); expected shape (16, 7)"),
    ("network.arguments.nix=7", 2, "does not take these arguments"),
    ("stages.features.blockrows=3", 2, "unknown key 'blockrows'"),
    ("stages.features.blockrows=3", 2, "did you mean 'block_rows'?"),
    ("stges={}", 2, "did you mean 'stages'?"),
    ("stages.feature.sketch=64", 2, "did you mean 'features'?"),
    ("stages.features.block_rows=300", 2, "block_rows is 300; expected a power of two"),
    ("seed", 2, "--set: 'seed'; expected key.key=value"),
    ("seed=abc", 2, "seed: 'abc' is not allowed"),
    ("recipe.x=1", 2, "--set recipe.x: 'recipe' holds a value; expected a mapping"),
    ("recipe=a/b", 2, "recipe name 'a/b'; expected letters, digits"),
    ("seed=[", 2, "'[' is no YAML value"),
]


@pytest.mark.parametrize(("change", "code", "words"), CHANGES)
def test_settings(capsys: Any, tmp_path: Path, change: str, code: int, words: str) -> None:
    small.own_recipe(tmp_path)
    outcome = go(capsys, tmp_path, change)
    assert outcome.code == code
    assert words in outcome.line
    assert small.seals(tmp_path / "w") == {}


OPTIONS = [
    (("--memory", "50MiB"), 3, "needs "),
    (("--memory", "50MiB"), 3, "at most --memory 50.0 MiB; raise --memory to "),
    (("--memory", "banana"), 2, "'banana' is no size in bytes"),
    (("--workers", "0"), 2, "--workers"),
    (("--max-time", "soon"), 2, "'soon' is no time; expected such as 90s"),
    (("--until", "kernl"), 2, "--until: no stage 'kernl' in this recipe; expected one of features"),
    (("--only", "kernl"), 2, "--only: no stage 'kernl'"),
    (("--only", "kernel"), 2, "reads features (missing), landmarks (missing)"),
    (("--only", "kernel", "--until", "kernel"), 2, "--only and --until exclude each other"),
    (("--device", "cuda"), 2, "--device cuda: "),
    (("--wrkers", "2"), 2, "No such option"),
]


@pytest.mark.parametrize(("extra", "code", "words"), OPTIONS)
def test_options(
    capsys: Any, tmp_path: Path, extra: tuple[str, ...], code: int, words: str
) -> None:
    small.own_recipe(tmp_path)
    outcome = go(capsys, tmp_path, extra=extra)
    assert outcome.code == code
    assert words in outcome.line
    assert small.seals(tmp_path / "w") == {}


def test_only_with_a_begun_stage_before_it(capsys: Any, tmp_path: Path) -> None:
    small.own_recipe(tmp_path)
    go(capsys, tmp_path, extra=("--until", "landmarks"))
    (tmp_path / "w/.krepes/stages/features/seal.json").unlink()
    outcome = go(capsys, tmp_path, extra=("--only", "kernel"))
    assert outcome.code == 2
    assert "stage kernel reads features (started)" in outcome.line


CONSTANT = table(*(r.split(",")[0] + ",5," + r.split(",", 2)[2] for r in ROWS))
ONE_CLASS = table(*(r[:-1] + "p" for r in ROWS))
# table, settings, exit code, words
DEGENERATE: list[tuple[str, tuple[str, ...], int, str]] = [
    (EQUAL, (*FACTORY, "network.arguments.inputs=4"), 1, "usable rank 1; expected at most 1"),
    (
        EQUAL,
        (*FACTORY, "network.arguments.inputs=4", "views.noise=0"),
        1,
        "the landmarks do not differ",
    ),
    (EQUAL, (*FACTORY, "network.arguments.inputs=4", "stages.spectrum.components=auto"), 0, ""),
    (CONSTANT, (), 0, ""),
    (ONE_CLASS, (), 0, ""),
    (table(*ROWS), ("stages.landmarks.count=1", "stages.spectrum.components=1"), 0, ""),
    (table(*ROWS), ("stages.audited.fit=0",), 0, ""),
    (
        table(*ROWS[:5]),
        (*FACTORY, "stages.landmarks.count=auto", "stages.spectrum.components=auto"),
        0,
        "",
    ),
]


@pytest.mark.parametrize(("text", "changes", "code", "words"), DEGENERATE)
def test_degenerate_data(
    capsys: Any, tmp_path: Path, text: str, changes: tuple[str, ...], code: int, words: str
) -> None:
    small.own_recipe(tmp_path, text)
    outcome = go(capsys, tmp_path, *changes)
    assert outcome.code == code, outcome.err
    if code:
        assert words in outcome.line
    assert small.floats_that_are_not_finite(tmp_path / "w") == []
    assert ("report" in small.seals(tmp_path / "w")) is (code == 0)


def test_collapsed_network(capsys: Any, tmp_path: Path) -> None:
    small.own_recipe(tmp_path)
    small.write_weights(tmp_path, 0.0)
    outcome = go(capsys, tmp_path)
    assert outcome.code == 1
    assert "the network has collapsed on this source" in outcome.line
    assert small.floats_that_are_not_finite(tmp_path / "w") == []


def test_workspace_that_is_or_lies_below_a_file(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for root in ("file", "file/w"):
        given = small.arguments(tmp_path / root)
        outcome = small.krepes(capsys, *given)
        assert outcome.code == 2
        assert "is a file; expected a folder" in outcome.line
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_that_may_not_be_written(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    # Not by the mode of a folder: it does not bind the user root.
    monkeypatch.setattr(Path, "mkdir", refused)
    outcome = small.krepes(capsys, *small.arguments(tmp_path / "w"))
    assert outcome.code == 2
    assert "cannot write (Permission denied); expected a folder you may write to" in outcome.line


def test_second_process_is_refused(capsys: Any, tmp_path: Path) -> None:
    long = small.arguments(tmp_path, changes=["stages.pretrain.epochs=5000"])
    process = small.process(long)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("pretrain: ")
        outcome = small.krepes(capsys, *small.arguments(tmp_path))
        assert outcome.code == 4
        assert f"the workspace is in use by process {process.pid} on " in outcome.line
        shown = small.krepes(capsys, "status", "-w", str(tmp_path))
        assert shown.code == 0
        assert "started" in shown.out
    finally:
        process.kill()
        process.communicate()


def test_workspace_of_another_recipe(capsys: Any, tmp_path: Path) -> None:
    small.audit(tmp_path / "w", until="pretrain")
    small.own_recipe(tmp_path)
    recipe, workspace = str(tmp_path / "own.yaml"), str(tmp_path / "w")
    for command in ("run", "plan", "status"):
        outcome = small.krepes(capsys, command, recipe, "-w", workspace)
        assert outcome.code == 4
        assert "the workspace was written by recipe 'digits'" in outcome.line


def test_recipes_that_do_not_exist(capsys: Any, tmp_path: Path) -> None:
    outcome = small.krepes(capsys, "run", "digit")
    assert outcome.code == 2
    assert "no recipe 'digit'" in outcome.line
    assert "did you mean 'digits'?" in outcome.line
    (tmp_path / "audit" / ".krepes").mkdir(parents=True)
    outcome = small.krepes(capsys, "run", str(tmp_path / "audit"))
    assert outcome.code == 2
    assert "is a workspace, not a recipe" in outcome.line
    assert "live objects: run their script" in outcome.line
    outcome = small.krepes(capsys, "run", str(tmp_path / "none.yaml"))
    assert outcome.code == 2
    assert "none.yaml: no such recipe file" in outcome.line
    (tmp_path / "list.yaml").write_text("- a\n")
    outcome = small.krepes(capsys, "run", str(tmp_path / "list.yaml"))
    assert outcome.code == 2
    assert "no mapping at the top" in outcome.line


@pytest.mark.parametrize("name", ["begun.json", "seal.json"])
def test_damaged_record(capsys: Any, tmp_path: Path, name: str) -> None:
    small.own_recipe(tmp_path)
    assert go(capsys, tmp_path).code == 0
    before = small.seals(tmp_path / "w")
    path = tmp_path / "w/.krepes/stages/kernel" / name
    path.write_bytes(path.read_bytes().replace(b"kernel", b"kernal"))
    outcome = go(capsys, tmp_path)
    assert outcome.code == 5
    assert outcome.line.startswith("krepes: stage kernel: ")
    assert name in outcome.line
    assert "krepes run --repair" in outcome.line
    shown = small.krepes(capsys, "status", "-w", str(tmp_path / "w"))
    assert shown.code == 0
    assert "damaged" in shown.out
    assert go(capsys, tmp_path, extra=("--repair",)).code == 0
    assert small.seals(tmp_path / "w") == before


def test_unexpected_error_is_one_line(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from krepes_ooc.runner import recipe

    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug\nin two lines")

    monkeypatch.setattr(recipe.Recipe, "load", broken)
    outcome = small.krepes(capsys, "run", "digits")
    assert outcome.code == 1
    assert outcome.line == (
        "krepes: unexpected RuntimeError: a bug in two lines; --debug shows where"
    )
    told = small.krepes(capsys, "run", "digits", "--debug")
    assert told.code == 1
    assert "Traceback" in told.err
