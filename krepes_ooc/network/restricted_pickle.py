"""Pickled checkpoints, read with inert stand-ins for the classes that they name.

torch's restricted unpickler calls nothing but constructors of tensors and what is allowed here.
What is allowed here are stand-ins: they run no code of the class that they stand for, which is not
even imported. NumPy arrays are built from their bytes, types being checked.
"""

from __future__ import annotations

import pickletools
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

# Settings, paths and dates that training code stores beside the weights.
HARMLESS = frozenset(
    {
        "argparse.Namespace",
        "types.SimpleNamespace",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        "omegaconf.nodes.AnyNode",
        *(
            f"{module}.{kind}"
            for module in ("pathlib", "pathlib._local")
            for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
        ),
        *(
            f"{module}.{kind}"
            for module in ("builtins", "__builtin__")
            for kind in ("bool", "complex", "dict", "float", "frozenset", "int", "list", "object")
        ),
        *(
            f"{module}.{kind}"
            for module in ("builtins", "__builtin__")
            for kind in ("range", "set", "slice", "str", "tuple", "xrange")
        ),
    }
)
# Mappings: read as plain ones.
MAPPINGS = frozenset(
    {
        "easydict.EasyDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "fvcore.common.config.CfgNode",
        "yacs.config.CfgNode",
    }
)
# Types of numbers without pointers, and the longest text that a NumPy type is written with.
_NUMBER_KINDS = "biufc"
_TYPE_LENGTH = 4
_WALK_DEPTH = 6
_LOADING = threading.Lock()


class StandIn:
    """Inert object in the place of one whose class is not loaded.

    Subclasses are made by ``stand_in_for``; ``stands_for`` is the class's full name.
    """

    stands_for = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        del arguments, named

    def __new__(cls, *arguments: Any, **named: Any) -> StandIn:
        """A bare object, whatever the arguments."""
        del arguments, named
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore the state: nobody reads it."""


def stand_in_for(name: str) -> type[StandIn]:
    """A class of inert objects for a class or function of this full name."""
    return type("StandIn", (StandIn,), {"stands_for": name})


def load_pickled(path: Path) -> Any:
    """Content of a file of ``torch.save``; classes are stand-ins, NumPy values plain arrays.

    Raises:
        pickle.UnpicklingError: the file names a class that is not allowed, or is damaged.
        Exception: of any class, as torch raises them for a damaged file.
    """
    allowed = [(stand_in_for(name), name) for name in sorted(HARMLESS)]
    return _plain(_load(path, [*allowed, *_MAPPINGS, *_NUMPY]))


def refused_names(path: Path) -> list[str]:
    """Full names of the classes and functions that a pickled file names and that are not allowed.

    The file is read as a list of instructions; nothing of it is carried out.
    """
    known = {*HARMLESS, *(name for _, name in (*_MAPPINGS, *_NUMPY))}
    known |= set(torch._weights_only_unpickler._get_allowed_globals())
    try:
        return sorted({name for name in _named_in(path) if name not in known})
    # What cannot be read to its end has no list of names.
    except Exception:
        return []


def places_of(path: Path, names: list[str]) -> dict[str, str]:
    """Key of the checkpoint under which each refused class stands, as far as that can be found.

    Args:
        path: the file.
        names: what ``refused_names`` gave; inert stand-ins take their places.
    """
    allowed = [(stand_in_for(name), name) for name in sorted({*HARMLESS, *names})]
    try:
        loaded = _load(path, [*allowed, *_MAPPINGS, *_NUMPY])
    # A class that is built otherwise than a plain object: its place stays unknown.
    except Exception:
        return {}
    return {kind: key for key, kind in foreign_objects(loaded).items() if kind in names}


def foreign_objects(loaded: Any) -> dict[str, str]:
    """Objects of classes that were not loaded: key of the checkpoint to the class's full name."""
    found: dict[str, str] = {}
    for key, value in _walk(loaded, "", _WALK_DEPTH):
        kind = value if isinstance(value, type) else type(value)
        if issubclass(kind, StandIn):
            found.setdefault(key, kind.stands_for)
    return found


def _load(path: Path, allowed: list[Any]) -> Any:
    # torch keeps the list for the whole process: one load at a time.
    with _LOADING, torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True)


