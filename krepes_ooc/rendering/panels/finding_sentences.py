"""Findings: sentences about an audit, each with its figure, interval and strongest control."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from krepes_ooc.core.figures import Figure
from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.sample_view import class_name
from krepes_ooc.rendering.measured import Groups
from krepes_ooc.rendering.overview import DiscoveredConcepts, GroupEffects
from krepes_ooc.rendering.panels.bias import bias_findings
from krepes_ooc.rendering.panels.discovered import FIGURES, reading_order, strongest
from krepes_ooc.rendering.panels.finding import Finding
from krepes_ooc.rendering.panels.group_effects import strongest_groups
from krepes_ooc.rendering.panels.groups import LABEL, LEAST_SAMPLES, largest_other

# Figures that say how like the network the audit is; the first that was measured is used
AGREEMENT = ("kendall_tau", "cka")
AGREEMENT_NAMES = {
    "kendall_tau": "Kendall's τ between linear probes on the two embeddings",
    "cka": "linear CKA",
}
# What any method could reach without the objective or the network
BASELINES = ("raw_inputs", "fourier_features", "kernel_rows", "start")
# Confusions and groups that are named in one sentence
NAMED = 2
# Average precision from which a concept is named after its best class
LEAST_PRECISION = 0.5


def make_findings(audit: AuditData) -> list[Finding]:
    """All findings in reading order; what was not measured is left out."""
    return [
        *_agreement(audit),
        *_ranking(audit),
        *bias_findings(audit),
        *_confusions(audit),
        *_concepts(audit),
        *_group_effects(audit),
    ]


def _agreement(audit: AuditData) -> Iterator[Finding]:
    """Agreement of the audit with the network, beside the strongest baseline."""
    for key in AGREEMENT:
        figure = audit.fidelity.get(key)
        if figure is None or not figure.is_defined:
            continue
        sentence = f"Agreement of audit and network: {AGREEMENT_NAMES[key]} {{value}}"
        figures: dict[str, Any] = {"value": figure.value}
        sentence += _interval(figure, figures)
        controls = _baselines(audit, figure)
        words = {}
        if controls:
            name = max(controls, key=lambda known: controls[known])
            words["baseline"] = name
            figures["baseline"] = controls[name]
            reached = figure.value <= controls[name]
            sentence += "; strongest baseline, {baseline:}, {baseline}"
            sentence += ", which is no less" if reached else ""
        ceiling = figure.controls.get("noise_ceiling")
        if ceiling is not None and ceiling.is_defined:
            figures["ceiling"] = ceiling.value
            sentence += "; two probes on the network's embedding {ceiling} (noise ceiling)"
        yield Finding("agreement", "Fidelity", f"{sentence}.", figures, words, "fidelity")
        return


def _baselines(audit: AuditData, figure: Figure) -> dict[str, float]:
    """Values of the baselines of a figure by their labels, random weights among them."""
    found = {
        figure.controls[key].label: figure.controls[key].value
        for key in BASELINES
        if key in figure.controls and figure.controls[key].is_defined
    }
    most = (audit.random_weights.get(figure.key) or {}).get("most")
    if most is not None and math.isfinite(most):
        found["random weights, at most"] = float(most)
    return found


def _interval(figure: Figure, figures: dict[str, Any]) -> str:
    """The interval in words; its ends go among the figures."""
    if figure.interval is None or not all(map(math.isfinite, figure.interval)):
        return ""
    figures["low"], figures["high"] = figure.interval
    return " (95 % interval {low} to {high})"


def _ranking(audit: AuditData) -> Iterator[Finding]:
    """Ranking of landmarks by the objective against plain kernel."""
    figure = audit.fidelity.get("neighbour_overlap")
    pair = None if figure is None else figure.paired.get("step_against_kernel")
    if figure is None or not figure.is_defined or pair is None or pair.interval is None:
        return
    figures: dict[str, Any] = {"value": figure.value, "difference": pair.value}
    figures["low"], figures["high"] = pair.interval
    low, high = pair.interval
    result = "better than" if low > 0 else "worse than" if high < 0 else "no better than"
    yield Finding(
        "ranking",
        "Landmarks",
        "Of a sample's ten first landmarks {value%} are among the ten nearest in the network's own "
        f"embedding, {result} by plain kernel: difference {{difference*}} percentage "
        "points (95 % interval {low*} to {high*}).",
        figures,
        {},
        "fidelity",
    )


def _confusions(audit: AuditData) -> Iterator[Finding]:
    """Classes whose influence lies most on another class."""
    groups = audit.groups.get(LABEL)
    if groups is None or not len(groups.categories):
        return
    pairs = confused_pairs(groups)[:NAMED]
    if not pairs:
        return
    parts = []
    figures: dict[str, Any] = {}
    words: dict[str, str] = {}
    for i, (g, other) in enumerate(pairs):
        figures[f"share_{i}"] = float(groups.share[g, other])
        figures[f"error_{i}"] = float(2 * groups.stderr[g, other])
        figures[f"chance_{i}"] = float(groups.chance[other])
        figures[f"kernel_{i}"] = float(groups.kernel_only[g, other])
        words[f"from_{i}"] = groups.categories[g]
        words[f"to_{i}"] = groups.categories[other]
        chance = "by chance" if is_above_chance(groups, g, other) else "not clearly above chance,"
        parts.append(
            f"{{from_{i}:}} with {{to_{i}:}}: {{share_{i}%}} ± {{error_{i}%}} ({chance} "
            f"{{chance_{i}%}}; plain kernel {{kernel_{i}%}})"
        )
    sentence = f"Most confused, by share of the influence ± 2 s.e.: {'; '.join(parts)}."
    yield Finding("confusions", "Classes", sentence, figures, words, "groups")


def is_above_chance(groups: Groups, g: int, other: int) -> bool:
    """True if the lower end of the interval of a share lies above chance, as both are printed."""
    low = groups.share[g, other] - 2 * groups.stderr[g, other]
    return bool(np.rint(100 * low) > np.rint(100 * groups.chance[other]))


def confused_pairs(groups: Groups) -> list[tuple[int, int]]:
    """Groups of enough samples and the other group of most influence, beyond error."""
    found = []
    for g in np.flatnonzero(groups.samples >= LEAST_SAMPLES):
        other = largest_other(groups, int(g))
        if other is not None and groups.share[g, other] > 2 * groups.stderr[g, other]:
            found.append((int(g), other))
    return sorted(found, key=lambda pair: -groups.share[pair])


def _concepts(audit: AuditData) -> Iterator[Finding]:
    """Number of stable concepts, the largest ones, and the strongest control."""
    found = audit.discovered
    if found is None or not found.names or found.stable is None or found.share is None:
        return
    figures: dict[str, Any] = {"concepts": len(found.names), "stable": int(found.stable.sum())}
    words: dict[str, str] = {}
    sentence = "{stable} of {concepts} discovered concepts are stable"
    largest = [c for c in reading_order(found) if found.stable[c]][:NAMED]
    parts = []
    for i, c in enumerate(largest):
        figures[f"share_{i}"] = float(found.share[c])
        words[f"name_{i}"] = _concept_words(audit, found, c)
        part = f"{{name_{i}:}} ({{share_{i}%}} of the samples"
        if _has_class(found, c):
            assert found.precision is not None
            figures[f"precision_{i}"] = float(found.precision[c])
            part += f", average precision {{precision_{i}}}"
        parts.append(f"{part})")
    if parts:
        sentence += f"; the largest are {' and '.join(parts)}"
    # A figure of labels first, as it is what people mean by a concept
    for key in ("average_precision", "embedding_r_squared"):
        control = strongest(dict(found.figures.get(key, {})))
        if control is not None:
            figures |= {"value": found.figures[key]["concepts"], "control": control[1]}
            words["control"] = control[0]
            sentence += f". The {FIGURES[key]} is {{value}}, for {{control:}} {{control}}"
            sentence += ", which is no less" if control[1] >= figures["value"] else ""
            break
    yield Finding("concepts", "Concepts", f"{sentence}.", figures, words, "discovered")


def _concept_words(audit: AuditData, found: DiscoveredConcepts, c: int) -> str:
    """A concept in words: its name, and its best class or the column that differs most."""
    name = found.names[c]
    if found.differences and found.differences[c]:
        first = found.differences[c][0]
        direction = "more" if first.difference > 0 else "less"
        return f"{name}: {direction} {first.column}" + (f" {first.level}" if first.level else "")
    if not _has_class(found, c):
        return name
    assert found.best_class is not None
    assert found.precision is not None
    best = class_name(int(found.best_class[c]), audit.classes)
    # Below it most samples of the concept's order are of other classes
    if not found.precision[c] >= LEAST_PRECISION:
        return f"{name}, no class: the best is {best}"
    return f"{name}, like class {best}"


def _has_class(found: DiscoveredConcepts, c: int) -> bool:
    """True if a concept is described by its best class: it has one, and no column differs."""
    if found.best_class is None or found.precision is None or found.best_class[c] < 0:
        return False
    return not (found.differences and found.differences[c])


def _group_effects(audit: AuditData) -> Iterator[Finding]:
    """The group whose absence changes the embedding most."""
    effects = audit.group_effects
    if effects is None or not (order := _named_groups(effects)):
        return
    g = order[0]
    figures = {
        "mean": float(effects.mean[g]),
        "error": float(2 * effects.stderr[g]),
        "count": int(effects.count[g]),
        "residual": float(effects.residual[g]),
    }
    sentence = (
        "Solved again without {name:} ({count} samples), the kernel model changes most: mean "
        "effect {mean} ± {error} (2 standard errors)"
    )
    if math.isfinite(figures["residual"]):
        sentence += ", of which {residual} is beyond what its size gives"
    retrained = audit.fidelity.get("retraining_pairs")
    if retrained is None or not retrained.is_defined:
        sentence += ". Networks were not trained again to check this"
    yield Finding(
        "group_effects",
        "Group influence",
        f"{sentence}.",
        figures,
        {"name": effects.display_names[g]},
        "group_influence",
    )


def _named_groups(effects: GroupEffects) -> list[int]:
    """Groups by mean effect; clusters of landmarks only where no group has a name."""
    order = strongest_groups(effects)
    named = [g for g in order if effects.partition[g] != "landmarks"]
    return named or order
