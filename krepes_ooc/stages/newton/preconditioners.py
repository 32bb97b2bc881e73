"""Approximate inverses of H + damping I that cost no pass over the data to apply.

Each is built once from a curvature and then serves every damping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from krepes_ooc.core.array_columns import Array, Eigh, Number, asarray_like
from krepes_ooc.core.counter_rng import normal
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.conjugate_gradient import Operator
from krepes_ooc.stages.newton.objectives.interface import Linearisation

TINY = float(np.finfo(float).tiny)
EPSILON = float(np.finfo(np.float64).eps)


def eigh_in_place(S: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix, on its device."""
    eigenpairs = array_namespace(S).linalg.eigh(S)
    return eigenpairs[0], eigenpairs[1]


@dataclass(frozen=True)
class Kronecker:
    """The exact inverse of S (x) Q + damping I.

    With S = U_s diag(s) U_s^T and Q = U_q diag(q) U_q^T,

        M^(-1) R = U_s [ (U_s^T R U_q) / (s q^T + damping) ] U_q^T.

    Args:
        left: s [landmark] and U_s [landmark, landmark_].
        right: q [component] and U_q [component, component_].
    """

    left: tuple[Array, Array]
    right: tuple[Array, Array]

    @classmethod
    def build(
        cls, problem: Linearisation, moments: Moments, eigh: Eigh = eigh_in_place
    ) -> Kronecker:
        """The Kronecker model of a curvature: two eigendecompositions, no pass."""
        S, Q = problem.kronecker(moments)
        return cls(_eigenpairs(S, eigh), _eigenpairs(Q))

    def apply(self, R: Array, damping: Array) -> Array:
        """M^(-1) R for R [landmark, component, column] and damping [column]."""
        s, U_s = self.left
        q, U_q = self.right
        xp = array_namespace(R)
        # Into the eigenbases of both factors: U_s^T R U_q [column, landmark, component].
        rotated = U_s.T @ xp.moveaxis(R, -1, 0) @ U_q
        # S (x) Q + damping I is diagonal there.
        rotated /= xp.linalg.outer(s, q) + damping[:, None, None]
        # Back: U_s (...) U_q^T.
        return xp.moveaxis(U_s @ rotated @ U_q.T, 0, -1)


@dataclass(frozen=True)
class KroneckerPath:
    """Kronecker models at several coefficients: S is that of the moments, Q that of the point.

    Args:
        moments: of the samples.
        left: s [landmark] and U_s [landmark, landmark_].
    """

    moments: Moments
    left: tuple[Array, Array]

    @classmethod
    def build(cls, problem: Linearisation, moments: Moments) -> KroneckerPath:
        """One eigendecomposition of S."""
        return cls(moments, _eigenpairs(problem.kronecker(moments)[0]))

    def __call__(self, problem: Linearisation) -> Kronecker:
        """The model where ``problem`` is linearised: one eigendecomposition of Q."""
        return Kronecker(self.left, _eigenpairs(problem.kronecker(self.moments)[1]))


@dataclass(frozen=True)
class RotationDeflation:
    """A Kronecker preconditioner with the rotations of the embedding deflated.

    A loss of inner products between embeddings is invariant to a rotation of them: its curvature is
    zero along A W, W antisymmetric, and every gradient is orthogonal to these directions. S (x) Q
    is not. With P the orthogonal projector onto their complement,

        M^(-1) R = P inner(P R) + (R - P R) / (curvature + damping).

    On the other directions the spread of H against S (x) Q is then bounded whatever the damping:
    for two views of equal moments the spectral contrastive curvature lies between 1 and 2 times it.

    Args:
        inner: the preconditioner of all other directions.
        A: coefficients [landmark, component].
        eigenpairs: w [component] and W_0 [component, component_] of A^T A.
        curvature: mean curvature along the rotations; an offset makes it differ from 0.
    """

    inner: Kronecker
    A: Array
    eigenpairs: tuple[Array, Array]
    curvature: float

    @classmethod
    def build(cls, inner: Kronecker, A: Array, curvature: float = 0.0) -> RotationDeflation:
        """One eigendecomposition of A^T A, A [landmark, component]."""
        return cls(inner, A, _eigenpairs(A.T @ A), curvature)

    def apply(self, R: Array, damping: Array) -> Array:
        """M^(-1) R for R [landmark, component, column] and damping [column]."""
        # R = P R + A W, the part along the rotations split off.
        rotation = self.along(R)
        # Z = inner(P R); its part along the rotations is projected out again.
        Z = self.inner.apply(R - rotation, damping)
        # Along the rotations H acts as a number.
        return Z - self.along(Z) + rotation / (self.curvature + damping)

    def along(self, R: Array) -> Array:
        """The part A W of each column of R [landmark, component, column], W antisymmetric.

        |R - A W| is least if A^T A W + W A^T A = A^T R - R^T A, a division in the eigenbasis.
        """
        xp = array_namespace(R)
        w, basis = self.eigenpairs
        # A^T R - R^T A, antisymmetric, in the eigenbasis of A^T A.
        skew = self.A.T @ xp.moveaxis(R, -1, 0)
        skew = basis.T @ (skew - xp.matrix_transpose(skew)) @ basis
        # Diagonal there: W_ij = skew_ij / (w_i + w_j), and 0 where both eigenvalues are 0.
        sums = w[:, None] + w
        W = basis @ (skew / xp.where(sums > 0, sums, 1.0)) @ basis.T
        return xp.moveaxis(self.A @ W, 0, -1)


