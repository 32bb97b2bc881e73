"""Groups and their moments as the sealed stores hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block, BlockPlan
from krepes_ooc.stages.group_moments.group_sums import GroupMoments, rest_of, union
from krepes_ooc.storage.store_reader import StoreReader

Codes = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StoredGroups:
    """Membership of samples in groups.

    Args:
        reader: the store groups.
    """

    reader: StoreReader

    @cached_property
    def names(self) -> list[str]:
        """Name of every group."""
        return [str(name) for name in self.reader.attributes["names"]]

    @cached_property
    def partition(self) -> Codes:
        """Partition of every group [group]."""
        return self.reader.array("partition")

    @cached_property
    def code(self) -> Codes:
        """Code of every group in its partition [group]."""
        return self.reader.array("code")

    @cached_property
    def count(self) -> Codes:
        """Samples of every group [group]."""
        return self.reader.array("count")

    def whole_partition(self, n_samples: int) -> int | None:
        """The first partition whose groups hold every sample, or None."""
        for partition in np.unique(self.partition):
            if self.count[self.partition == partition].sum() == n_samples:
                return int(partition)
        return None

    def rows(self, block: Block, group: int) -> npt.NDArray[np.intp]:
        """Rows of a block that belong to a group."""
        level = self.reader.block("level", block)
        return np.flatnonzero(level[:, self.partition[group]] == self.code[group])

    def levels_of(self, sample_id: Codes, plan: BlockPlan) -> Codes:
        """Codes [sample, partition] of some samples of the source, in their order."""
        order = np.argsort(sample_id, kind="stable")
        wanted = sample_id[order]
        found = np.empty((len(wanted), self.reader.info("level").shape[1]), dtype=np.int64)
        for block in plan.blocks():
            ids = self.reader.block("sample_id", block)
            rows = np.flatnonzero(np.isin(ids, wanted))
            if rows.size:
                level = self.reader.block("level", block)[rows]
                first = np.searchsorted(wanted, ids[rows], side="left")
                last = np.searchsorted(wanted, ids[rows], side="right")
                for row, start, stop in zip(level, first, last, strict=True):
                    found[order[start:stop]] = row
        return found

    def members(self, levels: Codes, group: int) -> npt.NDArray[np.bool_]:
        """Whether samples belong to a group [sample], from their codes [sample, partition]."""
        return np.asarray(levels[:, self.partition[group]] == self.code[group])


@dataclass(frozen=True)
class StoredGroupMoments:
    """Moments of groups.

    Args:
        reader: the store group_moments.
        groups: membership.
    """

    reader: StoreReader
    groups: StoredGroups

    @property
    def n_samples(self) -> int:
        """Samples in all."""
        return int(self.reader.attributes["n_samples"])

    def total(self) -> GroupMoments:
        """Moments of all samples; the second moments are mapped, not copied."""
        second = np.asarray(self.reader.whole("total_second"))
        return GroupMoments(self.n_samples, self.reader.array("total_mean"), second)

    def group(self, group: int) -> GroupMoments:
        """Moments of one group; the second moments are mapped, not copied."""
        block = Block(group, group, group + 1)
        mean = np.array(self.reader.block("mean", block)[0])
        count = int(self.groups.count[group])
        return GroupMoments(count, mean, self.reader.block("second", block)[0])

    def rest(self, group: int) -> GroupMoments:
        """Moments of all samples but a group; the sum of the other groups if it is the larger part.

        Raises:
            ValueError: no sample is left.
        """
        same = np.flatnonzero(self.groups.partition == self.groups.partition[group])
        whole = self.groups.count[same].sum() == self.n_samples
        rest = self.n_samples - int(self.groups.count[group])
        if rest and whole and 2 * rest < self.n_samples:
            return union(self._groups(same[same != group]), self.reader.array("total_mean"))
        return rest_of(self.total(), self.group(group))

    def _groups(self, groups: Codes) -> Iterator[GroupMoments]:
        return (self.group(int(group)) for group in groups)
