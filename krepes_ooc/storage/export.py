"""Copies of a small store for other programs: parquet and csv tables, netCDF, plain Zarr."""

from __future__ import annotations

import json
import os
import shutil
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.files import disk_errors, remove_leftover, unreadable
from krepes_ooc.errors import DamageError, UsageError, WorkspaceError
from krepes_ooc.storage.contracts import load_contract
from krepes_ooc.storage.file_checks import file_problem
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.workspace import Workspace

if TYPE_CHECKING:
    import xarray

Format = Literal["parquet", "csv", "netcdf", "zarr"]
FORMATS: tuple[str, ...] = get_args(Format)
LARGE = ("features", "kernel")
# What a spreadsheet takes for the start of a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
Columns = dict[str, Any]
# Attributes that name the entries of a dimension.
NAMED = {"column": "columns", "concept": "names"}
# Dimensions of lists of landmarks, and the array that says which landmarks they are.
LISTS = {"rank": "top_landmark", "repelled": "repelling_landmark"}


def export_store(
    workspace: Workspace, store: str, target: Path, kind: str, dim: str | None = None
) -> list[str]:
    """Write one sealed store to a new file (or, for zarr, a new folder).

    A table has one row for each entry of one dimension; codes become texts, a second dimension
    becomes columns ``name_0``, ``name_1``; with ranked landmarks, every rank gets a row of its own,
    and with ``dim`` "repelled" every repelling landmark.

    Args:
        workspace: where the store is.
        store: its name; not one whose size grows with the number of samples.
        target: must not exist.
        kind: one of ``FORMATS``.
        dim: dimension whose entries are the rows of a table; default that of most arrays.

    Returns:
        Arrays that a table could not hold.

    Raises:
        UsageError: no such store, format or dimension, a store that is too large, a target
            that exists.
        WorkspaceError: the store is not sealed.
        StageFailed: the disk is full.
    """
    _check_request(workspace, store, target, kind)
    dataset = _load_sealed(workspace, store)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written beside the target and renamed: it is whole or absent.
    temp = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    left_out: list[str] = []
    try:
        with disk_errors(target):
            if kind == "zarr":
                _write_zarr(dataset, temp)
            elif kind == "netcdf":
                _flat(dataset).to_netcdf(temp, engine="scipy")
            else:
                table, left_out = _table(workspace, store, dataset, dim)
                _write_table(table, dataset.attrs, temp, kind)
            os.replace(temp, target)
    finally:
        if temp.is_dir():
            shutil.rmtree(temp, ignore_errors=True)
        remove_leftover(temp)
    return left_out


def _load_sealed(workspace: Workspace, store: str) -> xarray.Dataset:
    """The arrays of a store, all read under one seal.

    Raises:
        WorkspaceError: a run replaced the store while it was read.
        DamageError: a file is not the one that the seal lists.
    """
    record = workspace.record(load_contract(store).writer, store)
    before = record.seal()
    changed = WorkspaceError(
        f"store {store!r} was replaced while it was read",
        where=str(workspace.root),
        expected="a store that no run computes again",
        advice="run the same command again when the run is done",
    )
    try:
        dataset: xarray.Dataset = workspace[store].load()
    except (DamageError, KeyError, OSError, ValueError, TypeError) as error:
        # Zarr meets files that are gone; whether a run took them, the seal says.
        if record.seal() != before:
            raise changed from error
        if isinstance(error, DamageError):
            raise
        place = record.base
        if isinstance(error, OSError):
            raise unreadable(Path(error.filename or place), error) from error
        raise DamageError(
            f"the arrays do not fit together ({error})",
            where=str(place),
            expected="a store that krepes wrote",
            advice="`krepes verify` lists all damage",
        ) from error
    if record.seal() != before:
        raise changed
    # Zarr asks each chunk for its own checksum only; the seal knows which chunk belongs where.
    for key, (size, crc) in record.recorded_files()[0].items():
        path = record.base / key
        if problem := file_problem(path, size, crc, suffixed=record.has_suffix(key)):
            raise DamageError(
                problem,
                where=str(path),
                expected="what was written",
                advice="`krepes run --repair`",
            )
    return dataset


