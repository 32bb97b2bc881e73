"""Criteria of the verdict: one function a check, from plain values to ``Check``.

Blocking checks fail where no figure of the audit means anything: rows or solver are wrong, the
step does not lower the loss as predicted, the network is collapsed or explained as random weights
are, kernel rows do not explain its embedding, or the audited objective is not the one that trained
it. All other checks are reservations. Checks of probes need labels, the others do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from krepes_ooc.core.figure_specs import AGAINST_INPUTS, STEP_AGAINST_KERNEL
from krepes_ooc.core.figures import Figure
from krepes_ooc.core.verdict import Check, Outcome

# Variance of the network's embedding below which kernel rows do not explain it.
LEAST_EXPLAINED = 0.5
LEAST_RANK_ME = 2.0
MOST_NYSTROM_ERROR = 0.2
# Top landmarks of a sample may be at most this share of all landmarks.
TOP, MOST_TOP_SHARE = 10, 0.2
# Label-free figures after those of probes: the first that was measured is used.
AGREEMENT = ("kendall_tau", "cka")
OVERLAPS_LESS = (
    "the audit's top landmarks overlap with those of random-weight networks less than the top "
    "landmarks of two random-weight networks overlap with each other"
)
RANKINGS = ("neighbour_overlap", "precision_at_1", "confidence_drop")


def self_check(largest_error: float, words: str = "") -> Check:
    """The Jacobian rows; the features stage refuses rows beyond its tolerance.

    Args:
        largest_error: of a parameter's gradient relative to its norm.
        words: the result in one sentence, with the gradients that go a slow way.
    """
    return Check(
        "self_check",
        "Jacobian rows agree with automatic differentiation",
        "every parameter's gradient agrees on two samples; a miss stops the run",
        "pass" if math.isfinite(largest_error) else "fail",
        "The largest relative error of a parameter's gradient is {largest_error}"
        + (f"; {_plain(words)}." if words else "."),
        {"largest_error": _or_none(largest_error)},
        blocking=True,
    )


def solver(residual: float, tolerance: float) -> Check:
    """Relative residual of the step's equations, and the tolerance."""
    return Check(
        "solver",
        "Solver converged",
        "relative residual of the step's equations at most the tolerance",
        _holds(residual <= tolerance, residual, tolerance),
        "The relative residual is {residual}, the tolerance {tolerance}.",
        {"residual": _or_none(residual), "tolerance": _or_none(tolerance)},
        blocking=True,
    )


def step(newton: Mapping[str, Any]) -> Check:
    """The Newton step, as the attributes of its store judge it."""
    names = ("loss_start", "loss_step", "predicted_decrease", "rho")
    trusted = bool(newton["trusted"])
    return Check(
        "step",
        "Newton step is trusted" if trusted else "Newton step is not trusted",
        "the step lowers the loss by at least a quarter of what its quadratic model predicts",
        "pass" if trusted else "fail",
        "The loss is {loss_start} at the start and {loss_step} after the step; the gain ratio, "
        "real over predicted decrease, is {rho}.",
        {name: _or_none(newton[name]) for name in names},
        blocking=True,
    )


def random_weights(ranking: Mapping[str, Any], agreement: Mapping[str, Any]) -> Check:
    """Difference from networks with random weights: of the ranking, or of the agreement.

    Each of the two is one-sided at 97.5 %, nominally 5 % together. On digits 1 of 16 networks that
    were never trained passes, and 16 of 16 trained ones (``benchmarks/random_weights.py``).

    Args:
        ranking: attribute ``ranking`` of the store ``randomised``.
        agreement: its figure ``cka``, of the audit's embedding with the network's.
    """
    ranks = bool(ranking["decided"]) and bool(ranking["distinguishable"])
    differs = ranks or agreement["learned"] is True
    decided = bool(ranking["decided"]) or agreement["learned"] is not None
    sentence, figures = _ranking_words(ranking)
    if agreement["learned"] is not None:
        sentence += " The likeness of both embeddings (CKA) is {cka}, random weights up to {most}."
        figures |= {"cka": float(agreement["value"]), "most": float(agreement["most"])}
    titles: dict[Outcome, str] = {
        "pass": "Differs from random weights",
        "fail": "Not distinguishable from random weights",
        "unknown": "Differs from random weights: not decided",
    }
    outcome: Outcome = "pass" if differs else "fail" if decided else "unknown"
    return Check(
        "random_weights",
        titles[outcome],
        f"{OVERLAPS_LESS}, or the audit's embedding is more like the network's than theirs; each "
        "at 97.5 %, one-sided",
        outcome,
        sentence,
        figures,
        blocking=True,
    )


