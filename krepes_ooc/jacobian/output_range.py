"""Leading output directions of a network with many outputs, by a randomised range finder.

The output Gram matrix G = sum_x J_x J_x^T takes one backward pass an output and sample. Its leading
eigenvectors follow from products G v with a few directions (Halko, Martinsson and Tropp 2011):

1. G V for random V, one pass a direction and sample: z = J_x^T v by a backward pass of one sample,
   J_x z by a difference of its outputs along z.
2. G Q for the leading directions Q of the Nystrom approximation from step 1.
3. G is about Y (W^T Y)^+ Y^T with W = [V, Q] and Y = G W (Tropp, Yurtsever, Udell and Cevher 2017);
   the leading eigenvectors of that are the directions.

The directions steer the variance of the probed kernel only: it is unbiased for any of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from krepes_ooc.core import counter_rng
from krepes_ooc.network.frozen import FrozenNetwork

Float64 = npt.NDArray[np.float64]
# Random directions, and directions of the second step, for each direction that is wanted.
RANDOM, REFINED = 1, 1
# Change of the outputs, relative to their norm, that a difference is taken over: between rounding
# of float32 and the curvature of the network.
CHANGE = 1e-3
# Eigenvalues of W^T G W below this share of the largest are errors of the differences.
NOISE = 1e-3
# Stream of the counter-based generator.
_DIRECTION = 231


def count_range_passes(n_directions: int, n_samples: int) -> int:
    """Forward and backward passes of one sample of the range finder, and one pass a sample more."""
    return n_samples * ((RANDOM + REFINED) * n_directions + 1)


class OutputRange:
    """Products of the output Gram matrix of a few samples with output directions.

    Args:
        network: the frozen network; it is copied.
        parameters: names of the audited parameters.
        outputs: indices of the audited outputs.
        inputs: samples [sample, ...].
        seed: key of all random draws.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        parameters: tuple[str, ...],
        outputs: tuple[int, ...],
        inputs: torch.Tensor,
        seed: int,
    ) -> None:
        self.inputs = inputs
        self.outputs = list(outputs)
        self.seed = seed
        self._network = network.differentiable_copy(parameters)
        self._parameters = [self._network.inner.get_parameter(name) for name in parameters]
        self._moved = network.deep_copy()
        self._targets = [self._moved.inner.get_parameter(name) for name in parameters]

    def leading(self, n_directions: int) -> Float64:
        """Leading directions [direction, output], orthonormal.

        Args:
            n_directions: how many.
        """
        n_random, n_refined = RANDOM * n_directions, REFINED * n_directions
        keys = np.arange(n_random)[:, None], np.arange(len(self.outputs))[None, :]
        signs = 1.0 - 2.0 * (counter_rng.bits(self.seed, _DIRECTION, *keys) >> np.uint64(63))
        # Step 1: random directions; step 2: the leading ones of what they gave.
        first = np.linalg.qr(signs.T)[0].T
        images = self.products(first)
        second = _nystrom_directions(first, images, n_refined)
        both = np.concatenate([first, second])
        images = np.concatenate([images, self.products(second)])
        # Step 3: both together.
        return _nystrom_directions(both, images, n_directions)

    def products(self, directions: Float64) -> Float64:
        """G v [direction, output] of directions v [direction, output]."""
        total = np.zeros_like(directions)
        for index in range(len(self.inputs)):
            # One sample at a time: the products of several would mix.
            sample = self.inputs[index : index + 1]
            outputs = self._network(sample.clone())[0, self.outputs]
            for row, direction in zip(total, directions, strict=True):
                value = outputs @ torch.from_numpy(direction.astype(np.float32))
                gradient = torch.autograd.grad(
                    value, self._parameters, retain_graph=True, materialize_grads=True
                )
                row += self._difference(sample, outputs.detach(), gradient)
        return total

    def _difference(
        self, sample: torch.Tensor, outputs: torch.Tensor, tangent: Sequence[torch.Tensor]
    ) -> Float64:
        """J z [output] of one sample along z = J^T v, v of length one.

        A difference of outputs: every network has it, forward mode not.
        """
        # <v, J z> = |z|^2: the step that changes the outputs by CHANGE, from below.
        square = float(torch.stack([part.norm() for part in tangent]).norm()) ** 2
        change = CHANGE * float(outputs.norm())
        if not square or not change:
            return np.zeros(len(self.outputs))
        step = change / square
        with torch.no_grad():
            for target, part in zip(self._targets, tangent, strict=True):
                target.add_(part, alpha=step)
            moved = self._moved(sample.clone())[0, self.outputs]
            for target, source in zip(self._targets, self._parameters, strict=True):
                target.copy_(source)
        return np.asarray(((moved.double() - outputs.double()) / step).numpy())


def _nystrom_directions(tested: Float64, images: Float64, count: int) -> Float64:
    """Leading eigenvectors [direction, output] of the Nystrom approximation of G.

    Args:
        tested: orthonormal or nearly so, W^T [direction, output].
        images: (G W)^T [direction, output].
        count: how many.
    """
    inner = images @ tested.T
    values, vectors = np.linalg.eigh((inner + inner.T) / 2)
    above = values > NOISE * max(float(values[-1]), 0.0)
    # Y (W^T Y)^+ Y^T = B B^T, whose eigenvectors are the left singular vectors of B.
    root = (images.T @ vectors[:, above]) / np.sqrt(values[above])
    left, _, _ = np.linalg.svd(root, full_matrices=False)
    found = left[:, :count].T
    if len(found) == count:
        return np.asarray(found)
    # Fewer directions than asked for carry anything: the rest is arbitrary, but fixed.
    filled = np.linalg.qr(np.concatenate([found, tested, np.eye(tested.shape[1])[:count]]).T)[0]
    return np.asarray(filled.T[:count])
