"""Hostile checkpoints, recipes, workspaces and texts: what each prints, and that nothing runs."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.errors import KrepesError, printable
from krepes_ooc.storage.recipe_text import write_recipe_text
from tests import small

RAN = "code-ran"


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (RAN,))


def pickle_bomb(path: Path) -> None:
    import torch

    torch.save({"0.weight": Bomb()}, path)


def zip_slip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../" + RAN, "x")
        archive.writestr("archive/data.pkl", b"cos\nmkdir\n(V" + RAN.encode() + b"\ntR.")
        archive.writestr("archive/version", "3")


def absurd_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")


def absurd_shape(path: Path) -> None:
    entry = {"0.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 8]}}
    head = json.dumps(entry).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(8))


def go(capsys: Any, folder: Path, *extra: str) -> small.Outcome:
    given = ("run", str(folder / "own.yaml"), "-w", str(folder / "w"), *extra, "--quiet")
    return small.krepes(capsys, *given)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("w.pt", pickle_bomb, "which krepes never runs"),
        ("w.pt", zip_slip, "w.pt"),
        ("w.safetensors", absurd_header, "cannot be read: SafetensorError"),
        ("w.safetensors", absurd_shape, "cannot be read: SafetensorError"),
    ],
)
def test_hostile_checkpoint(
    capsys: Any, tmp_path: Path, name: str, make: Callable[[Path], None], words: str
) -> None:
    small.own_recipe(tmp_path)
    make(tmp_path / name)
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        outcome = go(capsys, tmp_path, "--set", f"network.weights={name}")
    finally:
        os.chdir(before)
    assert outcome.code == 1
    assert words in outcome.line
    assert not list(tmp_path.rglob(RAN))
    assert not (tmp_path.parent.parent / RAN).exists()


LAUGHS = "a: &a [x]\n" + "".join(f"b{i}: [*a, *a, *a]\n" for i in range(9))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipe: !!python/object/apply:os.mkdir [code-ran]\n", "is not allowed"),
        (LAUGHS, "aliases are not allowed"),
        (small.OWN.replace("recipe: own", "recipe: ../../etc"), "recipe name '../../etc'"),
        (small.OWN.replace("count: 24", "count: 1" + "0" * 400), "count"),
        (small.OWN.replace("  landmarks:", "  ../landmarks:"), "unknown key"),
        (small.OWN + "\x00", "own.yaml"),
        ("[" * 100_000, "own.yaml"),
    ],
)
def test_hostile_recipe(capsys: Any, tmp_path: Path, text: str, words: str) -> None:
    small.own_recipe(tmp_path)
    (tmp_path / "own.yaml").write_text(text)
    outcome = go(capsys, tmp_path)
    assert outcome.code == 2
    assert words in outcome.line
    assert small.seals(tmp_path / "w") == {}
    assert not Path(RAN).exists()


def test_hostile_names_cannot_steer_a_terminal(capsys: Any, tmp_path: Path) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\u202e"
    table = small.rows_csv().replace("town", hostile, 1).replace(",x,", ",,", 3)
    small.own_recipe(tmp_path, table.replace(",y,", f",{hostile},", 1))
    outcome = go(capsys, tmp_path, "--set", "source.exclude=[none-such]")
    assert outcome.code == 2
    assert "\x1b" not in outcome.err + outcome.out
    assert "\u202e" not in outcome.err + outcome.out
    assert str(KrepesError(hostile)) == r"\u001b]0;owned\u0007\u001b[2J\u202e"
    assert printable("a\n b\té") == "a b é"


def test_workspace_somebody_sent(capsys: Any, tmp_path: Path) -> None:
    """Links, absurd shapes and object arrays in a workspace that is opened and verified."""
    small.own_recipe(tmp_path)
    small.krepes(capsys, "run", str(tmp_path / "own.yaml"), "-w", str(tmp_path / "w"), "--quiet",
                 "--until", "features")  # fmt: skip
    outside = tmp_path / "outside"
    outside.mkdir()
    document = tmp_path / "w/audit.zarr/features/values/zarr.json"
    found = json.loads(document.read_text())
    for key, value in (("data_type", "object"), ("shape", [2, 2**52, 2**52])):
        document.write_text(json.dumps(found | {key: value}))
        told = small.krepes(capsys, "verify", "-w", str(tmp_path / "w"))
        assert told.code == 5
        assert "features: values/zarr.json" in told.out
        told = go(capsys, tmp_path)
        assert told.code == 5
        assert str(document) in told.line
    document.write_text(json.dumps(found))
    stage = tmp_path / "w/.krepes/stages/kernel"
    stage.symlink_to(outside, target_is_directory=True)
    told = go(capsys, tmp_path)
    assert told.code == 4
    assert "a symbolic link" in told.line
    assert list(outside.iterdir()) == []


# --- a workspace that somebody sent, opened by every command that looks at one -------------------

LOOKS = (
    ("status",),
    ("verify",),
    ("explain", "--sample", "3"),
    ("explain", "--sample", "299"),
    ("explain", "--input", "new.csv"),
    ("report", "--quiet"),
    ("export", "--store", "influence", "--format", "csv", "--out", "influence.csv"),
    ("export", "--store", "landmarks", "--format", "netcdf", "--out", "landmarks.nc"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace as its sender has it, beside the files of its recipe."""
    from krepes_ooc.runner.audit import Options
    from krepes_ooc.runner.recipe import Recipe
    from krepes_ooc.runner.run import run

    folder = tmp_path_factory.mktemp("sender")
    run(Recipe.load(str(small.own_recipe(folder))), folder / "w", Options(workers=2))
    return folder


