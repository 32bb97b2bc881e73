"""Rows of a landmark, from the record of the landmarks, for stages that do not read their store."""

from __future__ import annotations

from krepes_ooc.core.settings import read_recorded_settings
from krepes_ooc.stages.base.stage import StageContext
from krepes_ooc.stages.landmarks.landmark_settings import LandmarksSettings


def rows_of_landmarks(context: StageContext) -> int:
    """Rows of every landmark.

    Args:
        context: of a stage whose inputs were computed from the store ``landmarks``.
    """
    begun = context.workspace.record("landmarks", "landmarks").begun() or {}
    settings = read_recorded_settings(LandmarksSettings, begun.get("settings"), "landmarks")
    # One row each needs no number of views, which a stage by itself does not know.
    return 1 if context.sizes is None else len(settings.row_views(context.sizes.n_views))
