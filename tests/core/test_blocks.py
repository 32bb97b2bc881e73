from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core.blocks import (
    BLOCK_BYTES,
    MAX_SHARD_BLOCKS,
    MIN_BLOCK_ROWS,
    MIN_SHARDS,
    BlockPlan,
    choose_block_plan,
    floor_power_of_two,
    format_bytes,
    parse_bytes,
)
from krepes_ooc.errors import UsageError

PLANS = st.builds(
    choose_block_plan,
    st.integers(1, 200_000),
    st.integers(1, 200_000),
    block_rows=st.none() | st.integers(8, 14).map(lambda power: 2**power),
    forward_batch=st.integers(0, 8).map(lambda power: 2**power),
)


@given(PLANS)
def test_blocks_hold_every_row_exactly_once(plan: BlockPlan):
    blocks = list(plan.blocks())
    assert [block.index for block in blocks] == list(range(plan.n_blocks))
    assert blocks[0].start == 0
    assert blocks[-1].stop == plan.n_samples
    for left, right in itertools.pairwise(blocks):
        assert left.stop == right.start
        assert left.rows == plan.block_rows
    assert 1 <= blocks[-1].rows <= plan.block_rows


@given(PLANS)
def test_shards_hold_every_block_exactly_once(plan: BlockPlan):
    shards = [plan.shard(index) for index in range(plan.n_shards)]
    assert [block for shard in shards for block in shard] == list(plan.blocks())
    assert all(1 <= len(shard) <= plan.shard_blocks for shard in shards)
    assert plan.shard_blocks <= MAX_SHARD_BLOCKS
    assert plan.n_shards >= min(MIN_SHARDS, plan.n_blocks)


@given(PLANS)
def test_batches_and_products_never_straddle_blocks(plan: BlockPlan):
    assert plan.block_rows % plan.forward_batch == 0
    assert plan.block_rows % plan.sub_rows == 0
    assert plan.block_rows >= MIN_BLOCK_ROWS
    assert plan.block_rows & (plan.block_rows - 1) == 0


@given(st.integers(1, 10**9), st.integers(1, 10**6))
def test_chosen_block_is_within_its_bytes_unless_it_is_the_smallest(n_samples: int, row_bytes: int):
    plan = choose_block_plan(n_samples, row_bytes)
    assert plan.block_rows == MIN_BLOCK_ROWS or plan.block_rows * row_bytes <= BLOCK_BYTES


def test_chosen_block_is_the_largest_that_fits():
    assert choose_block_plan(10**6, 8192).block_rows == 2048
    assert choose_block_plan(10**6, 8193).block_rows == 1024
    assert choose_block_plan(10**6, 10**8).block_rows == 256
    assert choose_block_plan(10**6, 10**8, forward_batch=1024).block_rows == 1024


@given(PLANS)
def test_plan_survives_json(plan: BlockPlan):
    assert BlockPlan.from_attributes(json.loads(json.dumps(plan.to_attributes()))) == plan


@pytest.mark.parametrize(
    ("rows", "nearest"), [(300, 256), (100, 64), (4, 8), (0, 8), (-4, 8), (5000, 4096)]
)
def test_unfit_block_rows_are_refused_with_the_nearest_fit(rows: int, nearest: int):
    with pytest.raises(UsageError) as caught:
        choose_block_plan(1000, 100, block_rows=rows, forward_batch=4)
    assert str(caught.value) == (
        f"stages.features: block_rows is {rows}; expected a power of two of at least 8; "
        f"take {nearest}"
    )
    choose_block_plan(1000, 100, block_rows=nearest, forward_batch=4)


def test_a_recipe_can_fix_blocks_of_a_few_costly_rows():
    plan = choose_block_plan(128, 8192, block_rows=16, forward_batch=8)
    assert (plan.n_blocks, plan.n_shards, plan.sub_rows) == (8, 8, 16)
    assert [block.rows for block in plan.blocks()] == [16] * 8


@pytest.mark.parametrize(("batch", "nearest"), [(300, 256), (0, 1), (-1, 1), (1024, 512), (7, 4)])
def test_unfit_forward_batch_is_refused_with_a_fit(batch: int, nearest: int):
    with pytest.raises(UsageError) as caught:
        choose_block_plan(1000, 100, block_rows=512, forward_batch=batch)
    assert str(caught.value) == (
        f"stages.features: forward_batch {batch} does not divide block_rows 512; "
        f"expected a divisor, because batches never straddle blocks; take {nearest}"
    )
    choose_block_plan(1000, 100, block_rows=512, forward_batch=nearest)


@given(st.integers(-5, 10**12))
def test_floor_power_of_two(value: int):
    power = floor_power_of_two(value)
    assert power & (power - 1) == 0
    assert power == 1 if value < 1 else power <= value < 2 * power


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (17, 17),
        ("17", 17),
        ("17 B", 17),
        ("2GiB", 2 * 2**30),
        (" 500 MB ", 500 * 10**6),
        ("1.5kib", 1536),
        ("1TiB", 2**40),
        ("1TB", 10**12),
    ],
)
def test_sizes_are_read(text: str | int, size: int):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "0", "0 GiB", "2 XB", "2GiB x", "1e3", "nan", "2,5 GB"]
)
def test_unreadable_sizes_are_refused(text: str):
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert str(caught.value) == (
        f"{text!r} is no size in bytes; expected a positive size such as 2GiB or 500MB"
    )


@pytest.mark.parametrize("text", ["0.5", "9" * 400])
def test_sizes_outside_of_any_memory_are_refused(text: str):
    with pytest.raises(UsageError, match="is no size in bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (2**30, "1.0 GiB"),
        (3 * 2**40, "3.0 TiB"),
        (5000 * 2**40, "5000.0 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_sizes_are_written_for_people(size: float, text: str):
    assert format_bytes(size) == text


@given(st.integers(1, 2**50))
def test_written_sizes_read_back_to_three_digits(size: int):
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.06)
