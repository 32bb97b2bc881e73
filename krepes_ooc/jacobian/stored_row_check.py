"""Check of rows as they are stored, float16 included, against autograd, group by group.

The gradients of the tape may all be right and a row still lack some of them: which part of a row a
gradient goes to is decided elsewhere. Here the rows that the store gets, float16 rounding included,
are multiplied with each other, and each factor's share of the kernel

    (<a_l, a'_l> + bias_l) sum_r <d_lr, d'_lr>                             (core/feature_layout)

is compared with sum_r sum_p <J_p^T v_r, J'_p^T v_r> over the parameters p of that factor.

The parameters of a sketched row share its columns: row = sum_p e_p with e_p = sum_r S_pr J_p^T v_r.
Autograd's whole gradients go through the same maps S_pr, entry by entry, and the difference to the
stored row is explained by the least squares coefficients c_p of the e_p: c_p = -1 where p is
missing, 0 where it is whole. What the e_p do not explain is reported under ``row``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from krepes_ooc.core.feature_layout import FeatureLayout, LayerFactor
from krepes_ooc.jacobian.exact_features import FactorFeatures
from krepes_ooc.jacobian.feature_map import FeatureMap
from krepes_ooc.jacobian.float16_rows import store_rows
from krepes_ooc.jacobian.output_probes import expand_probes
from krepes_ooc.jacobian.sketched_features import SketchFeatures
from krepes_ooc.network.frozen import FrozenNetwork

Float64 = npt.NDArray[np.float64]
# Two float16 factors, each rounded to 2**-11, and float32 sums; a missing weight costs 0.1 to 1.
STORED_TOLERANCE = 1e-2
# Rounding of a stored row to float16 along one direction, relative to the row.
ROUNDING = 2.0**-11
# Groups below this share of the kernel's trace are compared at that scale.
NEGLIGIBLE_SHARE = 1e-4


def stored_row_errors(
    network: FrozenNetwork, feature_map: FeatureMap, inputs: npt.NDArray[np.float32]
) -> dict[str, float]:
    """Relative error of each group of parameters in the rows as they are stored.

    Args:
        network: the frozen network.
        feature_map: the rows under test.
        inputs: different samples [sample, ...].

    Returns:
        Errors by the name of the factor or parameter. For exact rows also 1 for each parameter
        that belongs to no factor; for a sketch also the unexplained difference under ``row``.

    Raises:
        TypeError: rows of another kind.
    """
    if isinstance(feature_map, FactorFeatures):
        return _factor_errors(network, feature_map, inputs)
    if isinstance(feature_map, SketchFeatures):
        return _sketch_errors(network, feature_map, inputs)
    raise TypeError(f"no check of rows of {type(feature_map).__name__}")


def _sketch_errors(
    network: FrozenNetwork, feature_map: SketchFeatures, inputs: npt.NDArray[np.float32]
) -> dict[str, float]:
    """|c_p| of every parameter, and the unexplained part of the difference relative to the row."""
    features, _ = feature_map.rows(inputs)
    rows = _stored(features, feature_map.layout)
    errors = _explained(rows, _sketched_gradients(network, feature_map, inputs))
    if max(errors.values()) <= STORED_TOLERANCE:
        return errors
    # Rounding of a sample alone and in a batch differs; deep networks of rectifiers turn that into
    # some hundredths of a gradient in float32. What is missing is missing in the batch too.
    return _explained(rows, _sketched_gradients(network, feature_map, inputs, in_batch=True))


def _explained(rows: Float64, parts: dict[str, Float64]) -> dict[str, float]:
    """|c_p| of every parameter, from rows and the e_p; see ``_sketch_errors``."""
    expected = sum(parts.values(), np.zeros_like(rows))
    length = float(np.linalg.norm(expected))
    # Groups of negligible size cannot be told from rounding, and change no kernel.
    sizes = {name: float(np.linalg.norm(part)) for name, part in parts.items()}
    seen = [name for name, size in sizes.items() if size > NEGLIGIBLE_SHARE**0.5 * length]
    if not seen:
        # No gradient at all: the stored rows must be zero.
        return dict.fromkeys(parts, 0.0) | {"row": float(np.abs(rows).max())}
    basis = np.stack([parts[name].ravel() / sizes[name] for name in seen], axis=1)
    difference = (rows - expected).ravel()
    if basis.shape[1] > basis.shape[0] // 2:
        # Too few columns to separate the groups: each by itself.
        coefficients: Float64 = basis.T @ difference
        left = difference
    else:
        coefficients = np.asarray(np.linalg.lstsq(basis, difference, rcond=None)[0])
        left = difference - basis @ coefficients
    errors = dict.fromkeys(parts, 0.0)
    for name, coefficient in zip(seen, coefficients, strict=True):
        errors[name] = _noise_free(abs(float(coefficient)), length) / sizes[name]
    errors["row"] = float(np.linalg.norm(left)) / length
    return errors


def _noise_free(coefficient: float, length: float) -> float:
    """A coefficient in units of the row; 0 where rounding to float16 alone explains it."""
    return coefficient if coefficient > ROUNDING * length else 0.0


def _sketched_gradients(
    network: FrozenNetwork,
    feature_map: SketchFeatures,
    inputs: npt.NDArray[np.float32],
    in_batch: bool = False,
) -> dict[str, Float64]:
    """e_p [sample, column] of each parameter, from autograd's gradients.

    Args:
        network: the frozen network.
        feature_map: the rows under test.
        inputs: samples [sample, ...].
        in_batch: run all samples together, with the rounding of the rows.
    """
    tested = network.differentiable_copy(feature_map.parameters)
    parameters = [tested.inner.get_parameter(name) for name in feature_map.parameters]
    shape = (len(inputs), feature_map.sketch.n_columns)
    parts = {name: np.zeros(shape) for name in feature_map.parameters}
    for sample in range(len(inputs)):
        # One sample at a time: what a network without any batching gives.
        part = slice(None) if in_batch else slice(sample, sample + 1)
        outputs = tested(torch.tensor(inputs[part]))
        outputs = outputs[sample : sample + 1] if in_batch else outputs
        probes = expand_probes(feature_map.probes, feature_map.outputs, outputs.detach())
        for index, probe in enumerate(probes):
            gradients = torch.autograd.grad(
                (outputs * probe).sum(), parameters, retain_graph=True, materialize_grads=True
            )
            for name, gradient in zip(parts, gradients, strict=True):
                row = feature_map.sketch.dense_rows(name, gradient[None], index)
                parts[name][sample] += row[0].double().numpy()
    return parts


def _factor_errors(
    network: FrozenNetwork, feature_map: FactorFeatures, inputs: npt.NDArray[np.float32]
) -> dict[str, float]:
    """Error of each factor's share of the kernel of stored rows, relative to the share's size."""
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
    reference = network.differentiable_copy(feature_map.parameters)
    parameters = [reference.inner.get_parameter(name) for name in feature_map.parameters]
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
