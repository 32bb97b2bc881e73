"""Tables as a test writes, opens and refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import KrepesError
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source

N = 40
NUMBERS = [round(float(v), 3) for v in np.random.default_rng(11).normal(size=N)]


def write(
    folder: Path,
    columns: dict[str, list[Any]],
    name: str = "d.csv",
    split: str = ",",
    charset: str = "utf-8",
) -> Path:
    """Write a CSV file exactly as its fields are spelled."""
    rows = zip(*columns.values(), strict=True)
    lines = [split.join(columns), *(split.join(map(str, row)) for row in rows)]
    (folder / name).write_bytes(("\n".join(lines) + "\n").encode(charset))
    return folder / name


def spec_of(**keys: Any) -> SourceSpec:
    return read_settings(SourceSpec, {"kind": "table", "path": "d.csv", **keys}, "source")


def opened(folder: Path, **keys: Any) -> Source:
    return open_source(spec_of(**keys), folder, folder / "cache")


def everything(source: Source) -> Any:
    return source.read(np.arange(source.n_samples))


def kinds(source: Source) -> list[tuple[str, str]]:
    return [(column.name, column.kind) for column in source.columns]


def label_texts(source: Source) -> list[str | None]:
    codes = source.labels(np.arange(source.n_samples))
    return [source.classes[code] if code >= 0 else None for code in codes]


def refusal(folder: Path, **keys: Any) -> str:
    """Message of the refusal, in one line, at exit 1 or 2."""
    with pytest.raises(KrepesError) as caught:
        opened(folder, **keys)
    message = str(caught.value)
    assert "\n" not in message
    assert "unexpected" not in message
    assert caught.value.exit_code in (1, 2)
    return message


def warned(source: Source, *words: str) -> bool:
    return any(all(word in line for word in words) for line in source.warnings)
