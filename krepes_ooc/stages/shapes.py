"""Sizes of an audit, known before its first block: what plan and budget are computed from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from krepes_ooc.blocks import BlockPlan


@dataclass(frozen=True)
class AuditShape:
    """Integers only.

    Args:
        n_views: views of a sample.
        n_features: columns of a feature row.
        n_moments: numbers in the centre.
        n_outputs: audited outputs of the network.
        n_parameters: audited parameters of the network.
        n_landmarks: landmarks m.
        n_components: components h at most.
        n_audited: audited samples, fit samples included.
        kernel_itemsize: bytes of one stored kernel value.
        plan: block plan of the n-sized stores.
    """

    n_views: int
    n_features: int
    n_moments: int
    n_outputs: int
    n_parameters: int
    n_landmarks: int
    n_components: int
    n_audited: int
    kernel_itemsize: int
    plan: BlockPlan

    @property
    def stored_rows(self) -> int:
        """Rows on disk: the last chunk is stored whole."""
        return self.plan.n_blocks * self.plan.block_rows

    def to_attributes(self) -> dict[str, Any]:
        """The sizes as JSON, for the ticket of the features."""
        return dataclasses.asdict(self)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> AuditShape:
        """The sizes that the features were begun with."""
        values = {key: int(value) for key, value in attributes.items() if key != "plan"}
        return cls(**values, plan=BlockPlan.from_attributes(attributes["plan"]))
