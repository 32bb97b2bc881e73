"""Base classes of the objectives, by moments or by passes over kernel blocks, and row products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from krepes_ooc.core.array_columns import Array, BlockFunction, Number
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives.interface import Linearisation, Stream, require_views

# Embeddings shorter than this have no direction.
NORM_FLOOR = 1e-12
TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class MomentObjective(ABC):
    """A loss that depends on kernel moments alone: no pass over the data.

    Args:
        moments: means and centred second moments of the kernel rows.

    Raises:
        UsageError: the moments hold fewer than two views.
    """

    name: ClassVar[str]
    uses_moments: ClassVar[bool] = True
    can_iterate: ClassVar[bool] = True
    rotation_invariant: ClassVar[bool] = False
    least_components: ClassVar[int] = 1

    moments: Moments

    def __post_init__(self) -> None:
        require_views(self.name, self.moments.n_views)

    @abstractmethod
    def linearise(self, A: Array) -> Linearisation:
        """Value, gradient and curvature at A [landmark, component]."""

    def value(self, A: Array) -> Number:
        """The loss at A [landmark, component]."""
        return self.linearise(A).value

    def values(self, A: Array) -> Array:
        """The loss of each column of A [landmark, component, column]."""
        # Each value is a few products with matrices of m^2 numbers: no pass to share.
        losses = [self.value(A[..., column]) for column in range(A.shape[-1])]
        return array_namespace(A).stack(losses)


@dataclass
class SampleObjective(ABC):
    """A loss of the embeddings of all samples: each evaluation is one pass over the kernel.

    Args:
        stream: kernel blocks of all views.
        offset: gamma [component] of the embedding f = K A + gamma, constant during the solve.

    Attributes:
        passes: number of passes over the kernel.

    Raises:
        UsageError: the stream holds fewer than two views.
    """

    name: ClassVar[str]
    uses_moments: ClassVar[bool] = False
    can_iterate: ClassVar[bool] = True
    rotation_invariant: ClassVar[bool] = False
    # Sample objectives depend on u = z / |z| alone, which one component leaves constant.
    least_components: ClassVar[int] = 2

    stream: Stream
    offset: Array
    passes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        require_views(self.name, self.stream.n_views)

    @abstractmethod
    def linearise(self, A: Array) -> StreamedCurvature:
        """Value, gradient and curvature at A [landmark, component]; one pass."""

    @abstractmethod
    def values(self, A: Array) -> Array:
        """The loss of each column of A [landmark, component, column]; one pass."""

    @abstractmethod
    def multiply(self, A: Array, V: Array) -> Array:
        """H V at A for V [landmark, component, column]; one pass."""

    def restore(self, A: Array, arrays: Mapping[str, Array]) -> StreamedCurvature:
        """The curvature at A from what ``StreamedCurvature.arrays`` saved: no pass."""
        return StreamedCurvature(
            value=float(arrays["value"]),
            gradient=arrays["gradient"],
            mean_diagonal=float(arrays["mean_diagonal"]),
            component_curvature=arrays["component_curvature"],
            multiply=partial(self.multiply, A),
        )

    def value(self, A: Array) -> float:
        """The loss at A [landmark, component]; one pass."""
        return float(self.values(A[..., None])[0])

    def read(self, function: BlockFunction) -> tuple[Array, ...]:
        """Sum a block function over the kernel, and count the pass."""
        # The totals of a stream are on the host, whatever the device of its blocks.
        self.passes += 1
        return tuple(np.asarray(total) for total in self.stream.reduce(function))


@dataclass(frozen=True)
class StreamedCurvature:
    """A sample objective at fixed coefficients; each product is one pass over the kernel.

    Args:
        value: the loss.
        gradient: G [landmark, component].
        mean_diagonal: tr(H) / (m h), exact.
        component_curvature: Q [component, component_] of the Kronecker model S (x) Q.
        multiply: V [landmark, component, column] -> H V.
    """

    value: float
    gradient: Array
    mean_diagonal: float
    component_curvature: Array
    multiply: Callable[[Array], Array]

    def arrays(self) -> dict[str, Array]:
        """Everything but the product, for a checkpoint: it has cost a pass."""
        return {
            "value": np.array(self.value),
            "gradient": self.gradient,
            "mean_diagonal": np.array(self.mean_diagonal),
            "component_curvature": self.component_curvature,
        }

    def product(self, V: Array) -> Array:
        """H V; V [landmark, component] or [landmark, component, column], one pass for all."""
        return self.multiply(V) if V.ndim == 3 else self.multiply(V[..., None])[..., 0]

    def kronecker(self, moments: Moments) -> tuple[Array, Array]:
        """S = E[k k^T], un-centred, and Q."""
        return moments.mean_uncentred(), self.component_curvature


def times_columns(K: Any, V: Array) -> Any:
    """K V [sample, column, component] in the precision of K, one product for all columns.

    Args:
        K: kernel rows [sample, landmark].
        V: coefficients where K is [landmark, component, column].
    """
    return times_flat(K, flat_columns(V, K), V.shape[1])


def flat_columns(V: Array, like: Any) -> Any:
    """V [landmark, column x component] in the precision of an array."""
    xp = array_namespace(V, like)
    flat = xp.reshape(xp.permute_dims(V, (0, 2, 1)), (V.shape[0], -1))
    return xp.astype(flat, like.dtype, copy=False)


def times_flat(K: Any, flat: Any, components: int) -> Any:
    """K V [sample, column, component] for V as returned by ``flat_columns``."""
    return array_namespace(K).reshape(K @ flat, (K.shape[0], -1, components))


def transposed_times(K: Any, Z: Any) -> Any:
    """K^T Z [landmark, column, component] in float64 for Z [sample, column, component]."""
    xp = array_namespace(K, Z)
    _, columns, components = Z.shape
    # One product in the precision of K; sums over blocks continue in float64.
    product = K.T @ xp.astype(xp.reshape(Z, (-1, columns * components)), K.dtype)
    return xp.reshape(xp.astype(product, xp.float64), (-1, columns, components))


def columns_last(sums: Array) -> Array:
    """[landmark, column, component] -> [landmark, component, column]."""
    return np.ascontiguousarray(np.moveaxis(sums, 1, -1))


def unit_vectors(Z: Any) -> tuple[Any, Any]:
    """Unit vectors u = z / |z| and 1 / |z| along the last axis; both 0 where z has no direction.

    Args:
        Z: embeddings [..., component].
    """
    xp = array_namespace(Z)
    length = xp.sqrt(xp.vecdot(Z, Z))[..., None]
    # 1 / |z| where |z| > 1e-12, else 0, without a division by 0 on the way.
    directed = xp.astype(length > NORM_FLOOR, Z.dtype)
    inverse = directed / (length + (1 - directed))
    return Z * inverse, inverse


def tangent(U: Any, V: Any) -> Any:
    """(I - u u^T) v along the last axis: the part of v tangent to the sphere at u.

    |z| times the derivative of u = z / |z|; symmetric, so it serves as J v and as J^T v.
    """
    xp = array_namespace(U, V)
    return V - U * xp.vecdot(U, V)[..., None]
