"""Label figures by linear probes: agreement of the audit's embedding with the network's.

Every space has the same logistic regression on the fit samples and is scored on the audit samples:
the network's embedding, the audit's at the start, after the step and after further steps, the
kernel rows, the ridge ceiling, and as controls the raw inputs and random Fourier features of them.

The noise ceiling is what the network reaches against itself: its probe refitted on other fit
samples, with the same regulariser. The probes of a figure share their fit samples, so that a figure
can lie above it; such a figure is at the ceiling, and no better than another below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.figure_specs import (
    AGAINST_INPUTS,
    NETWORK,
    NOISE_CEILING,
    SOLUTION,
    SPACES,
    STEP_AGAINST_KERNEL,
)
from krepes_ooc.core.figures import Curve, Figure, curve, figure
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.component_sweep import ComponentSweepPoint
from krepes_ooc.stages.fidelity.metrics import Probe, kendall_tau, majority_share
from krepes_ooc.stages.fidelity.regressions import (
    KERNEL_ROWS,
    OTHER_REGULARISATION,
    RAW_INPUTS,
    REFITS,
    Regressions,
    half_key,
    sweep_key,
)
from krepes_ooc.stages.fidelity.rows import EvaluationRows, refuse_failing
from krepes_ooc.stages.fidelity.sample_estimates import (
    Paired,
    SampleEstimate,
    mean_estimate,
    paired,
    tau_estimate,
)

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Probes:
    """The linear probes of one audit.

    Args:
        regressions: results of all spaces.
        audit_label: class codes of the labelled audit samples [sample].
    """

    regressions: Regressions
    audit_label: npt.NDArray[np.int64]

    @cached_property
    def results(self) -> dict[str, Probe]:
        """The probe of every space that this audit has."""
        found = {}
        for key in SPACES:
            if key in self.regressions and (probe := self._probe_or_none(key)) is not None:
                found[key] = probe
        return found

    def tau_figure(self) -> Figure:
        """Rank agreement with the network's probe, beside its controls and its noise ceiling."""
        network = self.results[NETWORK].true_probability
        taus: dict[str, float | None] = {
            key: kendall_tau(result.true_probability, network)
            for key, result in self.results.items()
            if key != NETWORK
        }
        value = taus.pop(SOLUTION)
        assert value is not None
        # Noise ceilings: the network against itself, from other samples or another C
        taus[NOISE_CEILING] = _mean_of_defined(self.refit_tau)
        other = self.regressions.probe(OTHER_REGULARISATION).true_probability
        taus["noise_ceiling_regularisation"] = kendall_tau(other, network)
        estimates = {
            key: tau_estimate(self.results[key].true_probability, network)
            for key in (SOLUTION, KERNEL_ROWS, RAW_INPUTS)
            if key in self.results
        }
        interval = estimates[SOLUTION].interval
        return figure("kendall_tau", value, taus, interval, paired=_against(estimates))

    def gap_figure(self) -> Figure:
        """Accuracy of every probe minus that of the network's probe, in points."""
        hits = {key: self._hits(result) for key, result in self.results.items()}
        network = hits[NETWORK]
        # Paired over audit samples, so that the error is that of the difference
        estimates = {
            key: mean_estimate(100.0 * (hit - network))
            for key, hit in hits.items()
            if key != NETWORK
        }
        controls: dict[str, float | None] = {
            key: estimate.value for key, estimate in estimates.items() if key != SOLUTION
        }
        accuracy = float(network.mean())
        controls["majority_class"] = 100.0 * (majority_share(self.audit_label) - accuracy)
        controls["network_accuracy"] = 100.0 * accuracy
        # The network itself, of gap 0, is at its ceiling wherever its refits are
        refit = _mean_of_defined(self.refit_gap)
        controls[NOISE_CEILING] = None if refit is None else min(0.0, refit)
        unconverged = [key for key, result in self.results.items() if not result.converged]
        solution = estimates[SOLUTION]
        return figure(
            "accuracy_gap",
            solution.value,
            controls,
            solution.interval,
            unconverged,
            _against(estimates),
        )

    @cached_property
    def refit_tau(self) -> Float:
        """Rank agreement of the network's probes on both halves of every split [refit].

        NaN where a half has one class only.
        """
        taus = np.full(REFITS, np.nan)
        for refit in range(REFITS):
            halves = [self._probe_or_none(half_key(refit, half)) for half in range(2)]
            if halves[0] is not None and halves[1] is not None:
                taus[refit] = kendall_tau(halves[0].true_probability, halves[1].true_probability)
        return taus

    @cached_property
    def refit_gap(self) -> Float:
        """Accuracy of the network's probe on a half minus that on all, points [refit, half]."""
        accuracy = self.results[NETWORK].accuracy
        gaps = np.full((REFITS, 2), np.nan)
        for refit, half in np.ndindex(*gaps.shape):
            if (probe := self._probe_or_none(half_key(refit, half))) is not None:
                gaps[refit, half] = 100.0 * (probe.accuracy - accuracy)
        return gaps

    def component_curves(self, sweep: list[ComponentSweepPoint]) -> dict[str, Curve]:
        """Rank agreement and accuracy gap of audits with fewer components."""
        network = self.results[NETWORK]
        # The last point is the audit itself, which has every key
        keys = list(sweep[-1].coefficients)
        taus: dict[str, list[float]] = {key: [] for key in keys}
        gaps: dict[str, list[float]] = {key: [] for key in keys}
        for point in sweep:
            for key in keys:
                is_whole = point is sweep[-1]
                probe = self.regressions.probe(
                    key if is_whole else sweep_key(point.n_components, key)
                )
                taus[key].append(kendall_tau(probe.true_probability, network.true_probability))
                gaps[key].append(100.0 * (probe.accuracy - network.accuracy))
        counts = [point.n_components for point in sweep]
        return {
            "tau_over_components": curve("tau_over_components", counts, taus),
            "gap_over_components": curve("gap_over_components", counts, gaps),
        }

    def _hits(self, result: Probe) -> Float:
        predicted = result.probability.argmax(axis=1)
        return np.asarray(predicted == self.audit_label, dtype=np.float64)

    def _probe_or_none(self, key: str) -> Probe | None:
        try:
            return self.regressions.probe(key)
        except StageFailed as error:
            refuse_failing(error)
            return None