@pytest.fixture
def sent(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished / "w", tmp_path / "sent")
    (tmp_path / "new.csv").write_text("a,b,c,town\n1,2,3,x\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sent"


def look(capsys: Any, sent: Path, given: tuple[str, ...]) -> small.Outcome:
    """One command on what was sent; it ends in one line, or shows what it found."""
    outcome = small.krepes(capsys, given[0], "-w", str(sent), *given[1:])
    assert outcome.code in (0, 1, 2, 4, 5), outcome
    if outcome.err:
        assert "unexpected" not in outcome.line
        assert "Traceback" not in outcome.err
    return outcome


def say(sent: Path, text: str) -> None:
    """Let the recorded recipe of a workspace say something else, with the right checksum."""
    write_recipe_text(sent / ".krepes", text, sent.parent)


CODE = f"""
import os
os.mkdir({RAN!r})
def anything(*given, **more):
    raise SystemExit
"""
NAMED = {
    "network": small.OWN.replace("net.py:net", "evil.py:anything"),
    "source": "recipe: own\nsource: {kind: factory, factory: 'evil.py:anything'}\n"
    "network: {factory: 'net.py:net', weights: weights.safetensors}\n",
    "view": small.OWN + "views: {function: 'evil.py:anything'}\n",
    "module": f"recipe: own\nsource: {{kind: factory, factory: 'os:mkdir', "
    f"arguments: {{path: {RAN}}}}}\nnetwork: {{factory: 'os:mkdir', weights: pretrain}}\n",
    "package": small.OWN.replace("net.py:net", "evilpackage.part:net"),
}


@pytest.mark.parametrize("place", NAMED)
def test_looking_at_a_workspace_runs_no_code_that_it_names(
    capsys: Any, sent: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sent.parent / "evil.py").write_text(CODE)
    (sent.parent / "evilpackage").mkdir()
    (sent.parent / "evilpackage/__init__.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(sent.parent))
    say(sent, NAMED[place])
    for given in LOOKS:
        told = look(capsys, sent, given)
        assert not (sent.parent / RAN).exists(), given
        if given[0] == "report":
            assert told.code == 2
            assert "names code" in told.line
            assert "if you trust it, name the recipe beside --workspace" in told.line


def test_code_that_the_user_names_runs(capsys: Any, finished: Path, sent: Path) -> None:
    given = ("explain", str(finished / "own.yaml"), "-w", str(sent), "--input", "new.csv")
    assert small.krepes(capsys, *given).code == 0
    other = small.own_recipe(sent.parent / "other")
    told = small.krepes(capsys, "explain", str(other), *given[2:])
    assert told.code == 2
    assert f"names code, {finished / 'net.py:net'}" in told.line


def link(path: Path, outside: Path) -> None:
    """Put what is at a path elsewhere, and a link in its place."""
    shutil.move(path, outside / "moved")
    path.symlink_to(outside / "moved")


@pytest.mark.parametrize(
    "place",
    [
        "audit.zarr",
        "audit.zarr/influence",
        "audit.zarr/influence/score",
        "audit.zarr/influence/score/c/0/0",
        ".krepes/stages",
        ".krepes/stages/report",
        ".krepes/cache",
        ".krepes/runs",
        ".krepes/temp",
        "report.html",
    ],
)
def test_links_in_a_workspace_that_was_sent(
    capsys: Any, finished: Path, sent: Path, place: str
) -> None:
    """Nothing is written through a link, whatever a command reads."""
    outside = sent.parent / "outside"
    outside.mkdir()
    link(sent / place, outside)
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    for given in LOOKS:
        look(capsys, sent, given)
    own = str(finished / "own.yaml")
    for extra in ((), ("--repair",), ("--restart-stale", "--set", "stages.influence.top=5")):
        outcome = small.krepes(capsys, "run", own, "-w", str(sent), "--quiet", *extra)
        assert outcome.code in (0, 1, 2, 4, 5), outcome
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("store", ["influence", "landmarks", "newton", "audited", "kernel"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [2**52] * 2),
        ("data_type", "object"),
        ("attributes", {"kinds": "x" * 10_000_000}),
        ("codecs", [{"name": "numcodecs.pickle"}]),
    ],
)
def test_absurd_metadata_in_a_workspace_that_was_sent(
    capsys: Any, sent: Path, store: str, key: str, value: Any
) -> None:
    """One line or what is whole, in a bounded memory; the seal says that it was changed."""
    import tracemalloc

    arrays = sorted((sent / "audit.zarr" / store).glob("*/zarr.json"))
    for document in arrays[:3]:
        found = json.loads(document.read_text())
        document.write_text(json.dumps(found | {key: value}))
    tracemalloc.start()
    try:
        for given in LOOKS:
            told = look(capsys, sent, given)
            if given[0] == "verify":
                assert told.code == 5
                assert f"{store}: {arrays[0].parent.name}/zarr.json" in told.out
        assert tracemalloc.get_traced_memory()[1] < 500 * 2**20
    finally:
        tracemalloc.stop()


SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def test_script_in_names_labels_and_texts_through_a_whole_run(capsys: Any, tmp_path: Path) -> None:
    """A column, its categories and the labels are scripts; the page holds only its own."""
    table = small.rows_csv().replace("town", f"town{SCRIPT}", 1)
    table = table.replace(",x,", f",{SCRIPT}x,").replace(",p\n", f",{SCRIPT}p\n")
    small.own_recipe(tmp_path, table)
    outcome = go(capsys, tmp_path)
    assert outcome.code == 0, outcome.err
    html = (tmp_path / "w/report.html").read_text()
    assert html.lower().count("<script") == 2
    assert "<img src=x" not in html
    assert "&lt;script&gt;alert(1)" in html
    told = small.krepes(capsys, "status", "-w", str(tmp_path / "w"))
    assert told.code == 0


def test_only_files_that_lie_in_the_workspace_are_read_with_it(tmp_path: Path) -> None:
    """A link in it that leads elsewhere is elsewhere, and one in a circle is no error."""
    from krepes_ooc.runner.audit import files_elsewhere
    from krepes_ooc.storage.workspace import Workspace

    small.audit(tmp_path / "w", until="pretrain")
    inside = tmp_path / "w" / ".krepes" / "checkpoints" / "network.safetensors"
    outside = tmp_path / "private.csv"
    outside.write_text("a,b\n1,2\n")
    link, circle = (tmp_path / "w" / name for name in ("link.csv", "circle.csv"))
    link.symlink_to(outside)
    circle.symlink_to(circle)
    space = Workspace(tmp_path / "w")
    for path, expected in (
        (inside, set()),
        (outside, {str(outside)}),
        (link, {str(link)}),
        (circle, None),
    ):
        found = files_elsewhere(small.recipe(f"network.weights={path}"), space)
        assert expected is None or found == expected


@pytest.mark.parametrize("command", ["run digits -w circle", "plan digits -w circle"])
def test_a_workspace_whose_links_lead_in_a_circle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("circle").symlink_to("circle")
    done = small.krepes(capsys, *command.split())
    assert done.code == 2
    assert "links that lead in a circle; expected a folder" in done.err