def learned_ranking(ranking: Mapping[str, Any]) -> Check:
    """Difference of the ranking of landmarks alone from those of random weights.

    Args:
        ranking: attribute ``ranking`` of the store ``randomised``.
    """
    learned = bool(ranking["decided"]) and bool(ranking["distinguishable"])
    sentence, figures = _ranking_words(ranking)
    return Check(
        "learned_ranking",
        "Ranking of landmarks is learned"
        if learned
        else "Ranking of landmarks not distinguishable from random weights",
        f"{OVERLAPS_LESS}; 95 % interval of the difference below 0",
        "unknown" if not ranking["decided"] else "pass" if learned else "fail",
        sentence,
        figures,
    )


def _ranking_words(ranking: Mapping[str, Any]) -> tuple[str, dict[str, float | None]]:
    """Overlaps of the ranking in words, and their figures."""
    if not ranking["decided"]:
        return _plain(f"The ranking was not compared: {ranking['reason']}."), {}
    low, high = ranking["interval"]
    return (
        "The overlap of the audit with a random-weight network is {with_draws}, of two of them "
        "{among_draws}; difference {difference}, 95 % interval {low} to {high}.",
        {
            "with_draws": ranking["with_draws"],
            "among_draws": ranking["among_draws"],
            "difference": ranking["difference"],
            "low": low,
            "high": high,
        },
    )


def collapse(health: Mapping[str, Any]) -> Check:
    """Health of the network's own embedding, without labels.

    Args:
        health: attribute ``health`` of the store ``randomised``.
    """
    criterion = (
        f"effective rank of the embedding (RankMe) at least {LEAST_RANK_ME:g}, and not constant"
    )
    if "rank_me" not in health:
        sentence = _plain(f"Not measured: {health['reason']}.")
        title = "Embedding not collapsed: not measured"
        return Check("collapse", title, criterion, "unknown", sentence, {}, blocking=True)
    collapsed = bool(health["collapsed"])
    return Check(
        "collapse",
        "Network collapsed" if collapsed else "Embedding not collapsed",
        criterion,
        "fail" if collapsed else "pass",
        "RankMe is {rank_me} of {n_outputs} outputs; {dead_dimensions} outputs are constant, and "
        "the mean holds {mean_share} of the squared norm.",
        {
            name: float(health[name])
            for name in ("rank_me", "n_outputs", "dead_dimensions", "mean_share")
        },
        blocking=True,
    )


def kernel_rows(ceiling: Figure) -> Check:
    """Share of the variance of the network's embedding that kernel rows explain.

    Args:
        ceiling: figure ``ridge_ceiling``.
    """
    explained = ceiling.value
    outcome = _holds(explained >= LEAST_EXPLAINED, explained)
    return Check(
        "kernel_rows",
        "Kernel rows do not explain the embedding"
        if outcome == "fail"
        else "Kernel rows explain the embedding",
        "held-out ridge R² of the network's embedding from kernel rows at least "
        f"{LEAST_EXPLAINED:g}",
        outcome,
        "R² is {r_squared} on samples that the regression has not seen."
        if ceiling.is_defined
        else _plain(f"Not measured: {ceiling.reason}."),
        {"r_squared": _or_none(explained)},
        blocking=True,
    )


def objective(trained: str, audited: str) -> Check:
    """Objective that trained the network, ``""`` if unknown, and the audited one."""
    same = trained == audited
    outcome: Outcome = "unknown" if not trained else "pass" if same else "fail"
    words = {
        "unknown": f"The recipe does not say which objective trained the network "
        f"(network.objective); {audited} is audited.",
        "pass": f"The network was trained with {audited}, and {audited} is audited.",
        "fail": f"The network was trained with {trained}, but {audited} is audited.",
    }
    titles = {
        "unknown": "Training objective unknown",
        "pass": "Audited objective trained the network",
        "fail": "Audited objective is not the training objective",
    }
    return Check(
        "objective",
        titles[outcome],
        "the audited objective is the one that trained the network",
        outcome,
        _plain(words[outcome]),
        {},
        blocking=True,
    )


def encoding(learned_here: bool) -> Check:
    """Origin of a table's encoding: the network's, or learned from the audited rows."""
    return Check(
        "encoding",
        "Encoding learned from the audited rows" if learned_here else "Encoding is the network's",
        "scales and categories of the table are those that the network was trained with",
        "fail" if learned_here else "pass",
        "No encoding file was given (source.encoding): means, scales and categories come from the "
        "audited rows, and the network may see other inputs than it knows."
        if learned_here
        else "Means, scales and categories are those of the training.",
    )


def raw_inputs(figures: Mapping[str, Figure]) -> Check:
    """The audit's agreement with the network against that of the raw inputs, paired by sample."""
    return _paired(
        figures,
        AGREEMENT,
        AGAINST_INPUTS,
        ("raw_inputs", "Raw inputs do as well", "Beats raw inputs"),
        "agreement with the network above that of raw inputs; 95 % interval of the paired "
        "difference above 0",
    )


