"""The recipe key ``views``: how samples are augmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from krepes_ooc.core.settings import setting

# View index of the sample itself, without augmentation.
CLEAN = -1


@dataclass(frozen=True)
class ViewSpec:
    """The recipe key ``views``: how the views of a sample are drawn.

    A number ``auto`` is chosen by the kind of view: noise 0.1; shift an eighth of the shorter side,
    at least one pixel.
    """

    count: int = setting(2, about="views of each sample", minimum=1, maximum=16)
    kind: Literal["auto", "image", "table", "callable"] = setting("auto", about="family of views")
    corruption: float = setting(
        0.3,
        about="tables: share of cells replaced by a draw from their column",
        minimum=0,
        maximum=1,
    )
    keep: tuple[str, ...] = setting((), about="tables: columns that are never changed")
    noise: float = setting(
        0.1, about="noise; tables: in standard deviations, images: in full scales", minimum=0
    )
    shift: int | Literal["auto"] = setting(
        "auto", about="images: largest shift in pixels", minimum=0
    )
    flip: bool = setting(False, about="images: mirror left and right, half of the time")
    crop: float = setting(
        1.0, about="images: smallest area of a random crop, 1 for none", above=0, maximum=1
    )
    jitter: float = setting(
        0.0, about="images: largest relative change of brightness and contrast", minimum=0, below=1
    )
    function: str = setting(
        "", about="module:callable or file.py:callable, view(x, sample_id, view_id, seed)"
    )
