"""SimCLR's NT-Xent loss (Chen et al. 2020) over batches of consecutive rows.

In a batch of B samples the two views give 2B points u = z / |z| with logits s_ij = u_i . u_j / tau:

    L = (1/N) sum_i [ logsumexp_{j != i} s_ij - s_i,positive(i) ],   N = anchors of all batches;

for more than two views the mean over pairs of views. A last batch of one sample is dropped. The
inner function is the logits, normalisation included; the outer one the cross entropy of a softmax
P of each row, whose second derivative is Q_i = (diag(p_i) - p_i p_i^T) / N >= 0. Nothing of size
2B x 2B outlives its batch, so every pass computes P anew.
Source: Chen, Kornblith, Norouzi and Hinton (2020), "A simple framework for contrastive learning of
visual representations", equation 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

from array_api_compat import array_namespace, device

from krepes_ooc.core.array_columns import Array
from krepes_ooc.core.blocks import Block
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.stages.moments.moments import view_pairs
from krepes_ooc.stages.newton.objectives.families import (
    SampleObjective,
    StreamedCurvature,
    columns_last,
    flat_columns,
    tangent,
    times_columns,
    times_flat,
    transposed_times,
    unit_vectors,
)

SINGLE_TEMPERATURE = 0.05  # exp(-2 / tau) of opposite points is far from the end of float32


@dataclass(frozen=True)
class SimCLRSettings:
    """Constants of the loss."""

    temperature: float = setting(0.5, about="tau, divides the cosines", minimum=0.01)
    batch: int = setting(256, about="samples of one batch; divides the block rows", minimum=2)


@dataclass
class SimCLR(SampleObjective):
    """The objective on a stream of kernel blocks, each a whole number of batches.

    Args:
        stream: kernel blocks of all views.
        offset: gamma [component].
        settings: temperature and batch.

    Raises:
        UsageError: the stream holds fewer than two views, or its blocks cut a batch.
        StageFailed: fewer than two samples.
    """

    name: ClassVar[str] = "simclr"
    rotation_invariant: ClassVar[bool] = True

    settings: SimCLRSettings = SimCLRSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stream.n_samples < 2:
            raise StageFailed(
                f"{self.stream.n_samples} samples leave nothing to contrast",
                where="simclr",
                expected="at least 2 samples",
            )

    @property
    def anchors(self) -> int:
        """N, over all batches and pairs of views."""
        n = self.stream.n_samples
        p = self.stream.n_views
        # A last batch of one sample has nothing to contrast and is dropped.
        tail = n % self.settings.batch
        return (n - tail * (tail < 2)) * p * (p - 1)

    def values(self, A: Array) -> Array:
        """The loss of each column of A [landmark, component, column]; one pass."""
        (total,) = self.read(partial(_values, self._pass_state(A)))
        return total / self.anchors

    def linearise(self, A: Array) -> StreamedCurvature:
        """Value, gradient and curvature at A [landmark, component]; one pass."""
        sums = self.read(partial(_linearise, self._pass_state(A[..., None])))
        value, gradient, component_curvature, trace = sums
        # Means over the N anchors.
        return StreamedCurvature(
            value=float(value) / self.anchors,
            gradient=columns_last(gradient)[..., 0] / self.anchors,
            mean_diagonal=float(trace) / self.anchors / A.size,
            component_curvature=component_curvature / self.anchors,
            multiply=partial(self.multiply, A),
        )

    def multiply(self, A: Array, V: Array) -> Array:
        """H V at A for V [landmark, component, column]; one pass."""
        (total,) = self.read(partial(_product, self._pass_state(A[..., None]), V))
        return columns_last(total) / self.anchors

    def _pass_state(self, A: Array) -> _PassState:
        return _PassState(A, self.offset, self.settings.temperature, self.settings.batch)


# ------------------------------------------------------------------ functions of kernel blocks


@dataclass(frozen=True)
class _PassState:
    """Arguments of a pass over the kernel.

    Args:
        A: coefficients [landmark, component, column].
        offset: gamma [component].
        temperature: tau.
        batch: samples of one batch.
    """

    A: Array
    offset: Array
    temperature: float
    batch: int

    def batches(self, views: tuple[Any, ...], block: Block) -> Iterator[list[Any]]:
        """Kernel rows of each view for every batch of at least two samples."""
        if block.start % self.batch:
            raise UsageError(
                f"a block starts at row {block.start}, inside a batch of {self.batch}",
                where="stages.newton.objective.batch",
                expected="a divisor of the block rows",
            )
        rows = views[0].shape[0]
        # Stops at rows - 1: a last batch of one sample is left out.
        cuts = range(0, rows - 1, self.batch)
        return ([K[cut : min(cut + self.batch, rows), :] for K in views] for cut in cuts)

    def embeddings(self, K: Any) -> Any:
        """Z [sample, column, component]."""
        return times_columns(K, self.A) + self.shift(K)

    def shift(self, like: Any) -> Any:
        """The offset in the precision of an array."""
        return array_namespace(like).astype(self.offset, like.dtype, copy=False)

    def points(self, Z: list[Any], column: int) -> Iterator[tuple[int, int, Points]]:
        """The 2B points of one column for each pair of views."""
        xp = array_namespace(*Z)
        for a, b in view_pairs(len(Z)):
            # Views a and b of sample i are points i and B + i: each other's positive.
            both = xp.concat([Z[a][:, column, :], Z[b][:, column, :]], axis=0)
            # exp(-2 / tau) underflows float32 at small temperatures.
            if self.temperature < SINGLE_TEMPERATURE:
                both = xp.astype(both, xp.float64)
            yield a, b, contrast(both, self.temperature)


def _values(state: _PassState, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """The summed loss of each column [column]."""
    xp = array_namespace(*views)
    columns = range(state.A.shape[2])
    total = xp.zeros(len(columns), dtype=xp.float64, device=device(views[0]))
    for batch in state.batches(views, block):
        # Embeddings of all columns in one product, then the loss of each column.
        Z = [state.embeddings(K) for K in batch]
        losses = [sum(points.loss for _, _, points in state.points(Z, c)) for c in columns]
        total = total + xp.stack(losses)
    return (total,)


def _product(state: _PassState, V: Array, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """N H V [landmark, column, component]."""
    xp = array_namespace(*views)
    shape = (V.shape[0], V.shape[2], V.shape[1])
    total = xp.zeros(shape, dtype=xp.float64, device=device(views[0]))
    flat = flat_columns(xp.concat([state.A, V], axis=2), views[0])
    for batch in state.batches(views, block):
        # K [A V] in one product: embeddings Z of the point, changes dZ = K V along the columns.
        both = [times_flat(K, flat, V.shape[1]) for K in batch]
        Z = [product[:, :1, :] + state.shift(product) for product in both]
        dZ = [product[:, 1:, :] for product in both]
        cotangents = [xp.zeros_like(d) for d in dZ]
        size = batch[0].shape[0]
        for a, b, points in state.points(Z, 0):
            for column in range(V.shape[2]):
                # dZ -> J^T Q J dZ of the 2B points; each half belongs to one view.
                change = xp.concat([dZ[a][:, column, :], dZ[b][:, column, :]], axis=0)
                cotangent = xp.astype(points.product(change), change.dtype)
                cotangents[a][:, column, :] += cotangent[:size, :]
                cotangents[b][:, column, :] += cotangent[size:, :]
        # Back to coefficients: K^T (cotangent of Z).
        for K, cotangent in zip(batch, cotangents, strict=True):
            total = total + transposed_times(K, cotangent)
    return (total,)


def _linearise(state: _PassState, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """N times: loss, gradient [landmark, 1, component], per-point curvature, tr(H)."""
    xp = array_namespace(*views)
    landmarks, components, _ = state.A.shape
    float64 = xp.float64
    placement: dict[str, Any] = {"dtype": float64, "device": device(views[0])}
    value = xp.zeros((), **placement)
    trace = xp.zeros((), **placement)
    gradient = xp.zeros((landmarks, 1, components), **placement)
    component_curvature = xp.zeros((components, components), **placement)
    for batch in state.batches(views, block):
        # Once per linearisation: 1 - cos^2 of nearly equal points needs the longer mantissa.
        Z = [xp.astype(state.embeddings(K), float64) for K in batch]
        size = batch[0].shape[0]
        cotangents = [xp.zeros_like(z) for z in Z]
        for a, b, points in state.points(Z, 0):
            # dL/dZ of the 2B points; each half belongs to one view.
            cotangent = points.gradient()
            cotangents[a][:, 0, :] += cotangent[:size, :]
            cotangents[b][:, 0, :] += cotangent[size:, :]
            value = value + points.loss
            # Q of the Kronecker model, and tr(H) from the kernel between the points.
            component_curvature = component_curvature + point_curvature(points)
            rows = xp.concat([batch[a], batch[b]], axis=0)
            trace = trace + curvature_trace(points, xp.astype(rows @ rows.T, float64))
        # dL/dA = K^T dL/dZ.
        for K, cotangent in zip(batch, cotangents, strict=True):
            gradient = gradient + transposed_times(K, cotangent)
    return value, gradient, component_curvature, trace


@dataclass(frozen=True)
class Points:
    """The 2B points of one batch at fixed embeddings: loss, gradient and curvature in Z.

    The softmax of row i is P_ij = a_i W_ij with W symmetric, so that E + E^T, where E is a change
    of P, acts on U by products with W alone: nothing of size 2B x 2B is formed but W and one more.

    Args:
        U: unit vectors u [point, component].
        inverse: 1 / |z| [point, 1].
        W: exp((u_i . u_j - 1) / tau), diagonal 0 [point, point_].
        a: 1 / row sums of W [point, 1].
        loss: summed over anchors.
        temperature: tau.
    """

    U: Any
    inverse: Any
    W: Any
    a: Any
    loss: Any
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

    def unit_derivative(self, V: Any) -> Any:
        """(1 / tau) |z|^-1 (I - u u^T) v [point, component]: the derivative of u / tau along v.

        It is symmetric: applied to a change of z it is J v, to a cotangent of u it is J^T v.
        """
        return tangent(self.U, V) * (self.inverse / self.temperature)

    def gradient(self) -> Any:
        """dL/dz [point, component], from E = P - onehot(positive)."""
        xp = array_namespace(self.U)
        positives = xp.roll(self.U, self.U.shape[0] // 2, axis=0)
        # dL/du = (E + E^T) U / tau; P U = a o W U, P^T U = W (a o U), both onehot terms alike.
        cotangent = self.a * self.weighted + self.W @ (self.a * self.U) - 2 * positives
        return self.unit_derivative(cotangent)

    def product(self, dZ: Any) -> Any:
        """J^T Q J dZ [point, component].

        With G = dS and c_i = sum_j P_ij G_ij, E_ij = a_i W_ij (G_ij - c_i), hence with b = a c

            (E + E^T) U = a o (W o G) U + (W o G)(a o U) - b o W U - W (b o U).
        """
        xp = array_namespace(self.U)
        h = self.U.shape[1]
        # Apply the Jacobian of u: dz -> dU (over tau).
        dU = self.unit_derivative(dZ)
        # dS = dU U^T + U dU^T as one product: adding a transposed matrix is the slower half of it.
        G = xp.concat([dU, self.U], axis=1) @ xp.concat([self.U, dU], axis=1).T
        # W o G times U, a o U and 1.
        G *= self.W
        sums = G @ self._sides
        # b = a c, c_i = a_i sum_j (W o G)_ij.
        b = self.a**2 * sums[:, 2 * h :]
        # Softmax second derivative applied to dS, symmetrised, on U: (E + E^T) U.
        EU = self.a * sums[:, :h] + sums[:, h : 2 * h] - b * self.weighted - self.W @ (b * self.U)
        # Transpose of the Jacobian of u.
        return self.unit_derivative(EU)


def contrast(Z: Any, temperature: float) -> Points:
    """Unit vectors, logits, softmax without the diagonal, and the loss.

    Args:
        Z: embeddings [point, component], point i and point B + i being views of one sample.
        temperature: tau.
    """
    xp = array_namespace(Z)
    U, inverse = unit_vectors(Z)
    # Logits minus their largest possible value 1 / tau: exp cannot overflow.
    logits = U @ (U / temperature).T
    logits -= 1 / temperature
    W = xp.exp(logits)
    # No point is its own negative.
    W *= 1 - xp.eye(Z.shape[0], dtype=Z.dtype, device=device(Z))
    total = xp.sum(W, axis=1, keepdims=True)
    # sum_i [log sum_j W_ij + (1 - u_i . u_positive(i)) / tau].
    cosines = xp.vecdot(U, xp.roll(U, Z.shape[0] // 2, axis=0))
    loss = xp.sum(xp.log(total), dtype=xp.float64)
    loss = loss + xp.sum((1 - cosines) / temperature, dtype=xp.float64)
    return Points(U, inverse, W, 1 / total, loss, temperature)


def point_curvature(points: Points) -> Any:
    """sum_i (tau |z_i|)^-2 Pi_i M_i Pi_i [component, component_], Pi_i = I - u_i u_i^T.

    M_i = sum_j [p_ij + p_ji (1 - p_ji)] u_j u_j^T - m_i m_i^T with m_i = sum_j p_ij u_j is the
    curvature in u_i alone: point i as anchor, and in the softmax rows of the other anchors.
    """
    xp = array_namespace(points.U)
    U = points.U
    P = points.softmax
    scale = (points.inverse / points.temperature) ** 2
    # Weights p_ij + p_ji (1 - p_ji) of M_i, and its means m_i.
    W = P + (P * (1 - P)).T
    m = P @ U
    # M_i u_i [point, component].
    MU = (W * (U @ U.T)) @ U - m * xp.sum(m * U, axis=1, keepdims=True)
    # Pi M Pi = M - u (M u)^T - (M u) u^T + u (u^T M u) u^T, each term summed over points.
    whole = U.T @ (U * (W.T @ scale)) - m.T @ (scale * m)
    mixed = MU.T @ (scale * U)
    radial = U.T @ (U * (scale * xp.sum(U * MU, axis=1, keepdims=True)))
    return whole - mixed - mixed.T + radial


def curvature_trace(points: Points, gram: Any) -> Any:
    """sum_i [ sum_j p_ij |ds_ij|^2 - |sum_j p_ij ds_ij|^2 ]: N tr(H) of one batch.

    ds_ij is the derivative of a logit as a vector over A,
    tau ds_ij = k_i (x) Pi_i u_j / |z_i| + k_j (x) Pi_j u_i / |z_j|, so that its inner products need
    only kernel products and cosines g_ij = u_i . u_j: no probe vectors, no noise.

    Args:
        points: the 2B points.
        gram: K K^T [point, point_], inner products of their kernel rows.
    """
    xp = array_namespace(points.U)
    U = points.U
    P = points.softmax
    r = points.inverse
    # Cosines g_ij and softmax means m_i = sum_j p_ij u_j.
    G = U @ U.T
    m = P @ U
    # |u|^2: 1, or 0 for a point without direction.
    size = xp.sum(U * U, axis=1, keepdims=True)
    # |k_i|^2 / |z_i|^2.
    diagonal = xp.eye(U.shape[0], dtype=U.dtype, device=device(U))
    row = xp.sum(gram * diagonal, axis=1, keepdims=True) * r**2
    # tau^2 |ds_ij|^2: |Pi_i u_j|^2 = 1 - g^2, (Pi_i u_j) . (Pi_j u_i) = g^3 - g.
    each = row * (size.T - G**2) + row.T * (size - G**2) + 2 * gram * (r * r.T) * (G**3 - G)
    # tau^2 |sum_j p_ij ds_ij|^2 in three parts. First the terms of k_i alone: |Pi_i m_i|^2.
    mean_u = xp.sum(m * U, axis=1, keepdims=True)
    anchor = row * (xp.sum(m * m, axis=1, keepdims=True) - mean_u**2)
    # Then k_i with k_j: (Pi_i m_i) . (Pi_j u_i), summed over j with weights p_ij.
    mean_G = m @ U.T
    mixed = 2 * r * P * r.T * gram * (G**2 * mean_u - G * mean_G)
    # Then k_j with k_l: (Pi_j u_i) . (Pi_l u_i) = 1 - g_ij^2 - g_il^2 + g_ij g_jl g_il.
    weight = P * r.T
    weight_G = weight * G
    first = ((size * weight - 2 * weight_G * G) @ gram) * weight
    others = first + (weight_G @ (gram * G)) * weight_G
    total = xp.sum(P * each - mixed - others, dtype=xp.float64) - xp.sum(anchor, dtype=xp.float64)
    return total / points.temperature**2
