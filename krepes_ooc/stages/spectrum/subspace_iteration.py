"""Leading eigenpairs of a landmark kernel that is too large for a dense eigendecomposition.

Restarted block Krylov iteration: from a block X the space [X, K X, K^2 X, ...] is built with full
orthogonalisation, and the leading Ritz pairs of K in it are the next X. Only products K V with a
tall block V are needed, so K may be streamed in tiles.
Source: Golub and Underwood (1977), "The block Lanczos method for computing eigenvalues".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng
from krepes_ooc.stages.spectrum.nystrom import column_signs

Float = npt.NDArray[np.float64]

_START = 301
_EXTRA = 8


@dataclass(frozen=True)
class LeadingPairs:
    """Leading eigenpairs and their residuals; not having converged is a result, not an error.

    Args:
        eigenvalues: descending [component].
        U: eigenvectors [landmark, component], signs as ``nystrom.eigenpairs`` fixes them.
        residual: |K u - Lambda u| / Lambda_1 of every pair [component].
        products: blocks that K was multiplied with.
        converged: whether every residual is within the tolerance.
    """

    eigenvalues: Float
    U: Float
    residual: Float
    products: int
    converged: bool


def leading_eigenpairs(
    product: Callable[[Float], Float],
    n_landmarks: int,
    n_components: int,
    seed: int,
    *,
    tolerance: float = 1e-9,
    depth: int = 4,
    max_products: int = 200,
) -> LeadingPairs:
    """The ``n_components`` largest eigenvalues of a symmetric K and their eigenvectors.

    Holds 2 ``depth`` blocks [landmark, component + 8] of float64 and as many products.

    Args:
        product: K V [landmark, column] for V [landmark, column].
        n_landmarks: rows of K.
        n_components: pairs wanted, at most ``n_landmarks``.
        seed: of the random start, drawn by key.
        tolerance: on the relative residual of every pair.
        depth: blocks of one Krylov space, at least 2.
        max_products: products after which the iteration stops.
    """
    # Guard columns: the last wanted pairs converge at the rate of the gap behind them.
    width = n_components + _EXTRA
    # Two blocks would fill the space: one block spans everything, and the first Ritz step is exact.
    if 2 * width > n_landmarks:
        width = n_landmarks
    depth = min(depth, n_landmarks // width)
    # An orthonormal random start X, drawn by key: the same under any chunking.
    index = np.arange(n_landmarks)[:, None], np.arange(width)[None, :]
    X = np.linalg.qr(counter_rng.normal(seed, _START, *index))[0]
    KX = product(X)
    products = 1
    while True:
        # Krylov basis B = orth[X, K X, ..., K^(depth-1) X] and its image K B.
        B = X
        KB = KX
        for _ in range(depth - 1):
            fresh = _orthonormal(KB[:, -width:], B)
            B = np.hstack([B, fresh])
            KB = np.hstack([KB, product(fresh)])
            products += 1
        # Rayleigh-Ritz: T = B^T K B = W diag(values) W^T; symmetrised against rounding.
        T = B.T @ KB
        ascending, W = np.linalg.eigh((T + T.T) / 2)
        values = ascending[::-1][:width]
        W = W[:, ::-1][:, :width]
        # Ritz vectors X = B W restart the iteration; K X = (K B) W costs no product.
        X = B @ W
        KX = KB @ W
        # Residuals |K x - Lambda x| / Lambda_1 of the wanted pairs.
        size = max(float(np.abs(values).max()), np.finfo(float).tiny)
        residual = np.linalg.norm(KX - X * values, axis=0)[:n_components] / size
        converged = bool((residual <= tolerance).all())
        if converged or depth < 2 or products + depth - 1 > max_products:
            U = X[:, :n_components]
            eigenvalues = values[:n_components].copy()
            return LeadingPairs(eigenvalues, U * column_signs(U), residual, products, converged)


def _orthonormal(block: Float, basis: Float) -> Float:
    """An orthonormal block [landmark, column] in the complement of an orthonormal basis."""
    # Block Gram-Schmidt, three times: a block almost inside the basis loses digits in each.
    for _ in range(3):
        block = np.linalg.qr(block - basis @ (basis.T @ block))[0]
    return block
