from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from krepes_ooc.engine.executor import Executor
from krepes_ooc.errors import NetworkError, StageFailed
from krepes_ooc.stages.fidelity import regressions as parts
from krepes_ooc.stages.fidelity.linear_probes import Probes, open_probes
from krepes_ooc.stages.fidelity.metrics import ridge_ceiling
from krepes_ooc.stages.fidelity.regressions import (
    Regressions,
    RegressionTask,
    audit_tasks,
    half_key,
    measure_regressions,
)
from krepes_ooc.stages.fidelity.rows import EvaluationRows

RNG = np.random.default_rng(4)
M, H, OUT = 14, 4, 6


def samples(n: int, first_id: int, noise: float = 0.5) -> EvaluationRows:
    """Kernel rows carry the network's embedding up to noise; the label follows one output."""
    kernel = RNG.normal(size=(n, M)) / 3
    network = kernel @ MAP + noise * RNG.normal(size=(n, OUT)) / 3
    label = (network[:, 0] + 0.1 * RNG.normal(size=n) > 0).astype(np.int64)
    f = kernel @ COEFFICIENTS
    inputs = RNG.normal(size=(n, 5))
    return EvaluationRows(
        np.arange(first_id, first_id + n), label, kernel, f[:, :H], f, f, None, network, inputs
    )


MAP, COEFFICIENTS = RNG.normal(size=(M, OUT)), RNG.normal(size=(M, H))
FIT, AUDIT = samples(160, 0), samples(70, 500)


def measured(
    fit: EvaluationRows = FIT,
    audit: EvaluationRows = AUDIT,
    tasks: list[RegressionTask] | None = None,
    workers: int = 1,
) -> Regressions:
    tasks = audit_tasks(fit, audit, None, seed=3) if tasks is None else tasks
    return measure_regressions(fit, audit, tasks, True, Executor(workers))


def truth(fit: np.ndarray, label: np.ndarray, audit: np.ndarray, audit_label: np.ndarray):
    scale = StandardScaler().fit(fit)
    model = LogisticRegression(tol=1e-8, max_iter=5000).fit(scale.transform(fit), label)
    P = model.predict_proba(scale.transform(audit))
    return P[np.arange(len(P)), audit_label]


def test_every_space_has_the_results_of_plain_regressions() -> None:
    found = measured()
    spaces = {
        "kernel_rows": (FIT.kernel, AUDIT.kernel),
        "step": (FIT.embedding, AUDIT.embedding),
        "raw_inputs": (FIT.inputs, AUDIT.inputs),
        "network": (FIT.network, AUDIT.network),
    }
    for key, (fit, audit) in spaces.items():
        expected = truth(fit, FIT.label, audit, AUDIT.label)
        np.testing.assert_allclose(found.probe(key).true_probability, expected, atol=2e-3)
        if key != "network":
            ridge = ridge_ceiling(fit, FIT.network, audit, AUDIT.network)
            assert found.ridge(key).r_squared == ridge.r_squared
            np.testing.assert_array_equal(found.predicted(key), ridge.predict(audit))
    # The ceiling is what the best coefficients make of kernel rows
    ridge = found.ridge("kernel_rows")
    fitted, predicted = ridge.predict(FIT.kernel), ridge.predict(AUDIT.kernel)
    expected = truth(fitted, FIT.label, predicted, AUDIT.label)
    np.testing.assert_allclose(found.probe("ridge_ceiling").true_probability, expected, atol=2e-3)


@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_changes_no_bit(workers: int) -> None:
    one, many = measured(), measured(workers=workers)
    assert list(one.results) == list(many.results)
    for key in one.results:
        first, second = one.results[key], many.results[key]
        np.testing.assert_array_equal(first.predicted, second.predicted)
        if not isinstance(first.probe, StageFailed):
            np.testing.assert_array_equal(one.probe(key).probability, many.probe(key).probability)
    assert one.ridge("step").damping == many.ridge("step").damping


def test_samples_without_a_label_are_neither_fitted_nor_scored() -> None:
    some = RNG.random(len(FIT.label)) < 0.7
    known = RNG.random(len(AUDIT.label)) < 0.7
    fit = dataclasses.replace(FIT, label=np.where(some, FIT.label, -1))
    audit = dataclasses.replace(AUDIT, label=np.where(known, AUDIT.label, -1))
    found = measured(fit, audit)
    alone = measured(FIT.take(some), AUDIT.take(known))
    probability = alone.probe("step").probability
    np.testing.assert_allclose(found.probe("step").probability, probability, atol=1e-12)
    # The ridge regression needs no label and uses all
    assert found.ridge("step").r_squared == measured().ridge("step").r_squared


