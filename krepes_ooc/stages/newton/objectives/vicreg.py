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

from array_api_compat import array_namespace

from krepes_ooc.core.arrays import Array, Number, diagonal_matrix, identity_like
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives.base import MomentObjective
from krepes_ooc.stages.newton.objectives.interface import vectorise_columns


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
        return sum(pairs) / len(pairs)

    def linearise(self, A: Array) -> VICRegCurvature:
        """Value, gradient and curvature at A [landmark, component]."""
        n, p = self.moments.n_samples, self.moments.n_views
        unbiased = (n / (n - 1) * (self.moments.second[a, a, ...] @ A) for a in range(p))
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
        return self.pull * (self.difference @ self.A)

    @property
    def _weight(self) -> float:
        return 2.0 / len(self.spread)

    @cached_property
    def value(self) -> Number:
        """The loss."""
        terms = self._weight * sum(view.value for view in self.spread)
        return array_namespace(self.A).sum(self.A * self._pulled) / 2.0 + terms

    @cached_property
    def gradient(self) -> Array:
        """G = pull D A + (2/p) sum_a 2 B_a dL/ds_a [landmark, component]."""
        spread = sum(view.B @ (2.0 * view.slope) for view in self.spread)
        return self._pulled + self._weight * spread

    @vectorise_columns
    def product(self, V: Array) -> Array:
        """H V = pull D V + (2/p) sum_a 2 B_a (d2L/ds_a^2 o ds_a), ds = V^T B + B^T V."""
        total, transpose = self.pull * (self.difference @ V), array_namespace(V).matrix_transpose
        for view in self.spread:
            X = transpose(V) @ view.B
            total += self._weight * (view.B @ (2.0 * view.component_curvature * (X + transpose(X))))
        return total

    @cached_property
    def mean_diagonal(self) -> Number:
        """tr(H) / (m h) in closed form."""
        xp, (m, h) = array_namespace(self.A), self.A.shape
        total = self.pull * xp.linalg.trace(self.difference) * h
        for view in self.spread:
            squares = xp.sum(view.B**2, axis=0)
            twice = xp.sum(view.component_curvature, axis=1) + xp.linalg.diagonal(
                view.component_curvature
            )
            total = total + self._weight * 2.0 * (twice @ squares)
        return total / (m * h)

    def kronecker(self, moments: Moments) -> tuple[Array, Array]:
        """D and pull I: exact but for the 2 p h^2 directions of the spread terms."""
        del moments
        return self.difference, self.pull * identity_like(self.spread[0].slope)

    @property
    def active_hinge(self) -> Number:
        """Share of components, over views, whose deviation is below 1."""
        xp = array_namespace(self.A)
        slopes = xp.stack([xp.linalg.diagonal(view.slope) for view in self.spread])
        return xp.mean(xp.astype(slopes < 0, xp.float64))


@dataclass(frozen=True)
class _Spread:
    """Variance and covariance terms of one view as a function of s = A^T B."""

    B: Array  # [landmark, component]
    value: Number
    slope: Array  # dL/ds [component, component_]
    component_curvature: Array  # second derivative, entry by entry [component, component_]


def _spread(A: Array, B: Array, settings: VICRegSettings) -> _Spread:
    h, s, xp = A.shape[1], A.T @ B, array_namespace(A)
    deviation = xp.sqrt(xp.linalg.diagonal(s) + settings.epsilon)
    hinge, crossed = settings.variance / (2 * h), settings.covariance / h
    active = hinge * xp.astype(deviation < 1.0, xp.float64)
    off = s - diagonal_matrix(xp.linalg.diagonal(s))
    value = hinge * xp.sum(xp.maximum(1.0 - deviation, 0.0)) + crossed * xp.sum(off**2)
    slope = 2.0 * crossed * off - diagonal_matrix(active / (2.0 * deviation))
    bend = 2.0 * crossed * (1.0 - identity_like(s)) + diagonal_matrix(active / (4.0 * deviation**3))
    return _Spread(B, value, slope, bend)
