"""Moments, spectrum, feature rows, kernels and figures of influence, written as loops."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.dense.losses import as_tensor

Float = npt.NDArray[np.float64]


# ---------------------------------------------------------------------------- moments and spectrum


def moments(kernels: Sequence[Any]) -> tuple[Float, Float]:
    """Mean [view, landmark] and centred second moments [view, view_, landmark, landmark_]."""
    K = np.asarray(kernels, dtype=np.float64)
    mean = K.mean(axis=1)
    centred = K - mean[:, None, :]
    second = [[left.T @ right / K.shape[1] for right in centred] for left in centred]
    return mean, np.asarray(second)


def start(landmark_kernel: Any, n_components: int) -> Float:
    """Principal-component start U_h Lambda_h^(-1/2), largest entry of each column positive."""
    eigenvalues, U = np.linalg.eigh(np.asarray(landmark_kernel, dtype=np.float64))
    columns = []
    for j in np.argsort(-eigenvalues)[:n_components]:
        u = U[:, j]
        columns.append(u * np.sign(u[np.argmax(abs(u))]) / np.sqrt(eigenvalues[j]))
    return np.stack(columns, axis=1)


def nystrom_error(kernel: Any, landmark_kernel: Any, self_kernel: Any, rank: int) -> float:
    """Mean of k(x,x) - k_x^T pinv(K_mm) k_x over rows, relative to mean k(x,x)."""
    eigenvalues, U = np.linalg.eigh(np.asarray(landmark_kernel, dtype=np.float64))
    keep = np.argsort(-eigenvalues)[:rank]
    inverse = sum(np.outer(U[:, j], U[:, j]) / eigenvalues[j] for j in keep)
    left = [s - k @ inverse @ k for s, k in zip(self_kernel, np.asarray(kernel), strict=True)]
    return float(np.mean(left) / np.mean(self_kernel))


# -------------------------------------------------------------------------------- kernel oracles


def jacobian_features(
    module: torch.nn.Module, x: Any, probes: Any, parameters: Sequence[str] | None = None
) -> Tensor:
    """Probed Jacobian rows r^T df/dtheta of each sample in float64, [sample, probe, parameter]."""
    state = {name: value.detach().double() for name, value in module.state_dict().items()}
    names = parameters or [name for name, _ in module.named_parameters()]

    def output(chosen: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(module, {**state, **chosen}, (sample[None],))[0]

    rows = []
    for sample in as_tensor(x):
        jacobian = torch.func.jacrev(output)({name: state[name] for name in names}, sample)
        J = torch.cat([jacobian[name].flatten(start_dim=1) for name in names], dim=1)
        rows.append(as_tensor(probes) @ J)
    return torch.stack(rows)


def jacobian_kernel(
    module: torch.nn.Module, x: Any, y: Any, probes: Any, parameters: Sequence[str] | None = None
) -> Tensor:
    """k(x, y) = sum over probes of the inner product of probed Jacobian rows."""
    phi_x = jacobian_features(module, x, probes, parameters).flatten(start_dim=1)
    phi_y = jacobian_features(module, y, probes, parameters).flatten(start_dim=1)
    return phi_x @ phi_y.T


def explicit_features(rows: Any, layout: Any) -> Float:
    """Feature vectors phi with k = <phi, phi'>: all outer products [a, bias] d_r^T of a row."""
    phi = []
    for row in np.asarray(rows, dtype=np.float64):
        parts = []
        for factor in layout.factors:
            a = row[slice(*factor.inputs)] if factor.inputs else np.empty(0)
            a = np.append(a, 1.0) if factor.bias else a
            parts += [np.outer(a, row[slice(*columns)]).ravel() for columns in factor.gradients]
        phi.append(np.concatenate(parts))
    return np.asarray(phi)


def centred_cosine(phi_x: Any, phi_y: Any, centre: Any) -> Float:
    """Cosine of feature vectors from which the centre was taken; 0 where one of them vanishes."""
    x, y = np.asarray(phi_x) - np.asarray(centre), np.asarray(phi_y) - np.asarray(centre)
    scale = np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
    return np.divide(x @ y.T, scale, out=np.zeros_like(scale), where=scale > 0)


# --------------------------------------------------------------------------- influence and measures