def _check_request(workspace: Workspace, store: str, target: Path, kind: str) -> None:
    """Raise for a store, format or target that cannot be exported.

    Raises:
        UsageError: as ``export_store``.
    """
    known = workspace.stores()
    if kind not in FORMATS:
        raise UsageError(f"no format {kind!r}", where="--format", expected=", ".join(FORMATS))
    if store not in known:
        raise UsageError(
            f"no store {store!r}", where=str(workspace.root), expected="one of " + ", ".join(known)
        )
    if store in LARGE:
        raise UsageError(
            f"store {store!r} grows with the samples",
            where="--store",
            expected="one of " + ", ".join(name for name in known if name not in LARGE),
            advice="read it block by block: Workspace(folder)[store] is lazy",
        )
    if target.exists():
        raise UsageError("exists", where=str(target), expected="a new file")


def _flat(dataset: xarray.Dataset) -> xarray.Dataset:
    """The dataset in the types of netCDF 3: no unsigned bytes, no float16, no nested attributes."""
    flat = dataset.copy()
    for name, values in dataset.variables.items():
        if values.dtype == np.uint8:
            flat[name] = values.astype(np.int16)
        elif values.dtype in (np.float16, np.bool_):
            flat[name] = values.astype(np.float32)
        # netCDF 3 has no 64-bit integers; float64 is exact up to 2^53.
        elif values.dtype == np.int64:
            flat[name] = values.astype(np.int32 if _fits(values.values) else np.float64)
        flat[name].attrs = _flat_attributes(values.attrs)
        flat[name].encoding = {}
    flat.attrs = _flat_attributes(dataset.attrs)
    return flat


def _fits(values: npt.NDArray[np.int64]) -> bool:
    return not values.size or bool(np.abs(values).max() < 2**31)


def _flat_attributes(attributes: dict[Any, Any]) -> dict[Any, Any]:
    """Attributes as text and numbers: nested ones as JSON, missing ones left out."""
    return {
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in attributes.items()
        if value is not None
    }


def _write_zarr(dataset: xarray.Dataset, path: Path) -> None:
    with warnings.catch_warnings():
        # Readers of today want the copy of the metadata in one place, and warn without it.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        dataset.to_zarr(path, zarr_format=3, consolidated=True)


