"""Interface between objectives and solvers: value, gradient and curvature at coefficients A.

An embedding is f = K A + gamma; an objective is a loss L(A) of the embeddings of all samples. Each
one is split as L = phi(c(A)) with phi convex, and its curvature is the generalised Gauss-Newton
operator H = J^T (Hess phi) J >= 0, J the derivative of c (Schraudolph 2002). Moment objectives need
only means and covariances of kernel rows; sample objectives stream the kernel once per product.
All results, single numbers included, are on the device of the moments, which may be the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Concatenate, Protocol, TypeVar

from array_api_compat import array_namespace

from krepes_ooc.core.array_columns import Array, BlockFunction, Number
from krepes_ooc.errors import UsageError
from krepes_ooc.stages.moments.moments import Moments

Owner = TypeVar("Owner")


class Gradient(Protocol):
    """Value, gradient and mean curvature of an objective: all that the choice of a damping uses."""

    @property
    def value(self) -> Number:
        """The loss L(A)."""

    @property
    def gradient(self) -> Array:
        """G = dL/dA [landmark, component]."""

    @property
    def mean_diagonal(self) -> Number:
        """tr(H) / (m h), the unit of relative damping."""


class Linearisation(Gradient, Protocol):
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
    uses_moments: ClassVar[bool]
    can_iterate: ClassVar[bool]
    rotation_invariant: ClassVar[bool]
    """Whether the loss is invariant to a rotation of all embeddings, offset aside."""

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


def require_views(name: str, n_views: int) -> None:
    """Refuse an objective that compares views if there is only one.

    Raises:
        UsageError: fewer than two views.
    """
    # Positive pairs are two views of one sample.
    if n_views < 2:
        raise UsageError(
            f"{name} compares views, the kernel holds {n_views}",
            where="stages.newton.objective",
            expected="at least 2 views",
            advice="set views.count to 2 or more",
        )


def vectorise_columns(
    product: Callable[Concatenate[Owner, Array, ...], Array],
) -> Callable[[Owner, Array], Array]:
    """Let a product on [..., landmark, component] also take [landmark, component, column]."""

    @functools.wraps(product)
    def wrapped(self: Owner, V: Array) -> Array:
        if V.ndim == 2:
            return product(self, V)
        # Columns become a leading batch axis of the product, and the last axis of the result.
        xp = array_namespace(V)
        return xp.moveaxis(product(self, xp.moveaxis(V, -1, 0)), 0, -1)

    return wrapped
