"""Interface of every source of samples: declaration, columns, operations, argument checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.settings import setting
from krepes_ooc.errors import DataError, SourceError, UsageError

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
BUFFER_BYTES = 256 * 2**20
SampleKind = Literal["table", "image", "array", "text"]
ColumnKind = Literal["numeric", "categorical"]


@dataclass(frozen=True)
class SourceSpec:
    """The recipe key ``source``: where samples come from and which columns the network sees."""

    kind: Literal["digits", "table", "idx", "arrays", "images", "factory"] = setting(
        about="what the source is"
    )
    path: str = setting("", about="file or folder, relative to the recipe")
    labels: str = setting("", about="file of labels beside an idx or array file")
    classes: tuple[str, ...] = setting((), about="names of the labels 0, 1, 2 ...")
    label: str = setting("", about="column (or tar member) of labels, never shown to the network")
    name: str = setting("", about="column with the user's own sample names")
    exclude: tuple[str, ...] = setting((), about="columns that are never read")
    audit_only: tuple[str, ...] = setting((), about="columns audited, never shown to the network")
    categorical: tuple[str, ...] = setting((), about="columns to take as categories")
    numeric: tuple[str, ...] = setting((), about="columns to take as numbers")
    header: bool = setting(True, about="whether the first line of a CSV file names the columns")
    delimiter: str = setting("", about="separator of a CSV file; default comma, tab for .tsv")
    charset: str = setting(
        "", about="character encoding of a CSV file; default UTF-8", digest_omits=""
    )
    decimal: Literal[".", ","] = setting(
        ".", about="decimal mark of the numbers of a CSV file", digest_omits="."
    )
    missing: tuple[str | int | float, ...] = setting(
        (), about="texts and numbers of a table that stand for no value", digest_omits=()
    )
    limit: int | None = setting(None, about="use the first rows only", minimum=1)
    order: Literal["shuffled", "source"] = setting("shuffled", about="order of the store rows")
    array: str = setting("", about="name of the array inside an npz, hdf5 or zarr store")
    label_array: str = setting("", about="name of the label array inside such a store")
    size: int | None = setting(
        None, about="side to which the central square of every image is scaled", minimum=1
    )
    range: tuple[float, ...] = setting(
        (), about="values of black and of full scale, such as [0, 4095]", digest_omits=()
    )
    alpha: Literal["drop", "white", "black"] = setting(
        "drop", about="colour behind see-through pixels; drop ignores alpha", digest_omits="drop"
    )
    layout: Literal["nhwc", "nchw"] = setting(
        "nhwc", about="whether channels of stored images come last or first", digest_omits="nhwc"
    )
    page: int | None = setting(
        None, about="page of image files that hold several, from 0", minimum=0, digest_omits=None
    )
    skip_damaged: bool = setting(
        False, about="leave out image files that cannot be decoded", digest_omits=False
    )
    transform: Literal["none", "from_model"] = setting(
        "none",
        about="from_model: size, mean, std and interpolation as the network states them, where "
        "they are not set here",
        digest_omits="none",
    )
    interpolation: Literal["", "nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = (
        setting("", about="how images are scaled; default bilinear", digest_omits="")
    )
    mean: tuple[float, ...] = setting((), about="mean of each image channel scaled to [0, 1]")
    std: tuple[float, ...] = setting((), about="standard deviation of each image channel")
    factory: str = setting("", about="module:callable that returns a map-style dataset")
    fetch: str = setting("", about="what to type if the file is not there, shown in the error")
    arguments: dict[str, Any] = setting({}, about="of the factory")
    missing_chunks: Literal["refuse", "fill"] = setting(
        "refuse",
        about="Zarr and HDF5 chunks that are not on disk: refused, or read as the fill value",
        digest_omits="refuse",
    )
    key: str = setting(
        "",
        about="entry of a factory's items, column or tar member that is the sample",
        digest_omits="",
    )
    encoding: str = setting(
        "",
        about="JSON file of the encoding that the network was trained with; see krepes encode",
        digest_omits="",
    )
    unseen: Literal["refuse", "zero"] = setting(
        "refuse",
        about="columns and categories that the encoding file does not know: refused, or zeros",
        digest_omits="refuse",
    )
    decode: dict[str, Any] = setting(
        {}, about="words for codes in table columns, shown to people", digest_omits={}
    )


# Keys that every kind of source reads, that images read, and that each kind reads.
_EVERYWHERE = {"fetch", "kind", "limit", "order"}
_IMAGE = {"mean", "std", "transform"}
_PIXELS = {*_IMAGE, "range"}
_USED_KEYS = {
    "digits": _IMAGE,
    "table": {
        "path",
        "label",
        "name",
        "exclude",
        "audit_only",
        "categorical",
        "numeric",
        "header",
        "delimiter",
        "classes",
        "encoding",
        "unseen",
        "decode",
        "charset",
        "decimal",
        "missing",
    },
    "idx": {"path", "labels", "classes", *_PIXELS},
    "arrays": {
        *("path", "labels", "classes", "array", "label_array", "layout", "missing_chunks"),
        *_PIXELS,
    },
    "images": {
        *("path", "key", "label", "size", "interpolation", "alpha", "page", "skip_damaged"),
        *_PIXELS,
    },
    "factory": {"factory", "arguments", "key", *_PIXELS},
}


def check_keys(spec: SourceSpec) -> None:
    """Raise on a key that the declared kind of source does not read.

    Raises:
        SourceError: the key and the keys that this kind reads.
    """
    used = _USED_KEYS[spec.kind] | _EVERYWHERE
    defaults = SourceSpec(kind=spec.kind)
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        # A key that is silently ignored would be taken for one that works: compare with the
        # defaults.
        if field.name not in used and value != getattr(defaults, field.name):
            raise SourceError(
                f"key {field.name!r} means nothing for kind {spec.kind!r}",
                where="source",
                expected="only " + ", ".join(sorted(used)),
            )


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: the column's name in the file.
        kind: numeric, or categorical with float64 codes.
        shown: whether the network sees it; if not, it is only audited.
        categories: names of the codes 0, 1, ... in order; () for numbers.
        mean: mean over all rows (numbers).
        std: standard deviation over all rows, 1 for a constant column (numbers).
        low: 1 % quantile (numbers).
        high: 99 % quantile (numbers).
        sha256: of its values, as numbers or as texts.
        missing: rows without a value.
        counts: rows of each category; () for numbers.
        words: (code, word) pairs of ``source.decode``.
    """

    name: str
    kind: ColumnKind
    shown: bool = True
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0
    sha256: str = ""
    missing: int = 0
    counts: tuple[int, ...] = ()
    words: tuple[tuple[str, str], ...] = ()

    @property
    def category_names(self) -> tuple[str, ...]:
        """Categories as people see them: decoded where there is a word."""
        words = dict(self.words)
        return tuple(words.get(category, category) for category in self.categories)


