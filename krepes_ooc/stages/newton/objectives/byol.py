"""BYOL (Grill et al. 2020) with constant targets: 2 - 2 cos, symmetrised over views.

    L = 2/(n p) sum_i sum_a mean_{b != a} (2 - 2 u_a . t_b),  u = y / |y|,   y = W z + b

for p views, the mean over pairs of views of both directions, with z = K A + gamma and targets t_b,
the unit embeddings at the start A0. The inner function is u;
the outer one |u - t|^2, which is 2 - 2 u.t because both are unit vectors, so that

    H V = 4/(n p) sum_a K_a^T [ |y|^-2 (I - u u^T) K_a V W^T ] W.

The target is the start itself and not a second network: a step moves views towards each other, and
iterating it collapses the embedding.
Source: Grill et al. (2020), "Bootstrap your own latent", equation 2; the moving-average target is
replaced by the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from array_api_compat import array_namespace, device

from krepes_ooc.core.array_columns import Array
from krepes_ooc.core.blocks import Block
from krepes_ooc.core.settings import setting
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
from krepes_ooc.stages.newton.objectives.interface import Stream

SUB_ROWS = 512


@dataclass(frozen=True)
class BYOLSettings:
    """The predictor between embedding and target."""

    predictor: Literal["identity", "ridge"] = setting(
        "identity", about="identity, or a linear fit of the targets to the embeddings"
    )
    ridge: float = setting(1e-3, about="ridge of that fit, relative to the variance", above=0)


@dataclass(frozen=True)
class Predictor:
    """y = W z + b.

    Args:
        weight: W [component, component_].
        bias: b [component].
    """

    weight: Array
    bias: Array


@dataclass
class BYOL(SampleObjective):
    """The objective on a stream of kernel blocks.

    Args:
        stream: kernel blocks of all views.
        offset: gamma [component].
        start: A0 [landmark, component], which fixes the targets.
        predictor: W and b; the identity if None.
        sub_rows: samples of one matrix product.

    Raises:
        UsageError: the stream holds fewer than two views.
    """

    name: ClassVar[str] = "byol"
    can_iterate: ClassVar[bool] = False

    start: Array
    predictor: Predictor | None = None
    sub_rows: int = SUB_ROWS

    @property
    def divisor(self) -> float:
        """Samples times half the views: the mean over samples and pairs of views."""
        return self.stream.n_samples * (self.stream.n_views / 2)

    def values(self, A: Array) -> Array:
        """The loss of each column of A [landmark, component, column]; one pass."""
        (total,) = self.read(partial(_values, self._pass_state(), A))
        return total / self.divisor

    def linearise(self, A: Array) -> StreamedCurvature:
        """Value, gradient and curvature at A [landmark, component]; one pass."""
        state = self._pass_state()
        n = self.divisor
        value, gradient, tangents, trace = self.read(partial(_linearise, state, A))
        # Q = 4/(n p) W^T sum |y|^-2 (I - u u^T) W.
        W = state.predictor.weight
        return StreamedCurvature(
            value=float(value[0]) / n,
            gradient=columns_last(gradient)[..., 0] / n,
            mean_diagonal=2.0 * float(trace) / (n * A.size),
            component_curvature=2.0 * W.T @ tangents @ W / n,
            multiply=partial(self.multiply, A),
        )

    def multiply(self, A: Array, V: Array) -> Array:
        """H V at A for V [landmark, component, column]; one pass."""
        (total,) = self.read(partial(_product, self._pass_state(), A, V))
        return columns_last(total) * (2.0 / self.divisor)

    def _pass_state(self) -> _PassState:
        h = self.start.shape[1]
        predictor = self.predictor or Predictor(np.eye(h), np.zeros(h))
        return _PassState(self.start, self.offset, predictor, self.sub_rows)


def fit_predictor(
    stream: Stream, start: Array, offset: Array, ridge: float, sub_rows: int = SUB_ROWS
) -> Predictor:
    """The ridge fit of the targets to the embeddings at the start; one pass.

    Args:
        stream: kernel blocks of all views.
        start: A0 [landmark, component].
        offset: gamma [component].
        ridge: penalty in units of the mean variance of an embedding.
        sub_rows: samples of one matrix product.
    """
    h = start.shape[1]
    state = _PassState(start, offset, Predictor(np.eye(h), np.zeros(h)), sub_rows)
    # Sums of (z, 1)(z, 1)^T and (z, 1) t^T: one pass.
    gram, cross = stream.reduce(partial(_normal_equations, state))
    count = gram[h, h]
    mean = gram[:h, h] / count
    target_mean = cross[h] / count
    # Cov(z) and Cov(z, t).
    covariance = gram[:h, :h] / count - np.outer(mean, mean)
    penalty = ridge * np.trace(covariance) / h
    cross_covariance = cross[:h] / count - np.outer(mean, target_mean)
    # W^T = (Cov(z) + penalty I)^(-1) Cov(z, t), b = mean(t) - W mean(z).
    weight = np.linalg.solve(covariance + penalty * np.eye(h), cross_covariance).T
    return Predictor(weight, target_mean - weight @ mean)


# ------------------------------------------------------------------ functions of kernel blocks


@dataclass(frozen=True)
class _PassState:
    """Arguments of a pass over the kernel, besides the coefficients.

    Args:
        start: A0 [landmark, component], which fixes the targets.
        offset: gamma [component].
        predictor: W and b.
        sub_rows: samples of one matrix product.
    """

    start: Array
    offset: Array
    predictor: Predictor
    sub_rows: int

    def rows(self, views: tuple[Any, ...]) -> list[list[Any]]:
        """Kernel rows of each view, a few samples at a time."""
        rows = views[0].shape[0]
        cuts = [(cut, min(cut + self.sub_rows, rows)) for cut in range(0, rows, self.sub_rows)]
        return [[K[start:stop, :] for K in views] for start, stop in cuts]

    def embeddings(self, K: Any, A: Array) -> Any:
        """Z [sample, column, component] for A [landmark, component, column]."""
        return times_columns(K, A) + array_namespace(K).astype(self.offset, K.dtype, copy=False)

    def units(self, K: Any, A: Array, dtype: Any = None) -> tuple[Any, Any]:
        """Unit predictions u and 1 / |y| [sample, column, component], in the precision of K."""
        xp = array_namespace(K)
        dtype = dtype or K.dtype
        # y = W z + b, u = y / |y|.
        W = xp.astype(self.predictor.weight, dtype, copy=False)
        bias = xp.astype(self.predictor.bias, dtype, copy=False)
        return unit_vectors(xp.astype(self.embeddings(K, A), dtype) @ W.T + bias)

    def targets(self, views: list[Any]) -> list[Any]:
        """Mean target of each view: the unit embeddings of the other views at the start."""
        # t_a = mean of the unit embeddings of the other views, as (sum - u_a) / (p - 1).
        units = [unit_vectors(self.embeddings(K, self.start[..., None]))[0] for K in views]
        total = sum(units)
        return [(total - unit) / (len(units) - 1) for unit in units]


def _values(state: _PassState, A: Array, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """sum_i sum_a (2 - 2 u_a . t_a) [column]."""
    del block
    xp = array_namespace(*views)
    total = xp.zeros(A.shape[2], dtype=xp.float64, device=device(views[0]))
    for rows in state.rows(views):
        for K, target in zip(rows, state.targets(rows), strict=True):
            U, _ = state.units(K, A)
            total = total + xp.sum(2 - 2 * xp.sum(U * target, axis=-1), axis=0, dtype=xp.float64)
    return (total,)


def _linearise(
    state: _PassState, A: Array, views: tuple[Any, ...], block: Block
) -> tuple[Any, ...]:
    """Loss, gradient, sum |y|^-2 (I - u u^T) and sum |k|^2 tr W^T(...)W, all times n (or n/2)."""
    del block
    xp = array_namespace(*views)
    # Once per linearisation: 1 - |u|^2 needs the longer mantissa where u may hardly turn.
    float64 = xp.float64
    W = xp.astype(state.predictor.weight, float64, copy=False)
    identity = xp.eye(W.shape[0], dtype=float64, device=device(views[0]))
    totals: list[Any] = []
    for rows in state.rows(views):
        for K, target in zip(rows, state.targets(rows), strict=True):
            U, inverse = state.units(K, A[..., None], float64)
            value = xp.sum(2 - 2 * xp.sum(U * target, axis=-1), axis=0)
            # dL/dz = W^T |y|^-1 (I - u u^T)(-2 t), then K^T.
            gradient = transposed_times(K, -2 * tangent(U, target) * inverse @ W)
            # sum |y|^-2 (I - u u^T).
            scaled = (U * inverse)[:, 0, :]
            tangents = xp.sum(inverse**2) * identity - scaled.T @ scaled
            # tr(H) = sum |k|^2 tr(W^T |y|^-2 (I - u u^T) W).
            free = inverse[:, 0, 0] ** 2 * xp.sum(W * W) - xp.sum((scaled @ W) ** 2, axis=1)
            free = free * min(W.shape[0] - 1, 1)  # one component cannot turn: 0 but for rounding
            trace = xp.sum(xp.sum(K * K, axis=1, dtype=float64) * free)
            terms = [value, gradient, tangents, trace]
            totals = [t + u for t, u in zip(totals, terms, strict=True)] if totals else terms
    return tuple(totals)


def _product(
    state: _PassState, A: Array, V: Array, views: tuple[Any, ...], block: Block
) -> tuple[Any, ...]:
    """sum_a K_a^T [ |y|^-2 (I - u u^T) K_a V W^T ] W [landmark, column, component].

    The predictor acts on A and V before, and on the sum after, all products with the kernel.
    """
    del block
    xp = array_namespace(*views)
    W = state.predictor.weight
    # [A W^T, V W^T]: predictions at the point and their changes along the columns, one product.
    at_and_along = xp.concat([_predicted(A[..., None], W), _predicted(V, W)], axis=2)
    # y = K A W^T + (W gamma + b).
    shift = xp.astype(state.offset @ W.T + state.predictor.bias, views[0].dtype, copy=False)
    shape = (V.shape[0], V.shape[2], V.shape[1])
    total = xp.zeros(shape, dtype=xp.float64, device=device(views[0]))
    flat = flat_columns(at_and_along, views[0])
    for rows in state.rows(views):
        for K in rows:
            both = times_flat(K, flat, V.shape[1])
            U, inverse = unit_vectors(both[:, :1, :] + shift)
            # J^T J dy = |y|^-2 (I - u u^T) dy, the projector being idempotent.
            dY = tangent(U, both[:, 1:, :]) * inverse**2
            total += transposed_times(K, dY)
    turns = min(W.shape[0] - 1, 1)  # one component cannot turn: 0 but for rounding
    return (total @ xp.astype(W * turns, xp.float64, copy=False),)


def _predicted(V: Array, W: Array) -> Array:
    """V W^T for V [landmark, component, column]."""
    xp = array_namespace(V, W)
    predicted: Array = xp.permute_dims(xp.permute_dims(V, (2, 0, 1)) @ W.T, (1, 2, 0))
    return predicted


def _normal_equations(state: _PassState, views: tuple[Any, ...], block: Block) -> tuple[Any, ...]:
    """Sums of (z, 1)(z, 1)^T and (z, 1) t^T over samples and views."""
    del block
    xp = array_namespace(*views)
    h = state.start.shape[1]
    placement: dict[str, Any] = {"dtype": xp.float64, "device": device(views[0])}
    gram = xp.zeros((h + 1, h + 1), **placement)
    cross = xp.zeros((h + 1, h), **placement)
    for rows in state.rows(views):
        for K, target in zip(rows, state.targets(rows), strict=True):
            Z = xp.astype(state.embeddings(K, state.start[..., None])[:, 0, :], xp.float64)
            # (z, 1): the column of ones sums z, t and the count.
            extended = xp.concat([Z, xp.ones((Z.shape[0], 1), **placement)], axis=1)
            gram = gram + extended.T @ extended
            cross = cross + extended.T @ xp.astype(target[:, 0, :], xp.float64)
    return gram, cross
