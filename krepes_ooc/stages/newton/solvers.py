"""Solve (H + damping I) dA = -G for the Newton step: operator, solver and solution as three nouns.

``DirectSolver`` is exact for least-squares curvature with few rows; ``KrylovSolver`` needs products
only. Both take several dampings at once and return a ``Solution`` with its true residual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import numpy.typing as npt
from array_api_compat import array_namespace, device

from krepes_ooc.core.array_columns import Array, Eigh, asarray_like
from krepes_ooc.stages.newton.conjugate_gradient import (
    CGState,
    Preconditioner,
    Solution,
    as_dampings,
    conjugate_gradient,
    is_scalar,
    norms,
    residual_of,
    rhs_norm,
    without_columns,
)
from krepes_ooc.stages.newton.objectives.interface import LeastSquares, Linearisation
from krepes_ooc.stages.newton.preconditioners import eigh_in_place

__all__ = [
    "CGState",
    "DirectSolver",
    "KrylovSolver",
    "Preconditioner",
    "Solution",
    "Solver",
    "choose_solver",
    "conjugate_gradient",
    "direct_bytes",
]

DIRECT_BYTES = 2**30
REFINEMENTS = 2


class Solver(Protocol):
    """Solves the Newton system of one linearisation for any damping."""

    def solve(self, damping: npt.ArrayLike) -> Solution:
        """The step for a damping, or one column for each of several dampings."""


@dataclass(frozen=True)
class DirectSolver:
    """The exact step of a least-squares curvature H = J^T J, G = J^T y, solved in the rows of J.

    dA = -J^T (J J^T + damping I)^(-1) y, and one eigendecomposition of J J^T serves every damping.
    The solution in the rows is refined against products with J, because a small damping amplifies
    the rounding errors of the eigenvectors.

    Args:
        problem: the least-squares problem at the start.
        tolerance: relative residual that counts as converged.
        eigh: the eigendecomposition of J J^T.
    """

    problem: LeastSquares
    tolerance: float = 1e-6
    eigh: Eigh = eigh_in_place

    @cached_property
    def _eigenpairs(self) -> tuple[Array, Array]:
        """Eigenvalues l, negative ones of rounding size set to 0, and eigenvectors V of J J^T."""
        values, vectors = self.eigh(self.problem.gram())
        return array_namespace(values).maximum(values, 0.0), vectors

    def solve(self, damping: npt.ArrayLike) -> Solution:
        """The step for a damping, or one column for each of several dampings.

        Raises:
            ValueError: a damping is not positive.
        """
        solution = self._columns(asarray_like(as_dampings(damping), self.problem.residual))
        return without_columns(solution) if is_scalar(damping) else solution

    def _columns(self, shifts: Array) -> Solution:
        """The step of each damping [column]."""
        xp = array_namespace(shifts)
        values, vectors = self._eigenpairs
        columns = shifts.shape[0]
        y = xp.broadcast_to(self.problem.residual, (columns, values.shape[0]))
        weights = xp.zeros_like(y)
        residual = y
        for _ in range(1 + REFINEMENTS):
            # w <- w + V (l + damping)^(-1) V^T r, the inverse of J J^T + damping I applied to r.
            weights = weights + (residual @ vectors / (values + shifts[:, None])) @ vectors.T
            # r = y - (J J^T + damping I) w, with J J^T w from products, not from eigenvectors.
            image = self.problem.jacobian(self.problem.adjoint(weights))
            residual = y - image - shifts[:, None] * weights
        # dA = -J^T w.
        step = -xp.moveaxis(self.problem.adjoint(weights), 0, -1)
        # True residual of the Newton system (H + damping I) dA = -G.
        rhs = xp.repeat(-self.problem.gradient[..., None], columns, axis=-1)
        image = self.problem.product(step)
        error = norms(residual_of(image, rhs, shifts, step)) / rhs_norm(rhs)
        # One product per column: the one that checks the residual.
        once = xp.ones(columns, dtype=xp.int64, device=device(shifts))
        return Solution(step, image, error <= self.tolerance, error, once, error[None, :])


@dataclass(frozen=True)
class KrylovSolver:
    """Preconditioned conjugate gradients on the Newton system of a linearisation.

    Args:
        problem: the linearisation.
        preconditioner: an approximate inverse of H + damping I.
        tolerance: relative residual to reach.
        max_iterations: largest number of products.
    """

    problem: Linearisation
    preconditioner: Preconditioner | None = None
    tolerance: float = 1e-3
    max_iterations: int = 1000

    def solve(self, damping: npt.ArrayLike) -> Solution:
        """The step for a damping, or one column for each of several dampings."""
        return conjugate_gradient(
            self.problem.product,
            -self.problem.gradient,
            damping,
            preconditioner=self.preconditioner,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )


def choose_solver(
    problem: Linearisation,
    preconditioner: Callable[[], Preconditioner | None],
    *,
    memory_bytes: float = DIRECT_BYTES,
    tolerance: float = 1e-6,
    max_iterations: int = 5000,
    eigh: Eigh = eigh_in_place,
) -> DirectSolver | KrylovSolver:
    """The exact solver if the curvature has rows and they fit the memory, else Krylov.

    Args:
        problem: the linearisation at the start.
        preconditioner: builds the preconditioner; called only if one is needed.
        memory_bytes: limit for the direct solver.
        tolerance: relative residual to reach.
        max_iterations: largest number of products.
        eigh: the eigendecomposition of the exact solver.
    """
    if hasattr(problem, "gram"):
        exact = cast("LeastSquares", problem)
        # The decision depends on sizes alone: the same on every machine.
        if direct_bytes(exact.residual.shape[0], exact.gradient.shape[0]) <= memory_bytes:
            return DirectSolver(exact, tolerance, eigh)
    return KrylovSolver(problem, preconditioner(), tolerance, max_iterations)


def direct_bytes(rows: int, landmarks: int) -> int:
    """Peak bytes of the exact solver: J J^T [row, row_] for J [row, landmark x component].

    First J J^T and the factors of its rows; when these are freed, J J^T, its copy, the workspace of
    LAPACK (twice) and the eigenvectors.
    """
    return 8 * rows * max(5 * rows, rows + 6 * landmarks)