def rotation_curvature(A: Array, product: Operator, seed: int = 0) -> Number:
    """<V, H V> / <V, V> for one random rotation V = A W; one product.

    Args:
        A: coefficients [landmark, component].
        product: V -> H V.
        seed: of the random rotation.
    """
    xp = array_namespace(A)
    # V = A W with W = N - N^T antisymmetric, N standard normal.
    random = asarray_like(_normal_matrix(seed, A.shape[1], A.shape[1]), A)
    V = A @ (random - random.T)
    # Rayleigh quotient <V, H V> / <V, V>; 0 for A = 0.
    size = xp.sum(V * V)
    quotient = xp.sum(V * product(V)) / xp.where(size > 0, size, 1.0)
    return xp.maximum(quotient, 0.0)


@dataclass(frozen=True)
class RandomizedNystrom:
    """The Nystrom preconditioner of Frangella, Tropp and Udell (2021).

    H is near U diag(l) U^T with l descending, and

        M^(-1) = U [(l_r + damping) / (l + damping)] U^T + (I - U U^T).

    Args:
        values: l [rank].
        vectors: U [landmark x component, rank].
    """

    values: Array
    vectors: Array

    @classmethod
    def build(
        cls,
        product: Operator,
        shape: tuple[int, int],
        rank: int,
        seed: int = 0,
        precision: float = EPSILON,
        like: Array | None = None,
    ) -> RandomizedNystrom:
        """Sketch H by one product with ``rank`` random columns, hence one pass over the data.

        Args:
            product: V -> H V for V [landmark, component, column].
            shape: (landmarks, components).
            rank: columns of the sketch; needs 3 x landmarks x components x rank numbers.
            seed: of the random columns.
            precision: relative rounding error of a product; use that of float32 for streams.
            like: an array on the device of the products; None: the host.
        """
        unknowns = shape[0] * shape[1]
        rank = min(rank, unknowns)
        random = _normal_matrix(seed, unknowns, rank)
        random = random if like is None else asarray_like(random, like)
        xp = array_namespace(random)
        # Omega: orthonormal test columns; Y = H Omega, one pass.
        Omega = xp.linalg.qr(random)[0]
        Y = xp.reshape(product(xp.reshape(Omega, (*shape, rank))), (unknowns, rank))
        # A shift of the size of rounding makes the core positive definite: Y = (H + shift I) Omega.
        shift = math.sqrt(unknowns) * precision * xp.linalg.matrix_norm(Y, ord=2)
        Y = Y + shift * Omega
        # Core Omega^T Y = W diag(w) W^T; B = Y W w^(-1/2) has B B^T = Y (Omega^T Y)^(-1) Y^T,
        # the Nystrom approximation of H + shift I.
        core = Omega.T @ Y
        w, W = eigh_in_place((core + core.T) / 2.0)
        root = (Y @ W) / xp.sqrt(xp.maximum(w, xp.maximum(shift, TINY)))
        # B = U diag(sigma) V^T gives l = sigma^2 - shift.
        vectors, singular, _ = xp.linalg.svd(root, full_matrices=False)
        return cls(xp.maximum(singular**2 - shift, 0.0), vectors)

    def apply(self, R: Array, damping: Array) -> Array:
        """M^(-1) R for R [landmark, component, column] and damping [column]."""
        xp = array_namespace(R)
        flat = xp.reshape(R, (-1, R.shape[-1]))
        # Coordinates U^T R, scaled by (l_r + damping) / (l + damping); the complement is unchanged.
        coordinates = self.vectors.T @ flat
        gain = (self.values[-1] + damping) / (self.values[:, None] + damping)
        return xp.reshape(flat + self.vectors @ ((gain - 1.0) * coordinates), R.shape)


def _eigenpairs(S: Array, eigh: Eigh = eigh_in_place) -> tuple[Array, Array]:
    """Eigenvalues, negative ones of rounding size set to 0, and eigenvectors."""
    values, vectors = eigh(S)
    return array_namespace(values).maximum(values, 0.0), vectors


def _normal_matrix(seed: int, rows: int, columns: int) -> Array:
    """Standard normal numbers [row, column], a function of the seed alone; on the host."""
    return normal(seed, np.arange(rows)[:, None], np.arange(columns))
