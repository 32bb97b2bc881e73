"""The reasons to doubt an audit: each a check, in words with its figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

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
from krepes_ooc.rendering.measured import Figure
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
TO_BEAT = ("start", "raw")
WITHOUT_STEP = "largest |k| (no step)"
# The controls that decide how a figure is read, in plain words; the fidelity panel has them all.
DECIDING = {
    "ridge_ceiling": {
        "embedding after the step": "the audit's own embedding",
        "raw inputs": "the raw inputs, without a network",
        "as many uniform landmarks": "as many landmarks drawn at random",
    },
    "kendall_tau": {
        "embedding at the start": "before the step",
        "raw inputs": "a probe on the raw inputs",
        "ridge ceiling": "the most these landmarks allow",
        "noise floor: network, two halves of the fit samples": "the network against itself",
    },
    "cka": {
        "embedding at the start": "before the step",
        "kernel rows": "the plain kernel rows",
    },
    "confidence_drop": {
        "random": "random landmarks",
        WITHOUT_STEP: "the largest in the kernel, without the step",
        "out of a bank of landmarks": "taken out of a bank that votes",
        "with an exact refit": "once the others have taken over",
    },
}


@dataclass(frozen=True)
class TrustCheck:
    """One check: how it came out, a headline, one or two sentences, its figures."""

    key: str
    mark: Mark
    title: str
    words: Markup
    figures: dict[str, Any] = field(default_factory=dict)


Check = Callable[[AuditData], TrustCheck]


def _step(audit: AuditData) -> TrustCheck:
    if audit.newton is None:
        return TrustCheck("step", "unknown", "The step", join("No step was computed."))
    got = {name: _get(audit, name) for name in STEP_FIGURES}
    trusted = audit.newton.attributes.get("trusted")
    lowered = got["loss_step"] < got["loss_start"]
    if trusted is None:
        trusted = lowered and got["rho"] >= LEAST_RHO
    words = join(
        f"It {'lowers' if lowered else 'does not lower'} the loss: ",
        number(got["loss_start"]), " before, ", number(got["loss_step"]), " after. ",
        "The quadratic model foresaw a decrease of ", number(got["predicted_decrease"]),
        "; the ratio of real to foreseen decrease, rho, is ", number(got["rho"]),
        f" (1 is perfect, below {LEAST_RHO} the model is no guide). ",
        "" if trusted else
        "Read the rankings as closeness in the kernel, not as the objective's pull.",
    )  # fmt: skip
    title = "The step is trusted" if trusted else "The step is not trusted"
    return TrustCheck(
        "step", "good" if trusted else "bad", title, words, {**got, "trusted": bool(trusted)}
    )


STEP_FIGURES = ("loss_start", "loss_step", "predicted_decrease", "rho")


def _solver(audit: AuditData) -> TrustCheck:
    title = "The solver"
    residual, tolerance = _get(audit, "residual_norm"), _get(audit, "tolerance")
    if audit.newton is None or not math.isfinite(residual):
        return TrustCheck("solver", "unknown", title, join("No residual was measured."))
    iterations = _get(audit, "iterations")
    how = (
        join("after ", number(int(iterations)), " iterations")
        if math.isfinite(iterations) and iterations > 0
        else join("by a direct solve")
    )
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
    if figure is None or not math.isfinite(figure.value):
        return TrustCheck("ceiling", "unknown", title, join("The ridge ceiling was not measured."))
    good = figure.value >= LEAST_CEILING
    words = join(
        "A ridge regression from kernel rows reproduces ", number(figure.value),
        " of the variance of the network's embedding on samples it has not seen (R²). ",
        "No explanation by these landmarks can carry more.",
        "" if good else f" Below {LEAST_CEILING} they miss much of what the network encodes.",
        _beside("ridge_ceiling", figure),
    )  # fmt: skip
    return TrustCheck("ceiling", "good" if good else "care", title, words, _figures(figure))


def _nystrom(audit: AuditData) -> TrustCheck:
    title = "Enough landmarks?"
    error = math.nan if audit.spectrum is None else audit.spectrum.nystrom_error
    if not math.isfinite(error):
        return TrustCheck("nystrom", "unknown", title, join("The Nystrom error was not measured."))
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
    if figure is None or not math.isfinite(figure.value):
        return TrustCheck("drop", "unknown", title, join("The confidence drop was not measured."))
    random = figure.controls.get("random", math.nan)
    ratio = figure.value / random if random > 0 else math.nan
    # What the plain kernel takes away as well is not owed to the step.
    least = figure.value if figure.interval is None else figure.interval[0]
    level = figure.controls.get(WITHOUT_STEP, -math.inf) >= least
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
        ".", _beside("confidence_drop", figure),
        " So the landmarks matter, but the plain kernel finds them as well: the step adds nothing "
        "to this ranking." if matters and level else None,
    )  # fmt: skip
    return TrustCheck("drop", mark, title, words, {**_figures(figure), "ratio": ratio})


def _likeness(audit: AuditData) -> TrustCheck:
    title = "Does it behave like the network?"
    name = next((n for n in LIKENESS if n in audit.fidelity), "")
    figure = audit.fidelity.get(name)
    if figure is None or not math.isfinite(figure.value):
        return TrustCheck("likeness", "unknown", title, join("No likeness was measured."))
    lower = [v for words, v in figure.controls.items() if any(w in words for w in TO_BEAT)]
    beaten = [figure.value >= value for value in lower if math.isfinite(value)]
    mark: Mark = "unknown" if not beaten else "good" if all(beaten) else "care"
    words = join(
        LIKENESS[name], " is ", number(figure.value), ".", _beside(name, figure),
        " What is simpler does as well or better." if mark == "care" else None,
    )  # fmt: skip
    return TrustCheck("likeness", mark, title, words, {"figure": name, **_figures(figure)})


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


def _beside(name: str, figure: Figure) -> Markup | None:
    """The controls that decide, in one sentence."""
    known = {
        words: figure.controls[control]
        for control, words in DECIDING[name].items()
        if control in figure.controls
    }
    pairs: list[Child] = []
    for words, value in known.items():
        pairs += ["; " if pairs else " Beside it: ", words, " ", number(value)]
    return join(pairs, ".") if pairs else None


def _figures(figure: Figure) -> dict[str, Any]:
    return {"value": figure.value, "controls": dict(figure.controls)}


def _get(audit: AuditData, name: str) -> float:
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
    """The trust panel: verdict, findings and warnings."""
    findings = [check(audit) for check in CHECKS]
    verdict = _verdict(findings, audit.warnings)
    body = join(
        element("ul", [_item(finding) for finding in findings], class_="findings"),
        _warnings(audit.warnings),
    )
    figures = {
        "verdict": verdict,
        "checks": {f.key: {"mark": f.mark, **to_plain(f.figures)} for f in findings},
        "warnings": list(audit.warnings),
    }
    return Panel("trust", "Can it be believed?", element("strong", verdict), body, figures)


def _verdict(findings: list[TrustCheck], warnings: tuple[str, ...]) -> str:
    marks = {finding.key: finding.mark for finding in findings}
    if marks["self_check"] == "bad":
        return "Do not rely on this audit: the network's Jacobian rows failed their self-check."
    if marks["step"] == "bad":
        return "Read with caution: the step is not trusted, so rankings that use it may mislead."
    if "care" in marks.values() or "bad" in marks.values() or warnings:
        return "Usable, with the reservations below."
    if "good" not in marks.values():
        return "Nothing was measured by which this audit could be judged."
    return "Nothing that was measured speaks against this audit."


def _item(finding: TrustCheck) -> Markup:
    sign, words = SIGNS[finding.mark]
    return element(
        "li",
        element("span", sign, class_="sign", aria_hidden="true"),
        element(
            "div",
            element("h3", finding.title, element("span", f" ({words})", class_="unseen")),
            element("p", finding.words),
        ),
        class_=finding.mark,
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
