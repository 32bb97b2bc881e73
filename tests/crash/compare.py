"""Bitwise comparison of two workspaces: every chunk of every store, and what the attributes say."""

from __future__ import annotations

import json
from pathlib import Path


def differences(first: Path, second: Path) -> list[str]:
    """Files of ``audit.zarr`` that differ between two workspaces; nothing if all bits are equal."""
    left, right = _files(first / "audit.zarr"), _files(second / "audit.zarr")
    found = [f"only in one: {name}" for name in sorted(left.keys() ^ right.keys())]
    both = sorted(left.keys() & right.keys())
    differing = [name for name in both if _content(left[name]) != _content(right[name])]
    return found + [f"differs: {name}" for name in differing]


def _files(root: Path) -> dict[str, Path]:
    return {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name != "zarr.json":
        return data
    try:
        return json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()
    except ValueError:
        # A damaged document differs from every whole one.
        return data


def _timeless(value: object) -> object:
    """The self-check records how long it took; that alone may differ."""
    if isinstance(value, dict):
        return {
            key: _timeless(item)
            for key, item in value.items()
            if not (key == "seconds" or (key == "words" and "max_relative_error" in value))
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value