def _write_table(table: Columns, attributes: dict[Any, Any], path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if kind == "csv":
        cells = {_csv_text(name): _csv_column(values) for name, values in table.items()}
        pyarrow.csv.write_csv(pa.table(cells), path)
    else:
        arrow = pa.table({name: pa.array(values) for name, values in table.items()})
        metadata = {"krepes": json.dumps(attributes)}
        pyarrow.parquet.write_table(arrow.replace_schema_metadata(metadata), path)


def _csv_column(values: Any) -> Any:
    """A column for a CSV file: texts escaped, numbers as they are."""
    import pyarrow as pa

    column = pa.array(values)
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        return column
    return pa.array([None if text is None else _csv_text(text) for text in column.to_pylist()])


def _csv_text(text: str) -> str:
    """A text that a spreadsheet shows and does not compute; one that is a number stays as it is."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    if not text.startswith(FORMULA_STARTS):
        return shown
    try:
        float(shown)
    except ValueError:
        return f"'{shown}"
    return shown


def _table(
    workspace: Workspace, store: str, dataset: xarray.Dataset, dim: str | None
) -> tuple[Columns, list[str]]:
    """Columns of one dimension, and the arrays that are left out."""
    # The figures of store fidelity are attributes: its few arrays have their own dimensions.
    arrays = {str(name): array for name, array in dataset.variables.items()}
    if dim is None and "figures" in dataset.attrs:
        return _figures(dataset.attrs), list(arrays)
    # Rows: the dimension asked for, else the first dimension of most arrays.
    firsts = [str(array.dims[0]) for array in arrays.values()]
    lists = [str(name) for array in arrays.values() for name in array.dims[1:] if name in LISTS]
    listed = dim if dim in lists else "rank"
    main = dim if dim and dim not in lists else max(firsts, key=firsts.count)
    if main not in firsts:
        known = sorted({*firsts, *lists})
        raise UsageError(
            f"no array over {main!r}", where="--dim", expected="one of " + ", ".join(known)
        )
    # Only vectors and matrices over it fit a table; lists of landmarks get a row for each rank.
    inside = {n: a for n, a in arrays.items() if a.dims[0] == main and a.ndim <= 2}
    ranked = {n: a.values for n, a in inside.items() if listed in a.dims}
    columns = _names_of(workspace, store, dataset, main)
    if ranked:
        table = _by_rank(workspace, columns, ranked, LISTS[listed])
        return table, [n for n in arrays if n not in ranked]
    for name, array in inside.items():
        columns |= _columns_of(name, array)
    return columns, [n for n in arrays if n not in inside]


def _columns_of(name: str, array: xarray.Variable) -> Columns:
    if array.ndim == 1:
        return {name: _texts(array.values, array.attrs)}
    return {f"{name}_{i}": array.values[:, i] for i in range(array.shape[1])}


def _texts(values: npt.NDArray[Any], attributes: dict[Any, Any]) -> Any:
    """Codes as texts where the array says what they mean; -1 is none."""
    texts = attributes.get("categories")
    if texts is None or values.dtype.kind != "i":
        return values
    return [texts[i] if 0 <= i < len(texts) else None for i in values.tolist()]


def _names_of(workspace: Workspace, store: str, dataset: xarray.Dataset, main: str) -> Columns:
    """Columns that identify the rows: names of the attributes, or samples that a store names."""
    if main in NAMED and NAMED[main] in dataset.attrs:
        names = [n["name"] if isinstance(n, dict) else n for n in dataset.attrs[NAMED[main]]]
        return {main: names}
    # Rows of samples: ids, names and labels are in the store of these samples alone.
    naming_store = {"audited": "audited", "landmark": "landmarks"}.get(main)
    # A dimension of some of these samples, whose ids the store holds itself.
    if naming_store is None and "sample_id" in dataset and dataset["sample_id"].dims == (main,):
        return {"sample_id": dataset["sample_id"].values}
    if naming_store is None or store == naming_store or naming_store not in workspace.stores():
        return {}
    return _sample_names(workspace.reader(naming_store))


def _sample_names(reader: StoreReader) -> Columns:
    return {
        name: _texts(reader.array(name), reader.info(name).attributes)
        for name in ("sample_id", "sample_name", "label")
    }


def _by_rank(
    workspace: Workspace, columns: Columns, ranked: dict[str, npt.NDArray[Any]], which: str
) -> Columns:
    """One row for each listed landmark of each sample; the array ``which`` holds its index."""
    rows, ranks = next(iter(ranked.values())).shape
    table: Columns = {
        name: [value for value in values for _ in range(ranks)] for name, values in columns.items()
    }
    # Row-major: all ranks of the first sample, then those of the next.
    table["rank"] = np.tile(np.arange(1, ranks + 1), rows)
    for name, values in ranked.items():
        table[name] = values.reshape(-1)
    # Indices of landmarks become their ids, names and labels; -1 is an empty rank.
    if which in table:
        index = table.pop(which)
        for name, values in _sample_names(workspace.reader("landmarks")).items():
            table[f"landmark_{name}"] = [values[i] if i >= 0 else None for i in index.tolist()]
    return table


def _figures(attributes: dict[Any, Any]) -> Columns:
    """The figures of store fidelity: every value, then the controls it is read beside."""
    rows: list[tuple[str, str, float | None, Any, Any]] = []
    for name, figure in attributes["figures"].items():
        low, high = figure.get("interval") or (None, None)
        rows.append((name, "value", figure["value"], low, high))
        rows += [(name, words, value, None, None) for words, value in figure["controls"].items()]
        # Differences to controls over the same samples
        for key, pair in figure.get("paired", {}).items():
            low, high = pair["interval"] or (None, None)
            rows.append((name, key, pair["value"], low, high))
    columns = zip(*rows, strict=True) if rows else [()] * 5
    names = ("figure", "what", "value", "low", "high")
    return {name: list(values) for name, values in zip(names, columns, strict=True)}
