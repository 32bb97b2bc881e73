from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray

from krepes_ooc.core.files import checksummed_json
from krepes_ooc.errors import DamageError, UsageError, WorkspaceError
from krepes_ooc.runner.status import verify_workspace
from krepes_ooc.storage.workspace import FOLDERS, Workspace
from tests.storage import stores
from tests.storage.stores import ARRAYS, BLOCKS


def refuse_to_compute(*_: object, **__: object) -> None:
    raise AssertionError("something was computed")


def test_store_is_a_lazy_dataset(tmp_path: Path):
    space, _ = stores.sealed(tmp_path)
    with warnings.catch_warnings(), dask.config.set(scheduler=refuse_to_compute):
        warnings.simplefilter("error")
        dataset = space["features"]
        product = dataset["self_kernel"].isel(view=0) * 2
    assert dataset["values"].chunksizes["sample"] == (256, 256, 88)
    for name, values in ARRAYS.items():
        assert dataset[name].dtype == values.dtype
        np.testing.assert_array_equal(dataset[name].values, values)
    np.testing.assert_array_equal(product.values, 2 * stores.SELF_KERNEL[0])


def test_missing_store_is_a_key_error_with_the_stores_found(tmp_path: Path):
    space, _ = stores.sealed(tmp_path)
    with pytest.raises(KeyError, match=r"no store 'newton' in .*audit.zarr; found: features"):
        space["newton"]
    with pytest.raises(KeyError, match=r"no store '\.\./features'"):
        space["../features"]
    assert space.stores() == ["features"]


def test_unsealed_store_is_refused(tmp_path: Path):
    space = stores.open_workspace(tmp_path)
    record, writer = stores.begin(space)
    stores.write_unit(record, writer, BLOCKS[0])
    with pytest.raises(WorkspaceError, match="store 'features' is not sealed: rows that are mis"):
        space["features"]
    assert space.stores() == ["features"]


def test_hostile_store_is_refused_before_zarr_opens_it(tmp_path: Path):
    space, _ = stores.sealed(tmp_path)
    path = space.audit / "features" / "values" / "zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_type": "object"}))
    with pytest.raises(DamageError, match=r"values/zarr.json: .* instead of"):
        space["features"]


def test_creating_again_changes_nothing(tmp_path: Path):
    space = stores.open_workspace(tmp_path / "a" / "b")
    assert space.recipe() == "digits"
    before = stores.files_in(space.root)
    assert sorted(before) == [".krepes/recipe.json", "audit.zarr/zarr.json"]
    stores.open_workspace(tmp_path / "a" / "b")
    assert stores.files_in(space.root) == before
    assert Workspace(tmp_path / "none").recipe() is None
    assert not (tmp_path / "none").exists()


def test_workspace_of_another_recipe_is_refused(tmp_path: Path):
    stores.open_workspace(tmp_path)
    before = stores.files_in(tmp_path)
    with pytest.raises(WorkspaceError) as caught:
        Workspace(tmp_path).create("adult")
    assert str(caught.value) == (
        f"{tmp_path}: the workspace was written by recipe 'digits'; "
        "expected a workspace of recipe 'adult' or an empty folder; choose another --workspace"
    )
    assert stores.files_in(tmp_path) == before


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_workspace_of_another_format_is_refused(tmp_path: Path, version: object):
    stores.open_workspace(tmp_path)
    root = tmp_path / "audit.zarr" / "zarr.json"
    root.write_text(json.dumps({"attributes": {"krepes_format": version}}))
    (tmp_path / ".krepes" / "recipe.json").write_bytes(checksummed_json({"format": version}))
    with pytest.raises(WorkspaceError) as caught:
        Workspace(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'audit.zarr'}: the workspace has format {version}; expected format 1; "
        "open it with the krepes that wrote it, or choose another --workspace"
    )


@pytest.mark.parametrize("text", ["{}", '{"attributes": 3}', '{"attributes": {}}'])
def test_foreign_zarr_group_is_refused(tmp_path: Path, text: str):
    (tmp_path / "audit.zarr").mkdir()
    (tmp_path / "audit.zarr" / "zarr.json").write_text(text)
    with pytest.raises(WorkspaceError, match="the workspace has format None"):
        Workspace(tmp_path)


def test_damaged_root_document_is_damage(tmp_path: Path):
    """Where no signed record says the format; where one does, the document is written anew."""
    stores.open_workspace(tmp_path)
    (tmp_path / "audit.zarr" / "zarr.json").write_text("{")
    Workspace(tmp_path).consolidate()
    assert json.loads((tmp_path / "audit.zarr" / "zarr.json").read_text())["attributes"]
    (tmp_path / "audit.zarr" / "zarr.json").write_text("{")
    (tmp_path / ".krepes" / "recipe.json").write_text("{")
    assert len(verify_workspace(tmp_path).damage) == 2
    (tmp_path / ".krepes" / "recipe.json").unlink()
    with pytest.raises(DamageError, match="the metadata is no JSON"):
        Workspace(tmp_path)


