"""Compare finished audits of one source: other networks, objectives, seeds or checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.figures import Control
from krepes_ooc.errors import UsageError
from krepes_ooc.rendering import comparison
from krepes_ooc.runner.comparison.compare_pair import ComparedPair
from krepes_ooc.runner.comparison.compared_audit import NO_LANDMARK, ComparedAudit
from krepes_ooc.runner.comparison.comparison_measures import debiased_cka
from krepes_ooc.stages.fidelity.stored_figures import read_fidelity
from krepes_ooc.stages.randomised.embedding_health import dead_outputs, mean_share, rank_me

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Fewer samples in common tell nothing.
FEWEST_SAMPLES = 20
# Matched samples with labels, of which fewer share their label: the names are likely others.
MOSTLY_SAME = 0.9
# Fidelity figures side by side, in reading order.
FIGURES = (
    *("kendall_tau", "accuracy_gap", "ridge_ceiling", "cka", "neighbour_overlap"),
    *("precision_at_1", "confidence_drop", "drop_ratio", "coverage", "spectral_entropy"),
    *("nystrom_error", "stability"),
)
# Controls that are figures of the audited network: key here, figure, its control.
CONTROLS = (
    ("network_accuracy", "accuracy_gap", "network_accuracy"),
    ("coverage_random", "coverage", "random"),
    ("spectral_entropy_start", "spectral_entropy", "start"),
)
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CommonSamples:
    """Samples that all audits have.

    Args:
        entries: of them in every audit [sample] each.
        matched_by: ``position`` or ``name``.
        warnings: about the match.
    """

    entries: tuple[Index, ...]
    matched_by: str
    warnings: tuple[str, ...] = ()


def compare(workspaces: Sequence[Path | str]) -> comparison.Comparison:
    """Compare the first audit with each other one.

    Args:
        workspaces: folders of finished audits of one source; none of it is opened.

    Raises:
        UsageError: fewer than two or too many of them, a folder without an audit, or too few
            samples in common.
        WorkspaceError: an audit has no influence yet, or its stores do not belong together.
        DamageError: stored bytes are not those that were written.
    """
    if not 2 <= len(workspaces) <= len(LABELS):
        raise UsageError(
            f"{len(workspaces)} audits", where="compare", expected=f"2 to {len(LABELS)} folders"
        )
    audits = [ComparedAudit.open(root) for root in workspaces]
    common = match_samples(audits)
    relations = [comparison.FIRST, *(_relation(audits[0], other) for other in audits[1:])]
    # Two audits have more samples in common than all have.
    pairs = [_pair(audits[0], other) for other in audits[1:]]
    seeds = [
        pair
        for pair, relation in zip(pairs, relations[1:], strict=True)
        if relation == comparison.SEED
    ]
    return comparison.Comparison(
        audits=[
            _summary(audits[0], audit, LABELS[i], relations[i], common.entries[i])
            for i, audit in enumerate(audits)
        ],
        matched_by=common.matched_by,
        samples=len(common.entries[0]),
        similarity=_similarity(audits),
        pairs=[
            # A floor is no measure of itself.
            pair.result(i, pair.floor([each for each in seeds if each is not pair]))
            for i, pair in enumerate(pairs, start=1)
        ],
        warnings=(*common.warnings, *_warnings(audits)),
    )


def match_samples(audits: Sequence[ComparedAudit]) -> CommonSamples:
    """Samples that all audits have, in the order of the first one.

    Of one source they are matched by position, of different ones by the user's own names.

    Raises:
        UsageError: too few samples in common.
    """
    roots = ", ".join(audit.name for audit in audits)
    if len({str(audit.source) for audit in audits}) == 1:
        keys: list[list[Any]] = [audit.positions.tolist() for audit in audits]
        matched_by = "position"
    else:
        matched_by = "name"
        keys = [_unique_names(audit) for audit in audits]
        if not all(any(each) for each in keys):
            raise UsageError(
                "the audits are of different sources, and their samples have no names",
                where=roots,
                expected="one source, or samples with names of their own",
                advice="source.name names the column of their names",
            )
    places = [{key: row for row, key in enumerate(each) if key != ""} for each in keys]
    shared = reduce(lambda a, b: a & b, (set(place) for place in places))
    if len(shared) < FEWEST_SAMPLES:
        raise UsageError(
            f"{len(shared)} samples in common, matched by {matched_by}",
            where=roots,
            expected=f"at least {FEWEST_SAMPLES} audited samples or landmarks that all have",
            advice="stages.audited.sample_ids audits the same samples in every audit",
        )
    order = [key for key in keys[0] if key in shared]
    entries = tuple(np.array([place[key] for key in order], dtype=np.int64) for place in places)
    return CommonSamples(entries, matched_by, _label_warnings(audits, entries))


def _unique_names(audit: ComparedAudit) -> list[str]:
    """Own names of samples, empty where one only repeats the position or occurs twice [entry]."""
    names = audit.sample_names
    positions = audit.positions.tolist()
    own = [
        "" if name == str(position) else name
        for name, position in zip(names, positions, strict=True)
    ]
    count = Counter(own)
    return [name if count[name] == 1 else "" for name in own]


def _label_warnings(audits: Sequence[ComparedAudit], entries: Sequence[Index]) -> tuple[str, ...]:
    """A warning where matched samples have other labels."""
    warnings = []
    first = np.array(audits[0].labels, dtype=object)[entries[0]]
    for audit, rows in zip(audits[1:], entries[1:], strict=True):
        labels = np.array(audit.labels, dtype=object)[rows]
        known = (first != "") & (labels != "")
        share = float(np.mean(first[known] == labels[known])) if known.any() else 1.0
        if share < MOSTLY_SAME:
            warnings.append(
                f"{share:.0%} of the matched samples of {audit.name} have the label that they have "
                f"in {audits[0].name}: these may be other samples"
            )
    return tuple(warnings)


def _pair(first: ComparedAudit, other: ComparedAudit) -> ComparedPair:
    """Two audits with their common samples and the landmarks that both have."""
    entries = match_samples([first, other]).entries
    rows = [
        np.array([audit.landmark_of(int(entry)) for entry in each], dtype=np.int64)
        for audit, each in zip((first, other), entries, strict=True)
    ]
    both = (rows[0] != NO_LANDMARK) & (rows[1] != NO_LANDMARK)
    return ComparedPair(first, other, (entries[0], entries[1]), (rows[0][both], rows[1][both]))


def _relation(first: ComparedAudit, other: ComparedAudit) -> str:
    """Relation of an audit to the first one."""
    differs = set(_differences(first, other))
    if not differs:
        return comparison.SAME
    return comparison.SEED if differs == {"seed"} else comparison.OTHER


def _differences(first: ComparedAudit, other: ComparedAudit) -> dict[str, tuple[Any, Any]]:
    """Recipe keys and parts whose values differ, of stages that both have; None: the default."""
    both = first.fingerprints.keys() & other.fingerprints.keys()
    a = first.keys(both)
    b = other.keys(both)
    return {
        key: (a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)
    }


def _similarity(audits: Sequence[ComparedAudit]) -> dict[str, Any]:
    """Debiased CKA of each two audits over their common samples, by space [audit, audit]."""
    n = len(audits)
    found = {space: np.empty((n, n)) for space in comparison.SPACES}
    for i in range(n):
        for j in range(i, n):
            first, other = match_samples([audits[i], audits[j]]).entries
            for space, matrix in found.items():
                rows = audits[i].rows(space)[first], audits[j].rows(space)[other]
                matrix[i, j] = matrix[j, i] = debiased_cka(*rows)
    return found


def _summary(
    first: ComparedAudit, audit: ComparedAudit, label: str, relation: str, entries: Index
) -> comparison.AuditSummary:
    """One audit in words and figures."""
    stores = audit.stores
    verdict = ""
    if audit.has("verdict"):
        verdict = str(stores.reader("verdict").attributes["verdict"]["status"])
    return comparison.AuditSummary(
        label=label,
        folder=audit.name,
        recipe=stores.workspace.recipe() or "",
        objective=str(stores.reader("newton").attributes["objective"]),
        relation=relation,
        differs=_differences(first, audit),
        trusted=bool(stores.reader("influence").attributes["trusted"]),
        verdict=verdict,
        figures=_figures(audit, entries),
    )


def _figures(audit: ComparedAudit, entries: Index) -> dict[str, Control]:
    """Figures side by side: the network's own embedding, then fidelity where it was measured."""
    network = audit.network[entries]
    spectrum = audit.stores.reader("spectrum").attributes
    measured = {
        "rank_me": ("RankMe of the network's embedding, common samples", rank_me(network)),
        "mean_share": ("share of its squared norm in the mean", mean_share(network)),
        "dead_outputs": ("outputs that are constant", float(dead_outputs(network).sum())),
        "usable_rank": ("usable rank of the landmark kernel", float(spectrum["usable_rank"])),
        "effective_dimension": ("effective dimension", float(spectrum["effective_dimension"])),
    }
    figures = {key: Control(key, label, value) for key, (label, value) in measured.items()}
    if not audit.has("fidelity"):
        return figures
    fidelity = read_fidelity(audit.stores.reader("fidelity"))
    for key, figure, control in CONTROLS:
        if figure in fidelity and control in fidelity[figure].controls:
            found = fidelity[figure].controls[control]
            label = found.label if figure == "accuracy_gap" else f"{figure}: {found.label}"
            figures[key] = Control(key, label.replace("_", " "), found.value, found.interval)
    for key in FIGURES:
        if key in fidelity and fidelity[key].is_defined:
            one = fidelity[key]
            figures[key] = Control(key, one.label, one.value, one.interval)
    return figures


def _warnings(audits: Sequence[ComparedAudit]) -> list[str]:
    """Reasons to read single audits with care."""
    return [
        f"the step of {LABELS[i]} ({audit.name}) is not trusted"
        for i, audit in enumerate(audits)
        if not audit.stores.reader("influence").attributes["trusted"]
    ]
