"""All regressions of the stage, as tasks: for every space a ridge regression and a linear probe.

A space is what a sample is seen as: the network's embedding, the audit's at the start, after the
step and after further steps, kernel rows, inputs, random features of inputs. In each the ridge
regression reproduces the network's embedding and the probe, where there are labels, the classes;
both share the Gram matrix of the rows. Every task is alone with its rows, so the number of workers
changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.core.figure_specs import LM_STEPS, NETWORK, SOLUTION, START, STEP
from krepes_ooc.engine.executor import Executor
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.fidelity.baselines import FourierMap
from krepes_ooc.stages.fidelity.centred_rows import CentredRows
from krepes_ooc.stages.fidelity.component_sweep import ComponentSweepPoint
from krepes_ooc.stages.fidelity.metrics import Probe, RidgeFit, probe_on, ridge_on, undefined
from krepes_ooc.stages.fidelity.rows import EvaluationRows, refuse_failing, take_rows

KERNEL_ROWS, CEILING = "kernel_rows", "ridge_ceiling"
RAW_INPUTS, FOURIER = "raw_inputs", "fourier_features"
UNIFORM = "uniform_landmarks"
OTHER_REGULARISATION = "network_other_regularisation"
# Splits of the fit samples in halves, for the noise ceiling
REFITS = 4
# Inverse regularisation of the second noise ceiling; the probes have 1
OTHER_C = 0.1
_HALF_STREAM = 421
Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Space = tuple[Float, Float]
Fitted = TypeVar("Fitted", RidgeFit, Probe)


@dataclass(frozen=True)
class Regression:
    """Results in one space; a result that is not defined is the error that says why.

    Args:
        ridge: the map to the network's embedding.
        predicted: what it gives for the audit samples [sample, output].
        probe: the linear probe, scored on the labelled audit samples.
    """

    ridge: RidgeFit | StageFailed
    predicted: Float
    probe: Probe | StageFailed


@dataclass(frozen=True)
class RegressionTask:
    """One space.

    Args:
        key: of the space.
        rows: makes the rows of the fit and of the audit samples, each [sample, component].
        ridge_samples: fit samples of the ridge regression [sample]; None: all.
        probe_samples: fit samples of the probe [sample]; None: all with a label.
        C: inverse regularisation of the probe.
        with_ridge: whether the network's embedding is fitted.
    """

    key: str
    rows: Callable[[], Space]
    ridge_samples: Mask | None = None
    probe_samples: Mask | None = None
    C: float = 1.0
    with_ridge: bool = True


@dataclass(frozen=True)
class Regressions:
    """Results of all spaces.

    Args:
        results: by the key of the space.
    """

    results: Mapping[str, Regression] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        """Whether this audit has the space."""
        return key in self.results

    def ridge(self, key: str) -> RidgeFit:
        """Ridge regression in one space.

        Raises:
            StageFailed: it is not defined.
        """
        found = self.results[key].ridge
        if isinstance(found, StageFailed):
            raise found
        return found

    def predicted(self, key: str) -> Float:
        """Network embedding of the audit samples by the ridge regression of one space.

        Raises:
            StageFailed: it is not defined.
        """
        self.ridge(key)
        return self.results[key].predicted

    def probe(self, key: str) -> Probe:
        """Linear probe in one space.

        Raises:
            StageFailed: it is not defined.
        """
        found = self.results[key].probe
        if isinstance(found, StageFailed):
            raise found
        return found


def audit_tasks(
    fit: EvaluationRows,
    audit: EvaluationRows,
    uniform: tuple[Space, Mask] | None,
    seed: int,
) -> list[RegressionTask]:
    """The spaces of one audit, the widest first; each row is made when its task runs.

    Args:
        fit: the fit samples.
        audit: the audit samples.
        uniform: kernel rows of uniform landmarks, and the fit samples that are none of them.
        seed: of frequencies and halves.
    """
    tasks = [RegressionTask(KERNEL_ROWS, lambda: (fit.kernel, audit.kernel))]
    if uniform is not None:
        uniform_rows, others = uniform
        tasks.append(RegressionTask(UNIFORM, lambda: uniform_rows, ridge_samples=others))
    if fit.inputs is not None and audit.inputs is not None:
        inputs = fit.inputs, audit.inputs
        # As many random Fourier features as landmarks
        n_features = fit.kernel.shape[1]
        tasks.append(RegressionTask(FOURIER, lambda: fourier_rows(*inputs, n_features, seed)))
        tasks.append(RegressionTask(RAW_INPUTS, lambda: inputs))
    tasks.append(RegressionTask(SOLUTION, lambda: (fit.embedding, audit.embedding)))
    tasks.append(RegressionTask(STEP, lambda: (fit.embedding_step, audit.embedding_step)))
    tasks.append(RegressionTask(START, lambda: (fit.embedding_start, audit.embedding_start)))
    if fit.embedding_lm is not None and audit.embedding_lm is not None:
        further = fit.embedding_lm, audit.embedding_lm
        tasks.append(RegressionTask(LM_STEPS, lambda: further))
    return tasks + _network_tasks(fit, audit, seed)


def _network_tasks(fit: EvaluationRows, audit: EvaluationRows, seed: int) -> list[RegressionTask]:
    """Probes of the network itself: the reference, and its refits for the noise ceilings."""

    def network() -> Space:
        return fit.network, audit.network

    tasks = [
        RegressionTask(NETWORK, network, with_ridge=False),
        RegressionTask(OTHER_REGULARISATION, network, C=OTHER_C, with_ridge=False),
    ]
    for refit in range(REFITS):
        # Halves keyed by sample id, so that the order of the rows does not matter
        keys = (refit,) if refit else ()
        bits = counter_rng.bits(seed, _HALF_STREAM, *keys, fit.sample_id)
        first = bits % np.uint64(2) == 0
        for half, chosen in enumerate((first, ~first)):
            task = RegressionTask(
                half_key(refit, half), network, probe_samples=chosen, with_ridge=False
            )
            tasks.append(task)
    return tasks


def half_key(refit: int, half: int) -> str:
    """Key of the network's probe that is refitted on one half of the fit samples."""
    return f"network_refit_{refit}_{half}"


