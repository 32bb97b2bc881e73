"""Label figures by linear probes: agreement of the audit's embedding with the network's.

Every space gets the same logistic regression on the fit samples and is scored on the audit samples:
the network's embedding, the audit's at the start, after the step and after further steps, the
kernel rows, the ridge ceiling, and as controls the raw inputs and random Fourier features of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.figure_specs import LM_STEPS, NETWORK, SPACES, START, STEP
from krepes_ooc.core.figures import Curve, Figure, curve, figure
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.baselines import FourierMap
from krepes_ooc.stages.fidelity.component_sweep import ComponentSweepPoint
from krepes_ooc.stages.fidelity.metrics import (
    Probe,
    kendall_tau,
    linear_probe,
    majority_share,
    ridge_ceiling,
    tau_interval,
)
from krepes_ooc.stages.fidelity.rows import EvaluationRows, skip_undefined, take_rows

# Inverse regularisation of the second noise ceiling; the probes have 1
OTHER_C = 0.1
NORMAL_QUANTILE = 1.96
_HALF_STREAM = 421
Float = npt.NDArray[np.float64]
Space = tuple[Float, Float]


@dataclass(frozen=True)
class Probes:
    """The linear probes of one audit, fitted once.

    Args:
        fit: labelled fit samples.
        audit: labelled audit samples.
        spaces: rows of the fit and of the audit samples, each [sample, component], by key.
        seed: of halves and bootstrap draws.
    """

    fit: EvaluationRows
    audit: EvaluationRows
    spaces: Mapping[str, Space]
    seed: int

    @cached_property
    def results(self) -> dict[str, Probe]:
        """The probe of every space."""
        return {key: self._probe(*rows) for key, rows in self.spaces.items()}

    def tau_figure(self) -> Figure:
        """Rank agreement with the network's probe, beside its controls and its noise ceiling."""
        network = self.results[NETWORK].true_probability
        taus = {
            key: kendall_tau(result.true_probability, network)
            for key, result in self.results.items()
            if key != NETWORK
        }
        value = taus.pop(STEP)
        # Noise ceiling: the network against itself, from other samples or another C
        halves = self._halves()
        taus["noise_ceiling"] = kendall_tau(*halves)
        other = self._probe(*self.spaces[NETWORK], OTHER_C).true_probability
        taus["noise_ceiling_regularisation"] = kendall_tau(other, network)
        interval = tau_interval(self.results[STEP].true_probability, network, self.seed)
        return figure("kendall_tau", value, taus, interval)

    def gap_figure(self) -> Figure:
        """Accuracy of every probe minus that of the network's probe, in points."""
        hits = {key: self._hits(result) for key, result in self.results.items()}
        network = hits[NETWORK]
        # Paired over audit samples, so that the error is that of the difference
        difference = 100.0 * (hits[STEP] - network)
        error = float(np.std(difference) / np.sqrt(len(difference)))
        value = float(difference.mean())
        controls = {
            key: 100.0 * float((hit - network).mean())
            for key, hit in hits.items()
            if key not in (STEP, NETWORK)
        }
        accuracy = float(network.mean())
        controls["majority_class"] = 100.0 * (majority_share(self.audit.label) - accuracy)
        controls["network_accuracy"] = 100.0 * accuracy
        half_width = NORMAL_QUANTILE * error
        unconverged = [key for key, result in self.results.items() if not result.converged]
        interval = (value - half_width, value + half_width)
        return figure("accuracy_gap", value, controls, interval, unconverged)

    def component_curves(self, sweep: list[ComponentSweepPoint]) -> dict[str, Curve]:
        """Rank agreement and accuracy gap of audits with fewer components."""
        network = self.results[NETWORK]
        # The last point is the audit itself, which has every key
        keys = list(sweep[-1].coefficients)
        taus: dict[str, list[float]] = {key: [] for key in keys}
        gaps: dict[str, list[float]] = {key: [] for key in keys}
        for point in sweep:
            for key in keys:
                probe = self._probe(
                    point.embedding(key, self.fit.kernel), point.embedding(key, self.audit.kernel)
                )
                taus[key].append(kendall_tau(probe.true_probability, network.true_probability))
                gaps[key].append(100.0 * (probe.accuracy - network.accuracy))
        counts = [point.n_components for point in sweep]
        return {
            "tau_over_components": curve("tau_over_components", counts, taus),
            "gap_over_components": curve("gap_over_components", counts, gaps),
        }

    def _probe(self, fit: Float, audit: Float, C: float = 1.0) -> Probe:
        return linear_probe(fit, self.fit.label, audit, self.audit.label, C)

    def _hits(self, result: Probe) -> Float:
        predicted = result.probability.argmax(axis=1)
        return np.asarray(predicted == self.audit.label, dtype=np.float64)

    def _halves(self) -> tuple[Float, Float]:
        """The network's probe fitted on either half of the fit samples."""
        fit, audit = self.spaces[NETWORK]
        # Halves keyed by sample id, so that the order of the rows does not matter
        half = counter_rng.bits(self.seed, _HALF_STREAM, self.fit.sample_id) % np.uint64(2) == 0
        first, second = (
            linear_probe(fit[part], self.fit.label[part], audit, self.audit.label)
            for part in (half, ~half)
        )
        return first.true_probability, second.true_probability


