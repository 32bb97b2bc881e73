"""The browser of these tests: where it is, and the marks of every file that opens a page."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
NEEDS_CHROMIUM = [
    pytest.mark.browser,
    # One whole audit, minutes on a busy machine
    pytest.mark.timeout(600),
    pytest.mark.skipif(not find_spec("playwright"), reason="no playwright: make browser"),
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium"),
]
