from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core.blocks import parse_bytes
from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import (
    LARGE_BATCH,
    Budget,
    MemoryNeed,
    allocator_bytes,
    default_budget,
)
from krepes_ooc.errors import PlanRefused, UsageError
from tests import small

MIB = 2**20
SIZES = st.integers(0, 2**40)


def test_refusal_says_both_numbers_and_the_knob():
    with pytest.raises(PlanRefused) as caught:
        Budget(500 * MIB, 4).workers_for("kernel", MemoryNeed(200 * MIB, 300 * MIB), 100 * MIB)
    assert str(caught.value) == (
        "stage kernel: one worker needs 600.0 MiB of memory; "
        "expected at most --memory 500.0 MiB; "
        "raise --memory to 660.0 MiB"
    )
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("memory", "expected"), [(599, 0), (600, 1), (899, 1), (900, 2), (1500, 4), (9000, 4)]
)
def test_workers_follow_from_memory(memory: int, expected: int):
    budget, need = Budget(memory, 4), MemoryNeed(200, 300)
    assert budget.workers_that_fit(need, 100) == expected
    if expected:
        assert budget.workers_for("kernel", need, 100) == expected


def test_stage_that_holds_nothing_takes_all_workers():
    assert Budget(10, 3).workers_that_fit(MemoryNeed(), 10) == 3
    assert Budget(10, 3).workers_that_fit(MemoryNeed(), 11) == 0
    assert Budget(10, 3).workers_that_fit(MemoryNeed(5, 0), 5) == 3
    assert Budget(10, 3).workers_that_fit(MemoryNeed(6, 0), 5) == 0


def test_no_more_workers_than_tasks():
    assert Budget(1000, 4).workers_that_fit(MemoryNeed(0, 100, 3), 0) == 3
    assert Budget(1000, 4).workers_that_fit(MemoryNeed(0, 0, 3), 0) == 3
    assert Budget(200, 4).workers_that_fit(MemoryNeed(0, 100, 3), 0) == 2
    assert Budget(1000, 4).workers_that_fit(MemoryNeed(0, 100, 3).of_process(0), 0) == 4


@given(SIZES, st.integers(1, 64), SIZES, SIZES, SIZES)
def test_what_is_granted_fits_and_one_more_would_not(
    memory: int, workers: int, fixed: int, per_worker: int, base: int
):
    granted = Budget(memory, workers).workers_that_fit(MemoryNeed(fixed, per_worker), base)
    assert 0 <= granted <= workers
    if granted:
        assert base + fixed + granted * per_worker <= memory
    if granted < workers:
        assert base + fixed + (granted + 1) * per_worker > memory


@given(SIZES, SIZES, SIZES)
def test_advice_is_enough(fixed: int, per_worker: int, base: int):
    need = MemoryNeed(fixed, per_worker)
    if base + fixed + per_worker < 1:
        return
    with pytest.raises(PlanRefused) as caught:
        Budget(base + fixed + per_worker - 1, 2).workers_for("kernel", need, base)
    text = re.search(r"raise --memory to (\S+ \S+)$", str(caught.value))
    assert text is not None
    assert Budget(parse_bytes(text[1]), 2).workers_for("kernel", need, base) >= 1


def test_default_budget_is_what_was_asked_for():
    assert default_budget(7 * MIB, 3) == Budget(7 * MIB, 3)


def test_default_budget_follows_the_machine():
    budget = default_budget(None, None)
    assert budget.workers == len(os.sched_getaffinity(0))
    assert 0 < budget.memory <= machine.available_bytes()


@pytest.mark.parametrize("workers", [0, -2])
def test_no_workers_are_refused(workers: int):
    with pytest.raises(UsageError, match=f"--workers: {workers} workers; expected at least 1"):
        default_budget(None, workers)


# Arrays of 1 to 40 MiB by turns, freed in any order between small objects that stay.
LAYERS = """
import random
import sys
import torch
from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import bound_allocator, release
bound_allocator(int(sys.argv[1]))
draw, before, stay = random.Random(0), machine.anonymous_bytes(), []
peak, peak_in_use, kept = 0, 0, 0
for _ in range(8):
    arrays = []
    for _ in range(40):
        arrays.append(torch.ones(draw.randint(1, 40) << 18))
        stay.append(bytearray(1000))
        if draw.random() < 0.3:
            del arrays[draw.randrange(len(arrays))]
        peak_in_use = max(peak_in_use, sum(array.nbytes for array in arrays))
        peak = max(peak, machine.anonymous_bytes() - before)
    del arrays
    kept = machine.anonymous_bytes() - before
bound_allocator()
release()
print(peak, peak_in_use, kept, machine.anonymous_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the bounds are those of glibc")
@pytest.mark.parametrize("batch", [0, LARGE_BATCH])
def test_the_allocator_takes_no_more_than_a_plan_counts(batch: int) -> None:
    command = [sys.executable, "-c", LAYERS, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=small.ROOT)
    peak, peak_in_use, kept, left = map(int, done.stdout.split())
    assert peak <= peak_in_use + allocator_bytes(batch)
    assert left <= allocator_bytes()
    # What a large network frees is there for the next batch.
    assert (kept > allocator_bytes()) == bool(batch)


# Batches of layers in a thread of the executor, after others in the main thread.
THREADS = """
import random
import sys
import torch
from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import LARGE_BATCH, bound_allocator
from krepes_ooc.engine.executor import Executor
bound_allocator(LARGE_BATCH)
trims, before, stay, peaks, in_use = sys.argv[1] == "True", machine.anonymous_bytes(), [], [], []
def batch(seed):
    draw, arrays = random.Random(seed), []
    for _ in range(40):
        arrays.append(torch.ones(draw.randint(1, 40) << 18))
        stay.append(bytearray(1000))
        if draw.random() < 0.3:
            del arrays[draw.randrange(len(arrays))]
        in_use.append(sum(array.nbytes for array in arrays))
        peaks.append(machine.anonymous_bytes() - before)
for _ in range(4):
    batch(0)
    if trims:
        machine.trim()
    list(Executor(1, trims=trims).map(batch, [0, 0]))
print(max(peaks), max(in_use))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the bounds are those of glibc")
@pytest.mark.parametrize("trims", [False, True])
def test_threads_do_not_each_keep_a_batch(trims: bool) -> None:
    command = [sys.executable, "-c", THREADS, str(trims)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=small.ROOT)
    peak, peak_in_use = map(int, done.stdout.split())
    assert (peak <= peak_in_use + allocator_bytes(LARGE_BATCH)) == trims
