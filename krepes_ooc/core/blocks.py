"""Blocks of samples: the unit of work, of writing and of resuming.

Integers only. The plan is chosen once, when the features store is created; it is written into that
store and never chosen again, so neither the memory budget nor the worker count can change a bit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from krepes_ooc.errors import UsageError

# Chunks of 16 MiB read at full speed; products of 2 MiB stay in a processor's cache.
BLOCK_BYTES = 16 * 2**20
SUB_BLOCK_BYTES = 2 * 2**20
MAX_SUB_ROWS = 512
MIN_BLOCK_ROWS = 256
# The least that a recipe can fix: rows of a large network take seconds each, and few of them are
# all that a killed run should lose.
LEAST_FIXED_ROWS = 8
# A shard is one task of a cluster and one partial sum: enough of them for every worker.
MAX_SHARD_BLOCKS = 32
MIN_SHARDS = 16
# Landmarks of one side of a tile: a constant that no memory budget changes, because the width of a
# matrix product can change its rounding.
TILE = 2048


@dataclass(frozen=True)
class Block:
    """A range [start, stop) of store rows with its index in the grid."""

    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of samples in the block."""
        return self.stop - self.start


@dataclass(frozen=True)
class BlockPlan:
    """Partition of n samples into blocks, batches and shards.

    Args:
        n_samples: rows of the store.
        block_rows: rows of one block = rows of one chunk; a power of two.
        forward_batch: samples of one forward pass; divides ``block_rows``.
        sub_rows: rows of one matrix product inside a block; divides ``block_rows``.
        shard_blocks: consecutive blocks whose reduction gives one partial.
    """

    n_samples: int
    block_rows: int
    forward_batch: int
    sub_rows: int
    shard_blocks: int

    @property
    def n_blocks(self) -> int:
        """Number of blocks; the last one may be short."""
        return -(-self.n_samples // self.block_rows)

    @property
    def n_shards(self) -> int:
        """Number of shards; the last one may hold fewer blocks."""
        return -(-self.n_blocks // self.shard_blocks)

    def block(self, index: int) -> Block:
        """The block with this index."""
        start = index * self.block_rows
        return Block(index, start, min(start + self.block_rows, self.n_samples))

    def blocks(self) -> Iterator[Block]:
        """All blocks in order; together they hold every row exactly once."""
        return (self.block(index) for index in range(self.n_blocks))

    def shard(self, index: int) -> tuple[Block, ...]:
        """The consecutive blocks of one shard."""
        first = index * self.shard_blocks
        return tuple(
            self.block(i) for i in range(first, min(first + self.shard_blocks, self.n_blocks))
        )

    def to_attributes(self) -> dict[str, int]:
        """The plan as a JSON mapping, for the store's attributes and the digest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> BlockPlan:
        """The plan that a store was created with."""
        return cls(**{field.name: int(attributes[field.name]) for field in dataclasses.fields(cls)})


def choose_block_plan(
    n_samples: int,
    row_bytes: int,
    *,
    block_rows: int | None = None,
    forward_batch: int = 256,
    sub_row_bytes: int | None = None,
) -> BlockPlan:
    """Choose the largest power-of-two block whose widest chunk stays within ``BLOCK_BYTES``.

    Args:
        n_samples: rows of the store, at least 1.
        row_bytes: bytes of one row of the widest array.
        block_rows: rows of one block if the recipe fixes them.
        forward_batch: samples of one forward pass.
        sub_row_bytes: bytes of one row inside a matrix product (default: ``2 * row_bytes``).

    Raises:
        UsageError: a fixed ``block_rows`` is no power of two of at least ``LEAST_FIXED_ROWS``, or
            ``forward_batch`` does not divide it.
    """
    if block_rows is None:
        # A chunk is stored whole, so a small source must not be padded to a large block.
        enough = 2 * floor_power_of_two(max(1, n_samples - 1))
        fitting = floor_power_of_two(BLOCK_BYTES // max(1, row_bytes))
        block_rows = max(MIN_BLOCK_ROWS, min(fitting, enough), floor_power_of_two(forward_batch))
    elif block_rows < LEAST_FIXED_ROWS or block_rows & (block_rows - 1):
        raise UsageError(
            f"block_rows is {block_rows}",
            where="stages.features",
            expected=f"a power of two of at least {LEAST_FIXED_ROWS}",
            advice=f"take {max(LEAST_FIXED_ROWS, floor_power_of_two(max(1, block_rows)))}",
        )
    # Batches never straddle blocks: the bits of a row depend on the batch it is computed in.
    if forward_batch < 1 or block_rows % forward_batch:
        raise UsageError(
            f"forward_batch {forward_batch} does not divide block_rows {block_rows}",
            where="stages.features",
            expected="a divisor, because batches never straddle blocks",
            advice=f"take {min(block_rows, floor_power_of_two(max(1, forward_batch)))}",
        )
    # Rows of one matrix product: in the cache, but not so few that calls dominate.
    sub_rows = floor_power_of_two(SUB_BLOCK_BYTES // max(1, sub_row_bytes or 2 * row_bytes))
    # Shards of up to 32 blocks, fewer where that would leave less than 16 shards.
    n_blocks = -(-n_samples // block_rows)
    return BlockPlan(
        n_samples=n_samples,
        block_rows=block_rows,
        forward_batch=forward_batch,
        sub_rows=min(block_rows, max(64, min(MAX_SUB_ROWS, sub_rows))),
        shard_blocks=max(1, min(MAX_SHARD_BLOCKS, n_blocks // MIN_SHARDS)),
    )


def tile_slices(n_landmarks: int) -> list[slice]:
    """The landmark ranges of the tiles, in order; a single one up to ``TILE`` landmarks."""
    return [slice(a, min(a + TILE, n_landmarks)) for a in range(0, n_landmarks, TILE)]


def floor_power_of_two(value: int) -> int:
    """The largest power of two that is at most ``value`` (1 for values below 1)."""
    return 1 << (max(1, value).bit_length() - 1)


_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {f"{_letter}IB": 2 ** (10 * _power), f"{_letter}B": 10 ** (3 * _power)}


def parse_bytes(text: str | int) -> int:
    """Bytes from a number or from text such as ``2GiB``, ``500 MB``.

    Raises:
        UsageError: the text is no positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    size = float(match[1]) * _UNITS.get(match[2].upper(), 0) if match else 0.0
    if not 1 <= size < 2**63:
        raise UsageError(
            f"{text!r} is no size in bytes", expected="a positive size such as 2GiB or 500MB"
        )
    return int(size)


def format_bytes(size: float) -> str:
    """Bytes for people: ``1.5 GiB``."""
    # Divide until the number has at most four digits before the point.
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
