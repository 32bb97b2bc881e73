"""Reliability checks of an audit: each a mark, a sentence and its figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from krepes_ooc.core.figure_specs import STEP
from krepes_ooc.core.figures import Figure, figure_spec
from krepes_ooc.rendering.data import AuditData
from krepes_ooc.rendering.drawing.markup import (
    DASH,
    Child,
    Markup,
    element,
    join,
    number,
    to_plain,
    user_text,
)
from krepes_ooc.rendering.panels.panel import Panel

Mark = Literal["good", "care", "bad", "unknown"]
# Limits that the words name, so that a reader can disagree with them.
LEAST_RHO = 0.25
LEAST_CEILING = 0.8
MOST_NYSTROM_ERROR = 0.2
LEAST_DROP_RATIO = 2.0
# The first of these figures that was measured, and the controls that it has to beat.
LIKENESS = {
    "kendall_tau": "The rank agreement of its class probabilities with the network's (tau)",
    "cka": "The likeness of its embedding to the network's (linear CKA)",
}
TO_BEAT = ("start", "raw_inputs")
# The controls that decide how a figure is read, in plain words; the fidelity panel has them all.
DECIDING = {
    "ridge_ceiling": {
        STEP: "the audit's own embedding",
        "raw_inputs": "the raw inputs, without a network",
        "uniform_landmarks": "as many landmarks drawn at random",
    },
    "kendall_tau": {
        "start": "before the step",
        "raw_inputs": "a probe on the raw inputs",
        "ridge_ceiling": "the most these landmarks allow",
        "noise_ceiling": "the network against itself",
    },
    "cka": {
        "start": "before the step",
        "kernel_rows": "the plain kernel rows",
    },
    "confidence_drop": {
        "random": "random landmarks",
        "kernel_only": "the largest in the kernel, without the step",
        "reference_set_removal": "taken out of a bank that votes",
        "exact_refit": "once the others have taken over",
    },
}


@dataclass(frozen=True)
class TrustCheck:
    """One check: its mark, a headline, one or two sentences, its figures."""

    key: str
    mark: Mark
    title: str
    words: Markup
    figures: dict[str, Any] = field(default_factory=dict)


Check = Callable[[AuditData], TrustCheck]


def _step(audit: AuditData) -> TrustCheck:
    if audit.newton is None:
        return TrustCheck("step", "unknown", "The step", join("No step was computed."))
    values = {name: _attribute(audit, name) for name in STEP_FIGURES}
    # Stores without the verdict of the stage: the rule of the page
    trusted = audit.newton.attributes.get("trusted")
    lowered = values["loss_step"] < values["loss_start"]
    if trusted is None:
        trusted = lowered and values["rho"] >= LEAST_RHO
    words = join(
        f"It {'lowers' if lowered else 'does not lower'} the loss: ",
        number(values["loss_start"]), " before, ", number(values["loss_step"]), " after. ",
        "The quadratic model foresaw a decrease of ", number(values["predicted_decrease"]),
        "; the ratio of real to foreseen decrease, rho, is ", number(values["rho"]),
        f" (1 is perfect, below {LEAST_RHO} the model is no guide). ",
        "" if trusted else
        "Read the rankings as closeness in the kernel, not as the objective's pull.",
    )  # fmt: skip
    title = "The step is trusted" if trusted else "The step is not trusted"
    return TrustCheck(
        "step", "good" if trusted else "bad", title, words, {**values, "trusted": bool(trusted)}
    )


STEP_FIGURES = ("loss_start", "loss_step", "predicted_decrease", "rho")


def _solver(audit: AuditData) -> TrustCheck:
    title = "The solver"
    residual = _attribute(audit, "residual_norm")
    tolerance = _attribute(audit, "tolerance")
    if audit.newton is None or not math.isfinite(residual):
        return TrustCheck("solver", "unknown", title, join("No residual was measured."))
    iterations = _attribute(audit, "iterations")
    # A direct solve takes no iterations
    how = (
        join("after ", number(int(iterations)), " iterations")
        if math.isfinite(iterations) and iterations > 0
        else join("by a direct solve")
    )
    # Without a tolerance there is nothing to miss
    reached = not math.isfinite(tolerance) or residual <= tolerance
    words = join(
        "The equations of the step are solved to a relative residual of ", number(residual),
        " ", how,
        join("; the tolerance is ", number(tolerance)) if math.isfinite(tolerance) else None, ".",
    )  # fmt: skip
    figures = {"residual_norm": residual, "tolerance": tolerance, "iterations": iterations}
    if math.isfinite(iterations):
        figures["iterations"] = int(iterations)
    title = "The solver converged" if reached else "The solver did not converge"
    return TrustCheck("solver", "good" if reached else "care", title, words, figures)


def _ceiling(audit: AuditData) -> TrustCheck:
    title = "What the landmarks can carry"
    figure = audit.fidelity.get("ridge_ceiling")
    if figure is None or not figure.is_defined:
        return TrustCheck("ceiling", "unknown", title, join("The ridge ceiling was not measured."))
    # No coefficients on these landmarks can do better than the ceiling
    good = figure.value >= LEAST_CEILING
    words = join(
        "A ridge regression from kernel rows reproduces ", number(figure.value),
        " of the variance of the network's embedding on samples it has not seen (R²). ",
        "No explanation by these landmarks can carry more.",
        "" if good else f" Below {LEAST_CEILING} they miss much of what the network encodes.",
        _beside(figure),
    )  # fmt: skip
    return TrustCheck("ceiling", "good" if good else "care", title, words, _figures(figure))


def _nystrom(audit: AuditData) -> TrustCheck:
    title = "Enough landmarks?"
    error = math.nan if audit.spectrum is None else audit.spectrum.nystrom_error
    if not math.isfinite(error):
        return TrustCheck("nystrom", "unknown", title, join("The Nystrom error was not measured."))
    # A rule of thumb; the sentence names the limit
    good = error <= MOST_NYSTROM_ERROR
    words = join(
        "Rebuilding the kernel from the landmarks leaves a relative error of ", number(error),
        f"; up to {MOST_NYSTROM_ERROR} is taken as enough here."
        if good else f"; above {MOST_NYSTROM_ERROR} more landmarks would help.",
    )  # fmt: skip
    return TrustCheck("nystrom", "good" if good else "care", title, words, {"nystrom_error": error})


def _drop(audit: AuditData) -> TrustCheck:
    title = "Do the landmarks matter?"
    figure = audit.fidelity.get("confidence_drop")
    if figure is None or not figure.is_defined:
        return TrustCheck("drop", "unknown", title, join("The confidence drop was not measured."))
    random = figure.control("random").value
    ratio = figure.value / random if random > 0 else math.nan
    # What the plain kernel takes away as well is not owed to the step; NaN is no such level.
    least = figure.value if figure.interval is None else figure.interval[0]
    level = figure.control("kernel_only").value >= least
    mark: Mark = "unknown"
    matters = False
    if math.isfinite(random):
        matters = figure.value >= LEAST_DROP_RATIO * random and figure.value > 0
        mark = "good" if matters and not level else "care"
    words = join(
        "Taking a sample's strongest landmarks out of its sum lowers the confidence by ",
        number(figure.value), " on average",
        join(" (", number(ratio), " times the drop of random landmarks)")
        if math.isfinite(ratio) else None,
        ".", _beside(figure),
        " So the landmarks matter, but the plain kernel finds them as well: the step adds nothing "
        "to this ranking." if matters and level else None,
    )  # fmt: skip
    return TrustCheck("drop", mark, title, words, {**_figures(figure), "ratio": ratio})


def _likeness(audit: AuditData) -> TrustCheck:
    title = "Does it behave like the network?"
    key = next((key for key in LIKENESS if key in audit.fidelity), "")
    figure = audit.fidelity.get(key)
    if figure is None or not figure.is_defined:
        return TrustCheck("likeness", "unknown", title, join("No likeness was measured."))
    # Simpler embeddings that it must beat, those that are optional for this figure or this audit
    names = [name for name in TO_BEAT if name in figure_spec(key).controls]
    lower = [control for name in names if (control := figure.find_control(name)) is not None]
    beaten = [figure.value >= control.value for control in lower if control.is_defined]
    # A likeness that simpler embeddings reach is no evidence
    mark: Mark = "unknown" if not beaten else "good" if all(beaten) else "care"
    words = join(
        LIKENESS[key], " is ", number(figure.value), ".", _beside(figure),
        " What is simpler does as well or better." if mark == "care" else None,
    )  # fmt: skip
    return TrustCheck("likeness", mark, title, words, {"figure": key, **_figures(figure)})


def _self_check(audit: AuditData) -> TrustCheck:
    title = "The Jacobian rows"
    check = audit.self_check
    if check is None:
        return TrustCheck("self_check", "unknown", title, join("The self-check was not recorded."))
    error = check.largest_error
    words = join(
        user_text(_sentence(check.words), 400) if check.words else
        join(
            "Gradients were compared with automatic differentiation on two samples; the largest "
            "relative error is ", number(error), ".",
        ),
    )  # fmt: skip
    title += " passed their self-check" if check.passed else " failed their self-check"
    mark: Mark = "good" if check.passed else "bad"
    figures = {"passed": check.passed, "largest_error": error}
    return TrustCheck("self_check", mark, title, words, figures)


CHECKS: tuple[Check, ...] = (
    _step,
    _self_check,
    _ceiling,
    _likeness,
    _nystrom,
    _drop,
    _solver,
)


def _beside(figure: Figure) -> Markup | None:
    """The controls that decide, in one sentence; optional ones where this audit has them."""
    pairs: list[Child] = []
    for key, words in DECIDING[figure.key].items():
        control = figure.find_control(key)
        if control is not None:
            pairs += ["; " if pairs else " Beside it: ", words, " ", number(control.value)]
    return join(pairs, ".") if pairs else None


def _figures(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "controls": figure.values}


def _attribute(audit: AuditData, name: str) -> float:
    value = None if audit.newton is None else audit.newton.attributes.get(name)
    return math.nan if value is None else float(value)


def _sentence(words: str) -> str:
    """The words with a capital and a full stop."""
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


SIGNS: dict[Mark, tuple[str, str]] = {
    "good": ("✓", "holds"),
    "care": ("!", "take care"),
    "bad": ("✗", "fails"),
    "unknown": (DASH, "not measured"),
}


def trust_panel(audit: AuditData) -> Panel:
    """The trust panel: verdict, checks and warnings."""
    checks = [check(audit) for check in CHECKS]
    verdict = _verdict(checks, audit.warnings)
    body = join(
        element("ul", [_item(check) for check in checks], class_="findings"),
        _warnings(audit.warnings),
    )
    figures = {
        "verdict": verdict,
        "checks": {c.key: {"mark": c.mark, **to_plain(c.figures)} for c in checks},
        "warnings": list(audit.warnings),
    }
    return Panel("trust", "Can it be believed?", element("strong", verdict), body, figures)


def _verdict(checks: list[TrustCheck], warnings: tuple[str, ...]) -> str:
    """The worst reason first: rows, then the step, then reservations."""
    marks = {check.key: check.mark for check in checks}
    # Wrong rows make every figure meaningless, a bad step only the rankings
    if marks["self_check"] == "bad":
        return "Do not rely on this audit: the network's Jacobian rows failed their self-check."
    if marks["step"] == "bad":
        return "Read with caution: the step is not trusted, so rankings that use it may mislead."
    if "care" in marks.values() or "bad" in marks.values() or warnings:
        return "Usable, with the reservations below."
    if "good" not in marks.values():
        return "Nothing was measured by which this audit could be judged."
    return "Nothing that was measured speaks against this audit."


def _item(check: TrustCheck) -> Markup:
    sign, words = SIGNS[check.mark]
    return element(
        "li",
        element("span", sign, class_="sign", aria_hidden="true"),
        element(
            "div",
            element("h3", check.title, element("span", f" ({words})", class_="unseen")),
            element("p", check.words),
        ),
        class_=check.mark,
    )


def _warnings(warnings: tuple[str, ...]) -> Markup:
    if not warnings:
        return element("p", "No warning was raised during the run.", class_="quiet")
    return element(
        "aside",
        element("h3", "Warnings"),
        element("ul", [element("li", user_text(words, 600)) for words in warnings]),
        class_="warnings",
    )
