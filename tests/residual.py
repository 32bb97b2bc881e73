"""Is the sealed step what it claims? Recomputed from the stores alone, by autodiff in float64.

    python -m tests.residual WORKSPACE

The stores are read with plain zarr. For moment objectives the inner and outer function are written
here once more from the published losses as functions of the stored moments; for sample objectives
they are those of tests/dense/ on the stored kernel rows. No mathematics of krepes_ooc is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from tests import dense

Tensor = torch.Tensor
Split = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def relative_residual(workspace: Path | str) -> tuple[str, float]:
    """The objective, and |(H + damping I) dA + G| / |G| of the sealed step.

    With the RKHS metric the damping acts as the landmark kernel: damping * K_mm dA.
    """
    audit = zarr.open_group(str(Path(workspace) / "audit.zarr"), mode="r", use_consolidated=False)
    facts = dict(audit["newton"].attrs)
    step, start = (
        torch.tensor(np.asarray(audit[name][:])) for name in ("newton/step", "spectrum/start")
    )
    inner, outer = split_of(audit, facts)
    gradient = torch.func.grad(lambda A: outer(inner(A)))(start)
    _, tangent = torch.func.jvp(inner, (start,), (step,))
    _, bent = torch.func.jvp(torch.func.grad(outer), (inner(start),), (tangent,))
    _, pull = torch.func.vjp(inner, start)
    metric = step
    if facts["metric"] == "rkhs":
        metric = torch.tensor(np.asarray(audit["kernel/landmark_kernel"][:])) @ step
    residual = pull(bent)[0] + facts["damping"] * metric + gradient
    return str(facts["objective"]), float(residual.norm() / gradient.norm())


def split_of(audit: Any, facts: dict[str, Any]) -> Split:
    """Inner and outer function of the objective as functions of A."""
    name, settings = facts["objective"], dict(facts["objective_settings"])
    if name in MOMENT_SPLITS:
        mean = torch.tensor(np.asarray(audit["moments/mean"][:]))
        second = torch.tensor(np.asarray(audit["moments/second"][:]))
        n = int(audit["moments"].attrs["n_samples"])
        return MOMENT_SPLITS[name](mean, second, n, settings)
    kernels = [K.astype(np.float64) for K in np.asarray(audit["kernel/values"][:])]
    offset, start = audit["spectrum/offset"][:], audit["spectrum/start"][:]
    if name == "simclr":
        return dense.split_simclr(kernels, offset, **settings)
    targets = dense.byol_targets(start, kernels, offset)
    predictor = {}
    if "predictor_weight" in audit["newton"]:
        predictor["predictor_weight"] = audit["newton/predictor_weight"][:]
        predictor["predictor_bias"] = audit["newton/predictor_bias"][:]
    return dense.split_byol(kernels, offset, targets, **predictor)


def barlow_twins(mean: Tensor, C: Tensor, n: int, settings: dict[str, float]) -> Split:
    """Standardised cross-correlations, then weighted squares of their distance from I."""
    pairs = [(a, b) for a in range(len(C)) for b in range(a + 1, len(C))]

    def inner(A: Tensor) -> Tensor:
        sd = [torch.sqrt((A * (C[a, a] @ A)).sum(0) + settings["epsilon"]) for a in range(len(C))]
        return torch.stack([A.T @ C[a, b] @ A / torch.outer(sd[a], sd[b]) for a, b in pairs])

    def outer(c: Tensor) -> Tensor:
        eye = torch.eye(c.shape[-1], dtype=c.dtype)
        weight = eye + settings["off_diagonal"] * (1 - eye)
        return (weight * (c - eye) ** 2).sum() / len(pairs)

    return inner, outer


def vicreg(mean: Tensor, C: Tensor, n: int, settings: dict[str, float]) -> Split:
    """Roots of the invariance term, variances and covariances; then squares and hinges."""
    pairs = [(a, b) for a in range(len(C)) for b in range(a + 1, len(C))]
    roots = []
    for a, b in pairs:
        shift = mean[a] - mean[b]
        D = C[a, a] + C[b, b] - C[a, b] - C[b, a] + torch.outer(shift, shift)
        values, vectors = torch.linalg.eigh((D + D.T) / 2)
        roots.append(values.clamp(min=0).sqrt()[:, None] * vectors.T)

    def inner(A: Tensor) -> Tensor:
        spread = [A.T @ C[a, a] @ A * n / (n - 1) for a in range(len(C))]
        return torch.cat(
            [*((root @ A).reshape(-1) for root in roots), *(s.reshape(-1) for s in spread)]
        )

    def outer(flat: Tensor) -> Tensor:
        m, p = C.shape[-1], len(C)
        h = _components(len(flat), m, len(pairs), p)
        distances, spreads = flat[: len(pairs) * m * h], flat[len(pairs) * m * h :]
        total = settings["invariance"] * (distances**2).sum() / (h * len(pairs))
        for s in spreads.reshape(p, h, h):
            sd = torch.sqrt(s.diagonal() + settings["epsilon"])
            hinge = torch.relu(1 - sd).sum() / h
            off = (s**2).sum() - (s.diagonal() ** 2).sum()
            total = total + 2 / p * (
                settings["variance"] / 2 * hinge + settings["covariance"] * off / h
            )
        return total

    return inner, outer


def _components(length: int, m: int, pairs: int, p: int) -> int:
    """h from the length of the flat inner value: pairs m h + p h^2."""
    root = (pairs * m) ** 2 + 4 * p * length
    return round((-pairs * m + root**0.5) / (2 * p))


def spectral_contrastive(mean: Tensor, C: Tensor, n: int, settings: dict[str, float]) -> Split:
    """All products z_1i . z_2j; their mean square less twice the mean of s_ii.

    The samples enter through S_ab = C_ab + mu_a mu_b^T alone; rows whose un-centred moments are
    exactly these stand in for them: one eigenvector of the joint moment each.
    """
    p, m = mean.shape
    flat_mean = mean.reshape(-1)
    joint = C.permute(0, 2, 1, 3).reshape(p * m, p * m) + torch.outer(flat_mean, flat_mean)
    values, vectors = torch.linalg.eigh((joint + joint.T) / 2)
    rows = (values.clamp(min=0) * p * m).sqrt()[:, None] * vectors.T
    return dense.split_spectral([K.contiguous() for K in rows.reshape(-1, p, m).unbind(1)], 0.0)


MOMENT_SPLITS = {
    "barlow-twins": barlow_twins,
    "vicreg": vicreg,
    "spectral-contrastive": spectral_contrastive,
}


if __name__ == "__main__":
    name, found = relative_residual(sys.argv[1])
    print(f"{name}: relative residual of the damped system {found:.2e}")