def open_probes(regressions: Regressions, fit: EvaluationRows, audit: EvaluationRows) -> Probes:
    """The probes of one audit, if its labels allow any.

    Args:
        regressions: results of all spaces.
        fit: the fit samples.
        audit: the audit samples.

    Raises:
        StageFailed: too few labels, or only one class among the fit samples.
    """
    # Samples without a label can neither be fitted nor scored
    fit_label = fit.label[fit.labelled]
    audit_label = audit.label[audit.labelled]
    classes = len(np.unique(fit_label))
    if classes < 2 or len(audit_label) < 2:
        raise StageFailed(
            f"{classes} classes among {len(fit_label)} fit samples with labels, "
            f"{len(audit_label)} audit samples with labels",
            where="fidelity",
            expected="two classes to fit and two samples to score",
            advice="name source.label, or raise stages.audited.fit",
        )
    return Probes(regressions, audit_label)


def _against(estimates: Mapping[str, SampleEstimate]) -> Paired:
    """The solution minus the kernel rows and minus the raw inputs, where this audit has them."""
    others = {
        STEP_AGAINST_KERNEL: estimates.get(KERNEL_ROWS),
        AGAINST_INPUTS: estimates.get(RAW_INPUTS),
    }
    return paired(estimates[SOLUTION], others)


def _mean_of_defined(values: Float) -> float | None:
    """Mean of the values that are defined; None where none is."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else None
