"""The points of one contrastive batch: softmax, gradient and curvature of NT-Xent at one look.

They speak the array API and hold two matrices of size 2B x 2B, which do not outlive their batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from array_api_compat import array_namespace, device

from krepes_ooc.algebra.objectives.base import tangent, unit_rows


@dataclass(frozen=True)
class Points:
    """The 2B points of one batch, with everything a derivative needs.

    The softmax of row i is P_ij = a_i W_ij with W symmetric, so that E + E^T, where E is a change
    of P, acts on U by products with W alone: nothing of size 2B x 2B is formed but W and one more.
    """

    U: Any  # unit vectors [point, component]
    inverse: Any  # 1 / |z| [point, 1]
    W: Any  # exp((u_i . u_j - 1) / tau), diagonal 0 [point, point_]
    a: Any  # 1 / row sums of W [point, 1]
    loss: Any  # summed over anchors
    temperature: float

    @cached_property
    def softmax(self) -> Any:
        """P [point, point_]."""
        return self.a * self.W

    @cached_property
    def weighted(self) -> Any:
        """W U [point, component]."""
        return self.W @ self.U

    @cached_property
    def _sides(self) -> Any:
        """U, a U and a column of ones [point, 2 component + 1]."""
        xp = array_namespace(self.U)
        return xp.concat([self.U, self.a * self.U, xp.ones_like(self.a)], axis=1)

    def pull_back(self, cotangent: Any) -> Any:
        """The cotangent of z [point, component] for that of u, times tau."""
        return tangent(self.U, cotangent) * (self.inverse / self.temperature)

    def gradient(self) -> Any:
        """The cotangent of z for the loss: E = P - onehot(positive)."""
        xp = array_namespace(self.U)
        matched = xp.roll(self.U, self.U.shape[0] // 2, axis=0)
        return self.pull_back(self.a * self.weighted + self.W @ (self.a * self.U) - 2 * matched)

    def product(self, dZ: Any) -> Any:
        """J^T Q J dZ [point, component].

        With G = dS and c_i = sum_j P_ij G_ij, E_ij = a_i W_ij (G_ij - c_i), hence with b = a c

            (E + E^T) U = a o (W o G) U + (W o G)(a o U) - b o W U - W (b o U).
        """
        xp, h = array_namespace(self.U), self.U.shape[1]
        dU = self.pull_back(dZ)
        # dU U^T + U dU^T as one product: adding a transposed matrix is the slower half of it.
        G = xp.concat([dU, self.U], axis=1) @ xp.concat([self.U, dU], axis=1).T
        G *= self.W
        sums = G @ self._sides
        b = self.a**2 * sums[:, 2 * h :]
        bent = self.a * sums[:, :h] + sums[:, h : 2 * h] - b * self.weighted - self.W @ (b * self.U)
        return self.pull_back(bent)


def compare(Z: Any, temperature: float) -> Points:
    """Normalise, compare, take the softmax without the diagonal; Z [point, component]."""
    xp = array_namespace(Z)
    U, inverse = unit_rows(Z)
    logits = U @ (U / temperature).T
    logits -= 1 / temperature
    W = xp.exp(logits)
    W *= 1 - xp.eye(Z.shape[0], dtype=Z.dtype, device=device(Z))
    total = xp.sum(W, axis=1, keepdims=True)
    matched = xp.vecdot(U, xp.roll(U, Z.shape[0] // 2, axis=0))
    loss = xp.sum(xp.log(total), dtype=xp.float64)
    loss = loss + xp.sum((1 - matched) / temperature, dtype=xp.float64)
    return Points(U, inverse, W, 1 / total, loss, temperature)


def own_curvature(points: Points) -> Any:
    """sum_i (tau |z_i|)^-2 Pi_i M_i Pi_i [component, component_], Pi_i = I - u_i u_i^T.

    M_i = sum_j [p_ij + p_ji (1 - p_ji)] u_j u_j^T - m_i m_i^T with m_i = sum_j p_ij u_j is what
    point i sees of its own motion, as anchor and in the rows of the other anchors.
    """
    xp = array_namespace(points.U)
    U, P = points.U, points.softmax
    scale = (points.inverse / points.temperature) ** 2
    W, m = P + (P * (1 - P)).T, P @ U
    seen = (W * (U @ U.T)) @ U - m * xp.sum(m * U, axis=1, keepdims=True)  # M_i u_i
    around = U.T @ (U * (W.T @ scale)) - m.T @ (scale * m)
    across = seen.T @ (scale * U)
    along = U.T @ (U * (scale * xp.sum(U * seen, axis=1, keepdims=True)))
    return around - across - across.T + along


def curvature_trace(points: Points, gram: Any) -> Any:
    """sum_i [ sum_j p_ij |ds_ij|^2 - |sum_j p_ij ds_ij|^2 ], gram = K K^T [point, point_].

    ds_ij is the derivative of a logit as a vector over A,
    tau ds_ij = k_i (x) Pi_i u_j / |z_i| + k_j (x) Pi_j u_i / |z_j|, so that its inner products need
    only kernel products and cosines g_ij = u_i . u_j: no probe vectors, no noise.
    """
    xp = array_namespace(points.U)
    U, P, r = points.U, points.softmax, points.inverse
    G, m = U @ U.T, P @ U
    size = xp.sum(U * U, axis=1, keepdims=True)  # 1, or 0 for a point without direction
    diagonal = xp.eye(U.shape[0], dtype=U.dtype, device=device(U))
    own = xp.sum(gram * diagonal, axis=1, keepdims=True) * r**2
    each = own * (size.T - G**2) + own.T * (size - G**2) + 2 * gram * (r * r.T) * (G**3 - G)
    mean_u, mean_G = xp.sum(m * U, axis=1, keepdims=True), m @ U.T
    alone = own * (xp.sum(m * m, axis=1, keepdims=True) - mean_u**2)
    mixed = 2 * r * P * r.T * gram * (G**2 * mean_u - G * mean_G)
    weight = P * r.T
    turned = weight * G
    others = ((size * weight - 2 * turned * G) @ gram) * weight + (turned @ (gram * G)) * turned
    total = xp.sum(P * each - mixed - others, dtype=xp.float64) - xp.sum(alone, dtype=xp.float64)
    return total / points.temperature**2
