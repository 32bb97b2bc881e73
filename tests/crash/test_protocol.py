"""The model of one store, for longer than ``make test`` has time for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings

from tests.crash.share import share_of
from tests.storage.test_protocol import Protocol

LONG = settings(max_examples=share_of(150), stateful_step_count=30, deadline=None)


@pytest.mark.crash
@pytest.mark.timeout(3600)
class TestLongProtocol(Protocol.TestCase):  # type: ignore[name-defined, misc]
    settings = LONG

    @pytest.fixture(autouse=True)
    def _row(self, campaign_row: Callable[..., None]) -> None:
        campaign_row(cases=LONG.max_examples)
