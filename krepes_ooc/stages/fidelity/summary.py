"""Fidelity figures as lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def fidelity_lines(
    figures: Mapping[str, Mapping[str, Any]], newton: Mapping[str, Any]
) -> list[str]:
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
    missing = [
        f"{figure['words'] or name}: not defined: {figure['note']}"
        for name, figure in figures.items()
        if figure["value"] is None
    ]
    rest = f"all {len(figures)} figures, each beside its controls: report.html, report.json"
    return [step, *missing, *summary_lines(figures), rest]


def summary_lines(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The figures in a few sentences: each against the controls that a simpler story would reach.

    Args:
        figures: those of the store; what is not defined is passed over.
    """
    known = {name: figure for name, figure in figures.items() if figure["value"] is not None}
    told = [
        _beside(known, "kendall_tau", "agreement with the network (tau)", {
            "embedding at the start": "the start", "raw inputs": "a probe on raw inputs",
            "noise floor: network, two halves of the fit samples": "the network against itself",
        }),
        _beside(known, "confidence_drop", "confidence lost without the top landmarks", {
            "random": "random landmarks", "largest |k| (no step)": "the kernel without the step",
            "with an exact refit": "what is lost after the others take over",
        }),
        _beside(known, "precision_at_1", "first landmarks of the same class", {
            "plain kernel": "the plain kernel",
            "cosine of network embeddings": "cosine of the network's embeddings",
            "always the most frequent class": "the most frequent class",
        }),
    ]  # fmt: skip
    ceiling = known.get("ridge_ceiling")
    if ceiling is not None:
        reached = ceiling["controls"]["embedding after the step"]
        told.append(
            f"kernel rows carry {ceiling['value']:.3f} of the network's embedding, the audit's own "
            f"embedding {reached:.3f}"
        )
    sentences = [line for line in told if line]
    return ["in short:", *(f"    {line}" for line in sentences)] if sentences else []


def _beside(
    figures: Mapping[str, Mapping[str, Any]], name: str, words: str, controls: Mapping[str, str]
) -> str:
    """One figure in words: above, level with or below each control, by its interval."""
    figure = figures.get(name)
    if figure is None:
        return ""
    low, high = figure["interval"] or (figure["value"], figure["value"])
    sides: dict[str, list[str]] = {"above": [], "level with": [], "below": []}
    for control, said in controls.items():
        value = figure["controls"].get(control)
        if value is not None:
            side = "above" if value < low else "below" if value > high else "level with"
            sides[side].append(f"{said} ({value:.3f})")
    compared = "; ".join(f"{side} {', '.join(said)}" for side, said in sides.items() if said)
    return f"{words}: {figure['value']:.3f}, {compared or 'without a control'}"
