"""Groups that a recipe declares: labels, columns, ranges, landmark clusters, or a file of ids."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import RecipeError, UsageError
from krepes_ooc.sources.base import Source, check_samples
from krepes_ooc.stages.groups.partitions import NONE, level_codes, range_codes, range_names

LABEL = "label"
WHERE = "stages.groups"
LEAST_LEVELS, MOST_LEVELS = 2, 50
# Each costs a solve: at m = 1000 about 8 CPU-seconds, where all other stages of an audit of 50,000
# rows take 100 to 150.
AUTO_LIMIT = 24
FILE_HEADER = ["group", "sample"]
HALF: Literal["half"] = "half"
_HALF_STREAM = 522
Codes = npt.NDArray[np.int64]
Kind = Literal["landmarks", "label", "column", "range", "file", "half", "concepts"]


@dataclass(frozen=True)
class GroupsSettings:
    """Recipe key ``stages.groups``."""

    clusters: int = setting(
        12, about="clusters of landmarks, each sample with its nearest landmark; 0: none", minimum=0
    )
    columns: dict[str, tuple[str, ...]] | Literal["auto"] = setting(
        "auto",
        about="levels by categorical column, or label; []: all of them; auto: such columns "
        f"with {LEAST_LEVELS} to {MOST_LEVELS} levels, those of fewest levels first, up to "
        "auto_limit groups",
    )
    auto_limit: int = setting(
        AUTO_LIMIT,
        about="groups that clusters and the columns of auto are together at most; the plan lists "
        "the columns that are left out",
        minimum=1,
        digest_omits=AUTO_LIMIT,
    )
    ranges: dict[str, tuple[float, ...]] = setting(
        {}, about="ascending edges by numeric column; the groups lie between them"
    )
    file: str = setting(
        "", about="CSV file with columns group and sample, sample a position in the source"
    )
    halves: int = setting(
        0,
        about="random halves of the samples as further groups, for the datamodeling score of "
        "stage retraining",
        minimum=0,
        digest_omits=0,
    )
    limit: int = setting(1000, about="groups at most; each has moments of its own", minimum=1)
    concepts: bool = setting(
        False,
        about="discovered concepts, each sample with the one that its view 0 shows",
        digest_omits=False,
    )

    @property
    def files(self) -> tuple[str, ...]:
        """Files whose content the result depends on."""
        return (self.file,) if self.file else ()


@dataclass(frozen=True)
class Partition:
    """One way to cut the samples; its groups never overlap.

    Args:
        kind: how it was declared.
        name: of the column or of the group.
        groups: names of its groups, in the order of their codes.
        column: index of the column; -1: none.
        chosen: level code of every group, for levels of a column or label.
        edges: ascending edges, for ranges.
        sample_id: sorted positions of the members, for a group of a file.
        halved: number of samples and key of the draw, for a random half.
    """

    kind: Kind
    name: str
    groups: tuple[str, ...]
    column: int = NONE
    chosen: tuple[int, ...] = ()
    edges: tuple[float, ...] = ()
    sample_id: Codes = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    halved: tuple[int, int] = (0, 0)

    def codes(self, positions: Codes, rows: npt.NDArray[Any] | None, labels: Codes) -> Codes:
        """Code of every sample [sample]; clusters and concepts are coded from the kernel instead.

        Args:
            positions: positions in the source [sample].
            rows: table rows [sample, column], where a partition needs them.
            labels: label codes [sample].
        """
        if self.kind == "file":
            return np.where(np.isin(positions, self.sample_id), 0, NONE).astype(np.int64)
        if self.kind == HALF:
            # The half that a keyed permutation puts first: exactly n // 2 samples, no table.
            n_samples, key = self.halved
            first = counter_rng.Bijection(n_samples, key)(positions) < n_samples // 2
            return np.where(first, 0, NONE).astype(np.int64)
        if self.kind == "label":
            return level_codes(labels.astype(np.float64), np.array(self.chosen, dtype=np.int64))
        assert rows is not None
        values = rows[:, self.column].astype(np.float64)
        if self.kind == "range":
            return range_codes(values, self.edges)
        return level_codes(values, np.array(self.chosen, dtype=np.int64))


def choose_columns(settings: GroupsSettings, source: Source) -> GroupsSettings:
    """Settings that name the columns of ``auto``, where not all of them are within the limit.

    Named columns are part of the digest, so that an audit whose default changes is known by it;
    where all columns are taken, ``auto`` stays. The limit itself decides nothing further.

    Args:
        settings: of the stage.
        source: whose columns and labels may be groups.
    """
    levels = _levels(source)
    fitting = [name for name, known in levels.items() if _is_auto(known)]
    if settings.columns != "auto":
        return settings
    # The smallest columns first; without clusters one at least, whatever its levels.
    chosen: list[str] = []
    count = settings.clusters
    for name in sorted(fitting, key=lambda name: len(levels[name])):
        if count + len(levels[name]) <= settings.auto_limit or not count:
            chosen.append(name)
            count += len(levels[name])
    decided = replace(settings, auto_limit=AUTO_LIMIT)
    if len(chosen) == len(fitting):
        return decided
    return replace(decided, columns={name: () for name in levels if name in chosen})


def columns_left_out(settings: GroupsSettings, source: Source) -> dict[str, int]:
    """Number of levels of every column that ``auto`` could take and that has no group.

    Args:
        settings: of the stage, after ``choose_columns``.
        source: whose columns and labels may be groups.
    """
    if settings.columns == "auto":
        return {}
    return {
        name: len(known)
        for name, known in _levels(source).items()
        if _is_auto(known) and name not in settings.columns
    }


def left_out_line(left_out: Mapping[str, int]) -> str:
    """Columns without groups, and how to name them; empty where there is none."""
    if not left_out:
        return ""
    names = ", ".join(f"{name} ({count} levels)" for name, count in left_out.items())
    return f"no groups of {names}: name them in {WHERE}.columns, or raise {WHERE}.auto_limit"


def declare_partitions(
    settings: GroupsSettings,
    source: Source,
    base: Path,
    n_landmarks: int,
    n_concepts: int,
    seed: int = 0,
) -> tuple[Partition, ...]:
    """The declared partitions, clusters of landmarks first, discovered concepts last.

    Args:
        settings: of the stage.
        source: whose columns and labels are named.
        base: folder that the file's path starts from.
        n_landmarks: landmarks m.
        n_concepts: discovered concepts; before these are known, at most.
        seed: key of random halves.

    Raises:
        UsageError: an unknown column, level or sample, a file that cannot be read, a sample twice
            in a group, no group at all, or more than ``limit``.
        RecipeError: edges that do not ascend.
    """
    found = [*_clusters(settings.clusters, n_landmarks), *_columns(settings, source)]
    found += [_ranges(source, name, edges) for name, edges in settings.ranges.items()]
    found += _file_groups(base / settings.file, source) if settings.file else []
    found += _halves(settings.halves, source.n_samples, seed)
    found += _concepts(n_concepts) if settings.concepts else []
    count = sum(len(partition.groups) for partition in found)
    if not count:
        raise UsageError(
            "no group is declared",
            where=WHERE,
            expected="clusters, columns, ranges, a file or concepts",
        )
    if count > settings.limit:
        raise UsageError(
            f"{count} groups",
            where=WHERE,
            expected=f"at most {settings.limit}",
            advice=f"name fewer, or set {WHERE}.limit={count}: krepes plan says what they cost",
        )
    return tuple(found)


def _clusters(count: int, n_landmarks: int) -> list[Partition]:
    names = tuple(f"cluster {i}" for i in range(min(count, n_landmarks)))
    return [Partition("landmarks", "landmarks", names)] if names else []


def _halves(count: int, n_samples: int, seed: int) -> list[Partition]:
    keys = [int(counter_rng.bits(seed, _HALF_STREAM, i)) for i in range(count)]
    names = [f"half {i}" for i in range(count)]
    return [
        Partition(HALF, name, (name,), halved=(n_samples, key))
        for name, key in zip(names, keys, strict=True)
    ]


def _concepts(count: int) -> list[Partition]:
    names = tuple(f"concept {i}" for i in range(count))
    return [Partition("concepts", "concepts", names)] if names else []


def _columns(settings: GroupsSettings, source: Source) -> Iterator[Partition]:
    """Partitions by label and categorical columns, as named or all that are short enough."""
    levels = _levels(source)
    named: Mapping[str, tuple[str, ...]]
    if settings.columns == "auto":
        named = {name: () for name, known in levels.items() if _is_auto(known)}
    else:
        named = settings.columns
    for name, asked in named.items():
        where = f"{WHERE}.columns"
        known = levels[_known(name, tuple(levels), "categorical column", where)]
        chosen = asked or known
        codes = tuple(
            known.index(_known(level, known, "level", f"{where}.{name}")) for level in chosen
        )
        if len(set(codes)) < len(codes):
            raise UsageError("a level twice", where=f"{where}.{name}", expected="different levels")
        labelled = name == LABEL and bool(source.classes)
        kind: Kind = "label" if labelled else "column"
        column = NONE if labelled else [c.name for c in source.columns].index(name)
        groups = tuple(f"{name} = {level}" for level in chosen)
        yield Partition(kind, name, groups, column, codes)


def _levels(source: Source) -> dict[str, tuple[str, ...]]:
    """Levels of the label, if there is one, and of every categorical column."""
    found = {LABEL: tuple(source.classes)} if source.classes else {}
    return found | {c.name: tuple(c.categories) for c in source.columns if c.kind == "categorical"}


def _is_auto(levels: Sequence[str]) -> bool:
    return LEAST_LEVELS <= len(levels) <= MOST_LEVELS


def _ranges(source: Source, name: str, edges: Sequence[float]) -> Partition:
    """The ranges of one numeric column."""
    where = f"{WHERE}.ranges"
    numeric = tuple(column.name for column in source.columns if column.kind == "numeric")
    _known(name, numeric, "numeric column", where)
    if not edges or any(a >= b for a, b in pairwise(edges)):
        raise RecipeError(
            f"edges {list(edges)}", where=f"{where}.{name}", expected="at least one, ascending"
        )
    column = [c.name for c in source.columns].index(name)
    groups = range_names(name, edges)
    return Partition("range", name, groups, column, edges=tuple(edges))


def _file_groups(path: Path, source: Source) -> list[Partition]:
    """One partition for each group of a CSV file: groups may overlap, a group has a sample once."""
    members: dict[str, list[int]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.reader(handle)
            if next(reader, None) != FILE_HEADER:
                raise UsageError("another header", where=str(path), expected=",".join(FILE_HEADER))
            for number, row in enumerate(reader, start=2):
                name, sample = _file_row(row, source, f"{path}:{number}")
                members.setdefault(name, []).append(sample)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"cannot be read ({error})", where=str(path), expected="a CSV file of text"
        ) from error
    found = []
    for name, samples in members.items():
        ids, counts = np.unique(np.array(samples, dtype=np.int64), return_counts=True)
        if (counts > 1).any():
            raise UsageError(
                f"sample {ids[counts > 1][0]} is twice in group {name!r}",
                where=str(path),
                expected="a sample once in each group; different groups may share samples",
            )
        found.append(Partition("file", name, (name,), sample_id=ids))
    return found


def _file_row(row: Sequence[str], source: Source, where: str) -> tuple[str, int]:
    if len(row) != len(FILE_HEADER) or not row[0].strip() or not row[1].strip().isdecimal():
        raise UsageError(f"{','.join(row)!r}", where=where, expected="a name and a position")
    sample = int(row[1])
    check_samples(source, [sample], where)
    return row[0].strip(), sample


def _known(name: str, known: tuple[str, ...], what: str, where: str) -> str:
    if name not in known:
        names = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        raise UsageError(
            f"no {what} {name!r}", where=where, expected=f"one of {names}" if names else "none"
        )
    return name
