"""Array types of the algebra, and operations on columns under any array API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from krepes_ooc.core.blocks import Block

Array = Any  # float64, of NumPy or of a device's namespace
Number = Any  # one float64 of that namespace; on the host a float
BlockFunction = Callable[[tuple[Any, ...], Block], tuple[Any, ...]]
Eigh = Callable[[Array], tuple[Array, Array]]  # of a symmetric matrix, eigenvalues ascending


def dots(X: Array, Y: Array) -> Array:
    """Inner products <X, Y> of each column: [landmark, component, column] to [column]."""
    if is_numpy_array(X):
        return _dots_on_host(X, Y)
    return array_namespace(X, Y).sum(X * Y, axis=(0, 1))


def take_columns(values: Array, active: Array) -> Array:
    """Copies of the columns [..., active] with these indices."""
    if is_numpy_array(values):
        return values[..., active]
    return array_namespace(values, active).take(values, active, axis=-1)


def put_columns(values: Array, active: Array, new: Array) -> Array:
    """A copy with the columns of these indices replaced by ``new`` [..., active]."""
    if is_numpy_array(values):
        return _put_columns_on_host(values, active, new)
    xp = array_namespace(values, active, new)
    # The array API has no scatter: find the position of each column in ``active``, then select.
    columns = xp.arange(values.shape[-1], dtype=active.dtype, device=device(values))
    matches = active[:, None] == columns
    source = xp.argmax(xp.astype(matches, active.dtype), axis=0)
    return xp.where(xp.any(matches, axis=0), xp.take(new, source, axis=-1), values)


def asarray_like(values: Any, like: Array) -> Array:
    """A few numbers of the host, in the namespace and on the device of an array."""
    return array_namespace(like).asarray(values, device=device(like))


def diagonal_matrix(values: Array) -> Array:
    """diag(v) [component, component_], exact zeros beside it."""
    xp = array_namespace(values)
    # The array API builds no diagonal matrix from a vector.
    index = xp.arange(values.shape[0], device=device(values))
    return xp.where(index[:, None] == index, values, xp.zeros_like(values))


def identity_like(S: Array) -> Array:
    """The identity [component, component_] beside a square matrix."""
    return array_namespace(S).eye(S.shape[0], dtype=S.dtype, device=device(S))


def _dots_on_host(X: Array, Y: Array) -> Array:
    # einsum forms no product array of the size of X.
    return np.asarray(np.einsum("lkc,lkc->c", X, Y))


def _put_columns_on_host(values: Array, active: Array, new: Array) -> Array:
    copy = values.copy()
    copy[..., active] = new
    return copy
