"""Repair computes exactly the damaged blocks again, and nothing after them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from krepes_ooc.engine.run_control import Silent
from krepes_ooc.errors import DamageError, WorkspaceError
from krepes_ooc.runner import preflight
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.plan import make_plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.status import verify_workspace
from tests import small
from tests.crash.compare import differences


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.finished_copy(tmp_path_factory.mktemp("sealed") / "w")


@pytest.fixture
def workspace(sealed: Path, tmp_path: Path) -> Path:
    shutil.copytree(sealed, tmp_path / "w")
    return tmp_path / "w"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def delete(path: Path) -> None:
    path.unlink()


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.units: dict[str, tuple[int, int]] = {}

    def begin(self, stage: str, total: int, done: int) -> None:
        self.units[stage] = (total, done)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(
    ("file", "harm", "stage", "left"),
    [
        ("audit.zarr/features/values/c/1/1/0", flip, "features", (2, 1)),
        ("audit.zarr/features/self_kernel/c/0/0", delete, "features", (2, 1)),
        ("audit.zarr/kernel/values/c/0/0/0", truncate, "kernel", (2, 1)),
        ("audit.zarr/kernel/values/c/0/1/0", zero, "kernel", (2, 1)),
        ("audit.zarr/newton/step/c/0/0", flip, "newton", None),
        (".krepes/checkpoints/network.safetensors", flip, "pretrain", (1, 0)),
        ("report.html", delete, "report", None),
    ],
)
def test_repair(
    workspace: Path,
    sealed: Path,
    file: str,
    harm: Callable[[Path], None],
    stage: str,
    left: tuple[int, int] | None,
) -> None:
    harm(workspace / file)
    (damage,) = verify_workspace(workspace).damage
    assert damage.stage == stage
    listener = Listener()
    summary = run(small.recipe(), workspace, Options(repair=True, workers=1), listener)
    assert summary.ran == [stage]
    assert listener.notes[0] == f"repair: {damage}"
    if left is not None:
        assert listener.units[stage] == left
    assert verify_workspace(workspace).damage == ()
    assert differences(sealed, workspace) == []
    assert small.seals(workspace) == small.seals(sealed)


@pytest.mark.parametrize(
    "file", ["audit.zarr/kernel/zarr.json", "audit.zarr/kernel/values/zarr.json"]
)
def test_damaged_metadata(workspace: Path, sealed: Path, file: str) -> None:
    truncate(workspace / file)
    summary = run(small.recipe(), workspace, Options(repair=True))
    assert summary.ran == ["kernel"]
    assert differences(sealed, workspace) == []
    assert verify_workspace(workspace).damage == ()


def test_some_stages_run_beside_a_damaged_document_of_another(
    workspace: Path, sealed: Path
) -> None:
    """It is named by whoever reads its store, and repaired when its stage is asked for."""
    file = workspace / "audit.zarr/examples/pair_second_id/zarr.json"
    file.write_bytes(file.read_bytes().replace(b":", b";", 1))
    shutil.rmtree(workspace / ".krepes/stages/landmarks")
    summary = run(small.recipe(), workspace, Options(repair=True, until="landmarks"))
    assert summary.ran == ["landmarks"]
    with pytest.raises(DamageError, match="pair_second_id"):
        run(small.recipe(), workspace, Options(until="examples"))
    run(small.recipe(), workspace, Options(repair=True))
    assert differences(sealed, workspace) == []


def test_damaged_journal(workspace: Path, sealed: Path) -> None:
    flip(workspace / ".krepes/stages/kernel/journal-0000.jsonl")
    summary = run(small.recipe(), workspace, Options(repair=True))
    assert summary.ran == ["kernel"]
    assert differences(sealed, workspace) == []
    assert verify_workspace(workspace).damage == ()


@pytest.mark.parametrize("stage", ["alignment", "report", "features"])
def test_lost_seal(workspace: Path, sealed: Path, stage: str) -> None:
    """Of a stage that others read, and of one that nothing depends on."""
    seal = workspace / ".krepes/stages" / stage / "seal.json"
    seal.unlink()
    (damage,) = verify_workspace(workspace).damage
    assert (damage.stage, damage.file) == (stage, str(seal))
    assert run(small.recipe(), workspace, Options(repair=True)).ran == [stage]
    assert verify_workspace(workspace).damage == ()
    assert differences(sealed, workspace) == []
    assert small.seals(workspace) == small.seals(sealed)


def test_mended_journal_is_not_named_again(workspace: Path) -> None:
    """What was harmed and repaired is whole when the seal, which vouches for it, is harmed."""
    flip(workspace / ".krepes/stages/kernel/journal-0000.jsonl")
    run(small.recipe(), workspace, Options(repair=True))
    flip(workspace / ".krepes/stages/kernel/seal.json")
    (damage,) = verify_workspace(workspace).damage
    assert damage.file == str(workspace / ".krepes/stages/kernel/seal.json")


@pytest.mark.parametrize("harm", [flip, truncate, zero, delete])
def test_run_refuses_harmed_documents(workspace: Path, harm: Callable[[Path], None]) -> None:
    """Every run looks at the documents of sealed stores, though it would compute nothing."""
    document = workspace / "audit.zarr/kernel/values/zarr.json"
    harm(document)
    with pytest.raises(DamageError, match="krepes run --repair") as caught:
        run(small.recipe(), workspace)
    assert str(document) in str(caught.value)
    assert run(small.recipe(), workspace, Options(repair=True)).ran == ["kernel"]


@pytest.mark.parametrize("harm", [flip, truncate, zero])
@pytest.mark.parametrize("file", [".krepes/recipe.json", ".krepes/recipe-text.json"])
def test_damaged_record_of_the_workspace(
    workspace: Path, sealed: Path, file: str, harm: Callable[[Path], None]
) -> None:
    harm(workspace / file)
    (damage,) = verify_workspace(workspace).damage
    assert damage.file == str(workspace / file)
    if file.endswith("recipe.json"):
        with pytest.raises(DamageError, match="krepes run --repair"):
            run(small.recipe(), workspace)
    listener = Listener()
    assert run(small.recipe(), workspace, Options(repair=True), listener).ran == []
    assert listener.notes == [f"repair: {damage}"]
    assert (workspace / file).read_bytes() == (sealed / file).read_bytes()
    assert verify_workspace(workspace).damage == ()


@pytest.mark.parametrize("harm", [flip, truncate, zero])
def test_damaged_cost_of_the_rows(
    workspace: Path, sealed: Path, harm: Callable[[Path], None]
) -> None:
    """A figure that only plan and report show: it stops them, and repair does without it."""
    cost = workspace / ".krepes/row-cost.json"
    harm(cost)
    (damage,) = verify_workspace(workspace).damage
    assert damage.file == str(cost)
    with pytest.raises(DamageError, match="krepes run --repair"):
        make_plan(small.recipe(), workspace, timed=True)
    listener = Listener()
    assert run(small.recipe(), workspace, Options(repair=True), listener).ran == []
    assert listener.notes == [f"repair: {damage}"]
    assert not cost.exists()
    assert make_plan(small.recipe(), workspace, timed=True)["rows"]["cost"]  # measured anew
    assert differences(sealed, workspace) == []
    (workspace / "report.html").unlink()
    assert run(small.recipe(), workspace, Options(repair=True)).ran == ["report"]


@pytest.mark.parametrize(
    ("old", "new"), [(b"{", b"["), (b'krepes_format": 1', b'krepes_format": 3')]
)
def test_damaged_root_document(workspace: Path, sealed: Path, old: bytes, new: bytes) -> None:
    path = workspace / "audit.zarr/zarr.json"
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    (damage,) = verify_workspace(workspace).damage
    assert damage.file == str(path)
    assert run(small.recipe(), workspace, Options(repair=True)).ran == []
    assert verify_workspace(workspace).damage == ()
    assert differences(sealed, workspace) == []


@pytest.mark.parametrize("store", ["kernel", "features", "newton"])
def test_lost_root_document_and_damaged_array(workspace: Path, sealed: Path, store: str) -> None:
    arrays = {"kernel": "values", "features": "sample_id", "newton": "step"}
    (workspace / "audit.zarr" / "zarr.json").unlink()
    (damage,) = verify_workspace(workspace).damage
    assert damage.problem == "missing"
    flip(workspace / "audit.zarr" / store / arrays[store] / "zarr.json")
    small.audit(workspace, repair=True)
    assert differences(sealed, workspace) == []
    assert verify_workspace(workspace).damage == ()


def test_repair_keeps_the_workspace_with_its_recipe(workspace: Path, tmp_path: Path) -> None:
    flip(workspace / ".krepes/recipe.json")
    own = Recipe.load(str(small.own_recipe(tmp_path / "own")))
    with pytest.raises(WorkspaceError, match="was written by recipe 'digits'"):
        run(own, workspace, Options(repair=True))
    assert run(small.recipe(), workspace).ran == []


def test_nothing_to_repair(workspace: Path) -> None:
    assert run(small.recipe(), workspace, Options(repair=True)).ran == []


def test_files_of_others_are_left_alone(workspace: Path) -> None:
    (workspace / "audit.zarr/kernel/notes.txt").write_text("mine")
    assert run(small.recipe(), workspace, Options(repair=True)).ran == []
    assert (workspace / "audit.zarr/kernel/notes.txt").read_text() == "mine"
    (damage,) = verify_workspace(workspace).damage
    assert damage.problem == "not written by krepes"


def test_a_stage_that_is_damaged_while_a_run_goes_on_is_named_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record was whole when the run began: the store and its seal stay for the repair."""
    workspace = small.copy_before(small.finished(), tmp_path / "w", "report")
    record = workspace / ".krepes/stages/distilled"
    kept = {path: path.read_bytes() for path in [record / "seal.json", *store_files(workspace)]}
    refuse_unfit = preflight.refuse_unfit

    def harm(*arguments: object) -> None:
        refuse_unfit(*arguments)  # type: ignore[arg-type]
        flip(record / "begun.json")

    monkeypatch.setattr(preflight, "refuse_unfit", harm)
    with pytest.raises(DamageError, match=r"stage distilled.*--repair"):
        run(small.recipe(), workspace, Options(workers=1))
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in kept} == kept
    run(small.recipe(), workspace, Options(workers=1, repair=True))
    assert differences(small.finished(), workspace) == []


def store_files(workspace: Path) -> list[Path]:
    """Files of the store distilled."""
    found = sorted(p for p in (workspace / "audit.zarr/distilled").rglob("*") if p.is_file())
    assert found
    return found
