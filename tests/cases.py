"""One shared table of small problems: named, seeded, float64, from well-posed to degenerate.

Kernel rows are a smooth kernel between noisy views of samples and a few clean samples (landmarks),
rounded to float32 values so that a float32 and a float64 route read the very same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tests import dense

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One problem: what every objective needs, and how hard it is.

    Args:
        name: unique, used as the pytest id.
        kernels: K_a [view, sample, landmark].
        landmark_kernel: K_mm [landmark, landmark_].
        coefficients: the point A [landmark, component] where everything is compared.
        start: the point A0 that fixes offset and targets; near A, not equal to it.
        batch: samples of one contrastive batch; leaves a tail in most cases.
        well_posed: float64 resolves every figure to about 1e-10 relative.
    """

    name: str
    kernels: Float
    landmark_kernel: Float
    coefficients: Float
    start: Float
    batch: int = 8
    well_posed: bool = True

    @property
    def offset(self) -> Float:
        """-A0^T kbar [component], kbar the mean of all rows of all views."""
        return np.asarray(-self.start.T @ self.kernels.mean(axis=(0, 1)))

    def settings(self, objective: str) -> dict[str, object]:
        """Keyword arguments of the oracle for this objective (published constants by default)."""
        if objective == "simclr":
            return {"batch": self.batch}
        if objective == "byol":
            return {"targets": dense.byol_targets(self.start, self.kernels, self.offset)}
        return {}


def make(
    name: str,
    n_samples: int = 28,
    n_landmarks: int = 7,
    n_components: int = 3,
    n_views: int = 2,
    seed: int = 0,
    noise: float = 0.4,
) -> Case:
    """A well-posed case: four clusters, unit-width kernel, coefficients near the start."""
    draw = np.random.default_rng(seed)
    centres = 2.0 * draw.normal(size=(4, 3))
    clean = centres[draw.integers(4, size=n_samples)] + draw.normal(size=(n_samples, 3))
    views = clean + noise * draw.normal(size=(n_views, n_samples, 3))
    extra = centres[draw.integers(4, size=n_landmarks)] + draw.normal(size=(n_landmarks, 3))
    landmarks = np.concatenate([clean, extra])[:n_landmarks]
    landmark_kernel = single(smooth_kernel(landmarks, landmarks))
    start = dense.start(landmark_kernel, n_components)
    return Case(
        name=name,
        kernels=single(smooth_kernel(views, landmarks)),
        landmark_kernel=landmark_kernel,
        coefficients=start + 0.3 * draw.normal(size=start.shape),
        start=start,
    )


def smooth_kernel(x: Float, y: Float) -> Float:
    """Gaussian kernel of width 2 between the last axes."""
    return np.asarray(np.exp(-((x[..., :, None, :] - y) ** 2).sum(axis=-1) / 8))


def single(values: Float) -> Float:
    """The nearest float32 values, held as float64."""
    return values.astype(np.float32).astype(np.float64)


def scaled(case: Case, name: str, factor: float) -> Case:
    """The same case with all kernels times a power of two (exact in float32)."""
    return replace(
        case,
        name=name,
        kernels=case.kernels * factor,
        landmark_kernel=case.landmark_kernel * factor,
        start=case.start / np.sqrt(factor),
        coefficients=case.coefficients / np.sqrt(factor),
    )


def with_columns(case: Case, name: str, change: Callable[[Float], Float], **more: bool) -> Case:
    """The same case with its kernel columns changed; the coefficients stay."""
    return replace(
        case,
        name=name,
        kernels=single(change(case.kernels)),
        landmark_kernel=single(change(case.landmark_kernel)),
        **more,
    )


def duplicate_landmark(K: Float) -> Float:
    """The second landmark repeats the first."""
    return np.concatenate([K[..., :1], K[..., :1], K[..., 2:]], axis=-1)


def constant_column(K: Float) -> Float:
    """The first landmark sees every sample alike."""
    return np.concatenate([np.full_like(K[..., :1], 0.5), K[..., 1:]], axis=-1)


def nearly_collapsed(K: Float) -> Float:
    """All samples look the same to one part in ten thousand."""
    return np.asarray(0.9 + 1e-4 * (K - 0.9))


def cases() -> list[Case]:
    """The table."""
    plain = make("two-views")
    return [
        plain,
        make("three-views", n_samples=20, n_views=3, seed=1),
        make("one-landmark", n_samples=12, n_landmarks=1, n_components=1, seed=2),
        make("one-component", n_landmarks=5, n_components=1, seed=3),
        make("one-component-three-views", n_samples=17, n_components=1, n_views=3, seed=4),
        make("all-components", n_samples=18, n_landmarks=4, n_components=4, seed=5),
        make("more-landmarks-than-samples", n_samples=6, n_landmarks=9, n_components=2, seed=6),
        make("two-samples", n_samples=2, n_landmarks=3, n_components=2, seed=7),
        make("tail-of-one", n_samples=17, n_landmarks=5, n_components=2, seed=8),
        make("tail-of-two", n_samples=18, n_landmarks=5, n_components=2, seed=9),
        make("identical-views", n_samples=20, noise=0.0, seed=10),
        make("unrelated-views", n_samples=20, noise=9.0, seed=11),
        with_columns(plain, "duplicate-landmark", duplicate_landmark),
        with_columns(plain, "constant-column", constant_column),
        with_columns(plain, "nearly-collapsed", nearly_collapsed, well_posed=False),
        scaled(plain, "tiny-scale", 2.0**-20),
        scaled(plain, "huge-scale", 2.0**20),
    ]


def case(name: str) -> Case:
    """The case of this name."""
    return next(found for found in cases() if found.name == name)