def influence(measure: str, kernel: Any, step: Any, coefficients: Any, **more: Any) -> Float:
    """Score [audited, landmark] of one measure by a loop over both.

    ``is``: |k| |step_l|; ``signed-step``: k <step_l, f_t>/|f_t|; ``signed-embedding``:
    k <A_l, f_t>; ``aligned``: k cos(df_t, df_l) with df = K step; ``kernel``: k.
    ``more``: offset [component] for f = K A + offset, landmark_kernel for df_l.
    """
    K, dA, A = (np.asarray(v, dtype=np.float64) for v in (kernel, step, coefficients))
    K_mm = np.asarray(more.get("landmark_kernel", np.zeros((len(A), len(A)))))
    score = np.zeros_like(K)
    for t, landmark in itertools.product(range(K.shape[0]), range(K.shape[1])):
        k = K[t, landmark]
        f = K[t] @ A + more.get("offset", 0.0)
        score[t, landmark] = {
            "is": abs(k) * np.linalg.norm(dA[landmark]),
            "signed-step": k * cosine(f, dA[landmark]) * np.linalg.norm(dA[landmark]),
            "signed-embedding": k * A[landmark] @ f,
            "aligned": k * cosine(K[t] @ dA, K_mm[landmark] @ dA),
            "kernel": k,
        }[measure]
    return score


def unique_kernel(kernel: Any, second: Any, ridge: float = 1e-4) -> Float:
    """Leave-one-out kernel: what the other landmarks leave of k_lt when they regress it under S."""
    K, S = np.asarray(kernel, dtype=np.float64), np.asarray(second, dtype=np.float64)
    S = S + ridge * np.trace(S) / len(S) * np.eye(len(S))
    residual = np.zeros_like(K)
    for landmark in range(K.shape[1]):
        others = [j for j in range(K.shape[1]) if j != landmark]
        weights = np.linalg.solve(S[np.ix_(others, others)], S[others, landmark])
        residual[:, landmark] = K[:, landmark] - K[:, others] @ weights
    return residual


def cosine(x: Float, y: Float) -> float:
    """Cosine of two vectors, 0 if one of them vanishes."""
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / scale) if scale > 0 else 0.0


def agreement(x: Any, y: Any, spread: float | None) -> float:
    """1 - min(|x - y| / spread, 1) for numbers; equality for categories (spread None)."""
    return float(x == y) if spread is None else 1.0 - min(abs(x - y) / spread, 1.0)


def alignment_gap(
    score: Any, audited: Any, landmarks: Any, spread: float | None, count: int = 10
) -> float:
    """Mean over samples of the agreement with the top landmarks less that with all landmarks."""
    gaps = []
    for t, row in enumerate(np.asarray(score)):
        v = np.array([agreement(audited[t], value, spread) for value in landmarks])
        top = sorted(range(len(v)), key=lambda j: (-abs(row[j]), j))[:count]
        gaps.append(v[top].mean() - v.mean())
    return float(np.mean(gaps))


def weighted_alignment_gap(
    score: Any, kernel: Any, audited: Any, landmarks: Any, spread: float | None, count: int = 10
) -> float:
    """The same with agreements weighted by |k|, over the top and over all landmarks."""
    gaps = []
    for t, row in enumerate(np.asarray(score)):
        v = np.array([agreement(audited[t], value, spread) for value in landmarks])
        w = abs(np.asarray(kernel)[t])
        top = sorted(range(len(v)), key=lambda j: (-abs(row[j]), j))[:count]
        gaps.append(w[top] @ v[top] / w[top].sum() - w @ v / w.sum())
    return float(np.mean(gaps))


def spectral_entropy(A: Any) -> float:
    """Entropy of the eigenvalues of A^T A as shares, over log h; 0 for one component."""
    A = np.asarray(A, dtype=np.float64)
    shares = np.linalg.svd(A, compute_uv=False) ** 2
    shares = shares / shares.sum()
    n_components = A.shape[1]
    entropy = -sum(p * np.log(p) for p in shares if p > 0)
    return float(entropy / np.log(n_components)) if n_components > 1 else 0.0


def coverage(labels: Any, order: Any) -> int:
    """How many landmarks, taken in this order, until every class was seen."""
    wanted, seen = set(np.asarray(labels).tolist()), set()
    for count, landmark in enumerate(order, start=1):
        seen.add(int(labels[landmark]))
        if seen == wanted:
            return count
    raise ValueError("the order leaves a class out")


def kendall_tau(x: Any, y: Any) -> float:
    """Kendall's tau-b by counting all pairs."""
    concordant = ties_x = ties_y = pairs = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        dx, dy = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        pairs, concordant = pairs + 1, concordant + int(dx * dy)
        ties_x, ties_y = ties_x + int(dx == 0), ties_y + int(dy == 0)
    return float(concordant / np.sqrt((pairs - ties_x) * (pairs - ties_y)))
