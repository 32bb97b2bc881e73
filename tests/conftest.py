"""One thread for every library: the cores belong to the test processes, and bits stay the same."""

from __future__ import annotations

import gc
import os
import sys

import pytest

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Processes that tests start load compiled modules; this one writes none: tests edit modules, and a
# compiled one counts as new for as long as size and second stay the same.
sys.dont_write_bytecode = True
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

FROZEN = pytest.StashKey[int]()  # modules that were loaded then
NEW_MODULES = 200


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what collection has loaded out of every later search for cycles.

    A run searches for them before it measures memory: among all tests and libraries that takes
    0.3 s each time.
    """
    _freeze(session.config)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Leave out libraries too that a test has loaded."""
    if len(sys.modules) > item.config.stash[FROZEN] + NEW_MODULES:
        _freeze(item.config)


def _freeze(config: pytest.Config) -> None:
    gc.collect()
    gc.freeze()
    config.stash[FROZEN] = len(sys.modules)
