"""Naive dense oracles, written from the published formulas: slow, obvious, float64, autograd.

Nothing here knows the package. Every loss is computed from embeddings as its authors' code does;
every curvature is J^T Q J with J from ``torch.func.jacrev`` and Q from ``torch.func.hessian``;
every influence figure is a loop. Kernels are lists of p matrices K_a [sample, landmark],
coefficients are A [landmark, component], the embedding of view a is Z_a = K_a A + offset.
"""

# ruff: noqa: F401
from __future__ import annotations

from tests.dense.curvature import (
    SPLITS,
    Inner,
    Outer,
    ggn,
    ggn_product,
    gradient,
    split_barlow_twins,
    split_byol,
    split_simclr,
    split_spectral,
    split_vicreg,
    step,
)
from tests.dense.figures import (
    Float,
    agreement,
    alignment_gap,
    centred_cosine,
    cosine,
    coverage,
    explicit_features,
    influence,
    jacobian_features,
    jacobian_kernel,
    kendall_tau,
    moments,
    nystrom_error,
    spectral_entropy,
    start,
    unique_kernel,
    weighted_alignment_gap,
)
from tests.dense.losses import (
    LOSSES,
    NORM_FLOOR,
    OBJECTIVES,
    as_tensor,
    barlow_twins,
    batches,
    byol,
    byol_targets,
    embeddings,
    loss,
    mean_over_pairs,
    off_diagonal_of,
    one_thread,
    predict,
    simclr,
    spectral_contrastive,
    standardise,
    vicreg,
)
