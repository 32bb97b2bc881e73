"""Self-supervised losses of the demo trainer, as published, on embeddings of p views.

With more than two views a loss is the mean over all pairs of views.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

DIRECT_COPY_SHARE = 0.3
PairLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def view_loss(objective: str, views: Sequence[torch.Tensor]) -> torch.Tensor:
    """Loss of embeddings[sample, output] of each view, averaged over pairs of views."""
    pair_loss = _losses()[objective]
    losses = [pair_loss(one, two) for one, two in itertools.combinations(views, 2)]
    return torch.stack(losses).mean()


def barlow_twins(
    one: torch.Tensor, two: torch.Tensor, off_diagonal: float = 0.0051
) -> torch.Tensor:
    """Cross-correlation towards the identity (Zbontar et al. 2021)."""
    correlation = _standardised(one).T @ _standardised(two) / len(one)
    # Diagonal towards 1, the rest towards 0 with the weight lambda.
    error = (correlation - torch.eye(len(correlation), dtype=one.dtype)).square()
    return off_diagonal * error.sum() + (1.0 - off_diagonal) * error.diagonal().sum()


def vicreg(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Invariance, variance hinge and covariance with weights 25, 25 and 1 (Bardes et al. 2022)."""
    loss = 25.0 * functional.mse_loss(one, two)
    for view in (one, two):
        # Keep the deviation of every output above 1.
        hinge = functional.relu(1.0 - torch.sqrt(view.var(dim=0) + 1e-4)).mean()
        centred = view - view.mean(dim=0)
        covariance = centred.T @ centred / (len(view) - 1)
        # Decorrelate the outputs.
        off_diagonal = covariance - torch.diag(covariance.diagonal())
        loss = loss + 12.5 * hinge + off_diagonal.square().sum() / view.shape[1]
    return loss


def simclr(one: torch.Tensor, two: torch.Tensor, temperature: float = 0.5) -> torch.Tensor:
    """NT-Xent: pick the other view among the rest of the batch (Chen et al. 2020)."""
    unit = functional.normalize(torch.cat([one, two]), dim=1)
    similarity = unit @ unit.T / temperature
    # No sample competes with itself; the positive of row i is row i + n, cyclically.
    similarity = similarity.masked_fill(torch.eye(len(unit), dtype=torch.bool), -torch.inf)
    return functional.cross_entropy(similarity, torch.arange(len(unit)).roll(len(one)))


def spectral_contrastive(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Spectral contrastive loss (HaoChen et al. 2021)."""
    similarity = one @ two.T
    # Attraction on the diagonal, squared similarity over all other pairs.
    off_diagonal = similarity.square().sum() - similarity.diagonal().square().sum()
    return -2.0 * similarity.diagonal().mean() + off_diagonal / (len(one) * (len(one) - 1))


def byol(
    online: Sequence[torch.Tensor], target: Sequence[torch.Tensor], correlation: torch.Tensor
) -> torch.Tensor:
    """Predict the target network's other view (Grill et al. 2020): 2 - 2 cos, over ordered pairs.

    The predictor is the second moment of the online embedding, normalised, plus a multiple of the
    identity: DirectCopy (Wang, Chen, Du and Tian 2021). It has nothing to train.

    Args:
        online: embeddings[sample, output] of each view.
        target: the target network's embeddings of the same views.
        correlation: running second moment of the online embedding [output, output].
    """
    # Eigenvalues of the correlation in [0, 1], plus the share of the identity.
    eye = torch.eye(len(correlation), dtype=correlation.dtype)
    predictor = correlation / torch.linalg.matrix_norm(correlation, 2) + DIRECT_COPY_SHARE * eye
    losses = [
        2.0 - 2.0 * functional.cosine_similarity(one @ predictor, two).mean()
        for (a, one), (b, two) in itertools.product(enumerate(online), enumerate(target))
        if a != b
    ]
    return torch.stack(losses).mean()


def _standardised(view: torch.Tensor) -> torch.Tensor:
    return functional.batch_norm(view, None, None, training=True, eps=1e-5)


def _losses() -> dict[str, PairLoss]:
    return {
        "barlow-twins": barlow_twins,
        "vicreg": vicreg,
        "simclr": simclr,
        "spectral-contrastive": spectral_contrastive,
    }