def test_file_in_place_of_the_workspace(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="file: the workspace is a file; expected a folder"):
        Workspace(tmp_path / "file").create("digits")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / ".krepes").write_text("x")
    with pytest.raises((UsageError, DamageError), match=r"\.krepes|w: cannot write"):
        Workspace(tmp_path / "w").create("digits")


def test_read_only_folder(tmp_path: Path):
    with stores.mounted(tmp_path / "disk", "4m") as disk:
        space, record = stores.sealed(disk / "w")
        stores.make_read_only(disk)
        with pytest.raises(UsageError, match=r"cannot write \(Read-only file system\); expected a"):
            Workspace(disk / "new").create("digits")
        space = Workspace(disk / "w")
        space.create("digits")
        with pytest.raises(UsageError, match=r"cannot write \(Read-only file system\)"):
            space.lock().__enter__()
        np.testing.assert_array_equal(space["features"]["values"].values, ARRAYS["values"])
        assert record.is_sealed()


@pytest.mark.parametrize(
    "name",
    ["audit.zarr", ".krepes", *(f".krepes/{name}" for name in FOLDERS)],
)
def test_folder_that_is_a_link_is_refused(tmp_path: Path, name: str):
    """The next run would delete what the link leads to."""
    root = tmp_path / "w"
    stores.open_workspace(root)
    precious = tmp_path / "precious"
    if (root / name).exists():
        (root / name).rename(precious)
    else:
        precious.mkdir()
    (root / name).symlink_to(precious)
    with pytest.raises(WorkspaceError) as caught:
        Workspace(root)
    assert str(caught.value) == (
        f"{root / name}: a symbolic link, to {precious}; "
        "expected real files and folders inside the workspace; remove the link"
    )


@pytest.mark.parametrize(
    "use",
    [
        lambda space: space.reader("features"),
        lambda space: space.writer(stores.SPEC, "d1"),
        lambda space: space.record("features", "features"),
        lambda space: space["features"],
    ],
)
def test_store_that_is_a_link_is_refused(tmp_path: Path, use: Callable[[Workspace], object]):
    stores.sealed(tmp_path / "w")
    store = tmp_path / "w" / "audit.zarr" / "features"
    store.rename(tmp_path / "outside")
    store.symlink_to(tmp_path / "outside")
    with pytest.raises(WorkspaceError, match=r"audit.zarr/features: a symbolic link, to /"):
        use(Workspace(tmp_path / "w"))


def test_workspace_itself_may_be_reached_by_a_link(tmp_path: Path):
    stores.sealed(tmp_path / "real")
    (tmp_path / "w").symlink_to("real")
    assert Workspace(tmp_path / "w")["features"].sizes["sample"] == stores.SAMPLES


def test_sweep_removes_rests_and_never_follows_a_link(tmp_path: Path):
    space = stores.open_workspace(tmp_path / "w")
    temp, outside = space.private / "temp", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("data")
    (temp / "a.partial").write_text("x")
    (temp / "b.deleting" / "c").mkdir(parents=True)
    (temp / "b.deleting" / "link").symlink_to(outside)
    (temp / "link").symlink_to(outside)
    with space.lock():
        space.remove_stale_files()
    assert list(temp.iterdir()) == []
    assert (outside / "precious").read_text() == "data"


def test_reader_of_a_rewritten_store_is_a_new_one(tmp_path: Path):
    space, _ = stores.sealed(tmp_path)
    reader = space.reader("features")
    assert space.reader("features") is reader
    space.writer(stores.SPEC, "d1")
    assert space.reader("features") is not reader


def test_root_document_follows_the_stores(tmp_path: Path):
    space, record = stores.sealed(tmp_path)

    def listed() -> set[str]:
        return set(xarray.open_datatree(str(space.audit), engine="zarr").children)

    assert listed() == {"features"}
    record.archive_previous()
    space.consolidate()
    assert listed() == set()
    stores.begin(space, "d2")
    assert listed() == {"features"}
    before = (space.audit / "zarr.json").stat()
    space.consolidate()
    assert (space.audit / "zarr.json").stat() == before


def test_storage_starts_without_zarr_xarray_dask_and_torch():
    heavy = ("zarr", "xarray", "dask", "torch")
    code = (
        "import sys, krepes_ooc.storage.workspace, krepes_ooc.storage.verify\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
