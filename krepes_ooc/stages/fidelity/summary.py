"""Fidelity figures as lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krepes_ooc.core.figure_specs import SOLUTION, START, STEP
from krepes_ooc.core.figures import Figure

# What each figure is called in one line, and its controls there, in reading order
SUMMARISED = {
    "kendall_tau": (
        "agreement with the network (tau)",
        {
            START: "the start",
            STEP: "one Newton step",
            "raw_inputs": "a probe on raw inputs",
            "noise_ceiling": "the network against itself",
        },
    ),
    "neighbour_overlap": (
        "first landmarks that are the network's own nearest",
        {
            "kernel": "the plain kernel",
            "input_cosine": "cosine of the inputs",
            "random": "random landmarks",
        },
    ),
    "confidence_drop": (
        "confidence lost without the top landmarks",
        {
            "random": "random landmarks",
            "kernel_only": "the largest |k|, no step",
            "exact_refit": "what is lost after a least-squares refit of the others",
        },
    ),
    "precision_at_1": (
        "first landmarks of the same class",
        {
            "kernel": "the plain kernel",
            "network_cosine": "cosine of the network's embeddings",
            "input_cosine": "cosine of the inputs",
            "majority_class": "the most frequent class",
        },
    ),
}


def fidelity_lines(figures: Mapping[str, Figure], newton: Mapping[str, Any]) -> list[str]:
    """The step, what could not be measured, the figures that decide, and where the others are.

    Args:
        figures: those of the store.
        newton: attributes of the step.
    """
    trusted = "is trusted" if newton["trusted"] else "is NOT trusted"
    step = (
        f"the step {trusted} ({newton['reason']}): loss {newton['loss_start']:.4g} -> "
        f"{newton['loss_step']:.4g}, rho {newton['rho']:.2f}"
    )
    # What could not be measured comes before what was
    missing = [
        f"{figure.label}: not defined: {figure.reason}"
        for figure in figures.values()
        if not figure.is_defined
    ]
    rest = f"all {len(figures)} figures, each beside its controls: report.html, report.json"
    return [step, *missing, *summary_lines(figures), rest]


def summary_lines(figures: Mapping[str, Figure]) -> list[str]:
    """The figures in a few sentences: each against the controls that a simpler story would reach.

    Args:
        figures: those of the store; what is not defined is passed over.
    """
    defined = {key: figure for key, figure in figures.items() if figure.is_defined}
    sentences = [
        _compared(defined[key], title, controls)
        for key, (title, controls) in SUMMARISED.items()
        if key in defined
    ]
    if ceiling := defined.get("ridge_ceiling"):
        sentences.append(
            f"kernel rows explain {ceiling.value:.3f} of the network's embedding's variance, the "
            f"audit's embedding {ceiling.control(SOLUTION).value:.3f}"
        )
    return ["in short:", *(f"    {line}" for line in sentences)] if sentences else []


def _compared(figure: Figure, title: str, controls: Mapping[str, str]) -> str:
    """One figure in words: above, level with or below each control, by its interval."""
    # Without an interval a control is level only if it is equal
    low, high = figure.interval or (figure.value, figure.value)
    sides: dict[str, list[str]] = {"above": [], "level with": [], "below": []}
    for key, words in controls.items():
        control = figure.find_control(key)
        # Controls that this audit cannot have are passed over
        if control is not None and control.is_defined:
            value = control.value
            side = "above" if value < low else "below" if value > high else "level with"
            sides[side].append(f"{words} ({value:.3f})")
    compared = "; ".join(f"{side} {', '.join(names)}" for side, names in sides.items() if names)
    # Above its noise ceiling a figure is no better than at it
    ceiling = " (at the ceiling)" if figure.at_ceiling else ""
    return f"{title}: {figure.value:.3f}{ceiling}, {compared or 'without a control'}"
