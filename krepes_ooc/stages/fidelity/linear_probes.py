"""Label figures by linear probes: does the audit's embedding carry what the network's does?

Every embedding gets the same logistic regression on the fit samples and is scored on the audit
samples: the network's own, the audit's at the start, after the step and after further steps, the
kernel rows, the ridge ceiling, and as controls the raw inputs and random Fourier features of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.component_sweep import ComponentSweepPoint, streaming_note
from krepes_ooc.stages.fidelity.rows import EvaluationRows, Figure, curve, figure, skip_undefined

OTHER_STRENGTH = 0.1
_HALF_STREAM = 421
NETWORK, STEP, START = "network", "after the step", "embedding at the start"
UNIFORM = "kernel rows of as many uniform landmarks"
Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Probes:
    """The probes of one audit, fitted once.

    Args:
        fit: labelled fit samples.
        held: labelled audit samples.
        spaces: name in words to rows of the fit and of the audit samples.
        seed: of halves and bootstrap draws.
    """

    fit: EvaluationRows
    held: EvaluationRows
    spaces: Mapping[str, tuple[Float, Float]]
    seed: int

    @cached_property
    def results(self) -> dict[str, Any]:
        """The probe of every space."""
        return {name: self._probe(*rows) for name, rows in self.spaces.items()}

    def tau(self) -> Figure:
        """Rank agreement with the network's probe, beside its controls and its noise floor."""
        from krepes_ooc.stages.fidelity.metrics import kendall_tau, tau_interval

        network = self.results[NETWORK].true_probability
        found = {
            name: kendall_tau(result.true_probability, network)
            for name, result in self.results.items()
            if name != NETWORK
        }
        value = found.pop(STEP)
        step = self.results[STEP].true_probability
        floor = self._halves()
        found["noise floor: network, two halves of the fit samples"] = kendall_tau(*floor)
        other = self._probe(*self.spaces[NETWORK], OTHER_STRENGTH).true_probability
        found["noise floor: network, other regularisation"] = kendall_tau(other, network)
        return figure(
            value,
            "Rank agreement with the network's probe (Kendall tau-b)",
            "Over audit samples, of the probability that a linear probe gives to the true class: "
            "probe on the audit's embedding against probe on the network's.",
            found,
            tau_interval(step, network, self.seed),
        )

    def accuracy_gap(self) -> Figure:
        """Accuracy of every probe minus that of the network's probe, in points."""
        from krepes_ooc.stages.fidelity.metrics import majority_share

        hits = {name: self._hits(result) for name, result in self.results.items()}
        base = hits[NETWORK]
        difference = 100.0 * (hits[STEP] - base)
        error = float(np.std(difference) / np.sqrt(len(difference)))
        value = float(difference.mean())
        controls: dict[str, float | None] = {
            name: 100.0 * float((hit - base).mean())
            for name, hit in hits.items()
            if name not in (STEP, NETWORK)
        }
        majority = majority_share(self.held.label)
        controls["always the most frequent class"] = 100.0 * (majority - float(base.mean()))
        controls["accuracy of the network's probe, percent"] = 100.0 * float(base.mean())
        return figure(
            value,
            "Accuracy gap to the network's probe, in points",
            "Accuracy of a linear probe on the audit's embedding minus that on the network's; "
            "the same samples, the same regularisation. The interval is over audit samples."
            + self._unfinished(),
            controls,
            (value - 1.96 * error, value + 1.96 * error),
        )

    def over_components(self, audits: list[ComponentSweepPoint]) -> dict[str, Any]:
        """Rank agreement and gap of audits with fewer components."""
        from krepes_ooc.stages.fidelity.metrics import kendall_tau

        network = self.results[NETWORK]
        taus: dict[str, list[float]] = {name: [] for name in audits[-1].coefficients}
        gaps: dict[str, list[float]] = {name: [] for name in taus}
        for audit in audits:
            for name in taus:
                fit, held = (audit.embedding(name, p.kernel) for p in (self.fit, self.held))
                probe = self._probe(fit, held)
                taus[name].append(kendall_tau(probe.true_probability, network.true_probability))
                gaps[name].append(100.0 * (probe.accuracy - network.accuracy))
        counts = [audit.n_components for audit in audits]
        note = "Linear probe on the embedding of an audit with h components; its steps are solved "
        note += "anew. " + streaming_note(audits)
        return {
            "tau_over_components": curve(
                "Rank agreement against the number of components",
                ("components h", "Kendall tau-b"),
                counts,
                taus,
                note,
            ),
            "gap_over_components": curve(
                "Accuracy gap against the number of components",
                ("components h", "gap to the network's probe, points"),
                counts,
                gaps,
                note,
            ),
        }

    def _unfinished(self) -> str:
        """A sentence on the probes that were stopped before they converged, if there are any."""
        names = [name for name, result in self.results.items() if not result.converged]
        return f" Stopped before they converged: {', '.join(names)}." if names else ""

    def _probe(self, fit: Float, held: Float, strength: float = 1.0) -> Any:
        from krepes_ooc.stages.fidelity.metrics import linear_probe

        return linear_probe(fit, self.fit.label, held, self.held.label, strength)

    def _hits(self, result: Any) -> Float:
        return np.asarray(result.probability.argmax(axis=1) == self.held.label, dtype=np.float64)

    def _halves(self) -> tuple[Float, Float]:
        """The network's probe fitted on either half of the fit samples."""
        from krepes_ooc.stages.fidelity.metrics import linear_probe

        rows, held = self.spaces[NETWORK]
        half = counter_rng.bits(self.seed, _HALF_STREAM, self.fit.sample_id) % np.uint64(2) == 0
        first, second = (
            linear_probe(rows[part], self.fit.label[part], held, self.held.label)
            for part in (half, ~half)
        )
        return first.true_probability, second.true_probability


