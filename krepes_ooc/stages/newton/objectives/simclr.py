"""SimCLR's NT-Xent loss (Chen et al. 2020) over batches of consecutive rows.

In a batch of B samples the two views give 2B points u = z / |z| with logits s_ij = u_i . u_j / tau:

    L = (1/N) sum_i [ logsumexp_{j != i} s_ij - s_i,positive(i) ],   N = anchors of all batches;

for more than two views the mean over pairs of views. A last batch of one sample is dropped. The
inner function is the logits, normalisation included; the outer one the cross entropy of a softmax
P of each row, whose second derivative is Q_i = (diag(p_i) - p_i p_i^T) / N >= 0. Nothing of size
2B x 2B outlives its batch, so every pass computes P anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

from array_api_compat import array_namespace, device

from krepes_ooc.core.arrays import Array
from krepes_ooc.core.blocks import Block
from krepes_ooc.core.settings import setting
from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.stages.moments.moments import view_pairs
from krepes_ooc.stages.newton.objectives.base import (
    SampleObjective,
    StreamedCurvature,
    columns_last,
    flat_columns,
    tangent,
    times_columns,
    times_flat,
    transposed_times,
    unit_rows,
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
        n, p = self.stream.n_samples, self.stream.n_views
        tail = n % self.settings.batch
        return (n - tail * (tail < 2)) * p * (p - 1)

    def values(self, A: Array) -> Array:
        """The loss of each column of A [landmark, component, column]; one pass."""
        (total,) = self.read(partial(_values, self._frozen(A)))
        return total / self.anchors

    def linearise(self, A: Array) -> StreamedCurvature:
        """Value, gradient and curvature at A [landmark, component]; one pass."""
        value, gradient, bend, trace = self.read(partial(_linearise, self._frozen(A[..., None])))
        return StreamedCurvature(
            value=float(value) / self.anchors,
            gradient=columns_last(gradient)[..., 0] / self.anchors,
            mean_diagonal=float(trace) / self.anchors / A.size,
            component_curvature=bend / self.anchors,
            multiply=partial(self.multiply, A),
        )

    def multiply(self, A: Array, V: Array) -> Array:
        """H V at A for V [landmark, component, column]; one pass."""
        (total,) = self.read(partial(_product, self._frozen(A[..., None]), V))
        return columns_last(total) / self.anchors

    def _frozen(self, A: Array) -> _PassState:
        return _PassState(A, self.offset, self.settings.temperature, self.settings.batch)


# ---------------------------------------------------------------- what runs over blocks of samples


@dataclass(frozen=True)
class _PassState:
    """What a pass needs: where it looks [landmark, component, column] and the loss's constants."""

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
            both = xp.concat([Z[a][:, column, :], Z[b][:, column, :]], axis=0)
            if self.temperature < SINGLE_TEMPERATURE:
                both = xp.astype(both, xp.float64)
            yield a, b, contrast(both, self.temperature)


def _values(frozen: _PassState, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """The summed loss of each column [column]."""
    xp = array_namespace(*views)
    columns = range(frozen.A.shape[2])
    total = xp.zeros(len(columns), dtype=xp.float64, device=device(views[0]))
    for batch in frozen.batches(views, block):
        Z = [frozen.embeddings(K) for K in batch]
        losses = [sum(points.loss for _, _, points in frozen.points(Z, c)) for c in columns]
        total = total + xp.stack(losses)
    return (total,)


def _product(frozen: _PassState, V: Array, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """N H V [landmark, column, component]."""
    xp = array_namespace(*views)
    shape, here = (V.shape[0], V.shape[2], V.shape[1]), device(views[0])
    total = xp.zeros(shape, dtype=xp.float64, device=here)
    flat = flat_columns(xp.concat([frozen.A, V], axis=2), views[0])
    for batch in frozen.batches(views, block):
        both = [times_flat(K, flat, V.shape[1]) for K in batch]
        Z = [product[:, :1, :] + frozen.shift(product) for product in both]
        dZ = [product[:, 1:, :] for product in both]
        back = [xp.zeros_like(d) for d in dZ]
        size = batch[0].shape[0]
        for a, b, points in frozen.points(Z, 0):
            for column in range(V.shape[2]):
                moved = xp.concat([dZ[a][:, column, :], dZ[b][:, column, :]], axis=0)
                cotangent = xp.astype(points.product(moved), moved.dtype)
                back[a][:, column, :] += cotangent[:size, :]
                back[b][:, column, :] += cotangent[size:, :]
        for K, cotangent in zip(batch, back, strict=True):
            total = total + transposed_times(K, cotangent)
    return (total,)


def _linearise(frozen: _PassState, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """N times: loss, gradient [landmark, 1, component], own-point curvature, tr(H)."""
    xp = array_namespace(*views)
    (landmarks, components, _), double = frozen.A.shape, xp.float64
    here: dict[str, Any] = {"dtype": double, "device": device(views[0])}
    value, trace = xp.zeros((), **here), xp.zeros((), **here)
    gradient = xp.zeros((landmarks, 1, components), **here)
    bend = xp.zeros((components, components), **here)
    for batch in frozen.batches(views, block):
        # Once per linearisation: 1 - cos^2 of nearly equal points needs the longer mantissa.
        Z, size = [xp.astype(frozen.embeddings(K), double) for K in batch], batch[0].shape[0]
        back = [xp.zeros_like(z) for z in Z]
        for a, b, points in frozen.points(Z, 0):
            cotangent = points.gradient()
            back[a][:, 0, :] += cotangent[:size, :]
            back[b][:, 0, :] += cotangent[size:, :]
            rows = xp.concat([batch[a], batch[b]], axis=0)
            value = value + points.loss
            bend = bend + own_curvature(points)
            trace = trace + curvature_trace(points, xp.astype(rows @ rows.T, double))
        for K, cotangent in zip(batch, back, strict=True):
            gradient = gradient + transposed_times(K, cotangent)
    return value, gradient, bend, trace


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


def contrast(Z: Any, temperature: float) -> Points:
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
