"""Pictures in parquet files, as Hugging Face data sets write them: unpacked once into the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.cache import writing_cached

_BATCH_ROWS = 64
_MAX_LISTED = 12


@dataclass(frozen=True)
class PictureColumns:
    """Columns of a file of pictures.

    Args:
        picture: column of the pictures: bytes, or a struct of bytes and path.
        label: column of the labels; empty: none.
        classes: names of the label's codes; () where the file lists none.
        left_out: other columns.
    """

    picture: str
    label: str
    classes: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass
class UnpackedPictures:
    """Pictures of one file, one after the other in a file of the cache.

    Args:
        offsets: of their first bytes [row].
        sizes: in bytes [row]; -1 for a row without bytes.
        labels: plain values [row]; empty where there is no label.
    """

    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)


def find_columns(path: Path, key: str, label: str) -> PictureColumns:
    """Columns of pictures and labels: those of the recipe, else the only ones of their type.

    Args:
        path: parquet file.
        key: column of the pictures; empty: the only one that can hold them.
        label: column of the labels; empty: the only class label, or a column called label.

    Raises:
        SourceError: the file cannot be read, or no such column, or several.
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error, source=True) from error
    features = _hugging_face_features(schema)
    fitting = [name for name in schema.names if holds_bytes(schema.field(name).type)]
    declared = [name for name in fitting if features.get(name, {}).get("_type") == "Image"]
    picture = _only(path, key, declared or fitting, "key", "pictures", schema)
    if not holds_bytes(schema.field(picture).type):
        raise SourceError(
            f"column {picture!r} is {schema.field(picture).type}",
            where=str(path),
            expected="the bytes of picture files, or struct<bytes, path>",
        )
    coded = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    usual = coded or [name for name in ("label", "labels") if name in schema.names]
    chosen = _only(path, label, usual, "label", "labels", schema) if label or usual else ""
    names = features.get(chosen, {}).get("names") or ()
    others = tuple(name for name in schema.names if name not in (picture, chosen))
    return PictureColumns(picture, chosen, tuple(map(str, names)), others)


def unpack_pictures(
    path: Path, columns: PictureColumns, target: Path, check_stop: Callable[[], None]
) -> UnpackedPictures:
    """Write the pictures of a file one after the other into the cache.

    Raises:
        SourceError: the file cannot be read, or the cache not be written.
    """
    unpacked = UnpackedPictures()
    end = 0
    names = [name for name in (columns.picture, columns.label) if name]
    try:
        with writing_cached(target) as temporary, temporary.open("wb") as stream:
            batches = pq.ParquetFile(path).iter_batches(_BATCH_ROWS, columns=names)
            for batch in batches:
                check_stop()
                values = batch.column(columns.picture)
                if pa.types.is_struct(values.type):
                    values = pa.compute.struct_field(values, "bytes")
                for value in values:
                    content = value.as_py()
                    unpacked.offsets.append(end)
                    unpacked.sizes.append(-1 if content is None else len(content))
                    end += 0 if content is None else stream.write(content)
                if columns.label:
                    unpacked.labels += batch.column(columns.label).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error, source=True) from error
    return unpacked


def _only(
    path: Path, requested: str, names: list[str], setting: str, what: str, schema: pa.Schema
) -> str:
    """The requested column, or the only one."""
    if requested in schema.names:
        return requested
    if not requested and len(names) == 1:
        return names[0]
    problem = f"no column {requested!r}" if requested else f"{len(names)} columns hold {what}"
    options = names or schema.names
    raise SourceError(
        problem,
        where=str(path),
        expected=f"source.{setting} one of " + ", ".join(map(repr, options[:_MAX_LISTED])),
    )


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold pictures: bytes, or a struct with bytes."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _hugging_face_features(schema: pa.Schema) -> dict[str, Any]:
    """Types that the library ``datasets`` notes in a file: pictures, and names of classes."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
