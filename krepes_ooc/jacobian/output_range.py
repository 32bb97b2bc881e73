"""Leading output directions of a network with many outputs, by a randomised range finder.

The output Gram matrix G = sum_x J_x J_x^T takes one backward pass an output. Its leading
eigenvectors take a few dozen (Halko, Martinsson and Tropp 2011, with one step of power iteration):

1. v random; z = sum_x s_x J_x^T v by one backward pass over the batch, s_x random signs; then
   J_x z = s_x J_x J_x^T v + cross terms of mean zero, for every x at once by one difference of
   outputs.
2. The same for the leading singular vectors v of what step 1 gave.
3. Q = leading singular vectors of both; Q^T G Q by one backward pass a column; its eigenvectors
   (Rayleigh-Ritz) are the directions.

The directions steer the variance of the probed kernel only: it is unbiased for any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from krepes_ooc.core import counter_rng
from krepes_ooc.jacobian.autograd_reference import as_precision
from krepes_ooc.network.frozen import FrozenNetwork

Float64 = npt.NDArray[np.float64]
# Directions of step 1, of step 2 and columns of Q, for each direction that is wanted.
FIRST, SECOND, KEPT = 1, 2, 6
# Weight of step 1 beside step 2, whose directions are better.
FIRST_WEIGHT = 0.3
RANGE_SAMPLES = 4
# Step along the parameters relative to their norm, by precision.
STEP = {torch.float64: 1e-6, torch.float32: 1e-3}
# Streams of the counter-based generator.
_DIRECTION, _SIGN = 231, 232


def count_backward_passes(n_directions: int) -> int:
    """Backward passes over the calibration samples of the range finder."""
    return (FIRST + SECOND + KEPT) * n_directions


class OutputRange:
    """Products of J_x J_x^T with output directions, for a few samples at once.

    Args:
        network: the frozen network; its copy shares the weights.
        parameters: names of the audited parameters.
        outputs: indices of the audited outputs.
        inputs: samples [sample, ...].
        dtype: precision in which outputs are compared.
        seed: key of all random draws.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        parameters: tuple[str, ...],
        outputs: tuple[int, ...],
        inputs: torch.Tensor,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.inputs = inputs
        self.outputs = list(outputs)
        self.seed = seed
        self.dtype = dtype
        self._network = network.differentiable_copy(parameters)
        self._parameters = [self._network.inner.get_parameter(name) for name in parameters]
        self._moved = network.deep_copy().to(dtype)
        self._targets = [self._moved.inner.get_parameter(name) for name in parameters]
        self._base = self._outputs()

    def leading(
        self, n_directions: int, project: Callable[[npt.NDArray[np.float32]], Float64]
    ) -> Float64:
        """Leading directions [direction, output], orthonormal.

        Args:
            n_directions: how many.
            project: W = Q^T G Q [column, column] of columns Q^T [column, output].
        """
        n_first, n_second = FIRST * n_directions, SECOND * n_directions
        keys = np.arange(n_first)[:, None], np.arange(len(self.outputs))[None, :]
        random = 1.0 - 2.0 * (counter_rng.bits(self.seed, _DIRECTION, *keys) >> np.uint64(63))
        # Step 1: random directions; step 2: the leading ones of what they gave.
        first = np.concatenate([self._images(v, i) for i, v in enumerate(random)])
        better = _leading_rows(first, n_second)
        second = np.concatenate([self._images(v, n_first + i) for i, v in enumerate(better)])
        both = np.concatenate([FIRST_WEIGHT * _unit(first), _unit(second)])
        columns = _leading_rows(both, KEPT * n_directions)
        # Rayleigh-Ritz: the best directions inside the span of the columns.
        _, vectors = np.linalg.eigh(project(columns.astype(np.float32)))
        leading = vectors[:, ::-1][:, :n_directions].T @ columns
        return np.asarray(leading, dtype=np.float64)

    def _images(self, direction: Float64, index: int) -> Float64:
        """J_x z [sample, output] of one direction v [output], with z = sum_x s_x J_x^T v."""
        draws = counter_rng.bits(self.seed, _SIGN, index, np.arange(len(self.inputs)))
        signs = torch.from_numpy(1.0 - 2.0 * (draws >> np.uint64(63)).astype(np.float32))
        outputs = self._network(self.inputs.clone())[:, self.outputs]
        value = signs @ (outputs @ torch.from_numpy(direction.astype(np.float32)))
        tangent = torch.autograd.grad(value, self._parameters, materialize_grads=True)
        # A difference of outputs along z: every network has it, forward mode not.
        length = _norm(tangent)
        step = STEP[self.dtype] * _norm(self._parameters) / length if length else 0.0
        with torch.no_grad():
            for target, part in zip(self._targets, tangent, strict=True):
                target.add_(part.to(self.dtype), alpha=step)
            moved = self._outputs()
            for target, source in zip(self._targets, self._parameters, strict=True):
                target.copy_(source)
        return (moved - self._base) / step if step else np.zeros_like(moved)

    def _outputs(self) -> Float64:
        with torch.no_grad():
            outputs = self._moved(as_precision(self.inputs, self.dtype))
        return np.asarray(outputs[:, self.outputs].double().numpy())


def _leading_rows(rows: Float64, count: int) -> Float64:
    """Leading right singular vectors [direction, output]."""
    _, _, vectors = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(vectors[:count])


def _unit(rows: Float64) -> Float64:
    norm = float(np.linalg.norm(rows))
    return rows / norm if norm else rows


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([tensor.detach().norm() for tensor in tensors]).norm())