def _named_in(path: Path) -> Iterator[str]:
    """Full names in a pickled file: one stream inside a zip file, several in the older form."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            with archive.open(name) as stream:
                yield from _named_in_stream(stream)
        return
    # Magic number, protocol, machine, object: tensors follow, whose keys name nothing.
    with path.open("rb") as stream:
        for _ in range(4):
            yield from _named_in_stream(stream)


def _named_in_stream(stream: IO[bytes]) -> Iterator[str]:
    texts: list[str] = []
    for instruction, argument, _ in pickletools.genops(stream):
        if instruction.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif instruction.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif isinstance(argument, str):
            texts.append(argument)


def _walk(value: Any, key: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Entries of nested mappings and lists with their dotted keys, the outermost first."""
    yield key, value
    entries: Any = ()
    if isinstance(value, Mapping):
        entries = value.items()
    elif isinstance(value, list | tuple | set):
        entries = enumerate(value)
    for name, entry in entries if depth else ():
        yield from _walk(entry, f"{key}.{name}" if key else str(name), depth - 1)


class _TypeCode:
    """A NumPy type as its code and byte order."""

    def __new__(cls, code: Any = "", *flags: Any) -> _TypeCode:
        del flags
        made = super().__new__(cls)
        made.text = _text(code)
        made.order = "="
        return made

    def __init__(self, *arguments: Any) -> None:
        del arguments

    text: str
    order: str

    def __setstate__(self, state: Any) -> None:
        """Take the byte order, the second entry; sizes and flags follow from the code."""
        self.order = _text(state[1])

    def numbers(self) -> np.dtype[Any]:
        """The type of numbers.

        Raises:
            ValueError: it is no type of plain numbers.
        """
        known = self.text[:1] in _NUMBER_KINDS and len(self.text) <= _TYPE_LENGTH
        if not known or self.order not in "<>=|":
            raise ValueError(f"an array of NumPy type {self.text!r}, which holds no numbers")
        order = self.order if self.order in "<>" else "="
        return np.dtype(order + self.text)


class _Array:
    """A NumPy array whose bytes are checked when they are read."""

    def __new__(cls, *arguments: Any) -> _Array:
        """A bare object, whatever the arguments."""
        del arguments
        made = super().__new__(cls)
        made.value = None
        return made

    def __init__(self, *arguments: Any) -> None:
        del arguments

    value: Any

    def __setstate__(self, state: Any) -> None:
        """Build the array of version, shape, type, order and bytes."""
        _, shape, kind, is_fortran, content = state
        # Texts, objects and records are nobody's weights: they stay what they are, unread.
        if not isinstance(content, bytes) or kind.text[:1] not in _NUMBER_KINDS:
            return
        flat = np.frombuffer(content, kind.numbers())
        values = flat.reshape(shape, order="F" if is_fortran else "C")
        self.value = np.array(values, values.dtype.newbyteorder("="), order="C")


def _scalar(kind: _TypeCode, content: Any = b"") -> Any:
    """A NumPy number; None for what is no number."""
    if not isinstance(content, bytes) or kind.text[:1] not in _NUMBER_KINDS:
        return None
    return np.frombuffer(content, kind.numbers(), count=1)[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes that were pickled as text.

    Raises:
        ValueError: another encoding than that of bytes.
    """
    if _text(encoding).replace("-", "").lower() != "latin1":
        raise ValueError(f"a text in the encoding {encoding!r}")
    return str(text).encode("latin1")


def _array(*arguments: Any) -> _Array:
    del arguments
    return _Array()


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _mapping(*arguments: Any) -> OrderedDict[Any, Any]:
    del arguments
    return OrderedDict()


_MAPPINGS: list[Any] = [
    (_mapping, "collections.defaultdict"),
    *((OrderedDict, name) for name in sorted(MAPPINGS)),
]
# The module of NumPy's core had another name before version 2.
_NUMPY: list[Any] = [
    (_Array, "numpy.ndarray"),
    (_TypeCode, "numpy.dtype"),
    (_encode, "_codecs.encode"),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in ((_array, "_reconstruct"), (_scalar, "scalar"))
    ),
]


def _plain(value: Any) -> Any:
    """Nested mappings and lists with arrays in the place of what stood for them."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        for key in value:
            value[key] = _plain(value[key])
        return value
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    # Named tuples and tensors of torch are no plain tuples.
    return tuple(map(_plain, value)) if type(value) is tuple else value
