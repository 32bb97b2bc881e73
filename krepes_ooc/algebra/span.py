"""Some landmarks and the kernel rows that they should express: what they miss, how many they are.

A subset of the landmarks is again such a span, so that error and effective dimension can be
followed over the number of landmarks from one kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from krepes_ooc.algebra import nystrom

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """Landmarks before a population of samples.

    Args:
        landmark_kernel: K_mm [landmark, landmark_].
        second: un-centred S [landmark, landmark_], mean of k_x k_x^T over the population.
        self_kernel_mean: mean normalised self kernel over the population.
        dtype: float type in which the rows were kept.
    """

    landmark_kernel: Float
    second: Float
    self_kernel_mean: float
    dtype: str

    @property
    def rms(self) -> float:
        """Root mean square of the kernel rows' values."""
        return float(np.sqrt(np.trace(self.second) / len(self.second)))

    def subset(self, landmarks: Index) -> Span:
        """The span of some of the landmarks, before the same population."""
        part = np.ix_(landmarks, landmarks)
        return Span(
            self.landmark_kernel[part], self.second[part], self.self_kernel_mean, self.dtype
        )

    def error(self) -> float:
        """Nystrom error: the share of the kernel's trace that the landmarks miss."""
        values, vectors = nystrom.eigenpairs(self.landmark_kernel)
        rank = max(1, nystrom.usable_rank(values, self.rms, len(values), self.dtype))
        return nystrom.nystrom_error(self.self_kernel_mean, self.second, values, vectors, rank)

    def dimension(self) -> float:
        """Effective dimension at a damping of the landmarks' mean self kernel."""
        values, _ = nystrom.eigenpairs(self.landmark_kernel)
        return nystrom.effective_dimension(values, float(np.mean(np.diag(self.landmark_kernel))))
