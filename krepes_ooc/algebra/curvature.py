"""What an objective shows to a solver: value, gradient and curvature at coefficients A.

An embedding is f = K A + gamma; an objective is a loss L(A) of the embeddings of all samples. Each
one is split as L = phi(c(A)) with phi convex, and its curvature is the generalised Gauss-Newton
operator H = J^T (Hess phi) J >= 0, J the derivative of c (Schraudolph 2002). Moment objectives need
only means and covariances of kernel rows; sample objectives stream the kernel once per product.
What is computed here lies where the moments lie, on the host or on a device; so do single numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Concatenate, Protocol, TypeVar

from array_api_compat import array_namespace

from krepes_ooc.blocks import Block
from krepes_ooc.errors import UsageError

Array = Any  # float64, of NumPy or of a device's namespace
Number = Any  # one float64 of that namespace; on the host a float
BlockFunction = Callable[[tuple[Any, ...], Block], tuple[Any, ...]]
Eigh = Callable[[Array], tuple[Array, Array]]  # of a symmetric matrix, eigenvalues ascending
Owner = TypeVar("Owner")


@dataclass(frozen=True)
class Moments:
    """Means and centred second moments of kernel rows over all samples.

    Args:
        mean: mu_a [view, landmark].
        second: C_ab = E[(k_a - mu_a)(k_b - mu_b)^T] [view, view_, landmark, landmark_].
        n_samples: rows that were averaged.

    Raises:
        ValueError: the shapes do not belong together.
    """

    mean: Array
    second: Array
    n_samples: int

    def __post_init__(self) -> None:
        views, landmarks = self.mean.shape
        if self.second.shape != (views, views, landmarks, landmarks):
            raise ValueError(f"mean has shape {self.mean.shape}, second {self.second.shape}")

    @property
    def n_views(self) -> int:
        """Number of views p."""
        return int(self.mean.shape[0])

    def pairs(self) -> Iterator[tuple[int, int]]:
        """All pairs of views a < b."""
        return view_pairs(self.n_views)

    def uncentred(self, a: int, b: int) -> Array:
        """S_ab = E[k_a k_b^T] [landmark, landmark_]."""
        xp = array_namespace(self.mean)
        return self.second[a, b, ...] + xp.linalg.outer(self.mean[a, :], self.mean[b, :])

    def uncentred_times(self, a: int, b: int, V: Array) -> Array:
        """S_ab V for V [..., landmark, component]; S_ab is not formed."""
        shared = self.mean[b, :] @ V
        return self.second[a, b, ...] @ V + self.mean[a, :][:, None] * shared[..., None, :]

    def difference(self, a: int, b: int) -> Array:
        """D_ab = E[(k_a - k_b)(k_a - k_b)^T] [landmark, landmark_]."""
        shift, C = self.mean[a, :] - self.mean[b, :], self.second
        outer = array_namespace(shift).linalg.outer(shift, shift)
        return C[a, a, ...] + C[b, b, ...] - C[a, b, ...] - C[b, a, ...] + outer

    def mean_uncentred(self) -> Array:
        """S = E[k k^T] over samples and views [landmark, landmark_]."""
        S = self.uncentred(0, 0)
        for a in range(1, self.n_views):
            S += self.uncentred(a, a)
        S /= self.n_views
        return S

    def embedding_rms(self, A: Array, offset: Array | None = None) -> Number:
        """Root mean square of |K A + gamma| over samples and views, without reading the kernel.

        E|f|^2 = tr(A^T S A) + 2 <gamma, A^T kbar> + |gamma|^2, A [landmark, component].
        """
        xp = array_namespace(self.mean, A)
        gamma = xp.zeros_like(A[0, :]) if offset is None else offset
        square = xp.sum(A * (self.mean_uncentred() @ A))
        square = square + gamma @ (2.0 * A.T @ xp.mean(self.mean, axis=0) + gamma)
        return xp.sqrt(xp.maximum(square, 0.0))


class Slope(Protocol):
    """An objective at fixed coefficients, as a damping is chosen."""

    @property
    def value(self) -> Number:
        """The loss L(A)."""

    @property
    def gradient(self) -> Array:
        """G = dL/dA [landmark, component]."""

    @property
    def mean_diagonal(self) -> Number:
        """tr(H) / (m h), the unit of relative damping."""


class Linearisation(Slope, Protocol):
    """An objective at fixed coefficients: all that a Newton step needs."""

    def product(self, V: Array) -> Array:
        """H V for V [landmark, component] or [landmark, component, column]."""

    def kronecker(self, moments: Moments) -> tuple[Array, Array]:
        """Factors S [landmark, landmark_] and Q [component, component_] with H near S (x) Q."""


class LeastSquares(Linearisation, Protocol):
    """A loss that is half a sum of squares |y(A)|^2 / 2, few rows y: H = J^T J and G = J^T y."""

    @property
    def residual(self) -> Array:
        """Rows y [row]."""

    def jacobian(self, V: Array) -> Array:
        """J V [..., row] for V [..., landmark, component]."""

    def adjoint(self, E: Array) -> Array:
        """J^T E [..., landmark, component] for E [..., row]."""

    def gram(self) -> Array:
        """J J^T [row, row_]."""


class Objective(Protocol):
    """A self-supervised loss as a function of the coefficients A [landmark, component]."""

    name: ClassVar[str]
    moment: ClassVar[bool]
    repeatable: ClassVar[bool]
    rotates: ClassVar[bool]
    """Whether rotating every embedding leaves the loss as it is, but for the offset."""

    def value(self, A: Array) -> Number:
        """The loss L(A)."""

    def values(self, A: Array) -> Array:
        """The loss of each column of A [landmark, component, column], in one pass."""

    def linearise(self, A: Array) -> Linearisation:
        """Value, gradient and curvature at A."""


class Stream(Protocol):
    """Kernel blocks of all views, summed in a fixed order."""

    @property
    def n_samples(self) -> int:
        """Rows of the kernel."""

    @property
    def n_views(self) -> int:
        """Number of views p."""

    def reduce(self, function: BlockFunction) -> tuple[Any, ...]:
        """Sum ``function(K [sample, landmark] of each view, block)`` over all blocks.

        Partial sums are added in a fixed order, in the precision of the parts, on the host.
        """


def view_pairs(n_views: int) -> Iterator[tuple[int, int]]:
    """All pairs of views a < b."""
    return ((a, b) for a in range(n_views) for b in range(a + 1, n_views))


def require_views(name: str, n_views: int) -> None:
    """Refuse an objective that compares views if there is only one.

    Raises:
        UsageError: fewer than two views.
    """
    if n_views < 2:
        raise UsageError(
            f"{name} compares views, the kernel holds {n_views}",
            where="stages.newton.objective",
            expected="at least 2 views",
            advice="set views.count to 2 or more",
        )


def over_columns(
    product: Callable[Concatenate[Owner, Array, ...], Array],
) -> Callable[[Owner, Array], Array]:
    """Let a product on [..., landmark, component] also take [landmark, component, column]."""

    @functools.wraps(product)
    def wrapped(self: Owner, V: Array) -> Array:
        if V.ndim == 2:
            return product(self, V)
        xp = array_namespace(V)
        return xp.moveaxis(product(self, xp.moveaxis(V, -1, 0)), 0, -1)

    return wrapped
