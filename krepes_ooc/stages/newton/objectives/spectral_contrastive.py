"""The spectral contrastive loss (HaoChen et al. 2021) as a function of kernel moments.

Population form, without offset, S_ab = E[k_a k_b^T] un-centred, M_a = A^T S_aa A:

    L = -2 tr(A^T S_12 A) + tr(M_1 M_2),

for more than two views the mean over pairs a < b. The inner function is every product
s_ij = z_1i . z_2j, the outer one a convex quadratic in them, so the curvature is exact in moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from array_api_compat import array_namespace

from krepes_ooc.core.array_columns import Array, Number
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives.families import MomentObjective
from krepes_ooc.stages.newton.objectives.interface import vectorise_columns


@dataclass(frozen=True)
class SpectralContrastiveSettings:
    """The published loss has no constants."""


@dataclass(frozen=True)
class SpectralContrastive(MomentObjective):
    """The objective on given moments; its embedding has no offset."""

    name: ClassVar[str] = "spectral-contrastive"
    rotation_invariant: ClassVar[bool] = True

    settings: SpectralContrastiveSettings = SpectralContrastiveSettings()

    def linearise(self, A: Array) -> SpectralCurvature:
        """Value, gradient and curvature at A [landmark, component]."""
        times = self.moments.uncentred_times
        views = range(self.moments.n_views)
        # Q_a = S_aa A of each view, T = sum over a != b of S_ab A.
        Q = [times(a, a, A) for a in views]
        T = sum(times(a, b, A) for a in views for b in views if a != b)
        return SpectralCurvature(self.moments, A, tuple(Q), T)


@dataclass(frozen=True)
class SpectralCurvature:
    """The loss at A, as a sum over views of products with the sums over all other views.

    With Q_a = S_aa A, T = sum_{a != b} S_ab A and, over b != a, N_a = sum M_b, R_a = sum Q_b,

        pairs L = sum_a <M_a, N_a> / 2 - <A, T>,    pairs G = 2 sum_a Q_a N_a - 2 T,
        pairs H V = 2 sum_a [S_aa V N_a + Q_a (V^T R_a)].
    """

    moments: Moments
    A: Array
    Q: tuple[Array, ...]
    T: Array

    @cached_property
    def _others(self) -> list[tuple[Array, Array, Array]]:
        """(Q_a, R_a, N_a) of each view."""
        # R_a = sum of Q_b over b != a, and N_a = A^T R_a since M_b = A^T Q_b.
        total = sum(self.Q)
        return [(Q, total - Q, self.A.T @ (total - Q)) for Q in self.Q]

    @cached_property
    def _pairs(self) -> int:
        return len(list(self.moments.pairs()))

    @cached_property
    def value(self) -> Number:
        """The loss."""
        xp = array_namespace(self.A)
        # sum_a <M_a, N_a> counts each pair of views twice.
        quartic = sum(xp.sum((self.A.T @ Q) * N) for Q, _, N in self._others) / 2.0
        return (quartic - xp.sum(self.A * self.T)) / self._pairs

    @cached_property
    def gradient(self) -> Array:
        """G [landmark, component]."""
        quartic = sum(Q @ N for Q, _, N in self._others)
        return 2.0 * (quartic - self.T) / self._pairs

    @vectorise_columns
    def product(self, V: Array) -> Array:
        """H V; V [landmark, component] or [landmark, component, column]."""
        xp = array_namespace(V)
        total = xp.zeros_like(V)
        V_transposed = xp.matrix_transpose(V)
        for a, (Q, R, N) in enumerate(self._others):
            # ds_ij = dz_i . z_j + z_i . dz_j, averaged over samples of both views and applied to A:
            # S_aa V N_a + Q_a V^T R_a.
            total += self.moments.uncentred_times(a, a, V) @ N + Q @ (V_transposed @ R)
        return 2.0 * total / self._pairs

    @cached_property
    def mean_diagonal(self) -> Number:
        """tr(H) / (m h) in closed form."""
        xp = array_namespace(self.A)
        m, h = self.A.shape
        total = 0.0
        for a, (Q, R, N) in enumerate(self._others):
            # tr(V -> S_aa V N_a) = tr(S_aa) tr(N_a); tr(V -> Q_a V^T R_a) = <Q_a, R_a>.
            total = total + (self.moments.uncentred_trace(a) * xp.linalg.trace(N) + xp.sum(Q * R))
        return 2.0 * total / self._pairs / (m * h)

    def kronecker(self, moments: Moments) -> tuple[Array, Array]:
        """S averaged over views and 2 sum_a N_a / pairs: the first term of H V."""
        right = sum(N for _, _, N in self._others)
        return moments.mean_uncentred(), 2.0 * right / self._pairs