class Source(Protocol):
    """Samples by position; every method is safe to call from several threads.

    ``columns`` and ``classes`` are () where there are none; ``row_groups`` is None where random
    access is cheap; ``resident_bytes`` is the most memory that the source occupies between reads.
    """

    kind: SampleKind
    n_samples: int
    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    row_groups: tuple[int, ...] | None
    input_shape: tuple[int, ...]
    resident_bytes: int
    warnings: tuple[str, ...]

    def read(self, positions: Int64) -> npt.NDArray[Any]:
        """Raw samples [sample, ...] at these positions of the source."""

    def labels(self, positions: Int64) -> Int64:
        """Label codes [sample], indices into ``classes``; -1 where there is none."""

    def names(self, positions: Int64) -> list[str]:
        """The user's names of the samples, by default their positions."""

    def encode(self, raw: npt.NDArray[Any]) -> Float32:
        """The network's input [sample, ...] for raw samples."""

    def fingerprint(self) -> dict[str, Any]:
        """Identity of the samples that the network sees, as JSON: rows, sha256, schema."""

    def label_fingerprint(self) -> dict[str, Any]:
        """Identity of all else that is displayed: labels, names, columns not shown, as JSON."""


class Tabular(Source, Protocol):
    """A source whose raw samples are rows of columns, with what views draw from.

    ``marginal_rows`` float64 [row, column] holds rows drawn by a keyed hash; ``spread`` float64
    [column] is the standard deviation of a number and 0 for a category.
    """

    marginal_rows: Float64
    spread: Float64


