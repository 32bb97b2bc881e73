"""Gradient, Gauss-Newton curvature and damped step of the published losses by autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, relu

from tests.dense.losses import (
    NORM_FLOOR,
    as_tensor,
    batches,
    embeddings,
    loss,
    off_diagonal_of,
    predict,
    standardise,
)

Inner = Callable[[Tensor], list[Tensor]]
Outer = Callable[[list[Tensor]], Tensor]


# ------------------------------------------- the split loss = outer(inner(A)) with a convex outer


def split_barlow_twins(
    kernels: Sequence[Any], offset: Any, off_diagonal: float = 0.0051, epsilon: float = 1e-5
) -> tuple[Inner, Outer]:
    """Inner: the standardised cross-correlations; outer: weighted squares."""

    def inner(A: Tensor) -> list[Tensor]:
        views = [standardise(z, epsilon) for z in embeddings(A, kernels, offset)]
        return [z1.T @ z2 / len(z1) for z1, z2 in itertools.combinations(views, 2)]

    def outer(correlations: list[Tensor]) -> Tensor:
        one = torch.eye(len(correlations[0]), dtype=torch.float64)
        weight = one + off_diagonal * (1 - one)
        return torch.stack([(weight * (c - one).square()).sum() for c in correlations]).mean()

    return inner, outer


def split_vicreg(
    kernels: Sequence[Any],
    offset: Any,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    epsilon: float = 1e-4,
) -> tuple[Inner, Outer]:
    """Inner: view differences, variances, off-diagonal covariances; outer: the three terms."""
    n_views = len(kernels)
    n_pairs = n_views * (n_views - 1) // 2

    def inner(A: Tensor) -> list[Tensor]:
        views = embeddings(A, kernels, offset)
        differences = [z1 - z2 for z1, z2 in itertools.combinations(views, 2)]
        variances = [z.var(dim=0) for z in views]
        covariances = [off_diagonal_of(torch.cov(z.T).reshape(z.shape[1], -1)) for z in views]
        return [*differences, *variances, *covariances]

    def outer(parts: list[Tensor]) -> Tensor:
        n_components = parts[0].shape[1]
        differences, rest = parts[:n_pairs], parts[n_pairs:]
        variances, covariances = rest[:n_views], rest[n_views:]
        total = sum(invariance / n_pairs * d.square().mean() for d in differences)
        for v in variances:
            hinge = relu(1 - torch.sqrt(v + epsilon)).mean()
            total = total + 2 / n_views * variance * hinge / 2
        for s in covariances:
            total = total + 2 / n_views * covariance * s.square().sum() / n_components
        return as_tensor(total)

    return inner, outer


def split_simclr(
    kernels: Sequence[Any], offset: Any, temperature: float = 0.5, batch: int = 8
) -> tuple[Inner, Outer]:
    """Inner: the logits s_ij, j != i, of every batch; outer: softmax cross-entropy of each row."""

    def inner(A: Tensor) -> list[Tensor]:
        logits = []
        for z1, z2 in itertools.combinations(embeddings(A, kernels, offset), 2):
            for rows in batches(len(z1), batch):
                u = normalize(torch.cat([z1[rows], z2[rows]]), eps=NORM_FLOOR)
                s = u @ u.T / temperature
                logits.append(off_diagonal_of(s).reshape(len(s), -1))
        return logits

    def outer(logits: list[Tensor]) -> Tensor:
        losses = []
        for s in logits:
            anchor = torch.arange(len(s))
            positive = anchor.roll(len(s) // 2)
            column = positive - (positive > anchor).long()  # its place once s_ii is left out
            losses.append(s.logsumexp(dim=1) - s.gather(1, column[:, None]).squeeze(1))
        return torch.cat(losses).mean()  # every pair of views has equally many anchors

    return inner, outer


def split_byol(
    kernels: Sequence[Any],
    offset: Any,
    targets: Sequence[Tensor],
    predictor_weight: Any = None,
    predictor_bias: Any = None,
) -> tuple[Inner, Outer]:
    """Inner: the normalised predictions u; outer: |u - t|^2, which equals 2 - 2 u.t."""

    def inner(A: Tensor) -> list[Tensor]:
        views = embeddings(A, kernels, offset)
        predictions = [predict(z, predictor_weight, predictor_bias) for z in views]
        return [normalize(q, eps=NORM_FLOOR) for q in predictions]

    def outer(units: list[Tensor]) -> Tensor:
        terms = [
            (units[a] - as_tensor(targets[b])).square().sum(dim=1).mean() / (len(units) - 1)
            for a, b in itertools.permutations(range(len(units)), 2)
        ]
        return torch.stack(terms).sum() * 2 / len(units)

    return inner, outer


def split_spectral(kernels: Sequence[Any], offset: Any) -> tuple[Inner, Outer]:
    """Inner: all products s_ij = z_1i . z_2j; outer: their mean square less twice the mean s_ii."""
    del offset  # this objective has none

    def inner(A: Tensor) -> list[Tensor]:
        return [z1 @ z2.T for z1, z2 in itertools.combinations(embeddings(A, kernels), 2)]

    def outer(products: list[Tensor]) -> Tensor:
        return torch.stack([s.square().mean() - 2 * s.diagonal().mean() for s in products]).mean()

    return inner, outer


SPLITS: dict[str, Callable[..., tuple[Inner, Outer]]] = {
    "barlow-twins": split_barlow_twins,
    "vicreg": split_vicreg,
    "simclr": split_simclr,
    "byol": split_byol,
    "spectral-contrastive": split_spectral,
}


# ------------------------------------------------------------- gradient, curvature, Newton step


def gradient(
    name: str, A: Any, kernels: Sequence[Any], offset: Any = 0.0, **settings: Any
) -> Tensor:
    """The gradient of the published loss by autograd, [landmark, component]."""
    variable = as_tensor(A).clone().requires_grad_()
    value = loss(name, variable, kernels, offset, **settings)
    return torch.autograd.grad(value, variable)[0]


def ggn(name: str, A: Any, kernels: Sequence[Any], offset: Any = 0.0, **settings: Any) -> Tensor:
    """The generalised Gauss-Newton matrix J^T Q J, [mh, mh], entries of A in row-major order."""
    flat_inner, flat_outer, point = _flat_split(name, A, kernels, offset, settings)
    J = torch.func.jacrev(flat_inner)(point)
    Q = torch.func.hessian(flat_outer)(flat_inner(point))
    return J.T @ Q @ J


def ggn_product(
    name: str, A: Any, V: Any, kernels: Sequence[Any], offset: Any = 0.0, **settings: Any
) -> Tensor:
    """The product J^T Q J V without any matrix: jvp, jvp of the outer gradient, vjp."""
    flat_inner, flat_outer, point = _flat_split(name, A, kernels, offset, settings)
    value, J_v = torch.func.jvp(flat_inner, (point,), (as_tensor(V).reshape(-1),))
    _, Q_J_v = torch.func.jvp(torch.func.grad(flat_outer), (value,), (J_v,))
    _, transpose = torch.func.vjp(flat_inner, point)
    return transpose(Q_J_v)[0].reshape(as_tensor(A).shape)


def step(
    name: str,
    A: Any,
    damping: float,
    kernels: Sequence[Any],
    offset: Any = 0.0,
    **settings: Any,
) -> Tensor:
    """The damped step by a dense solve of (GGN + damping) step = -gradient."""
    H = ggn(name, A, kernels, offset, **settings)
    G = gradient(name, A, kernels, offset, **settings)
    damped = H + damping * torch.eye(len(H), dtype=torch.float64)
    return -torch.linalg.solve(damped, G.reshape(-1)).reshape(G.shape)


def _flat_split(
    name: str, A: Any, kernels: Sequence[Any], offset: Any, settings: dict[str, Any]
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]:
    """Inner and outer on flat vectors, and A as a flat vector."""
    A = as_tensor(A)
    inner, outer = SPLITS[name](kernels, offset, **settings)
    shapes = [part.shape for part in inner(A)]
    sizes = [shape.numel() for shape in shapes]

    def flat_inner(point: Tensor) -> Tensor:
        return torch.cat([part.reshape(-1) for part in inner(point.reshape(A.shape))])

    def flat_outer(value: Tensor) -> Tensor:
        pieces = zip(value.split(sizes), shapes, strict=True)
        return outer([piece.reshape(shape) for piece, shape in pieces])

    return flat_inner, flat_outer, A.reshape(-1)
