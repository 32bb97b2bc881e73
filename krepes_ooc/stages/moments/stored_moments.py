"""The sealed moments of an audit, read whole."""

from __future__ import annotations

from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.moments.moments import Moments


def read_moments(context: StageContext) -> Moments:
    """The sealed moments; second moments of a single tile are mapped, not copied."""
    reader = context.reader("moments")
    return Moments(
        reader.array("mean"), reader.whole("second"), int(reader.attributes["n_samples"])
    )
