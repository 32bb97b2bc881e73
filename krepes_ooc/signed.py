"""Checksums, and lines of JSON that carry their own: what every record and every cache is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt


def checksum(data: bytes | npt.NDArray[Any]) -> int:
    """crc32c of bytes or of a contiguous array."""
    return int(google_crc32c.value(data))


def to_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN (None instead)."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def sign_json(value: Mapping[str, Any]) -> bytes:
    """One line of JSON that carries its own checksum."""
    body = to_json(value).encode()
    return b'{"crc32c":%d,"body":%b}\n' % (checksum(body), body)


def read_signed(line: bytes) -> dict[str, Any] | None:
    """The value of one signed line, or None if the line is torn or changed."""
    head, _, rest = line.partition(b',"body":')
    body = rest[:-2]
    if rest[-2:] != b"}\n" or head != b'{"crc32c":%d' % checksum(body):
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
