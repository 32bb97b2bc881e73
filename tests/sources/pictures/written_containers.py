"""Pictures written into parquet files and tar shards, and sources opened on them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from krepes_ooc.core.settings import read_settings
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source

N = 10
Array = npt.NDArray[Any]
CLASSES = ["cat", "dog", "eel"]


def draw(count: int = N, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)


def encoded(pixels: Array, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def spec_of(**keys: Any) -> SourceSpec:
    return read_settings(SourceSpec, {"kind": "images", "path": "data", **keys}, "source")


def opened(folder: Path, **keys: Any) -> Source:
    return open_source(spec_of(**keys), folder, folder / "cache")


def write_parquet(
    path: Path, contents: list[bytes | None], labels: list[Any], classes: bool = True, **more: Any
) -> None:
    """As ``datasets.Dataset.to_parquet`` writes a data set of Image and ClassLabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        None if c is None else {"bytes": c, "path": f"{i}.png"} for i, c in enumerate(contents)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, kind), "label": labels, **more})
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if classes:
        features["label"] = {"names": CLASSES, "_type": "ClassLabel"}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(noted), path, row_group_size=3)


def parquet_folder(folder: Path) -> Array:
    pixels = draw()
    contents: list[bytes | None] = [encoded(image) for image in pixels]
    labels = [i % 3 for i in range(N)]
    for part, chosen in enumerate((slice(0, 4), slice(4, N))):
        name = f"train-{part:05}-of-00002.parquet"
        write_parquet(folder / "data" / name, contents[chosen], labels[chosen])
    return pixels


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def tar_folder(folder: Path) -> Array:
    """Two shards of pictures with classes and captions, as WebDataset writes them."""
    pixels = draw()
    members = []
    for i, image in enumerate(pixels):
        members.append((f"{i:06}.png", encoded(image)))
        members.append((f"{i:06}.cls", str(i % 3).encode()))
        members.append((f"{i:06}.json", b'{"caption": "x"}'))
    write_tar(folder / "data" / "shard-0000.tar", members[:12])
    write_tar(folder / "data" / "shard-0001.tar", members[12:])
    return pixels


FOLDERS = {"parquet": parquet_folder, "tar": tar_folder}
