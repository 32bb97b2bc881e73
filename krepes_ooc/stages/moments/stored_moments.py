"""The sealed moments of an audit, read whole."""

from __future__ import annotations

from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.storage.store_reader import StoreReader


def read_moments(moments: StoreReader) -> Moments:
    """The sealed moments; second moments of a single tile are mapped, not copied.

    Args:
        moments: reader of the store ``moments``.
    """
    return Moments(
        moments.array("mean"), moments.whole("second"), int(moments.attributes["n_samples"])
    )
