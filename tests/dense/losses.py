"""Published losses of embeddings, as the code of their authors computes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, normalize, relu

OBJECTIVES = ("barlow-twins", "vicreg", "simclr", "byol", "spectral-contrastive")
NORM_FLOOR = 1e-12


def loss(name: str, A: Any, kernels: Sequence[Any], offset: Any = 0.0, **settings: Any) -> Tensor:
    """The published loss at A; ``settings`` are the keyword arguments of the function below."""
    views = embeddings(A, kernels, 0.0 if name == "spectral-contrastive" else offset)
    return LOSSES[name](views, **settings)


def embeddings(A: Any, kernels: Sequence[Any], offset: Any = 0.0) -> list[Tensor]:
    """Z_a = K_a A + offset for every view."""
    return [as_tensor(K) @ as_tensor(A) + as_tensor(offset) for K in kernels]


def barlow_twins(
    views: Sequence[Tensor], off_diagonal: float = 0.0051, epsilon: float = 1e-5
) -> Tensor:
    """Zbontar et al. 2021: batch-normalised cross-correlation, pulled towards the identity."""

    def pair(z1: Tensor, z2: Tensor) -> Tensor:
        c = standardise(z1, epsilon).T @ standardise(z2, epsilon) / len(z1)
        on = (c.diagonal() - 1).square().sum()
        off = off_diagonal_of(c).square().sum()
        return on + off_diagonal * off

    return mean_over_pairs(pair, views)


def vicreg(
    views: Sequence[Tensor],
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    epsilon: float = 1e-4,
) -> Tensor:
    """Bardes et al. 2022: invariance, variance hinge and covariance terms of the authors' code."""

    def hinge(z: Tensor) -> Tensor:
        return relu(1 - torch.sqrt(z.var(dim=0) + epsilon)).mean()

    def decorrelation(z: Tensor) -> Tensor:
        centred = z - z.mean(dim=0)
        cov = centred.T @ centred / (len(z) - 1)
        return off_diagonal_of(cov).square().sum() / z.shape[1]

    def pair(z1: Tensor, z2: Tensor) -> Tensor:
        return (
            invariance * mse_loss(z1, z2)
            + variance * (hinge(z1) / 2 + hinge(z2) / 2)
            + covariance * (decorrelation(z1) + decorrelation(z2))
        )

    return mean_over_pairs(pair, views)


def simclr(views: Sequence[Tensor], temperature: float = 0.5, batch: int = 8) -> Tensor:
    """Chen et al. 2020: NT-Xent over batches of consecutive rows, mean over all anchors."""

    def pair(z1: Tensor, z2: Tensor) -> Tensor:
        terms = []
        for rows in batches(len(z1), batch):
            size = len(rows)
            u = normalize(torch.cat([z1[rows], z2[rows]]), eps=NORM_FLOOR)
            similarity = u @ u.T / temperature
            similarity = similarity.masked_fill(torch.eye(2 * size, dtype=torch.bool), -torch.inf)
            positive = torch.arange(2 * size).roll(size)
            terms.append(cross_entropy(similarity, positive, reduction="none"))
        return torch.cat(terms).mean()

    return mean_over_pairs(pair, views)


def byol(
    views: Sequence[Tensor],
    targets: Sequence[Tensor],
    predictor_weight: Any = None,
    predictor_bias: Any = None,
) -> Tensor:
    """Grill et al. 2020: 2 - 2 cos to constant targets, both directions, mean over pairs."""
    total = torch.zeros((), dtype=torch.float64)
    for a, z in enumerate(views):
        q = predict(z, predictor_weight, predictor_bias)
        others = [as_tensor(t) for b, t in enumerate(targets) if b != a]
        for target in others:
            cosine = (normalize(q, eps=NORM_FLOOR) * normalize(target, eps=NORM_FLOOR)).sum(dim=1)
            total = total + (2 - 2 * cosine).mean() / len(others)
    return total * 2 / len(views)


def spectral_contrastive(views: Sequence[Tensor]) -> Tensor:
    """HaoChen et al. 2021, population form: -2 E z.z+ + E (z.z')^2 over all pairs of rows."""

    def pair(z1: Tensor, z2: Tensor) -> Tensor:
        return -2 * (z1 * z2).sum(dim=1).mean() + (z1 @ z2.T).square().mean()

    return mean_over_pairs(pair, views)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "barlow-twins": barlow_twins,
    "vicreg": vicreg,
    "simclr": simclr,
    "byol": byol,
    "spectral-contrastive": spectral_contrastive,
}


def byol_targets(start: Any, kernels: Sequence[Any], offset: Any = 0.0) -> list[Tensor]:
    """The constant targets: normalised embeddings at the start, one [sample, component] a view."""
    return [normalize(z, eps=NORM_FLOOR) for z in embeddings(start, kernels, offset)]


def one_thread() -> Iterator[None]:
    """For a fixture: matrices this small are slower, not faster, on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def as_tensor(value: Any) -> Tensor:
    """The value as a float64 tensor."""
    return torch.as_tensor(value, dtype=torch.float64)


def standardise(z: Tensor, epsilon: float) -> Tensor:
    """Batch normalisation in training mode, no affine part: biased variance."""
    return (z - z.mean(dim=0)) / torch.sqrt(z.var(dim=0, unbiased=False) + epsilon)


def predict(z: Tensor, weight: Any, bias: Any) -> Tensor:
    """The linear predictor W z + b; identity without a weight."""
    if weight is not None:
        z = z @ as_tensor(weight).T
    return z if bias is None else z + as_tensor(bias)


def off_diagonal_of(square: Tensor) -> Tensor:
    """The entries off the diagonal, row by row."""
    return square[~torch.eye(len(square), dtype=torch.bool)]


def mean_over_pairs(pair: Callable[[Tensor, Tensor], Tensor], views: Sequence[Tensor]) -> Tensor:
    """Mean of a two-view loss over all pairs of views a < b."""
    return torch.stack([pair(z1, z2) for z1, z2 in itertools.combinations(views, 2)]).mean()


def batches(n_samples: int, batch: int) -> list[range]:
    """Consecutive rows; a short tail counts, a tail of fewer than two samples is dropped."""
    cuts = (range(i, min(i + batch, n_samples)) for i in range(0, n_samples, batch))
    return [rows for rows in cuts if len(rows) >= 2]
