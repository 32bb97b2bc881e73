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

from array_api_compat import array_namespace, device

from krepes_ooc.algebra.curvature import Array, view_pairs
from krepes_ooc.algebra.objectives.base import (
    SampleObjective,
    StreamedCurvature,
    columns_last,
    flat_columns,
    times_columns,
    times_flat,
    transposed_times,
)
from krepes_ooc.algebra.objectives.contrast import Points, compare, curvature_trace, own_curvature
from krepes_ooc.blocks import Block
from krepes_ooc.errors import StageFailed, UsageError
from krepes_ooc.settings import setting

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
    rotates: ClassVar[bool] = True

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
            yield a, b, compare(both, self.temperature)


def _values(frozen: _Frozen, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """The summed loss of each column [column]."""
    xp = array_namespace(*views)
    columns = range(frozen.A.shape[2])
    total = xp.zeros(len(columns), dtype=xp.float64, device=device(views[0]))
    for batch in frozen.batches(views, block):
        Z = [frozen.embeddings(K) for K in batch]
        losses = [sum(points.loss for _, _, points in frozen.points(Z, c)) for c in columns]
        total = total + xp.stack(losses)
    return (total,)


def _product(frozen: _Frozen, V: Array, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
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


def _linearise(frozen: _Frozen, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
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
