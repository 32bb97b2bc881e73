"""Commands as people type them: tables on a pipe, JSON, start-up time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import small


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.finished_copy(tmp_path_factory.mktemp("sealed") / "w")


def test_help_imports_no_heavy_library() -> None:
    program = (
        "import sys\n"
        "from krepes_ooc.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'zarr', 'dask', 'distributed', 'sklearn', 'pyarrow', 'xarray', 'rich'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=small.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_run_with_nothing_to_do_imports_no_heavy_library(sealed: Path) -> None:
    program = (
        "import sys\n"
        "from krepes_ooc.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as exit_:\n    assert not exit_.code\n"
        "heavy = {'torch', 'zarr', 'dask', 'distributed', 'xarray'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    command = [sys.executable, "-c", program, *small.arguments(sealed)]
    done = subprocess.run(command, cwd=small.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stages = len(small.recipe().stages)
    nothing, verdict, report = done.stdout.splitlines()
    assert nothing == f"nothing to do: all {stages} stages are sealed"
    assert verdict.startswith("verdict: ")
    assert report == f"report: {sealed}/report.html"


def test_report_is_drawn_again_though_it_is_up_to_date(capsys: Any, sealed: Path) -> None:
    page = sealed / "report.html"
    whole = page.read_bytes()
    page.write_text("another page")
    outcome = small.krepes(capsys, "report", "--workspace", str(sealed))
    assert outcome.code == 0, outcome.err
    # Times of stages are measured, all else is the same
    assert abs(len(page.read_bytes()) - len(whole)) < 200
    assert small.krepes(capsys, "verify", str(sealed)).code == 0


def test_report_hides_samples_when_asked(capsys: Any, sealed: Path) -> None:
    outcome = small.krepes(capsys, "report", "-w", str(sealed), "--samples", "hidden")
    assert outcome.code == 0, outcome.err
    html = (sealed / "report.html").read_text()
    hidden = json.loads((sealed / "report.json").read_text())
    assert "<img" not in html
    assert 'id="deck"' not in html
    assert hidden["samples"] == {"missing": "This page shows no sample: report.samples is hidden."}
    assert small.krepes(capsys, "report", "-w", str(sealed), "--samples", "24").code == 0
    assert "<img" in (sealed / "report.html").read_text()


def test_open_shows_the_page(capsys: Any, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)))
    outcome = small.krepes(capsys, "report", "-w", str(sealed), "--open")
    assert outcome.code == 0, outcome.err
    assert opened == [(sealed / "report.html").resolve().as_uri()]
    assert outcome.out.splitlines()[-1].startswith("no browser was found; open ")


def test_plan_of_a_site(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert small.krepes(capsys, "sites", "copy", "slurm", "site.yaml").code == 0
    monkeypatch.setenv("PATH", str(tmp_path))
    small_one = ("--set", "source.limit=200", "--set", "stages.landmarks.count=32")
    given = ("plan", "digits", *small_one, "--cluster", "site.yaml")
    outcome = small.krepes(capsys, *given)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    workers = {line.split()[7] for line in lines if line.split()[1] == "missing"}
    assert workers == {"1"}
    (told,) = [line for line in lines if line.startswith("cluster: slurm, ")]
    assert "one worker" in told
    assert "warning: interface lo: jobs on other nodes cannot reach this machine" in outcome.out
    assert "warning: --cluster: sbatch is not on PATH" in outcome.out


def test_long_remarks_are_cut_without_verbose() -> None:
    from krepes_ooc.core.progress_lines import Lines

    for length, whole in ((300, False), (None, True)):
        lines: list[str] = []
        listener = Lines(lines.append, length)
        listener.note("x" * 400)
        listener.note("source: " + "y" * 400)
        assert ("x" * 400 in lines[0]) == whole
        assert ("-v prints it whole" in lines[0]) != whole
        assert "y" * 400 in lines[1]


def test_plain_lines_of_a_run(capsys: Any, tmp_path: Path) -> None:
    outcome = small.krepes(capsys, *small.arguments(tmp_path, "--until", "features"))
    assert outcome.code == 0
    assert outcome.err == ""
    lines = outcome.out.splitlines()
    assert lines[0] == "pretrain: 1 unit"
    assert lines[1].startswith("pretrain: sealed in ")
    assert "features: 2 units" in lines
    assert lines[-2].startswith("sealed pretrain, features in ")
    assert lines[-1].startswith("left: landmarks, audited, kernel, ")
    assert "\x1b" not in outcome.out
    again = small.krepes(capsys, *small.arguments(tmp_path, "--until", "features"))
    assert again.out.splitlines()[0] == "nothing to do: pretrain, features sealed"


def test_json_of_a_run(capsys: Any, sealed: Path) -> None:
    outcome = small.krepes(capsys, *small.arguments(sealed, "--json"))
    told = json.loads(outcome.out)
    assert told["ran"] == []
    assert told["left"] == []
    assert told["workspace"] == str(sealed)
    assert isinstance(told["trusted"], bool)


def test_quiet_run_says_nothing(capsys: Any, sealed: Path) -> None:
    outcome = small.krepes(capsys, *small.arguments(sealed, "--quiet"))
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_strict(capsys: Any, sealed: Path) -> None:
    told = json.loads(small.krepes(capsys, *small.arguments(sealed, "--json")).out)
    assert told["verdict"] != ""
    assert told["verdict_sentence"].lower().startswith(told["verdict"])
    outcome = small.krepes(capsys, *small.arguments(sealed, "--strict"))
    assert outcome.code == (told["verdict"] == "not usable")


def states(outcome: small.Outcome) -> dict[str, tuple[str, str]]:
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["stages"]
    return {row["stage"]: (row["state"], row["detail"]) for row in rows}


def test_status(capsys: Any, sealed: Path, tmp_path: Path) -> None:
    shutil.copytree(sealed, tmp_path / "w")
    where = ("-w", str(tmp_path / "w"), "--json")
    found = states(small.krepes(capsys, "status", *where))
    assert {state for state, _ in found.values()} == {"sealed"}
    (tmp_path / "w/.krepes/stages/kernel/seal.json").unlink()
    (tmp_path / "w/audit.zarr/kernel/values/c/1/0/0").unlink()
    shutil.rmtree(tmp_path / "w/.krepes/stages/fidelity")
    change = ("--set", "stages.spectrum.components=3")
    found = states(small.krepes(capsys, "status", *where, *change))
    assert found["features"][0] == "sealed"
    assert found["kernel"] == ("started", "1 of 2 units on disk")
    assert found["spectrum"] == ("stale", "settings.components was 4, is 3")
    assert found["newton"] == ("stale", "spectrum changed")
    assert found["fidelity"] == ("missing", "")
    plain = small.krepes(capsys, "status", "-w", str(tmp_path / "w"))
    lines = plain.out.splitlines()
    assert lines[0] == f"{tmp_path / 'w'} (digits)"
    assert lines[1].split() == ["stage", "state", "detail"]
    assert ["kernel", "started", "1", "of", "2", "units", "on", "disk"] in [
        line.split() for line in lines
    ]


def test_status_of_a_recipe_of_ones_own(capsys: Any, tmp_path: Path) -> None:
    recipe = small.own_recipe(tmp_path)
    given = ("run", str(recipe), "-w", str(tmp_path / "w"), "--until", "kernel", "-q")
    assert small.krepes(capsys, *given).code == 0
    recipe.unlink()
    where = ("-w", str(tmp_path / "w"), "--json")
    found = states(small.krepes(capsys, "status", *where))
    assert "pretrain" not in found
    assert found["kernel"][0] == "sealed"
    assert found["moments"][0] == "missing"
    outcome = small.krepes(capsys, "status", *where)
    assert states(outcome)["kernel"][0] == "sealed"
    assert f"names a file, {tmp_path / 'rows.csv'}" in json.loads(outcome.out)["note"]
    small.own_recipe(tmp_path)
    (tmp_path / "rows.csv").unlink()
    named = small.krepes(capsys, "status", str(recipe), *where[:2])
    assert "rows.csv: no such file" in named.out.splitlines()[-1]


def test_status_and_verify_without_a_workspace(capsys: Any, tmp_path: Path) -> None:
    for command in ("status", "verify"):
        outcome = small.krepes(capsys, command)
        assert outcome.code == 2
        assert "no workspace was named" in outcome.line
        outcome = small.krepes(capsys, command, "-w", str(tmp_path))
        assert outcome.code == 2
        assert "no workspace there" in outcome.line


def test_verify(capsys: Any, sealed: Path, tmp_path: Path) -> None:
    shutil.copytree(sealed, tmp_path / "w")
    where = ("-w", str(tmp_path / "w"))
    outcome = small.krepes(capsys, "verify", *where)
    assert outcome.code == 0
    assert outcome.out.endswith(": 0 damaged\n")
    path = tmp_path / "w/audit.zarr/moments/mean/c/0/0"
    data = bytearray(path.read_bytes())
    data[17] ^= 4
    path.write_bytes(data)
    outcome = small.krepes(capsys, "verify", *where, "--json")
    assert outcome.code == 5
    told = json.loads(outcome.out)
    assert [text.split(":")[0] for text in told["damage"]] == ["moments"]
    assert "1 damaged file" in outcome.line
    assert "krepes run --repair" in outcome.line
    assert small.krepes(capsys, "verify", *where, "--store", "moments").code == 5
    assert small.krepes(capsys, "verify", *where, "--store", "pretrain").code == 0
    assert small.krepes(capsys, "verify", *where, "--store", "features").code == 0
    outcome = small.krepes(capsys, "verify", *where, "--store", "momets")
    assert outcome.code == 2
    assert "--store: no store 'momets'; expected one of pretrain, features" in outcome.line


def test_doctor(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = json.loads(small.krepes(capsys, "doctor", "--json").out)
    assert {"python", "cores", "memory available", "numerics", "gpu"} <= told.keys()
    assert "cores" in small.krepes(capsys, "doctor").out
    assert list(tmp_path.iterdir()) == []


def test_recipes(capsys: Any, tmp_path: Path) -> None:
    listed = small.krepes(capsys, "recipes", "list").out
    assert "digits" in listed
    assert "adult" in listed
    shown = small.krepes(capsys, "recipes", "show", "digits").out
    assert yaml.safe_load(shown)["recipe"] == "digits"
    target = tmp_path / "mine.yaml"
    assert small.krepes(capsys, "recipes", "copy", "digits", str(target)).code == 0
    assert target.read_text() == shown
    outcome = small.krepes(capsys, "recipes", "copy", "digits", str(target))
    assert outcome.code == 2
    assert "the file exists; expected a new file" in outcome.line
    outcome = small.krepes(capsys, "recipes", "copy", "digits", str(tmp_path / "no" / "x.yaml"))
    assert outcome.code == 2
    assert "cannot write" in outcome.line
    outcome = small.krepes(capsys, "recipes", "show", "digit")
    assert outcome.code == 2
    assert "no 'digit' in pipelines" in outcome.line


def test_the_schema_of_recipes(capsys: Any, tmp_path: Path) -> None:
    shown = json.loads(small.krepes(capsys, "recipes", "schema").out)
    assert shown["properties"]["seed"]["minimum"] == 0
    target = tmp_path / "recipe.schema.json"
    assert small.krepes(capsys, "recipes", "schema", "--out", str(target)).code == 0
    assert json.loads(target.read_text()) == shown
    outcome = small.krepes(capsys, "recipes", "schema", "--out", str(tmp_path / "no" / "x.json"))
    assert outcome.code == 2
    assert "cannot write" in outcome.line


def test_stores(capsys: Any) -> None:
    listed = small.krepes(capsys, "stores", "list").out.splitlines()
    assert len(listed) == 1 + len(list((small.ROOT / "stores").glob("*.yaml")))
    shown = small.krepes(capsys, "stores", "show", "kernel").out
    assert "written by stage kernel" in shown
    assert "view, sample, landmark" in shown
    outcome = small.krepes(capsys, "stores", "show", "kernal")
    assert outcome.code == 2
    assert "expected one of" in outcome.line


def test_reader_that_leaves_early() -> None:
    command = f"{sys.executable} -m krepes_ooc stores show features | head -n 1"
    done = subprocess.run(command, shell=True, cwd=small.ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("features, version ")


@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_plan_that_does_not_fit_ends_with_3(
    capsys: Any, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    path = small.own_recipe(tmp_path, small.rows_csv())
    given = ("plan", str(path), "-w", str(tmp_path / "w"), "--memory", "50MiB", *extra)
    done = small.krepes(capsys, *given)
    assert done.code == 3
    # One limit for all stages that do not fit, which are named.
    assert "of memory (nor do " in done.err
    assert "fit); expected at most --memory 50.0 MiB; raise --memory to" in done.err
    wanted = re.search(r"raise --memory to ([\d.]+) MiB", done.err)
    assert wanted
    again = small.krepes(capsys, *given[:5], f"{wanted[1]}MiB", *extra)
    assert again.code == 0, again.err
    assert "one worker needs" in done.err
    assert not (tmp_path / "w").exists()
    assert "features" in done.out  # the plan is shown all the same


def test_plan_that_fills_the_disk_ends_with_3(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from krepes_ooc.runner import plan

    class Usage:
        free = 4096

    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: Usage)
    path = small.own_recipe(tmp_path, small.rows_csv())
    done = small.krepes(capsys, "plan", str(path), "-w", str(tmp_path / "w"))
    assert done.code == 3
    assert "MiB of disk needed, 4.0 KiB free" in done.err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--memory", "banana"), "'banana' is no size in bytes"),
        (("--memory", "-1GiB"), "is no size in bytes"),
        (("--workers", "0"), "0 is not in the range x>=1"),
    ],
)
def test_sizes_that_are_none(
    capsys: Any, tmp_path: Path, option: tuple[str, ...], words: str
) -> None:
    path = small.own_recipe(tmp_path, small.rows_csv())
    done = small.krepes(capsys, "run", str(path), "-w", str(tmp_path / "w"), *option)
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "w").exists()


def test_more_workers_than_cores_is_allowed(capsys: Any, tmp_path: Path) -> None:
    path = small.own_recipe(tmp_path, small.rows_csv())
    given = ("run", str(path), "-w", str(tmp_path / "w"), "--workers", "64", "--until", "features")
    done = small.krepes(capsys, *given, "--quiet")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("foo",), "No such command 'foo'; expected one of compare, concepts, doctor, encode"),
        (("recipes", "foo"), "No such command 'foo'; expected one of copy, list, schema, show"),
        (("explain",), "no sample was named; expected one of --sample NUMBER and"),
        (("explain", "--sample", "1", "--input", "a.npy"), "a sample and a file were"),
        (("explain", "--sample", "first"), "'first' is not a valid number"),
        (
            ("export", "--store", "audited", "--out", "a.xlsx"),
            "--out a.xlsx: this ending names no format",
        ),
        (("run", "digits", "--cluster", "site.yaml"), "site.yaml: no such file"),
    ],
)
def test_what_a_newcomer_types(
    capsys: Any, sealed: Path, given: tuple[str, ...], words: str
) -> None:
    where = ("-w", str(sealed)) if given[0] in ("explain", "export") else ()
    outcome = small.krepes(capsys, *given, *where)
    assert outcome.code == 2
    assert words in outcome.line


@pytest.mark.parametrize(
    ("ending", "first"), [(".csv", b'"figure"'), (".parquet", b"PAR1"), (".nc", b"CDF")]
)
def test_the_ending_of_a_file_names_its_format(
    capsys: Any, sealed: Path, tmp_path: Path, ending: str, first: bytes
) -> None:
    target = tmp_path / f"fidelity{ending}"
    given = ("export", "-w", str(sealed), "--store", "fidelity", "--out", str(target))
    assert small.krepes(capsys, *given).code == 0
    assert target.read_bytes().startswith(first)


def test_site_files_are_copied(tmp_path: Path, capsys: Any) -> None:
    assert small.krepes(capsys, "sites", "list").out.count("slurm") == 2 * 3
    target = tmp_path / "mine.yaml"
    small.krepes(capsys, "sites", "copy", "slurm", str(target))
    assert "scheduler: slurm" in target.read_text()
    again = small.krepes(capsys, "sites", "copy", "slurm", str(target))
    assert (again.code, "the file exists" in again.err) == (2, True)
    assert "expected one of lsf" in small.krepes(capsys, "sites", "copy", "slrum", "x.yaml").err


def test_a_queue_that_is_not_here_is_refused_before_anything(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site.yaml"
    small.krepes(capsys, "sites", "copy", "slurm", str(site))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = small.krepes(capsys, "run", "digits", "-w", str(tmp_path / "w"), "--cluster", str(site))
    assert done.code == 2
    assert "--cluster: sbatch is not on PATH; expected a machine that submits" in done.err
    assert not (tmp_path / "w").exists()
