"""Barlow Twins (Zbontar et al. 2021) as a function of kernel moments: no pass over the data.

With P_ab = C_ab A and variances v_a,j = A_j^T C_aa A_j + epsilon, the standardised correlation is
c_ij = A_i^T C_12 A_j (v_1i v_2j)^(-1/2), and L = sum_ij W_ij (c_ij - delta_ij)^2 with W_ii = 1 and
W_ij = off_diagonal; for more than two views L is the mean over pairs a < b. The inner function is
the whole matrix c(A); in y = sqrt(2 W) o (c - I) the loss is |y|^2 / 2, a least-squares problem of
only h^2 rows per pair, so that the Newton step has an exact solution in those rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from array_api_compat import array_namespace, device

from krepes_ooc.core.array_columns import Array, Number, diagonal_matrix, identity_like
from krepes_ooc.core.settings import setting
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives.families import TINY, MomentObjective
from krepes_ooc.stages.newton.objectives.interface import vectorise_columns


@dataclass(frozen=True)
class BarlowTwinsSettings:
    """Constants of the published loss."""

    off_diagonal: float = setting(0.0051, about="weight of squared off-diagonal entries", above=0)
    epsilon: float = setting(1e-5, about="added to each variance (batch norm)", above=0)


@dataclass(frozen=True)
class BarlowTwins(MomentObjective):
    """The objective on given moments."""

    name: ClassVar[str] = "barlow-twins"

    settings: BarlowTwinsSettings = BarlowTwinsSettings()

    def linearise(self, A: Array) -> BarlowTwinsCurvature:
        """Value, gradient and curvature at A [landmark, component]."""
        xp = array_namespace(A)
        pairs = list(self.moments.pairs())
        inner = tuple(_correlation(self.moments, a, b, A, self.settings.epsilon) for a, b in pairs)
        # W: 1 on the diagonal, off_diagonal beside it; root = sqrt(2 W / pairs).
        on_diagonal = identity_like(inner[0].c) > 0
        weight = xp.where(on_diagonal, 1.0, xp.full_like(inner[0].c, self.settings.off_diagonal))
        return BarlowTwinsCurvature(inner, xp.sqrt(2.0 * weight / len(pairs)))


@dataclass(frozen=True)
class BarlowTwinsCurvature:
    """The least-squares problem |y|^2 / 2 with y = root o (c - I) [pair, component, component_].

    Args:
        inner: the correlation of each pair of views, with its derivative.
        root: sqrt(2 W / pairs) [component, component_].
    """

    inner: tuple[_Correlation, ...]
    root: Array

    @cached_property
    def residual(self) -> Array:
        """Rows y [row], row = (pair, i, j)."""
        identity, xp = identity_like(self.root), array_namespace(self.root)
        rows = [self.root * (pair.c - identity) for pair in self.inner]
        return xp.reshape(xp.stack(rows), (-1,))

    @cached_property
    def value(self) -> Number:
        """The loss |y|^2 / 2."""
        return (self.residual @ self.residual) / 2.0

    @cached_property
    def gradient(self) -> Array:
        """G = J^T y [landmark, component]."""
        return self.adjoint(self.residual)

    def jacobian(self, V: Array) -> Array:
        """J V [..., row] for V [..., landmark, component]."""
        xp = array_namespace(V)
        # dy = root o dc of each pair, flattened to rows (pair, i, j).
        rows = xp.stack([self.root * pair.jacobian(V) for pair in self.inner], axis=-3)
        return xp.reshape(rows, (*V.shape[:-2], -1))

    def adjoint(self, E: Array) -> Array:
        """J^T E [..., landmark, component] for E [..., row]."""
        # Rows back to [pair, component, component_]; J^T sums the transposes over pairs.
        shape = (*E.shape[:-1], len(self.inner), *self.root.shape)
        E = array_namespace(E).reshape(E, shape)
        return sum(pair.adjoint(self.root * E[..., q, :, :]) for q, pair in enumerate(self.inner))

    @vectorise_columns
    def product(self, V: Array) -> Array:
        """H V = J^T J V; V [landmark, component] or [landmark, component, column]."""
        # Apply the Jacobian, then its transpose: v -> J v -> J^T J v. Hess phi is the identity.
        return self.adjoint(self.jacobian(V))

    def gram(self) -> Array:
        """J J^T [row, row_] in 8 h^3 m operations, J itself never formed.

        Row (i, j) of J touches column i of V by a_ij and column j by b_ij, so that
        <ij, kl> = [i=k] a_ij.a_kl + [i=l] a_ij.b_kl + [j=k] b_ij.a_kl + [j=l] b_ij.b_kl.
        """
        xp = array_namespace(self.root)
        h = self.root.shape[0]
        q = len(self.inner)
        # a_ij and b_ij of every pair, weighted: [pair, component, component_, landmark].
        rows = [pair.rows() for pair in self.inner]
        a, b = (xp.stack([self.root[..., None] * row[side] for row in rows]) for side in (0, 1))
        gram = xp.zeros((q, h, h, q, h, h), dtype=xp.float64, device=device(self.root))
        four = (q, h, q, h)
        for t in range(h):
            # Rows that touch column t of V: a_t. through their first index, b_.t by the second.
            left = xp.reshape(a[:, t, :, :], (q * h, -1))
            right = xp.reshape(b[:, :, t, :], (q * h, -1))
            cross = xp.reshape(left @ right.T, four)
            # [i = k] a_ij . a_kl
            gram[:, t, :, :, t, :] += xp.reshape(left @ left.T, four)
            # [j = l] b_ij . b_kl
            gram[:, :, t, :, :, t] += xp.reshape(right @ right.T, four)
            # [i = l] a_ij . b_kl
            gram[:, t, :, :, :, t] += cross
            # [j = k] b_ij . a_kl, the transpose
            gram[:, :, t, :, t, :] += xp.permute_dims(cross, (2, 3, 0, 1))
        return xp.reshape(gram, (q * h * h, q * h * h))

    @cached_property
    def mean_diagonal(self) -> Number:
        """tr(J^T J) / (m h)."""
        m, h = self.inner[0].P_ab.shape
        return array_namespace(self.root).linalg.trace(self._component_trace) / (m * h)

    def kronecker(self, moments: Moments) -> tuple[Array, Array]:
        """C_11 and the curvature summed over landmarks, scaled to the trace of H."""
        xp = array_namespace(self.root)
        S = moments.second[0, 0, ...]
        # tr(S (x) Q) = tr(S) tr(Q) = tr(H).
        return S, self._component_trace / xp.maximum(xp.linalg.trace(S), TINY)

    @cached_property
    def _component_trace(self) -> Array:
        """sum_l H[(l, i), (l, j)] [component, component_]."""
        xp = array_namespace(self.root)
        total = xp.zeros_like(self.root)
        # Row (i, j) adds |a_ij|^2 at (i, i), |b_ij|^2 at (j, j), a_ij . b_ij at (i, j) and (j, i).
        for pair in self.inner:
            aa, ab, bb = (self.root**2 * square for square in pair.row_products())
            total += diagonal_matrix(xp.sum(aa, axis=1) + xp.sum(bb, axis=0)) + ab + ab.T
        return total


@dataclass(frozen=True)
class _Correlation:
    """c(A) of one pair of views [component, component_], with its derivative at A."""

    P_ab: Array
    P_ba: Array
    P_aa: Array  # P_aa,j / v_a,j, as every formula uses it
    P_bb: Array
    scale: Array  # (v_a,i v_b,j)^(-1/2)
    c: Array

    def jacobian(self, V: Array) -> Array:
        """(V^T P_ab + P_ba^T V) o scale - c o (r_a 1^T + 1 r_b^T), r_a,j = P_aa,j . V_j."""
        xp = array_namespace(V)
        # Relative change of the standard deviations: dv / (2 v), as P_aa is divided by v.
        r_a = xp.sum(self.P_aa * V, axis=-2)
        r_b = xp.sum(self.P_bb * V, axis=-2)
        # Change of the covariance A^T C_ab A.
        bilinear = xp.matrix_transpose(V) @ self.P_ab + self.P_ba.T @ V
        return bilinear * self.scale - self.c * (r_a[..., :, None] + r_b[..., None, :])

    def adjoint(self, E: Array) -> Array:
        """The transpose of ``jacobian`` [..., landmark, component]."""
        xp = array_namespace(E)
        # Transpose of the covariance term: P_ab E_s^T + P_ba E_s, E_s = E o scale.
        scaled = E * self.scale
        bilinear = self.P_ab @ xp.matrix_transpose(scaled) + self.P_ba @ scaled
        # Transpose of the variance terms: sums of E o c over each index.
        weighted = E * self.c
        r_a, r_b = (xp.sum(weighted, axis=axis)[..., None, :] for axis in (-1, -2))
        return bilinear - self.P_aa * r_a - self.P_bb * r_b

    def rows(self) -> tuple[Array, Array]:
        """a_ij and b_ij [component, component_, landmark].

        The derivative of c_ij in columns i and j of A: a_ij = s_ij P_ab,j - c_ij P_aa,i and
        b_ij = s_ij P_ba,i - c_ij P_bb,j.
        """
        scale = self.scale[..., None]
        c = self.c[..., None]
        a = scale * self.P_ab.T[None, :, :] - c * self.P_aa.T[:, None, :]
        b = scale * self.P_ba.T[:, None, :] - c * self.P_bb.T[None, :, :]
        return a, b

    def row_products(self) -> tuple[Array, Array, Array]:
        """|a_ij|^2, a_ij . b_ij and |b_ij|^2 [component, component_], no row formed."""
        xp = array_namespace(self.c)
        s = self.scale
        c = self.c
        # Squared lengths of the columns of each P.
        squares = [xp.sum(P * P, axis=0) for P in (self.P_ab, self.P_ba, self.P_aa, self.P_bb)]
        n_ab, n_ba, n_aa, n_bb = squares
        # |s P_ab,j - c P_aa,i|^2 = s^2 |P_ab,j|^2 - 2 s c P_aa,i . P_ab,j + c^2 |P_aa,i|^2.
        aa = s**2 * n_ab - 2 * s * c * (self.P_aa.T @ self.P_ab) + c**2 * n_aa[:, None]
        # |s P_ba,i - c P_bb,j|^2, the same with i and j exchanged.
        bb = s**2 * n_ba[:, None] - 2 * s * c * (self.P_ba.T @ self.P_bb) + c**2 * n_bb
        # (s P_ab,j - c P_aa,i) . (s P_ba,i - c P_bb,j), its four products.
        ab = s**2 * (self.P_ba.T @ self.P_ab) + c**2 * (self.P_aa.T @ self.P_bb)
        ab -= s * c * xp.sum(self.P_ab * self.P_bb, axis=0)
        ab -= s * c * xp.sum(self.P_ba * self.P_aa, axis=0)[:, None]
        return aa, ab, bb


def _correlation(moments: Moments, a: int, b: int, A: Array, epsilon: float) -> _Correlation:
    """The correlation of views a and b at A [landmark, component], with its derivative."""
    xp = array_namespace(A)
    C = moments.second
    # P_ab = C_ab A; variances v_a,j = A_j^T C_aa A_j + epsilon.
    P_ab, P_ba, P_aa, P_bb = (C[i, j, ...] @ A for i, j in ((a, b), (b, a), (a, a), (b, b)))
    v_a, v_b = (xp.sum(A * P, axis=0) + epsilon for P in (P_aa, P_bb))
    # c = A^T C_ab A o (v_a v_b^T)^(-1/2).
    scale = 1.0 / xp.sqrt(xp.linalg.outer(v_a, v_b))
    return _Correlation(P_ab, P_ba, P_aa / v_a, P_bb / v_b, scale, scale * (A.T @ P_ab))
