"""Share of the cases of every campaign: ``make crash SHARE=0.1`` draws a tenth of them."""

from __future__ import annotations

import os

SHARE = float(os.environ.get("SHARE", "1"))


def share_of(cases: int, least: int = 1) -> int:
    """So many cases of a whole campaign, at least a few.

    Args:
        cases: of the whole campaign.
        least: cases that are drawn whatever the share.
    """
    return max(least, round(cases * SHARE))