def open_probes(
    fit: EvaluationRows,
    audit: EvaluationRows,
    uniform: Callable[[], Space],
    n_landmarks: int,
    seed: int,
) -> Probes:
    """The spaces that are probed, on samples with labels.

    Args:
        fit: the fit samples.
        audit: the audit samples.
        uniform: kernel rows of uniform landmarks, of the fit and of the audit samples.
        n_landmarks: features of the random Fourier map.
        seed: of halves, bootstrap draws and frequencies.

    Raises:
        StageFailed: too few labels, or only one class among the fit samples.
    """
    # Samples without a label can neither be fitted nor scored
    labelled = fit.labelled, audit.labelled
    fit = fit.take(labelled[0])
    audit = audit.take(labelled[1])
    classes = len(np.unique(fit.label))
    if classes < 2 or len(audit.label) < 2:
        raise StageFailed(
            f"{classes} classes among {len(fit.label)} fit samples with labels, "
            f"{len(audit.label)} audit samples with labels",
            where="fidelity",
            expected="two classes to fit and two samples to score",
            advice="name source.label, or raise stages.audited.fit",
        )
    # Spaces that every audit has
    ceiling = ridge_ceiling(fit.kernel, fit.network, audit.kernel, audit.network)
    spaces: dict[str, Space] = {
        NETWORK: (fit.network, audit.network),
        STEP: (fit.embedding, audit.embedding),
        START: (fit.embedding_start, audit.embedding_start),
        "kernel_rows": (fit.kernel, audit.kernel),
        "ridge_ceiling": (ceiling.predict(fit.kernel), ceiling.predict(audit.kernel)),
    }
    # Controls that need enough fit samples, further steps or short inputs
    with skip_undefined():
        fit_rows, audit_rows = uniform()
        spaces["uniform_landmarks"] = (
            take_rows(fit_rows, labelled[0]),
            take_rows(audit_rows, labelled[1]),
        )
    if fit.embedding_lm is not None and audit.embedding_lm is not None:
        spaces[LM_STEPS] = (fit.embedding_lm, audit.embedding_lm)
    if fit.inputs is not None and audit.inputs is not None:
        spaces["raw_inputs"] = (fit.inputs, audit.inputs)
        spaces |= fourier_space(fit.inputs, audit.inputs, n_landmarks, seed)
    return Probes(fit, audit, {key: spaces[key] for key in SPACES if key in spaces}, seed)


def fourier_space(fit: Float, audit: Float, n_features: int, seed: int) -> dict[str, Space]:
    """Random Fourier features of the inputs; none if the inputs are alike.

    Args:
        fit: inputs of the fit samples [sample, input].
        audit: inputs of the audit samples [sample, input].
        n_features: number of frequencies.
        seed: of the frequencies.
    """
    try:
        fourier = FourierMap.draw(fit, n_features, seed)
    except StageFailed:
        return {}
    return {"fourier_features": (fourier.rows(fit), fourier.rows(audit))}
