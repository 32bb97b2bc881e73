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
from functools import partial
from typing import Any, ClassVar

from array_api_compat import array_namespace

from krepes_ooc.algebra.curvature import Array, view_pairs
from krepes_ooc.algebra.objectives.base import (
    SampleObjective,
    StreamedCurvature,
    columns_last,
    tangent,
    times_columns,
    transposed_times,
    unit_rows,
)
from krepes_ooc.blocks import Block
from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.settings import setting


@dataclass(frozen=True)
class SimCLRSettings:
    """Constants of the loss."""

    temperature: float = setting(0.5, about="tau, divides the cosines", above=0)
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

    def _frozen(self, A: Array) -> _Frozen:
        return _Frozen(A, self.offset, self.settings.temperature, self.settings.batch)


# ---------------------------------------------------------------- what runs over blocks of samples


@dataclass(frozen=True)
class _Frozen:
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
        return times_columns(K, self.A) + array_namespace(K).asarray(self.offset, dtype=K.dtype)

    def points(self, Z: list[Any], column: int) -> Iterator[tuple[int, int, _Points]]:
        """The 2B points of one column for each pair of views."""
        xp = array_namespace(*Z)
        for a, b in view_pairs(len(Z)):
            both = xp.concat([Z[a][:, column, :], Z[b][:, column, :]], axis=0)
            yield a, b, _points(both, self.temperature)


@dataclass(frozen=True)
class _Points:
    """The 2B points of one batch, with everything a derivative needs."""

    U: Any  # unit vectors [point, component]
    inverse: Any  # 1 / |z| [point, 1]
    P: Any  # softmax of the logits, diagonal 0 [point, point_]
    positive: Any  # one-hot [point, point_]
    loss: Any  # summed over anchors
    temperature: float

    def pull_back(self, E: Any) -> Any:
        """The cotangent of z [point, component] for the cotangent E of the logits."""
        return tangent(self.U, (E + E.T) @ self.U) * (self.inverse / self.temperature)

    def gradient(self) -> Any:
        """The cotangent of z for the loss: E = P - onehot(positive)."""
        return self.pull_back(self.P - self.positive)

    def product(self, dZ: Any) -> Any:
        """J^T Q J dZ [point, component]."""
        xp = array_namespace(dZ)
        X = (tangent(self.U, dZ) * self.inverse) @ self.U.T
        T = self.P * (X + X.T) / self.temperature
        return self.pull_back(T - self.P * xp.sum(T, axis=1, keepdims=True))


