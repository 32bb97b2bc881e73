"""Settings of stage landmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from krepes_ooc.core.settings import setting
from krepes_ooc.errors import UsageError
from krepes_ooc.views.spec import CLEAN

# Measured on digits and Adult: docs/results.md.
MIN_AUTO = 1000


@dataclass(frozen=True)
class LandmarksSettings:
    """Recipe key ``stages.landmarks``."""

    sampler: Literal["kmeans-parallel", "kmeans++", "leverage", "uniform"] = setting(
        "kmeans-parallel", about="how the landmarks are chosen"
    )
    count: int | Literal["auto"] = setting(
        "auto",
        about="number of landmarks; auto: the smallest of 256, 512, 1024, ... whose Nystrom error "
        "over the views is at most 0.1, at most max(1000, sqrt(n)) and n / 2",
        minimum=1,
    )
    rounds: int = setting(5, about="passes of kmeans-parallel that draw candidates", minimum=1)
    oversampling: float = setting(0.5, about="candidates per round over landmarks", above=0)
    rows: Literal["clean", "views", "both"] = setting(
        "clean",
        about="rows of the landmarks: their clean samples, view 0 that they were chosen by, or "
        "both: every view, each with coefficients of its own",
        digest_omits="clean",
    )

    def row_views(self, n_views: int) -> tuple[int, ...]:
        """Views of a landmark's rows, CLEAN for the clean sample.

        Args:
            n_views: views of a sample.
        """
        return {"clean": (CLEAN,), "views": (0,), "both": tuple(range(n_views))}[self.rows]


def count_landmarks(settings: LandmarksSettings, n_samples: int) -> int:
    """Number of landmarks m; with ``auto`` the largest that the rule may choose.

    Args:
        settings: settings of the stage.
        n_samples: samples of the source.

    Raises:
        UsageError: more landmarks than samples.
    """
    if settings.count == "auto":
        return min(max(1, n_samples // 2), max(MIN_AUTO, math.ceil(math.sqrt(n_samples))))
    if settings.count > n_samples:
        raise UsageError(
            f"{settings.count} landmarks of {n_samples} samples",
            where="stages.landmarks.count",
            expected=f"at most {n_samples}",
            advice="lower it, or take auto",
        )
    return settings.count