def test_uniform_landmarks_are_left_out_of_the_ridge_alone() -> None:
    others = np.arange(len(FIT.kernel)) >= 20
    rows = FIT.kernel, AUDIT.kernel
    tasks = audit_tasks(FIT, AUDIT, (rows, others), seed=3)
    found = measured(tasks=tasks)
    expected = ridge_ceiling(FIT.kernel[others], FIT.network[others], AUDIT.kernel, AUDIT.network)
    assert found.ridge("uniform_landmarks").r_squared == expected.r_squared
    np.testing.assert_array_equal(
        found.probe("uniform_landmarks").probability, found.probe("kernel_rows").probability
    )


def test_what_is_not_defined_is_raised_where_it_is_asked_for() -> None:
    alike = dataclasses.replace(FIT, inputs=np.ones((len(FIT.kernel), 5)))
    found = measured(alike)
    with pytest.raises(StageFailed, match="the inputs are alike"):
        found.ridge("fourier_features")
    with pytest.raises(StageFailed, match="the ridge ceiling is not defined"):
        found.predicted("raw_inputs")
    assert found.probe("step").accuracy > 0.5
    with pytest.raises(StageFailed, match="not fitted here"):
        found.ridge("network")
    one_class = dataclasses.replace(FIT, label=np.zeros_like(FIT.label))
    with pytest.raises(StageFailed, match="two classes"):
        measured(one_class).probe("step")
    with pytest.raises(StageFailed, match="1 classes among 160 fit samples with labels"):
        open_probes(measured(one_class), one_class, AUDIT)


def test_what_cannot_be_read_ends_the_stage() -> None:
    def broken() -> tuple[np.ndarray, np.ndarray]:
        raise NetworkError("cannot be loaded")

    def gone() -> tuple[np.ndarray, np.ndarray]:
        raise StageFailed("cannot be read") from OSError(5, "I/O")

    for rows in (broken, gone):
        with pytest.raises(StageFailed, match="cannot be"):
            measured(tasks=[RegressionTask("step", rows)])


def test_the_halves_of_a_split_share_no_sample_and_no_two_splits_are_alike() -> None:
    tasks = {task.key: task for task in audit_tasks(FIT, AUDIT, None, seed=3)}
    firsts = []
    for refit in range(parts.REFITS):
        first, second = (tasks[half_key(refit, half)].probe_samples for half in range(2))
        assert first is not None
        assert second is not None
        assert (first ^ second).all()
        firsts.append(first)
    assert len({first.tobytes() for first in firsts}) == parts.REFITS
    # Keyed by sample: another order of the rows is the same split
    order = RNG.permutation(len(FIT.label))
    shuffled = dataclasses.replace(FIT, sample_id=FIT.sample_id[order])
    again = {task.key: task for task in audit_tasks(shuffled, AUDIT, None, seed=3)}
    np.testing.assert_array_equal(again[half_key(2, 0)].probe_samples, firsts[2][order])


def test_a_copy_of_the_network_is_at_the_ceiling_and_noise_is_below_it() -> None:
    """Both ends of the control: what it must pass, and what it must not."""
    copy = dataclasses.replace(FIT, embedding=FIT.network)
    found = probes(copy, dataclasses.replace(AUDIT, embedding=AUDIT.network))
    tau = found.tau_figure()
    assert tau.value == pytest.approx(1.0)
    assert tau.at_ceiling is True
    assert found.gap_figure().at_ceiling is True
    assert 0.5 < tau.control("noise_ceiling").value < 1.0
    noise = [RNG.normal(size=(len(part.kernel), H)) for part in (FIT, AUDIT)]
    found = probes(
        dataclasses.replace(FIT, embedding=noise[0]), dataclasses.replace(AUDIT, embedding=noise[1])
    )
    tau = found.tau_figure()
    assert tau.at_ceiling is False
    assert found.gap_figure().at_ceiling is False
    # Noise is below the kernel rows, by an interval that excludes 0
    assert tau.paired["step_against_kernel"].interval[1] < 0


def test_a_half_of_one_class_has_no_ceiling() -> None:
    """One sample of the second class: one half of every split lacks it."""
    label = np.zeros_like(FIT.label)
    label[0] = 1
    found = probes(dataclasses.replace(FIT, label=label), AUDIT)
    assert np.isnan(found.refit_tau).all()
    assert np.isnan(found.refit_gap).sum() == parts.REFITS
    tau = found.tau_figure()
    assert not tau.control("noise_ceiling").is_defined
    assert tau.at_ceiling is None


def probes(fit: EvaluationRows, audit: EvaluationRows) -> Probes:
    return open_probes(measured(fit, audit), fit, audit)