def sweep_tasks(
    fit: EvaluationRows, audit: EvaluationRows, sweep: Iterable[ComponentSweepPoint]
) -> list[RegressionTask]:
    """Embeddings of audits with fewer components; the whole audit is among ``audit_tasks``."""
    tasks = []
    for point in sweep:
        if point.n_components == fit.embedding.shape[1]:
            continue
        for key in point.coefficients:

            def rows(point: ComponentSweepPoint = point, key: str = key) -> Space:
                return point.embedding(key, fit.kernel), point.embedding(key, audit.kernel)

            tasks.append(RegressionTask(sweep_key(point.n_components, key), rows))
    return tasks


def sweep_key(n_components: int, key: str) -> str:
    """Key of an embedding of an audit with fewer components."""
    return f"{key}_{n_components}_components"


def fourier_rows(fit: Float, audit: Float, n_features: int, seed: int) -> Space:
    """Random Fourier features of the inputs.

    Args:
        fit: inputs of the fit samples [sample, input].
        audit: inputs of the audit samples [sample, input].
        n_features: number of frequencies.
        seed: of the frequencies.

    Raises:
        StageFailed: the inputs are alike.
    """
    fourier = FourierMap.draw(fit, n_features, seed)
    return fourier.rows(fit), fourier.rows(audit)