def _points(Z: Any, temperature: float) -> _Points:
    """Normalise, compare and take the softmax without the diagonal; Z [point, component]."""
    xp = array_namespace(Z)
    U, inverse = unit_rows(Z)
    eye = xp.eye(Z.shape[0], dtype=Z.dtype)
    positive = xp.roll(eye, Z.shape[0] // 2, axis=0)
    logits = U @ U.T / temperature
    # |s_ij| <= 1 / tau, so that 4 / tau takes the diagonal below every other entry.
    top = xp.max(logits - eye * (4 / temperature), axis=1, keepdims=True)
    weights = xp.exp(logits - top) * (1 - eye)
    total = xp.sum(weights, axis=1, keepdims=True)
    matched = xp.sum(logits * positive, axis=1, keepdims=True)
    loss = xp.sum(xp.log(total) + top - matched, dtype=xp.float64)
    return _Points(U, inverse, weights / total, positive, loss, temperature)


def _values(frozen: _Frozen, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """The summed loss of each column [column]."""
    xp = array_namespace(*views)
    columns = range(frozen.A.shape[2])
    total = xp.zeros(len(columns), dtype=xp.float64)
    for batch in frozen.batches(views, block):
        Z = [frozen.embeddings(K) for K in batch]
        losses = [sum(points.loss for _, _, points in frozen.points(Z, c)) for c in columns]
        total = total + xp.stack(losses)
    return (total,)


def _product(frozen: _Frozen, V: Array, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """N H V [landmark, column, component]."""
    xp = array_namespace(*views)
    total = xp.zeros((V.shape[0], V.shape[2], V.shape[1]), dtype=xp.float64)
    for batch in frozen.batches(views, block):
        Z = [frozen.embeddings(K) for K in batch]
        dZ = [times_columns(K, V) for K in batch]
        back = [xp.zeros_like(d) for d in dZ]
        size = batch[0].shape[0]
        for a, b, points in frozen.points(Z, 0):
            for column in range(V.shape[2]):
                both = xp.concat([dZ[a][:, column, :], dZ[b][:, column, :]], axis=0)
                cotangent = points.product(both)
                back[a][:, column, :] += cotangent[:size, :]
                back[b][:, column, :] += cotangent[size:, :]
        for K, cotangent in zip(batch, back, strict=True):
            total = total + transposed_times(K, cotangent)
    return (total,)


def _linearise(frozen: _Frozen, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """N times: loss, gradient [landmark, 1, component], own-point curvature, tr(H)."""
    xp = array_namespace(*views)
    (landmarks, components, _), double = frozen.A.shape, xp.float64
    value, trace = xp.zeros((), dtype=double), xp.zeros((), dtype=double)
    gradient = xp.zeros((landmarks, 1, components), dtype=double)
    bend = xp.zeros((components, components), dtype=double)
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
            bend = bend + _own_curvature(points)
            trace = trace + _trace(points, xp.astype(rows @ rows.T, double))
        for K, cotangent in zip(batch, back, strict=True):
            gradient = gradient + transposed_times(K, cotangent)
    return value, gradient, bend, trace


def _own_curvature(points: _Points) -> Any:
    """sum_i (tau |z_i|)^-2 Pi_i M_i Pi_i [component, component_], Pi_i = I - u_i u_i^T.

    M_i = sum_j [p_ij + p_ji (1 - p_ji)] u_j u_j^T - m_i m_i^T with m_i = sum_j p_ij u_j is what
    point i sees of its own motion, as anchor and in the rows of the other anchors.
    """
    xp = array_namespace(points.U)
    U, P = points.U, points.P
    scale = (points.inverse / points.temperature) ** 2
    W, m = P + (P * (1 - P)).T, P @ U
    seen = (W * (U @ U.T)) @ U - m * xp.sum(m * U, axis=1, keepdims=True)  # M_i u_i
    around = U.T @ (U * (W.T @ scale)) - m.T @ (scale * m)
    across = seen.T @ (scale * U)
    along = U.T @ (U * (scale * xp.sum(U * seen, axis=1, keepdims=True)))
    return around - across - across.T + along


def _trace(points: _Points, gram: Any) -> Any:
    """sum_i [ sum_j p_ij |ds_ij|^2 - |sum_j p_ij ds_ij|^2 ], gram = K K^T [point, point_].

    ds_ij is the derivative of a logit as a vector over A,
    tau ds_ij = k_i (x) Pi_i u_j / |z_i| + k_j (x) Pi_j u_i / |z_j|, so that its inner products need
    only kernel products and cosines g_ij = u_i . u_j: no probe vectors, no noise.
    """
    xp = array_namespace(points.U)
    U, P, r = points.U, points.P, points.inverse
    G, m = U @ U.T, P @ U
    size = xp.sum(U * U, axis=1, keepdims=True)  # 1, or 0 for a point without direction
    own = xp.sum(gram * xp.eye(U.shape[0], dtype=U.dtype), axis=1, keepdims=True) * r**2
    each = own * (size.T - G**2) + own.T * (size - G**2) + 2 * gram * (r * r.T) * (G**3 - G)
    mean_u, mean_G = xp.sum(m * U, axis=1, keepdims=True), m @ U.T
    alone = own * (xp.sum(m * m, axis=1, keepdims=True) - mean_u**2)
    mixed = 2 * r * P * r.T * gram * (G**2 * mean_u - G * mean_G)
    weight = P * r.T
    turned = weight * G
    others = ((size * weight - 2 * turned * G) @ gram) * weight + (turned @ (gram * G)) * turned
    total = xp.sum(P * each - mixed - others, dtype=xp.float64) - xp.sum(alone, dtype=xp.float64)
    return total / points.temperature**2
