"""Seeded views of samples; every draw is keyed by (seed, view, stream, sample id, column).

A view is drawn in the units of the raw sample and encoded afterwards, so that it can be displayed
like the sample itself. It is bitwise the same under any batching, order of calls or thread.
View -1 is the clean sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.settings import digest_mapping
from krepes_ooc.errors import SourceError
from krepes_ooc.sources.base import Float32, Int64, Source, Tabular
from krepes_ooc.views.image import ImageViews
from krepes_ooc.views.spec import CLEAN, ViewSpec
from krepes_ooc.views.table import TableViews
from krepes_ooc.views.user import UserViews

# Stream of the counter-based generator that keys the epochs of training.
_EPOCH_STREAM = 0x65706F63


class Views:
    """The views of one source under one seed.

    Args:
        spec: the recipe key ``views``.
        source: where the samples come from.
        seed: key of all draws.
        base: folder of the recipe, where the file of a callable is looked up.
        live: the callable of a script, where the recipe's function is ``live``.

    Raises:
        SourceError: a family of views that does not fit the source, a column that it lacks, or a
            callable that cannot be loaded.
        DataError: a callable fails, or gives two views of one sample under one seed.
    """

    def __init__(
        self,
        spec: ViewSpec,
        source: Source,
        seed: int,
        base: Path | None = None,
        live: Callable[..., Any] | None = None,
    ) -> None:
        self.spec = spec
        self.source = source
        self.seed = seed
        self.base = base
        self.kind = _choose_family(spec, source)
        self._family: TableViews | ImageViews | UserViews
        if self.kind == "image":
            self._family = ImageViews.from_settings(spec, source)
        elif self.kind == "table":
            self._family = TableViews(spec, cast("Tabular", source))
        else:
            folder = base or Path.cwd()
            self._family = UserViews(spec.function, folder, source.columns, live)
            # Before any block is computed: the code of the user is not believed.
            self._family.check_repeatable(source, tuple({0, spec.count - 1}), seed)

    def with_seed(self, seed: int) -> Views:
        """The same views under another seed."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def apply(
        self, raw: npt.NDArray[Any], sample_id: Int64, view: int, seed: int | None = None
    ) -> npt.NDArray[Any]:
        """One view of raw samples [sample, ...], in raw units; view -1 is the clean sample.

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
        # Positions in the source are the sample ids: draws do not depend on the store order.
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
        """Network inputs [sample, ...] of each requested view; the samples are read once."""
        raw = self.source.read(positions)
        return tuple(self.inputs(raw, positions, view, epoch_seed) for view in view_ids)

    def batch(self, positions: Int64, epoch: int) -> tuple[Float32, ...]:
        """Network inputs of all views, drawn anew for each epoch of training."""
        # Another key for each epoch: training sees fresh views, a resumed epoch the same ones.
        epoch_seed = int(counter_rng.bits(self.seed, _EPOCH_STREAM, epoch))
        return self.draw(positions, range(self.spec.count), epoch_seed)

    def describe(self) -> dict[str, Any]:
        """Everything that defines the views, as JSON, for the digest."""
        return {
            "seed": self.seed,
            "family": self.kind,
            **digest_mapping(self.spec),
            **self._family.describe(),
        }


def _choose_family(spec: ViewSpec, source: Source) -> str:
    # A named function is used even under "auto".
    if spec.kind == "callable" or (spec.kind == "auto" and spec.function):
        if not spec.function:
            raise SourceError(
                "callable views need a function",
                where="views.function",
                expected="module:callable or path/to/file.py:callable",
            )
        return "callable"
    # The source decides: pixels, rows with marginals, or neither.
    if source.kind == "image":
        family = "image"
    elif hasattr(source, "marginal_rows"):
        family = "table"
    else:
        family = "callable"
    if spec.kind not in ("auto", family) or family == "callable":
        raise SourceError(
            f"no {spec.kind} views for a source of kind {source.kind!r}",
            where="views.kind",
            expected=family,
            advice=_advice(source) if family == "callable" else "",
        )
    return family


def _advice(source: Source) -> str:
    """Advice for a source without views: the source's own, or a function."""
    advice = "name your own views in views.function"
    hint = getattr(source, "advice", "")
    return f"{hint}; else {advice}" if hint else advice
