"""Conversion of stored float16 rows to float32, and back, at memory speed.

torch converts about nine times faster than NumPy on CPUs with F16C; it is imported on first use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def to_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The same values as float32, shape kept; float32 input is returned as it is."""
    if values.dtype != np.float16 or not values.size:
        return values.astype(np.float32, copy=False)
    import torch
    from torch.utils.dlpack import from_dlpack

    # DLPack takes read-only maps without a copy; the tensor is only ever read.
    tensor = from_dlpack(np.ascontiguousarray(values))
    # Into memory of NumPy: torch asks for aligned memory, which glibc before 2.38 does not find
    # again among what it has freed, so that every worker grew by tens of MiB.
    out = np.empty(values.shape, dtype=np.float32)
    torch.from_numpy(out).copy_(tensor)
    return out


def to_dtype(values: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Float32 values rounded to the dtype of a store, half to even; float32 as it is."""
    if dtype != np.float16 or not values.size:
        return values.astype(dtype, copy=False)
    import torch

    # torch rounds half to even, as NumPy does.
    out = np.empty(values.shape, dtype=np.float16)
    torch.from_numpy(out).copy_(torch.from_numpy(values))
    return out
