"""Input of an image network, as the library that it comes from states it: timm and transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krepes_ooc.core.import_object import locate_arguments
from krepes_ooc.core.live_objects import LIVE
from krepes_ooc.errors import UsageError
from krepes_ooc.network.spec import FACTORY, PRETRAIN, NetworkSpec, build_network

if TYPE_CHECKING:
    from torch import nn

HF_FILE, TIMM_FILE = "preprocessor_config.json", "config.json"
# Names of timm, and numbers of Pillow, which transformers writes.
_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_EIGHT_BITS = 1 / 255
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Preprocessing:
    """Form of the pictures that a network was trained on.

    Args:
        size: side of the square in pixels; None where it is not stated.
        mean: mean of each channel scaled to [0, 1].
        std: standard deviation of each channel.
        interpolation: how pictures are scaled.
        origin: where this is stated, for people.
        notes: what else is stated there and is not done.
    """

    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    origin: str
    notes: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """Lines for log and report: all that was taken over, and the rest."""
        size = f"size {self.size}, " if self.size else ""
        taken = f"{size}mean {list(self.mean)}, std {list(self.std)}, {self.interpolation}"
        return (f"transform from_model: {taken}, by {self.origin}", *self.notes)


def read_preprocessing(
    spec: NetworkSpec, base: Path, model: nn.Module | None = None
) -> Preprocessing:
    """The input that a network was made for.

    The folder of the weights, or a folder among the arguments, is looked at first; else the network
    is built, and asked for timm's ``pretrained_cfg``.

    Args:
        spec: the recipe key ``network``.
        base: folder of the recipe.
        model: the network of a script, in place of what the factory builds.

    Raises:
        UsageError: nothing is stated, or something that a source of pictures cannot do.
    """
    for folder in _folders(spec, base):
        if (folder / HF_FILE).is_file():
            return _from_hf(_read(folder / HF_FILE), str(folder / HF_FILE))
        stated = _read(folder / TIMM_FILE) if (folder / TIMM_FILE).is_file() else {}
        if isinstance(stated.get("pretrained_cfg"), Mapping):
            return _from_timm(stated["pretrained_cfg"], str(folder / TIMM_FILE))
    if model is None and spec.factory != LIVE:
        model = build_network(spec, base)
    for module in model.modules() if model is not None else ():
        # timm's older name is default_cfg.
        for name in ("pretrained_cfg", "default_cfg"):
            own = getattr(module, name, None)
            if isinstance(own, Mapping) and "mean" in own:
                architecture = own.get("architecture") or type(module).__name__
                return _from_timm(own, f"{name} of {architecture}")
    raise UsageError(
        "the network does not say which pictures it takes",
        where="source.transform",
        expected=f"timm's pretrained_cfg, or {HF_FILE} beside the weights",
        advice="set source.size, source.mean, source.std and source.interpolation",
    )


def _folders(spec: NetworkSpec, base: Path) -> list[Path]:
    """Folders that may describe the network: of its weights, and among the arguments."""
    named: list[Any] = list(locate_arguments(spec.arguments, base).values())
    if spec.weights not in (PRETRAIN, FACTORY):
        path = base / Path(spec.weights).expanduser()
        named.insert(0, str(path if path.is_dir() else path.parent))
    return [Path(text) for text in named if isinstance(text, str) and Path(text).is_dir()]


def _from_timm(stated: Mapping[str, Any], origin: str) -> Preprocessing:
    """Preprocessing of timm's ``pretrained_cfg``."""
    size = stated.get("input_size") or (3, None, None)
    notes = []
    # The margin that timm cuts off for its tests.
    share = float(stated.get("crop_pct") or 1)
    if share < 1:
        notes.append(f"crop_pct {share:g} is not applied: the whole central square is scaled")
    return Preprocessing(
        _square(size[-2], size[-1], origin),
        _numbers(stated.get("mean")),
        _numbers(stated.get("std")),
        _known(str(stated.get("interpolation") or "bilinear"), origin),
        origin,
        tuple(notes),
    )


def _from_hf(stated: Mapping[str, Any], origin: str) -> Preprocessing:
    """Preprocessing of a preprocessor_config.json.

    Raises:
        UsageError: pixels are scaled otherwise than to [0, 1].
    """
    factor = float(stated.get("rescale_factor", _EIGHT_BITS))
    if stated.get("do_rescale", True) and abs(factor - _EIGHT_BITS) > _TOLERANCE:
        raise UsageError(
            f"rescale_factor is {factor:g}",
            where=origin,
            expected="1/255, so that pixels lie within [0, 1]",
            advice="set source.mean and source.std by hand",
        )
    # A crop comes after scaling, and is what the network sees.
    cropped = stated.get("do_center_crop") and stated.get("crop_size")
    size = stated["crop_size"] if cropped else stated.get("size") or {}
    if not isinstance(size, Mapping):
        size = {"height": size, "width": size}
    edge = size.get("shortest_edge")
    notes = []
    if cropped and stated.get("size") != stated["crop_size"]:
        notes.append("the margin around crop_size is not cut: the whole central square is scaled")
    normalised = stated.get("do_normalize", True)
    number = stated.get("resample")
    return Preprocessing(
        _square(size.get("height", edge), size.get("width", edge), origin),
        _numbers(stated.get("image_mean")) if normalised else (),
        _numbers(stated.get("image_std")) if normalised else (),
        _known(_INTERPOLATION.get(2 if number is None else number, str(number)), origin),
        origin,
        tuple(notes),
    )


def _square(height: Any, width: Any, origin: str) -> int | None:
    """Side of the square input; None where none is stated.

    Raises:
        UsageError: the input is no square.
    """
    if height is None or width is None:
        return None
    if int(height) != int(width):
        raise UsageError(
            f"the network takes {int(height)} x {int(width)} pixels",
            where=origin,
            expected="a square, as source.size gives it",
            advice="write the pictures in that size, and set source.mean and source.std by hand",
        )
    return int(height)


def _known(interpolation: str, origin: str) -> str:
    """The name of an interpolation.

    Raises:
        UsageError: it is none that pictures are scaled by.
    """
    if interpolation not in _INTERPOLATION.values():
        raise UsageError(
            f"interpolation {interpolation!r}",
            where=origin,
            expected="one of " + ", ".join(_INTERPOLATION.values()),
            advice="set source.size, source.mean, source.std and source.interpolation by hand",
        )
    return interpolation


def _numbers(values: Any) -> tuple[float, ...]:
    if values is None:
        return ()
    listed = values if isinstance(values, list | tuple) else [values]
    return tuple(float(value) for value in listed)


def _read(path: Path) -> dict[str, Any]:
    """Content of a JSON file.

    Raises:
        UsageError: it is no JSON mapping.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path), expected="JSON") from error
    return content if isinstance(content, dict) else {}
