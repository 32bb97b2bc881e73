"""Self-check before the first block: complete Jacobian rows, and f a function of its sample.

Two samples, one probe, every audited parameter: the tape's gradient against autograd's, in float64
where the network runs in float64. A layer that the tape cannot see would otherwise be missed in
silence, and cost up to 40 % of the kernel.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from krepes_ooc.errors import NetworkError
from krepes_ooc.jacobian.autograd_reference import (
    INDEPENDENCE_TOLERANCE,
    TOLERANCE,
    as_precision,
    check_function,
    checking_precision,
    gradient_errors,
    random_probe,
)
from krepes_ooc.jacobian.exact_features import FactorFeatures
from krepes_ooc.jacobian.feature_map import FeatureMap
from krepes_ooc.jacobian.stored_row_check import STORED_TOLERANCE, stored_row_errors
from krepes_ooc.network.frozen import FrozenNetwork, freeze

MAX_LISTED = 5


@dataclass(frozen=True)
class SelfCheck:
    """Result of the self-check; every field is a plain value for the store's attributes.

    Args:
        max_relative_error: largest error of a parameter's gradient relative to its norm.
        worst_parameter: the parameter that has it.
        n_parameters: number of parameter tensors compared.
        precision: ``float64``, or ``float32`` if the network does not run in float64.
        batch_difference: largest difference of f(x)[i] and f(x[i]) relative to the largest output.
        seconds: time that the check took.
        words: the result in one sentence.
    """

    max_relative_error: float
    worst_parameter: str
    n_parameters: int
    precision: str
    batch_difference: float
    seconds: float
    words: str


def self_check(
    module: torch.nn.Module, feature_map: FeatureMap, inputs: npt.NDArray[Any]
) -> SelfCheck:
    """Compare the feature map with plain autograd on two samples.

    Args:
        module: the network.
        feature_map: the map under test.
        inputs: two different samples [2, ...].

    Raises:
        NetworkError: an output is not finite, f is random or mixes the samples of a batch, or a
            parameter's gradient is missed or wrong; the message names them.
    """
    begin = time.perf_counter()
    network = module if isinstance(module, FrozenNetwork) else freeze(module)
    # First f itself, then the recorded f, then its gradients.
    difference, _ = check_function(network, inputs)
    check_embedding(network, feature_map, inputs)
    errors, precision = _gradient_errors(network, feature_map, inputs)
    # Written so that a NaN counts as wrong.
    wrong = {name: e for name, e in errors.items() if not e <= TOLERANCE[precision]}
    if wrong:
        raise NetworkError(
            f"{len(wrong)} of {len(errors)} parameters are missed or wrong: {_listed(wrong)}",
            where="self-check",
            expected=f"gradients as autograd gives them, to {TOLERANCE[precision]:g}",
            advice="call layers as modules, or leave these parameters out (features.parameters)",
        )
    _check_stored_rows(network, feature_map, inputs)
    worst = max(errors, key=lambda name: errors[name])
    name = str(precision).removeprefix("torch.")
    # The sums of a small layer may round alike on both paths; they are two paths all the same.
    near = f"to {errors[worst]:.1e}" if errors[worst] else "to the last bit"
    return SelfCheck(
        max_relative_error=errors[worst],
        worst_parameter=worst,
        n_parameters=len(errors),
        precision=name,
        batch_difference=difference,
        seconds=time.perf_counter() - begin,
        words=f"all {len(errors)} parameters agree with autograd on each sample alone "
        f"{near} in {name}; the network is deterministic and treats each sample on its own"
        + _describe_slow_methods(feature_map),
    )


def _check_stored_rows(
    network: FrozenNetwork, feature_map: FeatureMap, inputs: npt.NDArray[Any]
) -> None:
    """Check that rows, as they are stored, hold every gradient.

    Raises:
        NetworkError: a stored row lacks a parameter or has it wrong; names it.
    """
    errors = stored_row_errors(network, feature_map, inputs)
    wrong = {name: e for name, e in errors.items() if not e <= STORED_TOLERANCE}
    if wrong:
        raise NetworkError(
            f"stored rows lack {len(wrong)} of {len(errors)} groups: {_listed(wrong)}",
            where="self-check",
            expected=f"what autograd gives, to {STORED_TOLERANCE:g}",
            advice="set features.kind to sketch"
            if isinstance(feature_map, FactorFeatures)
            else "leave these parameters out (features.parameters)",
        )


def _describe_slow_methods(feature_map: FeatureMap) -> str:
    """Parameters whose gradients take further runs of a module, and the cost, in words."""
    costs = {
        "vjp": "again, all samples of a batch at once: one more pass for each probe",
        "loop": "again, one sample at a time, a pass for each sample and probe: slow",
    }
    words = ""
    for rule in feature_map.describe()["plan"]:
        if rule["method"] in costs:
            module = f"module {rule['name']}" if rule["name"] else "the whole network"
            listed = ", ".join(rule["parameters"][:MAX_LISTED])
            more = ", ..." if len(rule["parameters"]) > MAX_LISTED else ""
            words += f"; for {listed}{more} {module} is run {costs[rule['method']]}"
    return words


def check_embedding(
    network: FrozenNetwork, feature_map: FeatureMap, inputs: npt.NDArray[Any]
) -> None:
    """Check that the feature map runs the network that is audited.

    Raises:
        NetworkError: the embedding differs from the network's outputs.
    """
    _, embedding = feature_map.rows(inputs)
    with torch.no_grad():
        # The plain network, without hooks.
        expected = network(torch.tensor(inputs))[:, list(feature_map.outputs)].numpy()
    difference = float(np.abs(embedding - expected).max())
    if not difference <= INDEPENDENCE_TOLERANCE * float(np.abs(expected).max()):
        raise NetworkError(
            f"recording changes the outputs by {difference:.2g}",
            where="self-check",
            expected="the same outputs with and without recorded layers",
            advice="look for a layer that behaves otherwise when it carries hooks",
        )


def _gradient_errors(
    network: FrozenNetwork, feature_map: FeatureMap, inputs: npt.NDArray[Any]
) -> tuple[dict[str, float], torch.dtype]:
    """Error of each parameter's gradient, and the precision of the comparison."""
    samples = torch.tensor(inputs)
    dtype = checking_precision(network, samples)
    samples = as_precision(samples, dtype)
    # float64 shows an error of the method, not of rounding.
    reference = network.deep_copy().to(dtype)
    source = feature_map.double() if dtype == torch.float64 else feature_map.clone()
    with torch.no_grad():
        # The probe lives on all outputs, but touches the selected ones only.
        n_outputs = int(reference(samples[:1].clone()).shape[1])
    probe = random_probe(n_outputs, feature_map.outputs, dtype)
    errors = gradient_errors(reference, source, feature_map.parameters, samples, probe)
    return errors, dtype


def _listed(errors: dict[str, float]) -> str:
    worst = sorted(errors, key=lambda name: -np.nan_to_num(errors[name], nan=np.inf))
    listed = ", ".join(f"{name} (relative error {errors[name]:.2g})" for name in worst[:MAX_LISTED])
    return listed + (", ..." if len(worst) > MAX_LISTED else "")