def measure_regressions(
    fit: EvaluationRows,
    audit: EvaluationRows,
    tasks: list[RegressionTask],
    with_probes: bool,
    executor: Executor,
) -> Regressions:
    """Run the tasks on the workers.

    Args:
        fit: the fit samples.
        audit: the audit samples.
        tasks: the spaces.
        with_probes: whether there are labels.
        executor: of the stage.

    Raises:
        StageFailed: rows could not be read or computed.
    """

    def run(task: RegressionTask) -> list[tuple[str, Regression]]:
        return _regressions(task, fit, audit, with_probes)

    found: dict[str, Regression] = {}
    for results in executor.map(run, tasks):
        found.update(results)
    return Regressions(found)


def _regressions(
    task: RegressionTask, fit: EvaluationRows, audit: EvaluationRows, with_probes: bool
) -> list[tuple[str, Regression]]:
    try:
        rows = task.rows()
    except StageFailed as error:
        refuse_failing(error)
        return [(task.key, Regression(error, audit.network[:0], error))]
    space = _Space(task, fit, audit, *rows)
    ridge = _or_error(space.ridge) if task.with_ridge else _not_fitted()
    predicted = ridge.predict(space.audit_rows) if isinstance(ridge, RidgeFit) else rows[1][:0]
    probe = _or_error(space.probe) if with_probes else _not_fitted()
    results = [(task.key, Regression(ridge, predicted, probe))]
    # The ridge ceiling is a space of its own: what the best coefficients make of kernel rows
    if task.key == KERNEL_ROWS and with_probes and isinstance(ridge, RidgeFit):
        fit_predicted = ridge.predict(space.fit_rows)
        del space
        best = _Space(RegressionTask(CEILING, task.rows), fit, audit, fit_predicted, predicted)
        ceiling = Regression(_not_fitted(), predicted, _or_error(best.probe))
        results.append((CEILING, ceiling))
    return results


@dataclass(frozen=True)
class _Space:
    """Both regressions on the rows of one space, which share a Gram matrix.

    Args:
        task: what is fitted.
        fit: the fit samples.
        audit: the audit samples.
        fit_rows: [sample, component].
        audit_rows: [sample, component].
    """

    task: RegressionTask
    fit: EvaluationRows
    audit: EvaluationRows
    fit_rows: Float
    audit_rows: Float
    shared: dict[bytes, CentredRows] = field(default_factory=dict)

    def ridge(self) -> RidgeFit:
        """Ridge regression to the network's embedding.

        Raises:
            StageFailed: fewer than two fit samples, or constant rows.
        """
        chosen = self.task.ridge_samples
        if chosen is None:
            chosen = np.ones(len(self.fit_rows), dtype=bool)
        if chosen.sum() < 2:
            raise undefined("the ridge ceiling", "at least two fit samples")
        target = take_rows(self.fit.network, chosen)
        return ridge_on(self._centred(chosen), target, self.audit_rows, self.audit.network)

    def probe(self) -> Probe:
        """Linear probe on the samples with labels.

        Raises:
            StageFailed: too few labels.
        """
        chosen = self.fit.labelled
        if self.task.probe_samples is not None:
            chosen = chosen & self.task.probe_samples
        scored = self.audit.labelled
        label = self.fit.label[chosen]
        if len(np.unique(label)) < 2 or not scored.any():
            raise undefined("the linear probe", "at least two classes among the fitted samples")
        held_out = take_rows(self.audit_rows, scored)
        C = self.task.C
        return probe_on(self._centred(chosen), label, held_out, self.audit.label[scored], C)

    def _centred(self, chosen: Mask) -> CentredRows:
        """The rows of some samples; the same samples are centred and multiplied once."""
        key = chosen.tobytes()
        if key not in self.shared:
            self.shared[key] = CentredRows.of(take_rows(self.fit_rows, chosen))
        return self.shared[key]


def _or_error(measure: Callable[[], Fitted]) -> Fitted | StageFailed:
    try:
        return measure()
    except StageFailed as error:
        refuse_failing(error)
        return error


def _not_fitted() -> StageFailed:
    return StageFailed("not fitted here", where="fidelity", expected="another space")
