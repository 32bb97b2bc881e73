"""Store contracts (stores/*.yaml): dims, dtypes, chunks and meaning of every array on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from krepes_ooc.core import blocks, resources
from krepes_ooc.core.settings import read_settings, setting
from krepes_ooc.errors import RecipeError

ROW_DIMS = ("sample", "audited", "group")
TILE_DIMS = ("landmark", "landmark_")
DTYPES = ("float16", "float32", "float64", "int64", "uint8")


@dataclass(frozen=True)
class ArrayContract:
    """One array: named dims, allowed dtypes, chunk rule and meaning."""

    dims: tuple[str, ...] = setting(about="dimension names, outermost first")
    dtype: tuple[str, ...] = setting(about="allowed dtypes, the default first")
    chunks: Literal["block", "tile", "whole"] = setting(
        about="block: one chunk a view and block; tile: squares of landmarks; whole: one chunk"
    )
    about: str = setting(about="what the numbers mean")
    optional: bool = setting(False, about="whether a store may lack the array")
    missing: bool = setting(False, about="whether NaN stands for a value that is not defined")

    @property
    def by_view(self) -> bool:
        """Whether the rows of every view are chunks of their own."""
        return self.dims[:1] == ("view",)

    def chunk_shape(self, shape: tuple[int, ...], block_rows: int | None) -> tuple[int, ...]:
        """Chunk lengths: 1 along view and ``block_rows`` along the rows, or tiles, else whole."""
        rule: dict[str, int] = {}
        if self.chunks == "tile":
            rule = dict.fromkeys(TILE_DIMS, blocks.TILE)
        elif self.chunks == "block" and block_rows is not None:
            rule = dict.fromkeys(ROW_DIMS, block_rows) | ({"view": 1} if self.by_view else {})
        # Dims that no rule names are one chunk.
        cut = [rule.get(dim, size) for dim, size in zip(self.dims, shape, strict=True)]
        if self.chunks == "tile":  # a block is stored whole, a small matrix as it is
            cut = [min(pair) for pair in zip(cut, shape, strict=True)]
        return tuple(max(1, length) for length in cut)


@dataclass(frozen=True)
class Contract:
    """One store: its arrays and attributes, the one stage that writes it, and its version."""

    store: str = setting(about="name of the group in audit.zarr")
    version: int = setting(about="raised when bytes or meaning change", minimum=1)
    writer: str = setting(about="the stage that writes the store")
    about: str = setting(about="what the store holds")
    arrays: dict[str, ArrayContract] = setting(about="arrays by name")
    attributes: dict[str, str] = setting({}, about="attributes by name with their meaning")


@dataclass(frozen=True)
class StoreSpec:
    """A contract with sizes: everything that is needed to create the store.

    Args:
        contract: what the arrays are.
        sizes: length of every dimension by name.
        dtypes: dtype of an array where the contract leaves a choice.
        block_rows: rows of one chunk, or None for a store without blocks.
        arrays: names of the arrays that this store holds (default: all that are not optional).
        array_attributes: attributes of single arrays (``categories``).
    """

    contract: Contract
    sizes: Mapping[str, int]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    block_rows: int | None = None
    arrays: tuple[str, ...] | None = None
    array_attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """Arrays that the store holds, in contract order.

        Raises:
            RecipeError: an array is named that the contract does not know.
        """
        # Without a choice: all that are not optional.
        known = self.contract.arrays
        if self.arrays is None:
            return tuple(name for name, array in known.items() if not array.optional)
        # A choice names known arrays only, and leaves out optional ones only.
        for name in self.arrays:
            if name not in known:
                raise self._broken(f"array {name!r} is not in the contract", ", ".join(known))
        for name, array in known.items():
            if not array.optional and name not in self.arrays:
                raise self._broken(f"array {name!r} is missing", f"dims {list(array.dims)}")
        return tuple(name for name in known if name in self.arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        """Lengths of one array's dims; a trailing ``_`` repeats a dimension.

        Raises:
            RecipeError: a dimension has no size.
        """
        # landmark and landmark_ are the two sides of one dimension.
        try:
            return tuple(
                int(self.sizes[dim.rstrip("_")]) for dim in self.contract.arrays[name].dims
            )
        except KeyError as error:
            raise self._broken(f"no size for dimension {error} of {name!r}", "all dims") from error

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype of one array.

        Raises:
            RecipeError: the chosen dtype is not one that the contract allows.
        """
        allowed = self.contract.arrays[name].dtype
        chosen = self.dtypes.get(name, allowed[0])
        if chosen not in allowed:
            raise self._broken(f"array {name!r} has dtype {chosen}", " or ".join(allowed))
        return np.dtype(chosen)

    def chunk_shape(self, name: str) -> tuple[int, ...]:
        """Chunk lengths of one array."""
        return self.contract.arrays[name].chunk_shape(self.shape(name), self.block_rows)

    def check_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Refuse to seal a store that lacks an attribute of its contract or has an unknown one.

        Raises:
            RecipeError: naming the attribute and both sides.
        """
        known = set(self.contract.attributes)
        given = set(attributes)
        # In one of both sets only: missing, or unknown.
        for name in sorted(known ^ given):
            what = "is missing" if name in known else "is not in the contract"
            raise self._broken(f"attribute {name!r} {what}", ", ".join(sorted(known)))

    def _broken(self, what: str, expected: str) -> RecipeError:
        return RecipeError(what, where=f"stores/{self.contract.store}.yaml", expected=expected)


@cache
def load_contract(name: str) -> Contract:
    """The shipped contract of a store.

    Raises:
        UsageError: there is no such contract.
        RecipeError: the file breaks a rule; see ``read_contract``.
    """
    return read_contract(resources.find("stores", name))


def read_contract(path: Path) -> Contract:
    """The contract in one file.

    Raises:
        RecipeError: an unknown key, an unknown dtype, dims that a block cannot cut, or a store
            whose name is not the file's.
    """
    contract = read_settings(Contract, resources.load_yaml(path), path.name)
    if contract.store != path.stem:
        expected = repr(path.stem)
        raise RecipeError(f"store is {contract.store!r}", where=path.name, expected=expected)
    # What the settings' types cannot say: dtypes that krepes stores, dims that the rule can cut.
    for name, array in contract.arrays.items():
        where = f"{path.name}:arrays.{name}"
        unknown = [dtype for dtype in array.dtype if dtype not in DTYPES]
        if unknown or not array.dtype:
            expected = "one or more of " + ", ".join(DTYPES)
            raise RecipeError(f"dtype {(unknown or ['[]'])[0]}", where=where, expected=expected)
        if array.chunks == "tile" and array.dims[-2:] != TILE_DIMS:
            expected = " and ".join(TILE_DIMS) + " last"
            raise RecipeError(f"dims {list(array.dims)}", where=where, expected=expected)
        # The first dim, or the one behind a leading view.
        rows = array.dims[array.dims[:1].count("view") :][:1]
        if array.chunks == "block" and not set(rows) & set(ROW_DIMS):
            expected = " or ".join(ROW_DIMS) + " first, or second behind view"
            raise RecipeError(f"dims {list(array.dims)}", where=where, expected=expected)
    return contract


def contract_names() -> list[str]:
    """Names of all shipped contracts."""
    return resources.names("stores")
