"""The sealed moments of an audit, read whole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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


def second_moment(moments: StoreReader) -> npt.NDArray[np.float64]:
    """Un-centred second moment, mean over views [landmark, landmark_].

    Args:
        moments: reader of the store ``moments``.
    """
    mean, second = moments.array("mean"), moments.whole("second")
    parts = [second[a, a] + np.outer(mu, mu) for a, mu in enumerate(mean)]
    return np.asarray(sum(parts) / len(parts))
