"""Exports hold the numbers of the store, in words that other programs understand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import xarray

from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.storage.export import export_store
from krepes_ooc.storage.workspace import Workspace
from tests import small


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(small.finished_copy(tmp_path_factory.mktemp("exported") / "w"))


def read(space: Workspace, tmp_path: Path, store: str, kind: str = "parquet", **more: Any) -> Any:
    target = tmp_path / f"{store}.{kind}"
    export_store(space, store, target, kind, **more)
    if kind == "csv":
        return pyarrow.csv.read_csv(target).to_pandas()
    return pyarrow.parquet.read_table(target).to_pandas()


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_ranked_landmarks_have_rows_of_their_own(
    space: Workspace, tmp_path: Path, kind: str
) -> None:
    rows = read(space, tmp_path, "influence", kind)
    influence, audited = space["influence"].load(), space["audited"].load()
    landmarks = space["landmarks"].load()
    n, ranks = influence["score"].shape
    assert len(rows) == n * ranks
    np.testing.assert_allclose(rows["score"], influence["score"].values.reshape(-1))
    assert rows["rank"].tolist() == list(range(1, ranks + 1)) * n
    assert rows["sample_id"].tolist() == np.repeat(audited["sample_id"].values, ranks).tolist()
    top = influence["top_landmark"].values.reshape(-1)
    assert rows["landmark_sample_id"].tolist() == landmarks["sample_id"].values[top].tolist()
    # The classes of the digits are called like their codes.
    assert rows["landmark_label"].astype(int).tolist() == landmarks["label"].values[top].tolist()


def test_what_pushes_has_a_table_of_its_own(space: Workspace, tmp_path: Path) -> None:
    rows = read(space, tmp_path, "influence", dim="repelled")
    influence, landmarks = space["influence"].load(), space["landmarks"].load()
    pushing, pulls = influence["repelling_landmark"].values, influence["repelling"].values
    assert rows["rank"].tolist() == [1, 2, 3] * len(pulls)
    np.testing.assert_array_equal(rows["repelling"], pulls.reshape(-1))
    told = landmarks["sample_id"].values[pushing.reshape(-1)].tolist()
    named = [i if at >= 0 else None for i, at in zip(told, pushing.reshape(-1), strict=True)]
    found = [None if np.isnan(i) else int(i) for i in rows["landmark_sample_id"]]
    assert found == named
    assert "score" not in rows


def test_a_second_dimension_becomes_columns(space: Workspace, tmp_path: Path) -> None:
    rows = read(space, tmp_path, "newton", dim="landmark")
    step = space["newton"]["step"].values
    np.testing.assert_array_equal(rows[[f"step_{i}" for i in range(4)]].to_numpy(), step)
    assert rows["sample_id"].tolist() == space["landmarks"]["sample_id"].values.tolist()
    sweep = read(space, tmp_path / "b", "newton", dim="damping")
    np.testing.assert_array_equal(sweep["damping"], space["newton"]["damping"].values)


def test_figures_and_their_controls(space: Workspace, tmp_path: Path) -> None:
    rows = read(space, tmp_path, "fidelity", "csv")
    figures = space["fidelity"].attrs["figures"]
    assert set(rows["figure"]) == set(figures)
    for name, figure in figures.items():
        values = rows[(rows["figure"] == name) & (rows["what"] == "value")]["value"]
        assert (
            values.isna().all()
            if figure["value"] is None
            else values.item() == pytest.approx(figure["value"])
        )
        for key, pair in figure["paired"].items():
            row = rows[(rows["figure"] == name) & (rows["what"] == key)]
            found = row[["value", "low", "high"]].to_numpy()[0]
            assert found == pytest.approx([pair["value"], *pair["interval"]])
    refits = read(space, tmp_path / "refits", "fidelity", "csv", dim="refit")
    np.testing.assert_array_equal(refits["refit_tau"], space["fidelity"]["refit_tau"].values)


def test_attributes_travel_with_a_table(space: Workspace, tmp_path: Path) -> None:
    export_store(space, "alignment", tmp_path / "a", "parquet")
    table = pyarrow.parquet.read_table(tmp_path / "a")
    assert json.loads(table.schema.metadata[b"krepes"])["measure"] == "aligned"
    assert table.column("column").to_pylist() == ["label"]


@pytest.mark.parametrize("store", ["audited", "landmarks", "influence", "newton", "moments"])
def test_netcdf_and_zarr_hold_everything(space: Workspace, tmp_path: Path, store: str) -> None:
    whole = space[store].load()
    export_store(space, store, tmp_path / "a.nc", "netcdf")
    export_store(space, store, tmp_path / "a.zarr", "zarr")
    for found in (
        xarray.open_dataset(tmp_path / "a.nc", engine="scipy"),
        xarray.open_zarr(tmp_path / "a.zarr"),
    ):
        assert set(found.data_vars) == set(whole.data_vars)
        for name, values in whole.data_vars.items():
            assert found[name].dims == values.dims
            np.testing.assert_array_equal(
                found[name].values.astype(np.float64), values.values.astype(np.float64)
            )


def test_what_cannot_be_exported(space: Workspace, tmp_path: Path) -> None:
    taken = tmp_path / "there"
    taken.write_text("mine")
    for given, told in (
        (("audited", taken, "csv"), "there: exists; expected a new file"),
        (("audited", tmp_path / "a", "xlsx"), "no format 'xlsx'; expected parquet, csv"),
        (("nothing", tmp_path / "a", "csv"), "no store 'nothing'; expected one of alignment"),
        (("kernel", tmp_path / "a", "csv"), "store 'kernel' grows with the samples"),
        (("newton", tmp_path / "a", "csv", "view"), "no array over 'view'; expected one of"),
    ):
        with pytest.raises(UsageError) as found:
            export_store(space, *given)
        assert told in str(found.value)
    assert taken.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    small.audit(tmp_path / "w", until="features")
    part = Workspace(tmp_path / "w")
    (part.private / "stages" / "features" / "seal.json").unlink()
    with pytest.raises((WorkspaceError, UsageError)):
        export_store(part, "landmarks", tmp_path / "a", "csv")


def test_command(capsys: Any, space: Workspace, tmp_path: Path) -> None:
    given = ("export", "-w", str(space.root), "--store", "audited", "--format", "csv", "--out")
    done = small.krepes(capsys, *given, str(tmp_path / "a.csv"))
    assert (done.code, done.err) == (0, "")
    assert "not in the table: image" in done.out
    again = small.krepes(capsys, *given, str(tmp_path / "a.csv"))
    assert (again.code, "exists" in again.line) == (2, True)
