"""VICReg (Bardes et al. 2022) as a function of kernel moments: no pass over the data.

With D = E[(k_1 - k_2)(k_1 - k_2)^T], B_a = n/(n-1) C_aa A and the unbiased covariance
s_a = A^T B_a of each view,

    L = (invariance / h) tr(A^T D A)
        + sum_a (2/p) { variance / (2 h) sum_j relu(1 - sqrt(s_a,jj + epsilon))
                        + covariance / h sum_{i != j} s_a,ij^2 }

which for p views is the mean of the published two-view loss over all pairs; D is averaged over
pairs. The inner functions are the differences of embeddings (linear) and s_a(A) (quadratic); the
hinge is convex in the variance, so its curvature 1 / (4 sd^3) is part of H.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from array_api_compat import array_namespace

from krepes_ooc.core.array_columns import Array, Number, diagonal_matrix, identity_like
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import StageFailed
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives.families import MomentObjective
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
        n = self.moments.n_samples
        # B_a = n/(n-1) C_aa A: the unbiased covariance is A^T B_a.
        views = range(self.moments.n_views)
        unbiased = (n / (n - 1) * (self.moments.second[a, a, ...] @ A) for a in views)
        spread = tuple(_spread(A, B, self.settings) for B in unbiased)
        weight = 2.0 * self.settings.invariance / A.shape[1]
        return VICRegCurvature(self.difference, weight, spread, A)


@dataclass(frozen=True)
class VICRegCurvature:
    """The loss <A, w D A> / 2 + (2/p) sum of the spread terms, at A; w = 2 invariance / h.

    Args:
        difference: D [landmark, landmark_].
        invariance_weight: w.
        spread: variance and covariance terms of each view.
        A: the coefficients [landmark, component].
    """

    difference: Array
    invariance_weight: float
    spread: tuple[_Spread, ...]
    A: Array

    @cached_property
    def _invariance_gradient(self) -> Array:
        """Gradient of the invariance term: w D A [landmark, component]."""
        return self.invariance_weight * (self.difference @ self.A)

    @property
    def _weight(self) -> float:
        """2/p of the spread terms."""
        return 2.0 / len(self.spread)

    @cached_property
    def value(self) -> Number:
        """The loss."""
        terms = self._weight * sum(view.value for view in self.spread)
        # The invariance term is quadratic: half of <A, its gradient>.
        return array_namespace(self.A).sum(self.A * self._invariance_gradient) / 2.0 + terms

    @cached_property
    def gradient(self) -> Array:
        """G = w D A + (2/p) sum_a 2 B_a dL/ds_a [landmark, component]."""
        # s = A^T B is symmetric: ds = V^T B + B^T V gives <dL/ds, ds> = <2 B dL/ds, V>.
        spread = sum(view.B @ (2.0 * view.gradient) for view in self.spread)
        return self._invariance_gradient + self._weight * spread

    @vectorise_columns
    def product(self, V: Array) -> Array:
        """H V = w D V + (2/p) sum_a 2 B_a (d2L/ds_a^2 o ds_a), ds = V^T B + B^T V."""
        transpose = array_namespace(V).matrix_transpose
        # The invariance term: its inner function is linear.
        total = self.invariance_weight * (self.difference @ V)
        for view in self.spread:
            # The Jacobian of s, its diagonal second derivative, the transpose of the Jacobian:
            # V -> X + X^T -> L'' o (X + X^T) -> 2 B (L'' o (X + X^T)), X = V^T B.
            X = transpose(V) @ view.B
            total += self._weight * (view.B @ (2.0 * view.component_curvature * (X + transpose(X))))
        return total

    @cached_property
    def mean_diagonal(self) -> Number:
        """tr(H) / (m h) in closed form."""
        xp = array_namespace(self.A)
        m, h = self.A.shape
        # tr(w D (x) I).
        total = self.invariance_weight * xp.linalg.trace(self.difference) * h
        for view in self.spread:
            # Each s_ij depends on columns i and j of A; s_jj on column j twice.
            squares = xp.sum(view.B**2, axis=0)
            twice = xp.sum(view.component_curvature, axis=1) + xp.linalg.diagonal(
                view.component_curvature
            )
            total = total + self._weight * 2.0 * (twice @ squares)
        return total / (m * h)

    def kronecker(self, moments: Moments) -> tuple[Array, Array]:
        """D and w I: exact but for the 2 p h^2 directions of the spread terms."""
        del moments
        return self.difference, self.invariance_weight * identity_like(self.spread[0].gradient)

    @property
    def active_hinge(self) -> Number:
        """Share of components, over views, whose deviation is below 1."""
        xp = array_namespace(self.A)
        # dL/ds_jj is negative where the hinge is active, 0 elsewhere.
        slopes = xp.stack([xp.linalg.diagonal(view.gradient) for view in self.spread])
        return xp.mean(xp.astype(slopes < 0, xp.float64))


@dataclass(frozen=True)
class _Spread:
    """Variance and covariance terms of one view as a function of s = A^T B."""

    B: Array  # [landmark, component]
    value: Number
    gradient: Array  # dL/ds [component, component_]
    component_curvature: Array  # second derivative, entry by entry [component, component_]


def _spread(A: Array, B: Array, settings: VICRegSettings) -> _Spread:
    """Variance and covariance terms at A [landmark, component], with B = n/(n-1) C A."""
    xp = array_namespace(A)
    h = A.shape[1]
    s = A.T @ B
    deviation = xp.sqrt(xp.linalg.diagonal(s) + settings.epsilon)
    hinge_weight = settings.variance / (2 * h)
    covariance_weight = settings.covariance / h
    # Weight of the hinge, 0 for components whose deviation is at least 1.
    active = hinge_weight * xp.astype(deviation < 1.0, xp.float64)
    off = s - diagonal_matrix(xp.linalg.diagonal(s))
    # Hinge relu(1 - sd) on the diagonal, squares beside it.
    value = hinge_weight * xp.sum(xp.maximum(1.0 - deviation, 0.0))
    value = value + covariance_weight * xp.sum(off**2)
    # First derivatives: 2 s_ij, and -1 / (2 sd) of the hinge.
    gradient = 2.0 * covariance_weight * off - diagonal_matrix(active / (2.0 * deviation))
    # Second derivatives: 2, and 1 / (4 sd^3) of the hinge, which is convex in the variance.
    beside = 2.0 * covariance_weight * (1.0 - identity_like(s))
    component_curvature = beside + diagonal_matrix(active / (4.0 * deviation**3))
    return _Spread(B, value, gradient, component_curvature)
