"""Check of exact rows as they are stored: their kernel, group by group, against autograd's.

The gradients of the tape may all be right and a row still lack some of them: which part of a row a
gradient goes to is decided elsewhere. Here the rows that the store gets, float16 rounding included,
are multiplied with each other, and each factor's share of the kernel

    (<a_l, a'_l> + bias_l) sum_r <d_lr, d'_lr>                             (core/feature_layout)

is compared with sum_r sum_p <J_p^T v_r, J'_p^T v_r> over the parameters p of that factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from krepes_ooc.core.feature_layout import FeatureLayout, LayerFactor
from krepes_ooc.jacobian.exact_features import FactorFeatures
from krepes_ooc.jacobian.float16_rows import store_rows
from krepes_ooc.jacobian.output_probes import expand_probes
from krepes_ooc.network.frozen import FrozenNetwork

Float64 = npt.NDArray[np.float64]
# Two float16 factors, each rounded to 2**-11, and float32 sums; a missing weight costs 0.1 to 1.
STORED_TOLERANCE = 1e-2
# Groups below this share of the kernel's trace are compared at that scale.
NEGLIGIBLE_SHARE = 1e-4


def stored_row_errors(
    network: FrozenNetwork, feature_map: FactorFeatures, inputs: npt.NDArray[np.float32]
) -> dict[str, float]:
    """Error of each factor's share of the kernel of stored rows, relative to the share's size.

    Args:
        network: the frozen network.
        feature_map: the exact rows under test.
        inputs: different samples [sample, ...].

    Returns:
        Errors by the name of the factor, and under ``parameters`` 1 for each audited parameter
        that belongs to none.
    """
    features, _ = feature_map.rows(inputs)
    rows = _stored(features, feature_map.layout)
    exact, trace = _autograd_kernels(network, feature_map, inputs)
    errors: dict[str, float] = {}
    covered: set[str] = set()
    for name, factor, parameters in feature_map.groups():
        covered.update(parameters)
        expected = sum((exact[p] for p in parameters), np.zeros((len(inputs), len(inputs))))
        scale = max(float(np.trace(expected)), NEGLIGIBLE_SHARE * trace)
        difference = float(np.abs(_share(rows, factor) - expected).max())
        errors[name] = difference * len(inputs) / scale if scale > 0 else difference
    # A parameter of no factor is missing from every row; without any gradient nothing is lost.
    for name in set(feature_map.parameters) - covered:
        lost = float(np.trace(exact[name]))
        errors[name] = 1.0 if lost > NEGLIGIBLE_SHARE * trace else 0.0
    return errors


def _stored(features: npt.NDArray[np.float32], layout: FeatureLayout) -> Float64:
    """Rows [sample, feature] after the store's rounding, unscaled."""
    scale = np.ones(layout.n_features)
    for start, stop, exponent in layout.scales:
        scale[start:stop] = 2.0**exponent
    stored: Float64 = store_rows(features, layout).astype(np.float64) / scale
    return stored


def _share(rows: Float64, factor: LayerFactor) -> Float64:
    """(<a, a'> + bias) sum_r <d_r, d'_r> [sample, sample_] of one factor."""
    inputs = np.zeros((len(rows), len(rows)))
    if factor.inputs is not None:
        part = rows[:, slice(*factor.inputs)]
        inputs = part @ part.T
    gradients = [rows[:, slice(*span)] for span in factor.gradients]
    share: Float64 = (inputs + float(factor.bias)) * sum(d @ d.T for d in gradients)
    return share


def _autograd_kernels(
    network: FrozenNetwork, feature_map: FactorFeatures, inputs: npt.NDArray[np.float32]
) -> tuple[dict[str, Float64], float]:
    """sum_r <J_p^T v_r, J'_p^T v_r> [sample, sample_] of each parameter, and the whole trace."""
    reference = network.deep_copy()
    tested = dict(reference.inner.named_parameters())
    parameters = [tested[name].requires_grad_(True) for name in feature_map.parameters]
    gradients: list[list[Sequence[torch.Tensor]]] = []
    for sample in range(len(inputs)):
        # One sample at a time: what a network without any batching gives.
        outputs = reference(torch.tensor(inputs[sample : sample + 1]))
        probes = expand_probes(feature_map.probes, feature_map.outputs, outputs.detach())
        gradients.append(
            [
                torch.autograd.grad(
                    (outputs * probe).sum(), parameters, retain_graph=True, materialize_grads=True
                )
                for probe in probes
            ]
        )
    kernels: dict[str, Float64] = {}
    for index, name in enumerate(feature_map.parameters):
        rows = torch.stack(
            [torch.cat([g[index].flatten() for g in by_probe]) for by_probe in gradients]
        ).double()
        kernels[name] = (rows @ rows.T).numpy()
    return kernels, float(sum(np.trace(kernel) for kernel in kernels.values()))