def locate(path: str, base: Path, key: str = "path", *, folder: bool = False) -> Path:
    """The file (or folder) that a recipe names, relative to the recipe's folder.

    Raises:
        SourceError: the key is empty, or there is no such file or folder.
    """
    if not path:
        raise SourceError(f"key {key!r} is missing", where="source", expected="a path")
    # Relative paths start at the recipe, so a recipe and its data can move together.
    located = (base / Path(path).expanduser()).absolute()
    if not (located.is_dir() if folder else located.is_file()):
        expected = "folder" if folder else "file"
        raise SourceError(
            f"no such {expected}",
            where=str(located),
            expected=f"an existing {expected}",
            advice="paths are relative to the recipe",
        )
    return located


def check_positions(positions: Int64, n_samples: int) -> Int64:
    """The positions as int64.

    Raises:
        UsageError: a position lies outside the source.
    """
    positions = np.asarray(positions, dtype=np.int64)
    # A negative index would wrap around in NumPy and read another sample in silence.
    outside = positions[(positions < 0) | (positions >= n_samples)]
    if outside.size:
        raise UsageError(
            f"no sample {int(outside[0])}", where="source", expected=f"0 to {n_samples - 1}"
        )
    return positions


def sample_positions(source: Source, indices: Int64) -> Int64:
    """Positions of the first, second, third ... sample: their index, but for skipped files.

    Args:
        source: any source; one that skips files lists the positions of its samples.
        indices: from 0 to ``n_samples - 1`` [sample].
    """
    listed: Int64 | None = getattr(source, "valid_positions", None)
    return indices if listed is None else listed[indices]


def check_samples(source: Source, positions: Sequence[int], where: str) -> None:
    """Raise if a position that the user names is no sample of the source.

    Raises:
        UsageError: it lies outside the source, or its file is skipped.
    """
    listed: Int64 | None = getattr(source, "valid_positions", None)
    count = source.n_samples if listed is None else int(source.n_positions)  # type: ignore[attr-defined]
    wrong = [i for i in positions if not 0 <= i < count]
    if wrong:
        raise UsageError(f"no sample {wrong[0]}", where=where, expected=f"0 to {count - 1}")
    skipped = [] if listed is None else np.setdiff1d(positions, listed).tolist()
    if skipped:
        raise UsageError(
            f"the file of sample {skipped[0]} is skipped, because it cannot be decoded",
            where=where,
            expected="a sample",
            advice="repair the file, or name another sample",
        )


def check_finite(
    values: npt.NDArray[Any], positions: npt.NDArray[np.integer[Any]], what: str, where: str = ""
) -> None:
    """Raise on values [sample, ...] that are NaN or infinite.

    Args:
        values: the values; integers are always finite.
        positions: positions of the samples in the source [sample].
        what: name of the values, for the message.
        where: file that they come from, for the message.

    Raises:
        DataError: names the first such sample and the place in its row.
    """
    if values.dtype.kind != "f":
        return
    finite = np.isfinite(values)
    if finite.all():
        return
    first = tuple(int(i) for i in np.argwhere(~finite)[0])
    raise DataError(
        f"{what} is {values[first]}",
        where=f"{where + ', ' if where else ''}sample {int(positions[first[0]])}, "
        f"position {list(first[1:])}",
        expected="finite numbers",
        advice="clean the source or exclude the column",
    )
