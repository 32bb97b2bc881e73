"""Files of a checkpoint: their form by content, never by name; shards and folders; refusals.

torch is not imported: staleness checks only need to know which files there are.
"""

from __future__ import annotations

import json
import re
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from krepes_ooc.core.digests import file_sha256
from krepes_ooc.core.files import NotAFileError, not_a_file
from krepes_ooc.errors import NetworkError, UsageError

Form = Literal["safetensors", "pickle", "numpy", "index"]
HEAD_BYTES = 1024
_HEADER_BYTES = 8
_TAR_MAGIC = slice(257, 262)
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.(\w+)")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".tar")
# Files that libraries write into the folder of a model, the safest form first.
_USUAL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
_FOREIGN = {
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"GGUF": "a GGUF file of quantised weights",
    b"Rar!": "a RAR archive",
}
_NAMED_WRONGLY = (FileNotFoundError, IsADirectoryError, PermissionError, NotAFileError)
_SAVE_ADVICE = "save module.state_dict() with safetensors.torch.save_file or torch.save"
_EXPECTED = "a safetensors file, a file of torch.save, or the index or folder of shards"


@dataclass(frozen=True)
class CheckpointFile:
    """One file of weights.

    Args:
        path: the file.
        form: what it holds.
        names: tensors that are read from a shard; None: all.
    """

    path: Path
    form: Form
    names: tuple[str, ...] | None = None


def list_files(path: Path) -> tuple[CheckpointFile, ...]:
    """The files that a checkpoint consists of, recognised by what they hold.

    Args:
        path: a file, an index of shards, or a folder as model libraries write it.

    Raises:
        UsageError: no such file, or a folder in which no checkpoint or several are found.
        NetworkError: a file that holds no weights, or one shard of several.
    """
    if path.is_dir():
        return list_files(_file_of_folder(path))
    form = _form(path)
    if form == "index":
        return _shards(path)
    _refuse_lone_shard(path)
    return (CheckpointFile(path, form),)


def content_files(path: Path) -> tuple[Path, ...]:
    """All files whose bytes decide the weights: the index of shards first."""
    files = tuple(file.path for file in list_files(path))
    if path.is_dir():
        path = _file_of_folder(path)
    return files if path in files else (path, *files)


def damage_error(path: Path, reason: str) -> NetworkError:
    """The error for a file that ends early or holds other bytes than were written."""
    return NetworkError(
        f"cannot be read: {reason}",
        where=str(path),
        expected="a complete checkpoint",
        advice=f"it has {path.stat().st_size} bytes, sha256 {file_sha256(path)}; copy it again",
    )


def _file_of_folder(folder: Path) -> Path:
    """The file or index of the weights in a folder.

    Raises:
        UsageError: none, or several and none with a usual name.
    """
    for name in _USUAL:
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.index.json"))
    if not found:
        entries = sorted(folder.iterdir())
        found = [p for p in entries if p.is_file() and p.suffix.lower() in _SUFFIXES]
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"{len(found) or 'no'} checkpoints in this folder",
        where=str(folder),
        expected="one, such as " + " or ".join(_USUAL[:2]),
        advice=f"name the file, one of {', '.join(p.name for p in found[:6])}" if found else "",
    )


def _form(path: Path) -> Form:
    """Form of a file, by its first bytes.

    Raises:
        NetworkError: no weights, in words.
        UsageError: the file cannot be opened.
    """
    try:
        # Of a pipe the opening would wait.
        if not stat.S_ISREG(mode := path.stat().st_mode):
            raise not_a_file(path, mode)
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as error:
        # A path that names no readable file is a wrong recipe; a failing disk is not.
        named_wrongly = isinstance(error, _NAMED_WRONGLY)
        kind = UsageError if named_wrongly else NetworkError
        raise kind(
            f"cannot be read: {error.strerror}", where=str(path), expected=_EXPECTED
        ) from error
    if not head:
        raise damage_error(path, "the file is empty")
    _refuse_foreign(path, head)
    if head.startswith(b"PK\x03\x04"):
        return _zip_form(path)
    is_text = all(byte >= 0x20 or byte in b"\t\r\n\f" for byte in head)
    if is_text and head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return "index"
    # safetensors: the length of the header, then the header, a JSON mapping.
    if head[_HEADER_BYTES : _HEADER_BYTES + 1] == b"{":
        return "safetensors"
    # Pickle: the protocol comes first.
    if head[0] == 0x80:
        return "pickle"
    # The form that the name promises says most about a file without a beginning.
    if path.suffix.lower() == ".safetensors" and not is_text:
        return "safetensors"
    raise NetworkError(
        "is a text" if is_text else f"begins with the bytes {head[:4].hex(' ')}",
        where=str(path),
        expected=_EXPECTED,
        advice=_SAVE_ADVICE,
    )


