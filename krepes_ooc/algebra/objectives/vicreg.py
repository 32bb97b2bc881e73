"""VICReg (Bardes et al. 2022) as a function of kernel moments: no pass over the data.

With D = E[(k_1 - k_2)(k_1 - k_2)^T], B_a = n/(n-1) C_aa A and the unbiased covariance
s_a = A^T B_a of each view,

    L = (invariance / h) tr(A^T D A)
        + sum_a (2/p) { variance / (2 h) sum_j relu(1 - sqrt(s_a,jj + epsilon))
                        + covariance / h sum_{i != j} s_a,ij^2 }

which for p views is the mean of the published two-view loss over all pairs; D is averaged over
pairs. The inner functions are the differences of embeddings (linear) and s_a(A) (quadratic); the
hinge is convex in the variance, so its curvature 1 / (4 sd^3) is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from krepes_ooc.algebra.curvature import Array, Moments, over_columns
from krepes_ooc.algebra.objectives.base import MomentObjective
from krepes_ooc.errors import StageFailed
from krepes_ooc.settings import setting


@dataclass(frozen=True)
class VICRegSettings:
    """Constants of the published loss."""

    invariance: float = setting(25.0, about="weight of the distance between views", minimum=0)
    variance: float = setting(25.0, about="weight of the hinge on deviations", minimum=0)
    covariance: float = setting(1.0, about="weight of squared covariances", minimum=0)
    epsilon: float = setting(1e-4, about="added to each variance", above=0)


@dataclass(frozen=True)
class VICReg(MomentObjective):
    """The objective on given moments.

    Raises:
        UsageError: the moments hold fewer than two views.
        StageFailed: fewer than two samples, which have no unbiased variance.
    """

    name: ClassVar[str] = "vicreg"

    settings: VICRegSettings = VICRegSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moments.n_samples < 2:
            raise StageFailed(
                f"{self.moments.n_samples} samples have no unbiased variance",
                where="vicreg",
                expected="at least 2 samples",
            )

    @cached_property
    def difference(self) -> Array:
        """D averaged over pairs of views [landmark, landmark_]."""
        pairs = [self.moments.difference(a, b) for a, b in self.moments.pairs()]
        return np.asarray(sum(pairs) / len(pairs))

    def linearise(self, A: Array) -> VICRegCurvature:
        """Value, gradient and curvature at A [landmark, component]."""
        n, p = self.moments.n_samples, self.moments.n_views
        unbiased = (n / (n - 1) * (self.moments.second[a, a] @ A) for a in range(p))
        spread = tuple(_spread(A, B, self.settings) for B in unbiased)
        pull = 2.0 * self.settings.invariance / A.shape[1]
        return VICRegCurvature(self.difference, pull, spread, A)


@dataclass(frozen=True)
class VICRegCurvature:
    """The loss <A, pull D A> / 2 + (2/p) sum of the spread terms, at A.

    Args:
        difference: D [landmark, landmark_].
        pull: 2 invariance / h.
        spread: variance and covariance terms of each view.
        A: the coefficients [landmark, component].
    """

    difference: Array
    pull: float
    spread: tuple[_Spread, ...]
    A: Array

    @cached_property
    def _pulled(self) -> Array:
        return np.asarray(self.pull * (self.difference @ self.A))

    @property
    def _weight(self) -> float:
        return 2.0 / len(self.spread)

    @cached_property
    def value(self) -> float:
        """The loss."""
        terms = self._weight * sum(view.value for view in self.spread)
        return float(np.sum(self.A * self._pulled)) / 2.0 + terms

    @cached_property
    def gradient(self) -> Array:
        """G = pull D A + (2/p) sum_a 2 B_a dL/ds_a [landmark, component]."""
        spread = sum(view.B @ (2.0 * view.slope) for view in self.spread)
        return np.asarray(self._pulled + self._weight * spread)

    @over_columns
    def product(self, V: Array) -> Array:
        """H V = pull D V + (2/p) sum_a 2 B_a (d2L/ds_a^2 o ds_a), ds = V^T B + B^T V."""
        total = self.pull * (self.difference @ V)
        for view in self.spread:
            X = V.swapaxes(-1, -2) @ view.B
            total += self._weight * (view.B @ (2.0 * view.bend * (X + X.swapaxes(-1, -2))))
        return np.asarray(total)

    @cached_property
    def mean_diagonal(self) -> float:
        """tr(H) / (m h) in closed form."""
        total = self.pull * np.trace(self.difference) * self.A.shape[1]
        for view in self.spread:
            squares = np.sum(view.B**2, axis=0)
            twice = np.sum(view.bend, axis=1) + np.diag(view.bend)
            total += self._weight * 2.0 * (twice @ squares)
        return float(total / self.A.size)

    def kronecker(self, moments: Moments) -> tuple[Array, Array]:
        """D and pull I: exact but for the 2 p h^2 directions of the spread terms."""
        del moments
        return self.difference, self.pull * np.eye(self.A.shape[1])

    @property
    def active_hinge(self) -> float:
        """Share of components, over views, whose deviation is below 1."""
        return float(np.mean([np.diag(view.slope) < 0 for view in self.spread]))


@dataclass(frozen=True)
class _Spread:
    """Variance and covariance terms of one view as a function of s = A^T B."""

    B: Array  # [landmark, component]
    value: float
    slope: Array  # dL/ds [component, component_]
    bend: Array  # second derivative, entry by entry [component, component_]


def _spread(A: Array, B: Array, settings: VICRegSettings) -> _Spread:
    h, s = A.shape[1], A.T @ B
    deviation = np.sqrt(np.diag(s) + settings.epsilon)
    hinge, crossed = settings.variance / (2 * h), settings.covariance / h
    active = deviation < 1.0
    off = s - np.diag(np.diag(s))
    value = hinge * np.sum(np.maximum(1.0 - deviation, 0.0)) + crossed * np.sum(off**2)
    slope = 2.0 * crossed * off - np.diag(hinge * active / (2.0 * deviation))
    bend = 2.0 * crossed * (1.0 - np.eye(h)) + np.diag(hinge * active / (4.0 * deviation**3))
    return _Spread(B, float(value), slope, bend)
