"""Gradients of a group's own terms of a streamed objective, for all groups in one pass.

A group's own terms are L - L_without, the loss of all samples less that of the batches without the
group's samples, with the normalisation of all samples. To first order the coefficients without the
group are A + (H + lambda I)^(-1) grad(L - L_without) (Koh and Liang 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krepes_ooc.core.blocks import Block
from krepes_ooc.stages.moments.moments import view_pairs
from krepes_ooc.stages.newton.objectives.byol import Predictor
from krepes_ooc.stages.newton.objectives.families import tangent, unit_vectors
from krepes_ooc.stages.newton.objectives.simclr import contrast

Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Members = Callable[[Block], Mask]
LEAST_BATCH = 2


@dataclass(frozen=True)
class SimCLRGroups:
    """Sums over anchors of the gradients of each group's own terms: a block function.

    A sample that is left out leaves its batch, as anchor, positive and negative of the others; a
    batch with fewer than two samples left is dropped.

    Args:
        A: coefficients [landmark, component].
        offset: gamma [component].
        temperature: tau.
        batch: samples of a batch; divides the block rows.
        members: whether the rows of a block belong to each group [group, sample].
    """

    A: Float
    offset: Float
    temperature: float
    batch: int
    members: Members

    def __call__(self, views: tuple[Any, ...], block: Block) -> tuple[Float]:
        """[group, landmark, component] of one block."""
        member, rows = self.members(block), len(views[0])
        total = np.zeros((len(member), *self.A.shape))
        for start in range(0, rows - 1, self.batch):
            cut = slice(start, min(start + self.batch, rows))
            K = [np.asarray(view[cut], dtype=np.float64) for view in views]
            Z = [rows_ @ self.A + self.offset for rows_ in K]
            chosen = np.flatnonzero(member[:, cut].any(axis=1))
            for a, b in view_pairs(len(K)):
                whole = self._cotangent(Z[a], Z[b], np.ones(len(Z[a]), dtype=bool))
                both = np.concatenate([K[a], K[b]])
                for group in chosen:
                    without = self._cotangent(Z[a], Z[b], ~member[group, cut])
                    total[group] += both.T @ (whole - without)
        return (total,)

    def _cotangent(self, Z_a: Float, Z_b: Float, kept: Mask) -> Float:
        """Cotangents of both views' embeddings [point, component]; 0 for samples left out."""
        found = np.zeros((2 * len(Z_a), Z_a.shape[1]))
        if kept.sum() >= LEAST_BATCH:
            points = contrast(np.concatenate([Z_a[kept], Z_b[kept]]), self.temperature)
            found[np.concatenate([kept, kept])] = points.gradient()
        return found


@dataclass(frozen=True)
class BYOLGroups:
    """Sums of the gradients of each group's samples: a block function.

    Args:
        A: coefficients [landmark, component].
        start: A0 [landmark, component], which fixes the targets.
        offset: gamma [component].
        predictor: W and b.
        members: whether the rows of a block belong to each group [group, sample].
    """

    A: Float
    start: Float
    offset: Float
    predictor: Predictor
    members: Members

    def __call__(self, views: tuple[Any, ...], block: Block) -> tuple[Float]:
        """[group, landmark, component] of one block."""
        member = self.members(block)
        W, bias = self.predictor.weight, self.predictor.bias
        K = [np.asarray(view, dtype=np.float64) for view in views]
        targets = [unit_vectors(rows @ self.start + self.offset)[0] for rows in K]
        total = np.zeros((len(member), *self.A.shape))
        for index, rows in enumerate(K):
            # Each view follows the mean target of the other views.
            target = (sum(targets) - targets[index]) / (len(K) - 1)
            U, inverse = unit_vectors((rows @ self.A + self.offset) @ W.T + bias)
            cotangent = -2 * tangent(U, target) * inverse @ W
            for group in np.flatnonzero(member.any(axis=1)):
                chosen = member[group]
                total[group] += rows[chosen].T @ cotangent[chosen]
        return (total,)
