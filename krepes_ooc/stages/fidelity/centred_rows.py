"""Centred rows of the fit samples with one Gram matrix for every regression on them.

    X = rows - mean,   G = X^T X = V diag(e) V^T

Ridge regression takes the eigendecomposition of G. Logistic regression on standardised columns
X D^-1 takes D^-1 G D^-1, D the standard deviations: the rows are multiplied with each other once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CentredRows:
    """Rows of the fit samples in one space.

    Args:
        mean: of every column [component].
        centred: X [sample, component].
    """

    mean: Float
    centred: Float

    @classmethod
    def of(cls, rows: Float) -> CentredRows:
        """Centre rows [sample, component]; there is at least one."""
        mean = rows.mean(axis=0)
        return cls(mean, rows - mean)

    @cached_property
    def gram(self) -> Float:
        """G = X^T X [component, component_]."""
        return np.asarray(self.centred.T @ self.centred)

    @cached_property
    def eigenpairs(self) -> tuple[Float, Float]:
        """Eigenvalues of G [component], ascending and at least 0, and eigenvectors V."""
        values, vectors = np.linalg.eigh(self.gram)
        return np.maximum(values, 0.0), vectors

    @cached_property
    def deviation(self) -> Float:
        """Standard deviation of every column [component]; 1 for a constant one."""
        n = len(self.centred)
        variance = np.diagonal(self.gram) / n
        # Rounding of a constant column; Chan, Golub and LeVeque (1983), as scikit-learn
        eps = np.finfo(np.float64).eps
        constant = variance <= n * eps * variance + (n * self.mean * eps) ** 2
        return np.sqrt(np.where(constant, 1.0, variance))