def open_probes(
    fit: EvaluationRows,
    held: EvaluationRows,
    uniform: Callable[[], tuple[Float, Float]],
    n_landmarks: int,
    seed: int,
) -> Probes:
    """The spaces that are probed.

    Args:
        fit: the fit samples.
        held: the audit samples.
        uniform: kernel rows of uniform landmarks, of the fit and of the audit samples.
        n_landmarks: features of the random Fourier map.
        seed: of halves, bootstrap draws and frequencies.

    Raises:
        StageFailed: too few labels, or only one class among the fit samples.
    """
    from krepes_ooc.stages.fidelity.metrics import ridge_ceiling

    known = fit.labelled, held.labelled
    fit, held = keep(fit, known[0]), keep(held, known[1])
    classes = len(np.unique(fit.label))
    if classes < 2 or len(held.label) < 2:
        raise StageFailed(
            f"{classes} classes among {len(fit.label)} fit samples with labels, "
            f"{len(held.label)} audit samples with labels",
            where="fidelity",
            expected="two classes to fit and two samples to score",
            advice="name source.label, or raise stages.audited.fit",
        )
    ceiling = ridge_ceiling(fit.kernel, fit.network, held.kernel, held.network)
    spaces: dict[str, tuple[Float, Float]] = {
        NETWORK: (fit.network, held.network),
        STEP: (fit.step, held.step),
        START: (fit.start, held.start),
        "kernel rows": (fit.kernel, held.kernel),
        "ridge ceiling": (ceiling.predict(fit.kernel), ceiling.predict(held.kernel)),
    }
    with skip_undefined():  # too few fit samples to draw them from
        rows = uniform()
        spaces[UNIFORM] = _cut(rows[0], known[0]), _cut(rows[1], known[1])
    if fit.coefficients_lm is not None and held.coefficients_lm is not None:
        spaces["after further steps"] = (fit.coefficients_lm, held.coefficients_lm)
    if fit.inputs is not None and held.inputs is not None:
        spaces["raw inputs"] = (fit.inputs, held.inputs)
        spaces |= fourier(fit.inputs, held.inputs, n_landmarks, seed)
    return Probes(fit, held, spaces, seed)


def fourier(fit: Float, held: Float, n_features: int, seed: int) -> dict[str, tuple[Float, Float]]:
    """Random Fourier features of the inputs; none if the inputs are alike."""
    from krepes_ooc.stages.fidelity.baselines import FourierMap

    try:
        mapped = FourierMap.draw(fit, n_features, seed)
    except StageFailed:
        return {}
    return {"random Fourier features of the inputs": (mapped.rows(fit), mapped.rows(held))}


def keep(rows: EvaluationRows, which: npt.NDArray[np.bool_]) -> EvaluationRows:
    """Some of the samples."""
    cut: dict[str, Any] = {
        name: value if value is None else _cut(value, which) for name, value in vars(rows).items()
    }
    return EvaluationRows(**cut)


def _cut(values: npt.NDArray[Any], which: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Some of the rows; all of them are not copied."""
    return values if which.all() else values[which]
