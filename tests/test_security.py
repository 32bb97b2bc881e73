"""Hostile checkpoints, recipes, workspaces and texts: what each prints, and that nothing runs."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.errors import KrepesError, printable
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