def _refuse_foreign(path: Path, head: bytes) -> None:
    """Raise on pointers, web pages and files of other programs.

    Raises:
        NetworkError: what the file is, and what to do.
    """
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"size (\d+)", head)
        raise NetworkError(
            "is a pointer of git-lfs"
            + (f" to a file of {int(size[1]):,} bytes" if size else "")
            + ", and the file itself was not fetched",
            where=str(path),
            expected="the weights",
            advice=f"git lfs pull --include={path.name}",
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_MARKUP):
        raise NetworkError(
            "is a web page, which a server sent in place of the weights",
            where=str(path),
            expected="the weights",
            advice="download the file again by its direct link, after signing in if that is needed",
        )
    for magic, words in _FOREIGN.items():
        if head.startswith(magic):
            archive = "unpack it" if "archive" in words else _SAVE_ADVICE
            raise NetworkError(f"is {words}", where=str(path), expected=_EXPECTED, advice=archive)
    if head[_TAR_MAGIC] == b"ustar":
        raise NetworkError(
            "is a tar archive", where=str(path), expected=_EXPECTED, advice="unpack it"
        )


def _zip_form(path: Path) -> Form:
    """Form of a zip file: a file of ``torch.save``, or arrays of NumPy.

    Raises:
        NetworkError: a TorchScript archive, or another zip file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # A file that ends early has no list of its entries: it is read, and refused, as damaged.
    except (zipfile.BadZipFile, OSError, ValueError):
        return "pickle"
    if any(name.endswith("/constants.pkl") for name in names):
        raise NetworkError(
            "is a TorchScript archive, whose code krepes never runs",
            where=str(path),
            expected="a state dict",
            advice=_SAVE_ADVICE,
        )
    if any(name.endswith("data.pkl") for name in names):
        return "pickle"
    if names and all(name.endswith(".npy") for name in names):
        return "numpy"
    raise NetworkError(
        f"is a zip file of {len(names)} other files",
        where=str(path),
        expected=_EXPECTED,
        advice="unpack it",
    )


def _refuse_lone_shard(path: Path) -> None:
    """Raise on one shard of several.

    Raises:
        NetworkError: its number, and the index that names all shards.
    """
    shard = _SHARD.fullmatch(path.name)
    if shard is None or int(shard[3]) < 2:
        return
    index = path.with_name(f"{shard[1]}.{shard[4]}.index.json")
    missing = "" if index.is_file() else ", which is not there either: copy it as well"
    raise NetworkError(
        f"is shard {int(shard[2])} of {int(shard[3])}, a part of the weights",
        where=str(path),
        expected="all shards",
        advice=f"set network.weights to their index {index.name}{missing}",
    )


def _shards(index: Path) -> tuple[CheckpointFile, ...]:
    """Shards that an index names, each with its tensors.

    Raises:
        NetworkError: another JSON file, or a shard that is not there or lies elsewhere.
    """
    files: dict[str, list[str]] = {}
    for tensor, name in _weight_map(index).items():
        files.setdefault(str(name), []).append(str(tensor))
    # A name with a folder could lead anywhere.
    outside = sorted(name for name in files if Path(name).name != name)
    absent = sorted(name for name in files if not (index.parent / name).is_file())
    for names, words in ((outside, "lie in another folder"), (absent, "are not there")):
        if names:
            raise NetworkError(
                f"{len(names)} of {len(files)} shards {words}: {', '.join(names[:3])}",
                where=str(index),
                expected="all shards beside their index",
                advice="copy them there",
            )
    return tuple(
        CheckpointFile(path, _form(path), tuple(names))
        for path, names in ((index.parent / name, names) for name, names in sorted(files.items()))
    )


def _weight_map(index: Path) -> dict[str, Any]:
    """Tensor to file, as the index of a sharded checkpoint lists them.

    Raises:
        NetworkError: the file is no such index.
    """
    try:
        content = json.loads(index.read_bytes())
        found = content["weight_map"]
        return dict(found.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NetworkError(
            "is a JSON text without weight_map",
            where=str(index),
            expected="the index of a checkpoint in shards, such as model.safetensors.index.json",
        ) from error