def plain_kernel(figures: Mapping[str, Figure]) -> Check:
    """The ranking after the step against that of the plain kernel, paired by sample."""
    return _paired(
        figures,
        RANKINGS,
        STEP_AGAINST_KERNEL,
        ("plain_kernel", "Plain kernel does as well", "Step beats the plain kernel"),
        "ranking of landmarks above that of the plain kernel, without the objective; 95 % interval "
        "of the paired difference above 0",
    )


def noise_ceiling(figures: Mapping[str, Figure]) -> Check:
    """Agreement of the probes against that of the network with itself."""
    criterion = (
        "tau between probes on the two embeddings reaches that of two probes on the network's "
        "embedding alone, fitted on other samples; no network is refitted"
    )
    tau = figures.get("kendall_tau")
    if tau is None or not tau.is_defined or not tau.control("noise_ceiling").is_defined:
        title = "Agreement up to the noise ceiling: not measured"
        return Check("noise_ceiling", title, criterion, "unknown", "No probe could be fitted.")
    ceiling = tau.control("noise_ceiling").value
    # The upper end of the interval: the ceiling cannot be distinguished from the figure.
    reached = (tau.value if tau.interval is None else tau.interval[1]) >= ceiling
    return Check(
        "noise_ceiling",
        "Agrees with the network up to the noise ceiling"
        if reached
        else "Agreement with the network below its noise ceiling",
        criterion,
        "pass" if reached else "fail",
        "tau is {tau}, of two probes on the network's embedding {ceiling}.",
        {"tau": tau.value, "ceiling": ceiling},
    )


def learned_figures(figures: Mapping[str, Mapping[str, Any]]) -> Check:
    """Figures of the audit against those of networks with random weights.

    Args:
        figures: attribute ``figures`` of the store ``randomised``.
    """
    known = {key: value for key, value in figures.items() if value["learned"] is not None}
    reached = [key for key, value in known.items() if not value["learned"]]
    words = [
        f"{_plain(known[key]['label'])}: {{{key}}}, random weights up to {{{key}_most}}"
        for key in reached
    ]
    values = {key: float(known[key]["value"]) for key in reached}
    values |= {f"{key}_most": float(known[key]["most"]) for key in reached}
    return Check(
        "learned_figures",
        f"Random weights do as well in {len(reached)} of {len(known)} figures"
        if reached
        else "No figure is reached by random weights",
        "every figure above the 95 % prediction interval of one more random-weight network",
        "unknown" if not known else "fail" if reached else "pass",
        "; ".join(words) + "." if reached else "Every figure lies above them.",
        values,
    )


def nystrom(error: float) -> Check:
    """Relative error of the kernel that the landmarks rebuild."""
    return Check(
        "nystrom",
        "Landmarks rebuild the kernel" if error <= MOST_NYSTROM_ERROR else "Nystrom error is large",
        f"relative Nystrom error at most {MOST_NYSTROM_ERROR:g}",
        _holds(error <= MOST_NYSTROM_ERROR, error),
        "The relative error of the kernel that the landmarks rebuild is {error}.",
        {"error": _or_none(error)},
    )


def landmarks(count: int) -> Check:
    """Number of landmarks against the length of a ranking."""
    least = round(TOP / MOST_TOP_SHARE)
    return Check(
        "landmarks",
        "Enough landmarks" if count >= least else "Few landmarks",
        f"at least {least} landmarks: the top {TOP} are at most {MOST_TOP_SHARE:.0%} of them",
        "pass" if count >= least else "fail",
        "There are {count} landmarks.",
        {"count": float(count)},
    )


def _paired(
    figures: Mapping[str, Figure],
    keys: Sequence[str],
    difference: str,
    names: tuple[str, str, str],
    criterion: str,
) -> Check:
    """A check that a paired difference lies above 0.

    Args:
        figures: of the audit.
        keys: figures that have the difference; the first that was measured is used.
        difference: key of the paired difference.
        names: key of the check, its title where it fails, and where it passes.
        criterion: in words.
    """
    key, fails, passes = names
    for name in keys:
        figure = figures.get(name)
        pair = None if figure is None else figure.paired.get(difference)
        if figure is None or pair is None or pair.interval is None or not pair.is_defined:
            continue
        low, high = pair.interval
        return Check(
            key,
            passes if low > 0 else fails,
            criterion,
            "pass" if low > 0 else "fail",
            f"{_plain(figure.label)}: {{value}}; paired difference {{difference}}, 95 % interval "
            "{low} to {high}.",
            {
                "value": figure.value,
                "difference": pair.value,
                "low": _or_none(low),
                "high": _or_none(high),
            },
        )
    return Check(key, f"{passes}: not measured", criterion, "unknown", "It was not measured.")


def _holds(condition: bool, *values: float) -> Outcome:
    """Outcome of a condition; unknown where one of its values is not finite."""
    if not all(math.isfinite(value) for value in values):
        return "unknown"
    return "pass" if condition else "fail"


def _or_none(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _plain(words: str) -> str:
    """Words without the braces that stand for figures."""
    return words.replace("{", "(").replace("}", ")")
