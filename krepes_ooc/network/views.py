"""Seeded views of samples; every draw is keyed by (seed, view, stream, sample id, column).

A view is made in the units of the raw sample and encoded afterwards, so one record of a view can be
shown to people as it is. It is bitwise the same under any batching, order of calls or thread.
View -1 is the clean sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from krepes_ooc import counter
from krepes_ooc.errors import SourceError
from krepes_ooc.network.imageviews import ImageViews
from krepes_ooc.network.samples import Float32, Float64, Int64, Source, Tabular
from krepes_ooc.network.userviews import UserViews
from krepes_ooc.settings import setting, to_mapping

CLEAN = -1
_CORRUPT, _ROW, _NOISE = 1, 2, 3
_EPOCH_STREAM = 0x65706F63


@dataclass(frozen=True)
class ViewSpec:
    """The recipe key ``views``: how the views of a sample are drawn.

    A number ``auto`` is chosen by the kind of view: noise 0.1; shift an eighth of the shorter side,
    at least one pixel.
    """

    count: int = setting(2, about="views of each sample", minimum=1, maximum=16)
    kind: Literal["auto", "image", "table", "callable"] = setting("auto", about="family of views")
    corruption: float = setting(
        0.3,
        about="tables: share of cells replaced by a draw from their column",
        minimum=0,
        maximum=1,
    )
    keep: tuple[str, ...] = setting((), about="tables: columns that are never changed")
    noise: float = setting(
        0.1, about="noise; tables: in standard deviations, images: in full scales", minimum=0
    )
    shift: int | Literal["auto"] = setting(
        "auto", about="images: largest shift in pixels", minimum=0
    )
    flip: bool = setting(False, about="images: mirror left and right, half of the time")
    crop: float = setting(
        1.0, about="images: smallest area of a random crop, 1 for none", above=0, maximum=1
    )
    jitter: float = setting(
        0.0, about="images: largest relative change of brightness and contrast", minimum=0, below=1
    )
    function: str = setting(
        "", about="module:callable or file.py:callable, view(x, sample_id, view_id, seed)"
    )


class Views:
    """The views of one source under one seed.

    Args:
        spec: the recipe key ``views``.
        source: where the samples come from.
        seed: key of all draws.
        base: folder of the recipe, where the file of a callable is looked up.

    Raises:
        SourceError: a family of views that does not fit the source, a column that it lacks, or a
            callable that cannot be loaded.
    """

    def __init__(self, spec: ViewSpec, source: Source, seed: int, base: Path | None = None) -> None:
        self.spec, self.source, self.seed, self.base = spec, source, seed, base
        self.kind = _family(spec, source)
        self._family: _TableViews | ImageViews | UserViews
        if self.kind == "image":
            self._family = ImageViews.fitted(spec, source)
        elif self.kind == "table":
            self._family = _TableViews(spec, cast(Tabular, source))
        else:
            self._family = UserViews(spec.function, base or Path.cwd())

    def apply(
        self, raw: npt.NDArray[Any], sample_id: Int64, view: int, seed: int | None = None
    ) -> npt.NDArray[Any]:
        """One view of raw samples [sample, ...], in raw units; view -1 gives them back unchanged.

        Args:
            raw: what ``source.read`` gave.
            sample_id: positions in the source [sample].
            view: index of the view, or -1.
            seed: another key than that of the run (training draws fresh views each epoch).

        Raises:
            DataError: a user callable returned something that is no view.
        """
        if view == CLEAN:
            return raw
        key = self.seed if seed is None else seed
        return self._family(raw, np.asarray(sample_id, dtype=np.int64), view, key)

    def inputs(
        self, raw: npt.NDArray[Any], sample_id: Int64, view: int, seed: int | None = None
    ) -> Float32:
        """The network's input [sample, ...] for one view of raw samples."""
        return self.source.encode(self.apply(raw, sample_id, view, seed))

    def draw(
        self, positions: Int64, view_ids: Sequence[int], epoch_seed: int
    ) -> tuple[Float32, ...]:
        """Read samples once and give the network's input for each of the views asked for."""
        raw = self.source.read(positions)
        return tuple(self.inputs(raw, positions, view, epoch_seed) for view in view_ids)

    def batch(self, positions: Int64, epoch: int) -> tuple[Float32, ...]:
        """All views of these samples, drawn afresh for this epoch of training."""
        epoch_seed = int(counter.bits(self.seed, _EPOCH_STREAM, epoch))
        return self.draw(positions, range(self.spec.count), epoch_seed)

    def describe(self) -> dict[str, Any]:
        """What defines the views, as JSON, for the digest."""
        return {
            "seed": self.seed,
            "family": self.kind,
            **to_mapping(self.spec),
            **self._family.describe(),
        }


class _TableViews:
    """SCARF (Bahri et al., 2022): cells replaced by draws from their column, then noise."""

    def __init__(self, spec: ViewSpec, source: Tabular) -> None:
        names = [column.name for column in source.columns]
        width = source.bank.shape[1]
        unknown = [name for name in spec.keep if name not in names]
        if unknown:
            raise SourceError(
                f"no column {unknown[0]!r} to keep",
                where="views.keep",
                expected="one of " + ", ".join(map(repr, names)),
            )
        changed = [c.shown and c.name not in spec.keep for c in source.columns]
        # Vectors have numbers without names: all of them change.
        self._columns = np.flatnonzero(changed) if names else np.arange(width)
        self._share, self._bank = spec.corruption, source.bank
        self._noise = spec.noise * source.spread

    def __call__(self, raw: npt.NDArray[Any], sample_id: Int64, view: int, seed: int) -> Float64:
        changed = np.array(raw, dtype=np.float64)
        sample, column = sample_id[:, None], self._columns[None, :]
        cells = changed[:, self._columns]
        replaced = counter.uniform(seed, view, _CORRUPT, sample, column) < self._share
        row = counter.integers(seed, len(self._bank), view, _ROW, sample, column)
        cells = np.where(replaced, self._bank[row, column], cells)
        noisy = np.flatnonzero(self._noise[self._columns])
        if noisy.size:
            drawn = counter.normal(seed, view, _NOISE, sample, column[:, noisy])
            cells[:, noisy] += drawn * self._noise[self._columns[noisy]]
        changed[:, self._columns] = cells
        return changed

    def describe(self) -> dict[str, Any]:
        return {}


def _family(spec: ViewSpec, source: Source) -> str:
    if spec.kind == "callable" or (spec.kind == "auto" and spec.function):
        if not spec.function:
            raise SourceError(
                "callable views need a function",
                where="views.function",
                expected="module:callable or path/to/file.py:callable",
            )
        return "callable"
    fits = "image" if source.kind == "image" else "table" if hasattr(source, "bank") else "callable"
    if spec.kind not in ("auto", fits) or fits == "callable":
        raise SourceError(
            f"no {spec.kind} views for a source of kind {source.kind!r}",
            where="views.kind",
            expected=fits,
            advice="name your own views in views.function" if fits == "callable" else "",
        )
    return fits
