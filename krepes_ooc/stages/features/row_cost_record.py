"""Description and measured cost of the feature rows, for plan, log and report.

The measured cost is stored beside the stores, because it is no part of their bits.
"""

from __future__ import annotations

from typing import Any

from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.core.settings import read_recorded_settings
from krepes_ooc.jacobian.feature_map import FeatureMap
from krepes_ooc.jacobian.row_cost import RowCost, row_words
from krepes_ooc.stages.base.inputs import Rows
from krepes_ooc.stages.base.sizes import MEASURED, AuditSizes
from krepes_ooc.stages.features.featurizer import FeaturesSettings
from krepes_ooc.storage.learned_files import read_learned, write_learned
from krepes_ooc.storage.workspace import Workspace

_FILE = "row-cost.json"


def describe_rows(
    shared: FeatureMap, settings: FeaturesSettings, calibration: Rows
) -> tuple[dict[str, str], RowCost]:
    """Description of the rows of a feature map, and their cost, measured now.

    Args:
        shared: the feature map.
        settings: settings of the features.
        calibration: network inputs [sample, ...] whose rows are timed.
    """
    from krepes_ooc.jacobian.row_cost import measure_rows

    described = shared.describe()
    words = row_words(described, len(described["probes"]), shared.layout.n_features, settings)
    cost = measure_rows(shared, calibration)
    return words | {"cost": cost.words}, cost


def save_row_cost(workspace: Workspace, digest: str, cost: RowCost, sizes: AuditSizes) -> None:
    """Write the measured cost of a row, and its measured sizes, into the workspace.

    Args:
        workspace: of the audit.
        digest: of the features stage.
        cost: of a row.
        sizes: of the audit.
    """
    measured = cost.to_attributes() | {key: getattr(sizes, key) for key in MEASURED}
    write_learned(workspace.private, _FILE, digest, measured)


def load_measured(workspace: Workspace) -> dict[str, Any]:
    """The measured sizes of a row by their names in ``AuditSizes``; none where not recorded."""
    known = _read_measured(workspace) or {}
    return {key: known[key] for key in MEASURED if key in known}


def load_row_description(workspace: Workspace) -> tuple[dict[str, str], RowCost | None] | None:
    """Description of the rows of a features store that was begun, and their cost if recorded."""
    begun = workspace.record("features", "features").begun()
    if begun is None or "features" not in workspace.stores():
        return None
    attributes = workspace.reader("features").attributes
    # A run killed between creating the store and writing its attributes left no description.
    if "network" not in attributes:
        return None
    settings = read_recorded_settings(FeaturesSettings, begun.get("settings"), "features")
    layout = FeatureLayout.from_attributes(attributes["layout"])
    n_probes = len(attributes["probes"])
    words = row_words(attributes["network"], n_probes, layout.n_features, settings)
    known = _read_measured(workspace)
    if known is None:
        return words, None
    cost = RowCost.from_attributes(known)
    return words | {"cost": cost.words}, cost


def _read_measured(workspace: Workspace) -> dict[str, Any] | None:
    """Cost and sizes of the features that were begun; those of another run are none."""
    begun = workspace.record("features", "features").begun() or {}
    return read_learned(workspace.private, _FILE, str(begun.get("digest", "")))
