"""The kernel of feature rows: inner products, the centre and the map from features to kernel rows.

    k(x, y) = sum_l (<a_l, a'_l> + bias_l) sum_r <d_lr, d'_lr>                   (see layout)

One definition serves landmark selection, the kernel store, the audit and new samples. Rows are
float32 or float64 and already unscaled; the functions speak the array API.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from array_api_compat import array_namespace, device

from krepes_ooc.core.arrays import Array
from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.errors import UsageError
from krepes_ooc.stages.features.inner_products import centre_kernel, gram, self_kernel, to_float64
from krepes_ooc.stages.kernel.normalisation import Normalisation, normalise, normalised_self


@dataclass(frozen=True)
class KernelMap:
    """The map from feature rows to kernel rows: everything known about the landmarks.

    Args:
        layout: the factors of a feature row.
        normalisation: how values are normalised.
        centre: mean feature moment [moment], or None where the mode needs none.
        landmarks: unscaled feature rows [landmark, feature].
        landmark_centre: c_l [landmark], float64, or None.
        landmark_self: k(l, l) [landmark], float64.
    """

    layout: FeatureLayout
    normalisation: Normalisation
    centre: Array | None
    landmarks: Array
    landmark_centre: Array | None
    landmark_self: Array

    @cached_property
    def _row_centre(self) -> Array:
        """The centre in the type of the rows, cast once."""
        xp = array_namespace(self.landmarks)
        return None if self.centre is None else xp.astype(self.centre, self.landmarks.dtype)

    def centre_rows(self, x: Array) -> Array:
        """c_x [sample] of unscaled feature rows [sample, feature]; None without centring."""
        return None if self.centre is None else centre_kernel(x, self._row_centre, self.layout)

    def rows(
        self, x: Array, self_kernel_x: Array | None = None, centre_x: Array | None = None
    ) -> Array:
        """Normalised kernel rows [sample, landmark] of unscaled feature rows [sample, feature].

        Args:
            x: unscaled feature rows.
            self_kernel_x: k(x, x) [sample] where it is stored; computed where it is not.
            centre_x: what ``centre_rows`` gave for x, if it is known.
        """
        if self.normalisation.mode in ("ccos", "cosine") and self_kernel_x is None:
            self_kernel_x = self_kernel(x, self.layout)
        return normalise(
            gram(x, self.landmarks, self.layout),
            self.centre_rows(x) if centre_x is None else centre_x,
            self.landmark_centre,
            self_kernel_x,
            self.landmark_self,
            self.normalisation,
        )


def kernel_map(
    landmarks: Array, layout: FeatureLayout, centre: Array | None, normalisation: Normalisation
) -> KernelMap:
    """The kernel map of unscaled landmark rows [landmark, feature]; ``centre`` [moment] for ccos.

    Raises:
        UsageError: the mode is ``ccos`` and no centre is given.
    """
    centre = _needed_centre(centre, normalisation)
    exact = to_float64(landmarks)
    c_l = None if centre is None else centre_kernel(exact, centre, layout)
    return KernelMap(layout, normalisation, centre, landmarks, c_l, self_kernel(exact, layout))


def landmark_kernel(
    landmarks: Array, layout: FeatureLayout, centre: Array | None, normalisation: Normalisation
) -> Array:
    """K_mm [landmark, landmark_] in float64: exactly symmetric, its diagonal what the mode says.

    Raises:
        UsageError: the mode is ``ccos`` and no centre is given.
    """
    mapped = kernel_map(to_float64(landmarks), layout, centre, normalisation)
    everything = slice(0, landmarks.shape[0])
    return landmark_tile(mapped, everything, everything)


def landmark_tile(mapped: KernelMap, left: slice, right: slice) -> Array:
    """Rows ``left`` and columns ``right`` of K_mm; the same range twice, or two that are disjoint.

    The tile [right, left] is the transpose, so that K_mm is exactly symmetric tile by tile.

    Args:
        mapped: of landmarks in float64.
        left: landmarks of the rows.
        right: landmarks of the columns.
    """
    c_l, own = mapped.landmark_centre, mapped.landmark_self
    there = dataclasses.replace(
        mapped,
        landmarks=mapped.landmarks[right, :],
        landmark_centre=None if c_l is None else c_l[right],
        landmark_self=own[right],
    )
    K = there.rows(mapped.landmarks[left, :], own[left], None if c_l is None else c_l[left])
    if left != right:
        return K
    xp = array_namespace(K)
    K = (K + K.T) / 2
    own = normalised_self(there.landmark_centre, there.landmark_self, mapped.normalisation)
    diagonal = xp.eye(K.shape[0], dtype=xp.bool, device=device(K))
    return xp.where(diagonal, own[:, None], K)


def _needed_centre(centre: Array | None, normalisation: Normalisation) -> Array | None:
    if normalisation.mode != "ccos":
        return None
    if centre is None:
        raise UsageError(
            "no centre",
            where="stages.kernel.normalise",
            expected="the mean feature moment for ccos",
            advice="compute the centre first, or normalise by cosine",
        )
    return centre
