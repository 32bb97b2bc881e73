"""Coordinates of an opened store: positions in the source, names, decoded labels; attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.storage.workspace import Workspace

if TYPE_CHECKING:
    import xarray

# Numbered from 0, so that a selection by number is one by coordinate.
_NUMBERED = ("view", "landmark", "component", "output")
# Dimensions whose entries an attribute of the store names.
_NAMED = {"group": "names", "group_": "names", "concept": "names", "column": "columns"}
_ROLE_AUDIT = 0
Coordinates = dict[str, tuple[str, npt.NDArray[Any]]]


def with_coordinates(dataset: xarray.Dataset, store: str, space: Workspace) -> xarray.Dataset:
    """The store with coordinates and with the attributes that readers of netCDF know.

    ``sample``, the position in the source, is a coordinate of dims ``sample``, ``audited`` and
    ``explained``: ``.sel(sample=17)`` is sample 17 in every store. Beside it stand label, name and
    role of audited samples as texts, and position, label and name of landmarks, where the stores
    that hold them are sealed.

    Args:
        dataset: a store as it lies on disk.
        store: its name.
        space: the workspace, whose small stores hold the positions.
    """
    coordinates: Coordinates = {
        dim: (dim, np.arange(dataset.sizes[dim])) for dim in _NUMBERED if dim in dataset.sizes
    }
    for dim, attribute in _NAMED.items():
        names = dataset.attrs.get(attribute)
        if dim in dataset.sizes and names is not None and len(names) == dataset.sizes[dim]:
            coordinates[dim] = (dim, np.array(names, dtype=str))
    if "landmark" in dataset.sizes:
        coordinates |= _of_landmarks(space, dataset.sizes["landmark"])
    coordinates |= _of_samples(dataset, store, space)
    # A variable keeps its name: it is not turned into a coordinate of the same name.
    coordinates = {name: value for name, value in coordinates.items() if name not in dataset}
    described = dataset.assign_coords(dict(coordinates))
    # Positions beside a dim of another name are found by value too.
    for name in ("sample", "explained_sample", "landmark_sample"):
        if name in coordinates and coordinates[name][0] != name:
            described = described.set_xindex(name)
    for variable, array in described.data_vars.items():
        array.attrs.update(_attributes(dataset[variable]))
    return described


def _of_samples(dataset: xarray.Dataset, store: str, space: Workspace) -> Coordinates:
    """Positions of stored rows, and what is known of audited and explained ones."""
    if "sample" in dataset.sizes:
        # Eight bytes a sample.
        known = "sample_id" in dataset
        return {"sample": ("sample", space.reader(store).array("sample_id"))} if known else {}
    if not _is_sealed(space, "audited"):
        return {}
    role = np.asarray(space.reader("audited").array("role"))
    rows = {"audited": np.arange(len(role)), "explained": np.flatnonzero(role == _ROLE_AUDIT)}
    found: Coordinates = {}
    for dim, chosen in rows.items():
        if dataset.sizes.get(dim) == len(chosen):
            # Where a store has both dims, the second one's are told apart by its name.
            prefix = "sample" if not found else f"{dim}_sample"
            found |= _of_audited(space, dim, prefix, chosen)
    return found


def _of_audited(space: Workspace, dim: str, prefix: str, rows: npt.NDArray[Any]) -> Coordinates:
    """Positions, labels, names and roles of rows of the store audited."""
    store = space.reader("audited")
    roles = {code: name for name, code in store.attributes["roles"].items()}
    role = np.asarray(store.array("role"))[rows]
    return {
        prefix: (dim, np.asarray(store.array("sample_id"))[rows]),
        f"{prefix}_label": (dim, _decoded(space, "audited", "label")[rows]),
        f"{prefix}_name": (dim, _decoded(space, "audited", "sample_name")[rows]),
        f"{prefix}_role": (dim, np.array([roles[int(code)] for code in role], dtype=str)),
    }


def _of_landmarks(space: Workspace, count: int) -> Coordinates:
    """Positions, names and labels of the landmarks."""
    if not _is_sealed(space, "landmarks"):
        return {}
    ids = np.asarray(space.reader("landmarks").array("sample_id"))
    if len(ids) != count:
        return {}
    return {
        "landmark_sample": ("landmark", ids),
        "landmark_label": ("landmark", _decoded(space, "landmarks", "label")),
        "landmark_name": ("landmark", _decoded(space, "landmarks", "sample_name")),
    }


def _decoded(space: Workspace, store: str, array: str) -> npt.NDArray[np.str_]:
    """Texts of a coded array; empty where there is none."""
    reader = space.reader(store)
    codes = np.asarray(reader.array(array))
    texts: Sequence[str] = reader.info(array).attributes.get("categories", ())
    return np.array([texts[code] if 0 <= code < len(texts) else "" for code in codes], dtype=str)


def _attributes(array: xarray.DataArray) -> Mapping[str, Any]:
    """Units, and the meaning of codes as the CF conventions write it."""
    # Pixels and cells of a table have the user's units, codes and positions none.
    in_own_units = array.name == "image" or (array.name == "values" and "column" in array.dims)
    measured = array.dtype.kind == "f" and not in_own_units
    found: dict[str, Any] = {"units": "1"} if measured else {}
    if (texts := array.attrs.get("categories")) is not None:
        found["flag_values"] = list(range(len(texts)))
        # Meanings are separated by blanks, and so hold none.
        found["flag_meanings"] = " ".join("_".join(str(text).split()) or "_" for text in texts)
    return found


def _is_sealed(space: Workspace, store: str) -> bool:
    return store in space.stores() and space.record(store, store).is_sealed()
