"""Sketches of all parameter gradients of a sample: rows whose inner products estimate the kernel.

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
from krepes_ooc.jacobian.gradients.layer_gradients import (
    ConvGradient,
    EmbeddingGradient,
    GradientTerm,
    OuterProduct,
)

# Streams of the counter-based generator.
_SIGNS, _OFFSET, _CHUNK, _ROW, _LEFT, _RIGHT = range(221, 227)
# Rows of the table of signs; chunk k of a parameter uses row (first_row + k) mod TABLE_ROWS.
TABLE_ROWS = 251
TENSOR_ROWS = 64
# Numbers in the buffer of a tile, and samples that share it.
SCRATCH = 2**19
TILE_SAMPLES = 8
MAX_UNFOLDED_POSITIONS = 64
# Nanoseconds on one CPU core, measured; they only decide between two correct sketches.
_TENSOR_NS = 20_000 / 4096
_FOLD_NS = 1.0
_PRODUCT_NS = 2 / 70


@dataclass(frozen=True)
class ParameterSketch:
    """Sketch of one parameter.

    Args:
        parameter: canonical name.
        shape: shape of the parameter.
        tensor: whether by TensorSketch; otherwise by fold.
    """

    parameter: str
    shape: tuple[int, ...]
    tensor: bool

    def to_attributes(self) -> dict[str, str]:
        """The choice as JSON."""
        return {"parameter": self.parameter, "sketch": "tensor" if self.tensor else "fold"}


def plan_sketches(
    terms: Iterable[GradientTerm], shapes: dict[str, tuple[int, ...]], n_columns: int
) -> tuple[ParameterSketch, ...]:
    """Cheaper sketch of each parameter, from the shapes of its terms.

    Args:
        terms: all terms of a few samples.
        shapes: shape of each audited parameter, in network order.
        n_columns: columns of the sketch.
    """
    positions = dict.fromkeys(shapes, 0)
    factored = dict.fromkeys(shapes, True)
    for term in terms:
        # Only a sum of outer products can be sketched without being formed.
        if isinstance(term, OuterProduct):
            positions[term.parameter] += term.inputs.shape[1]
        elif isinstance(term, ConvGradient) and term.groups == 1 and len(term.stride) < 3:
            positions[term.parameter] += term.n_positions
        else:
            factored[term.parameter] = False
    sketches = []
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64))
        n_positions = positions[name]
        # One transform a position, against forming and adding every entry of the gradient.
        tensor_cost = _TENSOR_NS * n_positions * n_columns
        fold_cost = size * (_FOLD_NS + _PRODUCT_NS * n_positions)
        tensor = factored[name] and n_positions > 0 and tensor_cost < fold_cost
        sketches.append(ParameterSketch(name, shape, tensor))
    return tuple(sketches)


class Sketch:
    """Linear map from gradients to rows; read-only, shared by all threads.

    Args:
        sketches: the sketch of each parameter.
        n_columns: columns of a row.
        n_probes: probes whose gradients are added up, with independent signs.
        seed: key of all signs and positions.
    """

    def __init__(
        self, sketches: Sequence[ParameterSketch], n_columns: int, n_probes: int, seed: int
    ) -> None:
        self.sketches = tuple(sketches)
        self.n_columns = n_columns
        self.prime = largest_prime(n_columns)
        row = np.arange(TABLE_ROWS)[:, None]
        column = np.arange(self.prime)[None, :]
        # One table of signs for all parameters: signs for every entry would be as large as the
        # network.
        self.table = _signs(seed, _SIGNS, row, column)
        self.maps: dict[str, _FoldSketch | _TensorSketch] = {
            planned.parameter: (_TensorSketch if planned.tensor else _FoldSketch)(
                self, planned, index, n_probes, seed
            )
            for index, planned in enumerate(sketches)
        }

    def to(self, device: str) -> Sketch:
        """The same sketch on a device of torch."""
        moved = copy.deepcopy(self)
        moved.table = moved.table.to(device)
        for parameter_map in moved.maps.values():
            parameter_map.move(device)
        return moved

    def dense_rows(self, name: str, gradients: torch.Tensor, probe: int) -> torch.Tensor:
        """Rows [sample, column] of one parameter's whole gradients [sample, *parameter].

        The same linear map as that of the terms, entry by entry, without any factored form: slow,
        for checks.
        """
        return self.maps[name].dense_rows(gradients, probe)

    def open_rows(self, n_samples: int) -> SketchRows:
        """Empty rows for a batch."""
        return SketchRows(self, n_samples)


class SketchRows:
    """Rows of one batch under construction; used by one thread.

    Folded gradients are added in place; TensorSketches are added as Fourier coefficients and
    transformed back once, because the transform is linear.
    """

    def __init__(self, sketch: Sketch, n_samples: int) -> None:
        self.sketch = sketch
        device = sketch.table.device
        self.folded = torch.zeros(n_samples, sketch.n_columns, device=device)
        self._scratch = torch.empty(0, device=device)
        self.spectrum: torch.Tensor | None = None
        if any(planned.tensor for planned in sketch.sketches):
            shape = (n_samples, sketch.n_columns // 2 + 1)
            self.spectrum = torch.zeros(shape, dtype=torch.complex64, device=device)

    def add(self, term: GradientTerm, probe: int) -> None:
        """Add one term of the gradient for one probe."""
        self.sketch.maps[term.parameter].add(self, term, probe)

    def scratch(self, numbers: int) -> torch.Tensor:
        """The buffer of this batch: allocating memory takes longer than filling it."""
        if len(self._scratch) < numbers:
            self._scratch = torch.empty(numbers, device=self.folded.device)
        return self._scratch[:numbers]

    def finish(self) -> torch.Tensor:
        """The finished rows [sample, column]."""
        if self.spectrum is None:
            return self.folded
        # The product of spectra is the convolution of the two count sketches.
        tensored: torch.Tensor = torch.fft.irfft(self.spectrum, self.sketch.n_columns)
        return self.folded + tensored


class _FoldSketch:
    """Count sketch of one parameter by folding at a prime number of columns."""

    def __init__(
        self, sketch: Sketch, planned: ParameterSketch, index: int, n_probes: int, seed: int
    ) -> None:
        self.sketch = sketch
        self.shape = planned.shape
        self.width = int(np.prod(planned.shape[1:], dtype=np.int64))
        self.n_rows = planned.shape[0] if planned.shape else 1
        probe = np.arange(n_probes)
        # Each parameter and probe starts at a column and at a row of the table of its own.
        self.offsets = counter_rng.integers(seed, sketch.prime, _OFFSET, index, probe).tolist()
        self.first_row = int(counter_rng.integers(seed, TABLE_ROWS, _OFFSET, index, -1))
        n_chunks = -(-(self.n_rows * self.width) // sketch.prime) + 1
        # The table of signs repeats; a sign of its own for every chunk keeps chunks independent.
        self.chunk_signs = _signs(seed, _CHUNK, index, np.arange(n_chunks))
        self.chunk_values: list[float] = self.chunk_signs.tolist()
        # A sign for each row and probe: probes are independent, and so are rows in one chunk.
        self.row_signs = _signs(seed, _ROW, index, probe[:, None], np.arange(self.n_rows)[None, :])

    def move(self, device: str) -> None:
        """Move the tables to a device of torch, in place."""
        self.chunk_signs = self.chunk_signs.to(device)
        self.row_signs = self.row_signs.to(device)

    def add(self, rows: SketchRows, term: GradientTerm, probe: int) -> None:
        if isinstance(term, EmbeddingGradient):
            self._fold_tokens(rows.folded, term, probe)
        elif isinstance(term, OuterProduct):
            self._fold_outer(rows, term, probe)
        elif isinstance(term, ConvGradient):
            self._fold_patches(rows, term, probe)
        else:
            # Dense gradients: the sign of each row, then the fold.
            values = term.values.reshape(len(term.values), -1, self.width)
            signs = self.row_signs[probe, term.start : term.start + values.shape[1]]
            folded = rows.folded[term.first : term.first + len(values)]
            self._fold(folded, (values * signs[:, None]).flatten(1), term.start, probe)

    def dense_rows(self, gradients: torch.Tensor, probe: int) -> torch.Tensor:
        """Rows [sample, column] of whole gradients; see ``Sketch.dense_rows``."""
        size = self.n_rows * self.width
        # Entry i goes to column (offset + i) mod prime: with the signs of row, chunk and table.
        entry = torch.arange(size)
        position = entry + self.offsets[probe]
        chunk = position // self.sketch.prime
        column = position % self.sketch.prime
        signs = self.sketch.table[(chunk + self.first_row) % TABLE_ROWS, column]
        signs = signs * self.chunk_signs[chunk] * self.row_signs[probe][entry // self.width]
        rows = gradients.new_zeros(len(gradients), self.sketch.n_columns)
        return rows.index_add_(1, column, gradients.reshape(len(gradients), size) * signs)

    def _fold_outer(self, rows: SketchRows, term: OuterProduct, probe: int) -> None:
        """Form the gradient tile by tile in one small buffer, and fold each tile."""
        folded = rows.folded
        n_rows = term.gradients.shape[2]
        signs = self.row_signs[probe, term.start : term.start + n_rows]
        # The signs of the rows go to the factor d, which has one entry a row.
        gradients = (term.gradients * signs).to(folded.dtype).transpose(1, 2)
        inputs = term.inputs.to(folded.dtype)
        # Tiles that stay in the cache: never the whole gradient of a batch.
        tile_rows = min(n_rows, max(1, SCRATCH // TILE_SAMPLES // self.width))
        tile_samples = max(1, SCRATCH // (tile_rows * self.width))
        for first in range(0, len(folded), tile_samples):
            part = slice(first, first + tile_samples)
            for row in range(0, n_rows, tile_rows):
                left = gradients[part, row : row + tile_rows]
                right = inputs[part]
                shape = (len(left), left.shape[1], self.width)
                tile = rows.scratch(math.prod(shape)).view(shape)
                torch.bmm(left, right, out=tile)
                self._fold(folded[part], tile.flatten(1), term.start + row, probe)

    def _fold_patches(self, rows: SketchRows, term: ConvGradient, probe: int) -> None:
        """Fold the weight gradients of a convolution, formed sample by sample."""
        # Few positions: cheaper as an outer product over unfolded patches.
        few = term.n_positions <= MAX_UNFOLDED_POSITIONS and len(term.stride) < 3
        if few and term.groups == 1:
            self._fold_outer(rows, term.unfold(), probe)
            return
        folded = rows.folded
        signs = self.row_signs[probe][:, None]
        tile_samples = max(1, SCRATCH // (self.n_rows * self.width))
        for first in range(0, len(folded), tile_samples):
            last = min(first + tile_samples, len(folded))
            shape = (last - first, self.n_rows, self.width)
            tile = rows.scratch(math.prod(shape)).view(shape)
            for index, sample in enumerate(range(first, last)):
                torch.mul(term.weights(sample).flatten(1), signs, out=tile[index])
            self._fold(folded[first:last], tile.flatten(1), 0, probe)

    def _fold(self, folded: torch.Tensor, values: torch.Tensor, row: int, probe: int) -> None:
        """Add values[sample, entry] that start at a row of the parameter."""
        prime = self.sketch.prime
        table = self.sketch.table
        start = self.offsets[probe] + row * self.width
        done = 0
        while done < values.shape[1]:
            chunk, column = divmod(start + done, prime)
            # Up to the end of this chunk: one table row, one sign.
            size = min(prime - column, values.shape[1] - done)
            folded[:, column : column + size].addcmul_(
                values[:, done : done + size],
                table[(chunk + self.first_row) % TABLE_ROWS, column : column + size],
                value=self.chunk_values[chunk],
            )
            done += size

    def _fold_tokens(self, folded: torch.Tensor, term: EmbeddingGradient, probe: int) -> None:
        """Scatter the gradient of each token to the columns of its row of the table."""
        prime = self.sketch.prime
        # The same positions as in _fold: entry (row, j) at offset + row * width + j.
        position = term.index[:, :, None] * self.width + torch.arange(
            self.width, device=term.index.device
        )
        position = position + self.offsets[probe]
        chunk = position // prime
        column = position % prime
        signs = self.sketch.table[(chunk + self.first_row) % TABLE_ROWS, column]
        # The three signs of _fold: table, chunk, row.
        signs = signs * self.chunk_signs[chunk] * self.row_signs[probe][term.index][:, :, None]
        folded.scatter_add_(1, column.flatten(1), (term.gradients * signs).flatten(1))


class _TensorSketch:
    """TensorSketch of one parameter: a count sketch of each side, multiplied as spectra."""

    def __init__(
        self, sketch: Sketch, planned: ParameterSketch, index: int, n_probes: int, seed: int
    ) -> None:
        self.sketch = sketch
        self.width = int(np.prod(planned.shape[1:], dtype=np.int64))
        self.right = _CountSpectrum(sketch.n_columns, self.width, seed, _RIGHT, index)
        self.left = [
            _CountSpectrum(sketch.n_columns, planned.shape[0], seed, _LEFT, index, probe)
            for probe in range(n_probes)
        ]

    def move(self, device: str) -> None:
        """Move the tables to a device of torch, in place."""
        for part in (self.right, *self.left):
            part.columns = part.columns.to(device)
            part.signs = part.signs.to(device)

    def add(self, rows: SketchRows, term: GradientTerm, probe: int) -> None:
        outer = term.unfold() if isinstance(term, ConvGradient) else term
        assert isinstance(outer, OuterProduct)
        assert rows.spectrum is not None
        # Transforms of about TENSOR_ROWS vectors at a time stay in the cache.
        n_samples, n_positions, _ = outer.inputs.shape
        step = max(1, TENSOR_ROWS // n_positions)
        for first in range(0, n_samples, step):
            part = slice(first, first + step)
            product = self.left[probe].spectrum(outer.gradients[part], outer.start)
            # C1 d and C2 a as spectra: their product is the spectrum of the TensorSketch.
            product *= self.right.spectrum(outer.inputs[part])
            # Sum over positions: a gradient is a sum of outer products.
            rows.spectrum[part] += product.sum(dim=1)

    def dense_rows(self, gradients: torch.Tensor, probe: int) -> torch.Tensor:
        """Rows [sample, column] of whole gradients; see ``Sketch.dense_rows``."""
        left, n_columns = self.left[probe], self.sketch.n_columns
        rows = gradients.new_zeros(len(gradients), n_columns)
        values = gradients.reshape(len(gradients), len(left.columns), self.width)
        # Entry (i, j) goes to column h(i) + h'(j) with both signs; a few rows at a time.
        step = max(1, SCRATCH // self.width)
        for first in range(0, len(left.columns), step):
            part = slice(first, first + step)
            columns = (left.columns[part, None] + self.right.columns) % n_columns
            signed = values[:, part] * (left.signs[part, None] * self.right.signs)
            rows.index_add_(1, columns.flatten(), signed.flatten(1))
        return rows


class _CountSpectrum:
    """Spectrum of a count sketch in which n_columns consecutive entries never collide."""

    def __init__(self, n_columns: int, width: int, seed: int, *keys: int) -> None:
        self.n_columns = n_columns
        # Each block of entries is a random permutation of the columns.
        blocks = [
            np.argsort(counter_rng.bits(seed, *keys, block, np.arange(n_columns)), kind="stable")
            for block in range(-(-width // n_columns))
        ]
        self.columns = torch.from_numpy(np.concatenate(blocks)[:width].astype(np.int64))
        self.signs = _signs(seed, *keys, -1, np.arange(width))

    def spectrum(self, values: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Fourier transform of the sketch of values[sample, position, entry]."""
        part = slice(start, start + values.shape[2])
        hashed = values.new_zeros(*values.shape[:2], self.n_columns)
        hashed.index_add_(2, self.columns[part], values * self.signs[part])
        transformed: torch.Tensor = torch.fft.rfft(hashed)
        return transformed


def largest_prime(limit: int) -> int:
    """Largest prime that is at most ``limit``, which is 2 or more."""
    return next(n for n in range(limit, 1, -1) if all(n % k for k in range(2, int(n**0.5) + 1)))


def _signs(seed: int, *keys: object) -> torch.Tensor:
    """Keyed random signs, float32."""
    drawn = counter_rng.bits(seed, *keys) >> np.uint64(63)  # type: ignore[arg-type]
    return torch.from_numpy(1.0 - 2.0 * drawn.astype(np.float32))
