"""Files that hold many pictures: which are read, and which are refused with the way out."""

from __future__ import annotations

from pathlib import Path

from krepes_ooc.core.files import unreadable
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.pictures.image_files import SUFFIXES

PARQUET = (".parquet", ".pq")
TAR = (".tar",)
_FACTORY = (
    "write the pictures as files, tar shards or parquet, or read them by kind: factory "
    "(docs/own.md has both)"
)
# End of the name -> what it is, what to do.
_REFUSED = {
    (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"): (
        "a compressed tar, in which no picture can be reached alone",
        "unpack it to .tar: the pictures inside are compressed already",
    ),
    (".zip", ".7z", ".rar"): ("an archive", "unpack it into a folder"),
    (".tfrecord", ".tfrecords"): ("TFRecord, which is not read", _FACTORY),
    (".lmdb", ".mdb"): ("LMDB, which is not read", _FACTORY),
    (".arrow",): (
        "an Arrow file of a saved data set, whose pictures are not read",
        "save it as parquet: datasets.load_from_disk(FOLDER).to_parquet(FILE)",
    ),
    (".beton", ".rec", ".msgpack"): ("a container that is not read", _FACTORY),
    (".npy", ".npz", ".h5", ".hdf5", ".zarr"): ("a file of arrays", "set source.kind: arrays"),
    (".csv", ".tsv"): ("a table", "set source.kind: table"),
}


def find_containers(path: Path) -> list[Path]:
    """Parquet files or tar shards at a path, sorted by name.

    Args:
        path: a file, or a folder without pictures; names with a dot or an underscore in front are
            skipped.

    Raises:
        SourceError: another kind of container or file, by name, with the way out; or parquet beside
            tar.
    """
    if path.is_file():
        return [_container(path)]
    try:
        files = sorted(entry for entry in path.rglob("*") if not _is_hidden(entry, path))
    except OSError as error:
        raise unreadable(path, error, source=True) from error
    containers = [f for f in files if f.suffix.lower() in (*PARQUET, *TAR) and f.is_file()]
    kinds = {file.suffix.lower() in TAR for file in containers}
    if len(kinds) > 1:
        raise SourceError(
            "holds both parquet files and tar shards",
            where=str(path),
            expected="one kind of file",
            advice="name the folder of one of them",
        )
    for file in () if containers else files:
        _refuse(file)
    return containers


def _is_hidden(entry: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in entry.relative_to(folder).parts)


def _container(path: Path) -> Path:
    _refuse(path)
    suffix = path.suffix.lower()
    if suffix in (*PARQUET, *TAR):
        return path
    single = "a single picture" if suffix in SUFFIXES else "a file"
    raise SourceError(
        single,
        where=str(path),
        expected="a folder of pictures, a .parquet file or a .tar shard",
        advice="name its folder",
    )


def _refuse(path: Path) -> None:
    name = path.name.lower()
    for ends, (what, advice) in _REFUSED.items():
        # TFRecord shards are called data.tfrecord-00000-of-00010.
        if name.endswith(ends) or any(f"{end}-" in name for end in ends if end.startswith(".tf")):
            raise SourceError(
                what,
                where=str(path),
                expected="a folder of pictures, parquet files or tar shards",
                advice=advice,
            )
