"""Probes: output directions along which the Jacobian is projected (Hutchinson, Hutch++).

With probes V[probe, output] for which E[V^T V] = I, the sum over probes of <v J(x), v J(x')> is an
unbiased estimate of the trace kernel tr(J(x) J(x')^T). Every sample, view and landmark uses the
same probes, so the estimate is itself a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from krepes_ooc.core import counter_rng

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
# Stream of the counter-based generator.
_STREAM = 201


def rademacher_probes(n_probes: int, n_outputs: int, seed: int) -> Float32:
    """Random signs over sqrt(n_probes); the identity, hence exact, from n_outputs probes on.

    Returns:
        probes[probe, output].
    """
    # As many probes as outputs: the trace itself costs no more.
    if n_probes >= n_outputs:
        return np.eye(n_outputs, dtype=np.float32)
    probe = np.arange(n_probes)[:, None]
    output = np.arange(n_outputs)[None, :]
    # The top bit of a keyed hash; 1/sqrt(probes) makes E[V^T V] = I.
    signs = 1.0 - 2.0 * (counter_rng.bits(seed, _STREAM, probe, output) >> np.uint64(63))
    return np.asarray(signs / np.sqrt(n_probes), dtype=np.float32)


def deflated_probes(gram: Float64, n_deflated: int, n_random: int, seed: int) -> Float32:
    """Leading eigenvectors of the output Gram matrix, and random signs on their complement.

    E[V^T V] = U U^T + (I - U U^T) I (I - U U^T) = I for any orthonormal U, so the calibration
    samples steer the variance only (the idea of Hutch++, Meyer, Musco, Musco and Woodruff 2021).

    Args:
        gram: sum over calibration samples of J J^T [output, output].
        n_deflated: number of eigenvectors.
        n_random: number of random probes.
        seed: key of the random signs.

    Returns:
        probes[probe, output].
    """
    n_outputs = gram.shape[0]
    if n_deflated + n_random >= n_outputs:
        return np.eye(n_outputs, dtype=np.float32)
    _, vectors = np.linalg.eigh(np.asarray(gram, dtype=np.float64))
    # eigh sorts ascending.
    return complete_probes(vectors[:, ::-1][:, :n_deflated].T, n_random, seed)


def complete_probes(leading: Float64, n_random: int, seed: int) -> Float32:
    """Leading directions, and random signs on their complement.

    Args:
        leading: orthonormal directions [probe, output].
        n_random: number of random probes.
        seed: key of the random signs.

    Returns:
        probes[probe, output].
    """
    # An eigenvector's sign is arbitrary: make its largest entry positive, so that runs agree.
    largest = np.take_along_axis(leading, np.abs(leading).argmax(axis=1)[:, None], axis=1)
    leading = leading * np.where(largest < 0, -1.0, 1.0)
    random = rademacher_probes(n_random, leading.shape[1], seed).astype(np.float64)
    # Random signs on the complement: (I - U U^T) g.
    random = random - (random @ leading.T) @ leading
    return np.concatenate([leading, random]).astype(np.float32)


def expand_probes(probes: Float32, indices: Sequence[int], outputs: torch.Tensor) -> torch.Tensor:
    """Probes [probe, output] on selected outputs, as directions on all of outputs[sample, output].

    Args:
        probes: directions on the selected outputs.
        indices: the selected outputs.
        outputs: outputs of the network [sample, output].
    """
    full = outputs.new_zeros(len(probes), outputs.shape[1])
    full[:, _columns(indices, outputs)] = torch.from_numpy(probes)
    return full


def apply_probes(outputs: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    """Copy of the selected columns of outputs[sample, output]."""
    return outputs[:, _columns(indices, outputs)].clone()


def _columns(indices: Sequence[int], outputs: torch.Tensor) -> list[int] | slice:
    # Indexing by a list costs a small network 5 % of its time.
    select_all = tuple(indices) == tuple(range(outputs.shape[1]))
    return slice(None) if select_all else list(indices)
