"""The model of one store, for longer than ``make test`` has time for."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.storage.test_protocol import Protocol

LONG = settings(max_examples=150, stateful_step_count=30, deadline=None)


@pytest.mark.crash
@pytest.mark.timeout(3600)
class TestLongProtocol(Protocol.TestCase):  # type: ignore[name-defined, misc]
    settings = LONG
