"""Input that a network states of itself: timm's pretrained_cfg, preprocessor_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import KrepesError, UsageError
from krepes_ooc.network.preprocessing import read_preprocessing
from krepes_ooc.network.spec import NetworkSpec
from krepes_ooc.sources.base import SourceSpec
from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.views.spec import ViewSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CFG = {
    "architecture": "resnet50",
    "input_size": (3, 12, 12),
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "mean": MEAN,
    "std": STD,
}
HF = {
    "crop_size": {"height": 12, "width": 12},
    "do_center_crop": True,
    "size": {"shortest_edge": 16},
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "rescale_factor": 1 / 255,
}
NETS = """
from torch import nn


def build(cfg=None, name="pretrained_cfg", inside=False):
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
    if cfg:
        setattr(net, name, cfg)
    return nn.Sequential(net) if inside else net
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    draw = np.random.default_rng(0)
    (tmp_path / "img").mkdir()
    for number in range(3):
        pixels = draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"img/{number}.png")
    return tmp_path


def spec_of(weights: str = "factory", **arguments: Any) -> NetworkSpec:
    values = {"factory": "nets.py:build", "weights": weights, "arguments": arguments}
    return read_settings(NetworkSpec, values, "network")


def inputs(folder: Path, network: NetworkSpec, **source: Any) -> AuditInputs:
    keys = {"kind": "images", "path": "img", "transform": "from_model", **source}
    spec = read_settings(SourceSpec, keys, "source")
    return AuditInputs(spec, network, ViewSpec(), 0, folder, folder / "private")


def hf_folder(folder: Path, **changes: Any) -> NetworkSpec:
    (folder / "hf").mkdir(exist_ok=True)
    (folder / "hf/preprocessor_config.json").write_text(json.dumps(HF | changes))
    return spec_of("hf")


@pytest.mark.parametrize("origin", ["module", "inside", "older", "hf", "argument", "timm folder"])
def test_pictures_arrive_as_the_network_states(folder: Path, origin: str) -> None:
    if origin == "module":
        network, words = spec_of(cfg=CFG), "by pretrained_cfg of resnet50"
    elif origin == "inside":
        network, words = spec_of(cfg=CFG, inside=True), "by pretrained_cfg of resnet50"
    elif origin == "older":
        network, words = spec_of(cfg=CFG, name="default_cfg"), "by default_cfg of resnet50"
    elif origin == "hf":
        network, words = hf_folder(folder), "hf/preprocessor_config.json"
    elif origin == "argument":
        hf_folder(folder)
        network, words = spec_of(pretrained_model_name_or_path="./hf"), "preprocessor_config.json"
    else:
        (folder / "t").mkdir()
        (folder / "t/config.json").write_text(json.dumps({"pretrained_cfg": CFG}))
        network, words = spec_of("t"), "t/config.json"
    opened = inputs(folder, network)
    got = opened.encode(np.arange(3), -1)[0]
    for number, picture in enumerate(got):
        image = Image.open(folder / f"img/{number}.png")
        image = ImageOps.fit(image, (12, 12), Image.Resampling.BICUBIC)
        want = (np.asarray(image) / 255 - MEAN) / STD
        assert np.abs(np.moveaxis(picture, 0, -1) - want).max() < 1e-5
    taken, left = opened.source.warnings[-2:]
    assert taken.startswith("transform from_model: size 12, mean [0.485, 0.456, 0.406]")
    assert "bicubic" in taken
    assert words in taken
    assert "the whole central square is scaled" in left


def test_keys_of_the_recipe_win(folder: Path) -> None:
    opened = inputs(folder, spec_of(cfg=CFG), size=8, mean=[0.5] * 3, interpolation="nearest")
    assert opened.opened_source_spec.size == 8
    assert opened.opened_source_spec.mean == (0.5, 0.5, 0.5)
    assert opened.opened_source_spec.std == STD
    assert opened.opened_source_spec.interpolation == "nearest"
    assert opened.source.input_shape == (3, 8, 8)


def test_another_interpolation_is_another_source_and_the_default_is_none(folder: Path) -> None:
    def fingerprint(**keys: Any) -> dict[str, Any]:
        opened = inputs(folder, spec_of(), transform="none", size=12, **keys)
        return opened.source.fingerprint()

    plain = fingerprint()
    assert plain == fingerprint(interpolation="bilinear")
    assert "interpolation" not in plain
    assert plain != fingerprint(interpolation="bicubic")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_size": (3, 12, 16)}, r"takes 12 x 16 pixels; expected a square"),
        ({"interpolation": "random"}, r"interpolation 'random'; expected one of nearest"),
    ],
)
def test_what_timm_states_and_is_not_done(folder: Path, changes: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_preprocessing(spec_of(cfg=CFG | changes), folder)


@pytest.mark.parametrize(
    ("changes", "size", "normalised"),
    [
        ({"do_center_crop": False, "size": {"height": 10, "width": 10}}, 10, True),
        ({"do_center_crop": False, "size": 14}, 14, True),
        ({"do_center_crop": False}, 16, True),
        ({"crop_size": 9, "do_normalize": False}, 9, False),
    ],
)
def test_forms_of_preprocessor_config(
    folder: Path, changes: Any, size: int, normalised: bool
) -> None:
    stated = read_preprocessing(hf_folder(folder, **changes), folder)
    assert stated.size == size
    assert stated.mean == (MEAN if normalised else ())


def test_what_transformers_states_and_is_not_done(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"rescale_factor is 0.00784314; expected 1/255"):
        read_preprocessing(hf_folder(folder, rescale_factor=1 / 127.5), folder)
    with pytest.raises(UsageError, match=r"interpolation '9'"):
        read_preprocessing(hf_folder(folder, resample=9), folder)
    (folder / "hf/preprocessor_config.json").write_text("{")
    with pytest.raises(UsageError, match=r"preprocessor_config.json: cannot be read"):
        read_preprocessing(spec_of("hf"), folder)


def test_a_network_that_states_nothing(folder: Path) -> None:
    with pytest.raises(KrepesError) as caught:
        _ = inputs(folder, spec_of()).source
    assert str(caught.value) == (
        "source.transform: the network does not say which pictures it takes; expected timm's "
        "pretrained_cfg, or preprocessor_config.json beside the weights; set source.size, "
        "source.mean, source.std and source.interpolation"
    )
