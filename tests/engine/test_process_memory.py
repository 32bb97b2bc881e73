"""What a process starts from, and what it gives back."""

from __future__ import annotations

import gc

import numpy as np

from krepes_ooc.engine import budget, machine


class _Loop:
    """An array that only a search for cycles can free."""

    def __init__(self, n_bytes: int) -> None:
        self.values = np.ones(n_bytes, dtype=np.uint8)
        self.loop = self


def test_cycles_are_looked_for_only_after_growth() -> None:
    budget.release()
    held = machine.anonymous_bytes()
    gc.disable()
    try:
        _Loop(4 * budget.COLLECT_BYTES)
        assert machine.anonymous_bytes() > held + 3 * budget.COLLECT_BYTES
        budget.release(2 * machine.anonymous_bytes())
        assert machine.anonymous_bytes() > held + 3 * budget.COLLECT_BYTES
        budget.release(held)
        assert machine.anonymous_bytes() < held + budget.COLLECT_BYTES
    finally:
        gc.enable()


def test_the_base_counts_the_libraries() -> None:
    base = budget.base_bytes()
    assert 50 << 20 < base <= machine.anonymous_bytes() + budget.COLLECT_BYTES
