"""Sketch all parameter gradients of a sample into one row whose inner products estimate the kernel.

Two sketches, both unbiased and summed over parameters into the same columns:

* fold: entry i of a gradient is added, with a random sign, to column (offset + i) mod q, with q the
  largest prime below the number of columns. A prime, because a stride that divides the widths of
  the layers would add up rows that belong together. (A count sketch, Charikar et al. 2002.)
* tensor: a gradient sum_t d_t a_t^T is sketched as sum_t C1 d_t * C2 a_t, a circular convolution of
  two count sketches, without ever forming the gradient (TensorSketch, Pham and Pagh 2013).

Which one a parameter gets follows from shapes alone, never from timings, so that a resumed run
continues with the same bits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from krepes_ooc.core import counter_rng
from krepes_ooc.jacobian.layer_gradients import (
    ConvGradient,
    EmbeddingGradient,
    GradientTerm,
    OuterProduct,
)

_SIGNS, _OFFSET, _CHUNK, _ROW, _LEFT, _RIGHT = range(221, 227)
TABLE_ROWS = 251
TENSOR_ROWS = 64
SCRATCH, TILE_SAMPLES = 2**19, 8
FEW_POSITIONS = 64
# Nanoseconds on one CPU core, measured; they only decide between two correct ways.
_TENSOR_NS, _FOLD_NS, _PRODUCT_NS = 20_000 / 4096, 1.0, 2 / 70


@dataclass(frozen=True)
class ParameterSketch:
    """How one parameter is sketched.

    Args:
        parameter: canonical name.
        shape: shape of the parameter.
        tensor: whether by TensorSketch; otherwise by fold.
    """

    parameter: str
    shape: tuple[int, ...]
    tensor: bool

    def to_attributes(self) -> dict[str, str]:
        """The slot as JSON."""
        return {"parameter": self.parameter, "sketch": "tensor" if self.tensor else "fold"}


def plan_sketches(
    pieces: Iterable[GradientTerm], shapes: dict[str, tuple[int, ...]], n_columns: int
) -> tuple[ParameterSketch, ...]:
    """The cheaper sketch of each parameter, from the shapes of its pieces.

    Args:
        pieces: all pieces of a few samples.
        shapes: shape of each audited parameter, in network order.
        n_columns: columns of the sketch.
    """
    positions = dict.fromkeys(shapes, 0)
    factored = dict.fromkeys(shapes, True)
    for piece in pieces:
        if isinstance(piece, OuterProduct):
            positions[piece.parameter] += piece.inputs.shape[1]
        elif isinstance(piece, ConvGradient) and piece.groups == 1 and len(piece.stride) < 3:
            positions[piece.parameter] += piece.n_positions
        else:
            factored[piece.parameter] = False
    slots = []
    for name, shape in shapes.items():
        size, n_positions = int(np.prod(shape, dtype=np.int64)), positions[name]
        tensor_cost = _TENSOR_NS * n_positions * n_columns
        fold_cost = size * (_FOLD_NS + _PRODUCT_NS * n_positions)
        tensor = factored[name] and n_positions > 0 and tensor_cost < fold_cost
        slots.append(ParameterSketch(name, shape, tensor))
    return tuple(slots)


class Sketch:
    """The linear map from gradients to rows; read-only, shared by all threads.

    Args:
        slots: how each parameter is sketched.
        n_columns: columns of a row.
        n_probes: probes whose gradients are added up, with independent signs.
        seed: key of all signs and positions.
    """

    def __init__(
        self, slots: Sequence[ParameterSketch], n_columns: int, n_probes: int, seed: int
    ) -> None:
        self.slots, self.n_columns, self.prime = tuple(slots), n_columns, largest_prime(n_columns)
        row, column = np.arange(TABLE_ROWS)[:, None], np.arange(self.prime)[None, :]
        self.table = _signs(seed, _SIGNS, row, column)
        self.maps: dict[str, _FoldSketch | _TensorSketch] = {
            slot.parameter: (_TensorSketch if slot.tensor else _FoldSketch)(
                self, slot, index, n_probes, seed
            )
            for index, slot in enumerate(slots)
        }

    def to(self, where: str) -> Sketch:
        """The same sketch on a device of torch."""
        twin = copy.deepcopy(self)
        twin.table = twin.table.to(where)
        for each in twin.maps.values():
            each.move(where)
        return twin

    def open_rows(self, n_samples: int) -> SketchRows:
        """Empty rows for a batch."""
        return SketchRows(self, n_samples)


class SketchRows:
    """Rows in the making; one batch, one thread."""

    def __init__(self, sketch: Sketch, n_samples: int) -> None:
        self.sketch = sketch
        place = sketch.table.device
        self.direct = torch.zeros(n_samples, sketch.n_columns, device=place)
        self._scratch = torch.empty(0, device=place)
        self.spectrum: torch.Tensor | None = None
        if any(slot.tensor for slot in sketch.slots):
            shape = (n_samples, sketch.n_columns // 2 + 1)
            self.spectrum = torch.zeros(shape, dtype=torch.complex64, device=place)

    def add(self, piece: GradientTerm, probe: int) -> None:
        """Add one piece of the gradient of one probe."""
        self.sketch.maps[piece.parameter].add(self, piece, probe)

    def scratch(self, numbers: int) -> torch.Tensor:
        """The one buffer of this batch: fresh memory comes slower than it is filled."""
        if len(self._scratch) < numbers:
            self._scratch = torch.empty(numbers, device=self.direct.device)
        return self._scratch[:numbers]

    def finish(self) -> torch.Tensor:
        """The finished rows [sample, column]."""
        if self.spectrum is None:
            return self.direct
        tensored: torch.Tensor = torch.fft.irfft(self.spectrum, self.sketch.n_columns)
        return self.direct + tensored


class _FoldSketch:
    def __init__(
        self, sketch: Sketch, slot: ParameterSketch, index: int, n_probes: int, seed: int
    ) -> None:
        self.sketch, self.shape = sketch, slot.shape
        self.width = int(np.prod(slot.shape[1:], dtype=np.int64))
        self.n_rows = slot.shape[0] if slot.shape else 1
        probe = np.arange(n_probes)
        self.offsets = counter_rng.integers(seed, sketch.prime, _OFFSET, index, probe).tolist()
        self.first_row = int(counter_rng.integers(seed, TABLE_ROWS, _OFFSET, index, -1))
        n_chunks = -(-(self.n_rows * self.width) // sketch.prime) + 1
        # The table of signs repeats; a sign of its own for every chunk keeps chunks independent.
        self.chunk_signs = _signs(seed, _CHUNK, index, np.arange(n_chunks))
        self.chunk_values: list[float] = self.chunk_signs.tolist()
        self.row_signs = _signs(seed, _ROW, index, probe[:, None], np.arange(self.n_rows)[None, :])

    def move(self, where: str) -> None:
        """Go to a device of torch."""
        self.chunk_signs, self.row_signs = self.chunk_signs.to(where), self.row_signs.to(where)

    def add(self, rows: SketchRows, piece: GradientTerm, probe: int) -> None:
        if isinstance(piece, EmbeddingGradient):
            self._add_tokens(rows.direct, piece, probe)
        elif isinstance(piece, OuterProduct):
            self._add_outer(rows, piece, probe)
        elif isinstance(piece, ConvGradient):
            self._add_patches(rows, piece, probe)
        else:
            values = piece.values.reshape(len(piece.values), -1, self.width)
            signs = self.row_signs[probe, piece.start : piece.start + values.shape[1]]
            direct = rows.direct[piece.first : piece.first + len(values)]
            self._fold(direct, (values * signs[:, None]).flatten(1), piece.start, probe)

    def _add_outer(self, rows: SketchRows, piece: OuterProduct, probe: int) -> None:
        """Form the gradient tile by tile in one small buffer, and fold each tile."""
        direct, n_rows = rows.direct, piece.gradients.shape[2]
        signs = self.row_signs[probe, piece.start : piece.start + n_rows]
        gradients = (piece.gradients * signs).to(direct.dtype).transpose(1, 2)
        inputs = piece.inputs.to(direct.dtype)
        tile_rows = min(n_rows, max(1, SCRATCH // TILE_SAMPLES // self.width))
        tile_samples = max(1, SCRATCH // (tile_rows * self.width))
        for first in range(0, len(direct), tile_samples):
            part = slice(first, first + tile_samples)
            for row in range(0, n_rows, tile_rows):
                left, right = gradients[part, row : row + tile_rows], inputs[part]
                shape = (len(left), left.shape[1], self.width)
                tile = rows.scratch(math.prod(shape)).view(shape)
                torch.bmm(left, right, out=tile)
                self._fold(direct[part], tile.flatten(1), piece.start + row, probe)

    def _add_patches(self, rows: SketchRows, piece: ConvGradient, probe: int) -> None:
        few = piece.n_positions <= FEW_POSITIONS and len(piece.stride) < 3
        if few and piece.groups == 1:
            self._add_outer(rows, piece.unfold(), probe)
            return
        direct, signs = rows.direct, self.row_signs[probe][:, None]
        tile_samples = max(1, SCRATCH // (self.n_rows * self.width))
        for first in range(0, len(direct), tile_samples):
            last = min(first + tile_samples, len(direct))
            shape = (last - first, self.n_rows, self.width)
            tile = rows.scratch(math.prod(shape)).view(shape)
            for place, sample in enumerate(range(first, last)):
                torch.mul(piece.weights(sample).flatten(1), signs, out=tile[place])
            self._fold(direct[first:last], tile.flatten(1), 0, probe)

    def _fold(self, direct: torch.Tensor, values: torch.Tensor, row: int, probe: int) -> None:
        """Add values[sample, entry] that start at a row of the parameter."""
        prime, table = self.sketch.prime, self.sketch.table
        place, done = self.offsets[probe] + row * self.width, 0
        while done < values.shape[1]:
            chunk, column = divmod(place + done, prime)
            size = min(prime - column, values.shape[1] - done)
            direct[:, column : column + size].addcmul_(
                values[:, done : done + size],
                table[(chunk + self.first_row) % TABLE_ROWS, column : column + size],
                value=self.chunk_values[chunk],
            )
            done += size

    def _add_tokens(self, direct: torch.Tensor, piece: EmbeddingGradient, probe: int) -> None:
        prime = self.sketch.prime
        place = piece.index[:, :, None] * self.width + torch.arange(
            self.width, device=piece.index.device
        )
        place = place + self.offsets[probe]
        chunk, column = place // prime, place % prime
        signs = self.sketch.table[(chunk + self.first_row) % TABLE_ROWS, column]
        signs = signs * self.chunk_signs[chunk] * self.row_signs[probe][piece.index][:, :, None]
        direct.scatter_add_(1, column.flatten(1), (piece.gradients * signs).flatten(1))


class _TensorSketch:
    def __init__(
        self, sketch: Sketch, slot: ParameterSketch, index: int, n_probes: int, seed: int
    ) -> None:
        self.sketch = sketch
        self.width = int(np.prod(slot.shape[1:], dtype=np.int64))
        self.right = _CountSpectrum(sketch.n_columns, self.width, seed, _RIGHT, index)
        self.left = [
            _CountSpectrum(sketch.n_columns, slot.shape[0], seed, _LEFT, index, probe)
            for probe in range(n_probes)
        ]

    def move(self, where: str) -> None:
        """Go to a device of torch."""
        for part in (self.right, *self.left):
            part.place, part.signs = part.place.to(where), part.signs.to(where)

    def add(self, rows: SketchRows, piece: GradientTerm, probe: int) -> None:
        outer = piece.unfold() if isinstance(piece, ConvGradient) else piece
        assert isinstance(outer, OuterProduct)
        assert rows.spectrum is not None
        n_samples, n_positions, _ = outer.inputs.shape
        step = max(1, TENSOR_ROWS // n_positions)
        for first in range(0, n_samples, step):
            part = slice(first, first + step)
            product = self.left[probe].spectrum(outer.gradients[part], outer.start)
            product *= self.right.spectrum(outer.inputs[part])
            rows.spectrum[part] += product.sum(dim=1)


class _CountSpectrum:
    """A signed, hashed copy of vectors, each block of n_columns entries without collisions."""

    def __init__(self, n_columns: int, width: int, seed: int, *keys: int) -> None:
        self.n_columns = n_columns
        blocks = [
            np.argsort(counter_rng.bits(seed, *keys, block, np.arange(n_columns)), kind="stable")
            for block in range(-(-width // n_columns))
        ]
        self.place = torch.from_numpy(np.concatenate(blocks)[:width].astype(np.int64))
        self.signs = _signs(seed, *keys, -1, np.arange(width))

    def spectrum(self, values: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Fourier transform of the sketch of values[sample, position, entry]."""
        part = slice(start, start + values.shape[2])
        hashed = values.new_zeros(*values.shape[:2], self.n_columns)
        hashed.index_add_(2, self.place[part], values * self.signs[part])
        transformed: torch.Tensor = torch.fft.rfft(hashed)
        return transformed


def largest_prime(limit: int) -> int:
    """The largest prime that is at most ``limit``, which is 2 or more."""
    return next(n for n in range(limit, 1, -1) if all(n % k for k in range(2, int(n**0.5) + 1)))


def _signs(seed: int, *keys: object) -> torch.Tensor:
    drawn = counter_rng.bits(seed, *keys) >> np.uint64(63)  # type: ignore[arg-type]
    return torch.from_numpy(1.0 - 2.0 * drawn.astype(np.float32))
