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

from krepes_ooc.core.array_columns import Array
from krepes_ooc.core.feature_layout import FeatureLayout
from krepes_ooc.errors import UsageError
from krepes_ooc.stages.features.inner_products import centre_kernel, gram, self_kernel, to_float64
from krepes_ooc.stages.kernel.normalisation import Normalisation, normalise, normalised_self


@dataclass(frozen=True)
class KernelMap:
    """The map from feature rows to kernel rows: landmarks, centre and normalisation.

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
            centre_x: c_x [sample], the result of ``centre_rows``, where it is known.
        """
        # The cosine modes divide by the norms of both rows.
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
    # Values that every kernel row depends on are computed in float64, once.
    exact = to_float64(landmarks)
    c_l = None if centre is None else centre_kernel(exact, centre, layout)
    return KernelMap(layout, normalisation, centre, landmarks, c_l, self_kernel(exact, layout))


def landmark_kernel(
    landmarks: Array, layout: FeatureLayout, centre: Array | None, normalisation: Normalisation
) -> Array:
    """K_mm [landmark, landmark_] in float64: exactly symmetric, with the diagonal of its mode.

    Raises:
        UsageError: the mode is ``ccos`` and no centre is given.
    """
    exact = kernel_map(to_float64(landmarks), layout, centre, normalisation)
    all_landmarks = slice(0, landmarks.shape[0])
    return landmark_tile(exact, all_landmarks, all_landmarks)


def landmark_tile(exact: KernelMap, left: slice, right: slice) -> Array:
    """Rows ``left`` and columns ``right`` of K_mm; the same range twice, or two disjoint ranges.

    The tile [right, left] is the transpose, so that K_mm is exactly symmetric tile by tile.

    Args:
        exact: kernel map of landmarks in float64.
        left: landmarks of the rows.
        right: landmarks of the columns.
    """
    # K[left, right]: kernel rows of the landmarks ``left`` against the landmarks ``right``.
    c_l = exact.landmark_centre
    s_l = exact.landmark_self
    columns = dataclasses.replace(
        exact,
        landmarks=exact.landmarks[right, :],
        landmark_centre=None if c_l is None else c_l[right],
        landmark_self=s_l[right],
    )
    K = columns.rows(exact.landmarks[left, :], s_l[left], None if c_l is None else c_l[left])
    if left != right:
        return K
    # On the diagonal products round differently above and below: the mean is exactly symmetric.
    xp = array_namespace(K)
    K = (K + K.T) / 2
    # Its diagonal is known without rounding: 1 for the cosine modes, 0 for a collapsed landmark.
    k_ll = normalised_self(columns.landmark_centre, columns.landmark_self, exact.normalisation)
    diagonal = xp.eye(K.shape[0], dtype=xp.bool, device=device(K))
    return xp.where(diagonal, k_ll[:, None], K)


def _needed_centre(centre: Array | None, normalisation: Normalisation) -> Array | None:
    """The centre where the mode needs one, else None."""
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
