"""Naive dense oracles, written from the published formulas: slow, obvious, float64, autograd.

Nothing here knows the package. Every loss is computed from embeddings as its authors' code does;
every curvature is J^T Q J with J from ``torch.func.jacrev`` and Q from ``torch.func.hessian``;
every influence figure is a loop. Kernels are lists of p matrices K_a [sample, landmark],
coefficients are A [landmark, component], the embedding of view a is Z_a = K_a A + offset.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, normalize, relu

Float = npt.NDArray[np.float64]
Inner = Callable[[Tensor], list[Tensor]]
Outer = Callable[[list[Tensor]], Tensor]

OBJECTIVES = ("barlow-twins", "vicreg", "simclr", "byol", "spectral-contrastive")
NORM_FLOOR = 1e-12


# ------------------------------------------------------------------------------ published losses


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
