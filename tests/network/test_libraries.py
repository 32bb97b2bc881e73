"""The recipes of docs/networks.md for timm, torchvision and transformers, by random weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from krepes_ooc.core import resources
from krepes_ooc.core.live_objects import LIVE
from krepes_ooc.core.settings import read_settings
from krepes_ooc.network.live_module import name_factory
from krepes_ooc.network.spec import NetworkSpec, load_network
from krepes_ooc.runner.audit import Audit
from krepes_ooc.runner.recipe import Recipe, RecipeFile
from krepes_ooc.storage.workspace import Workspace
from tests.network.libraries import library

DOCUMENT = Path(__file__).parents[2] / "docs/networks.md"
PICTURES = 3


def recipes() -> dict[str, str]:
    """Recipes of the page by their names."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return {found[1]: text for text in blocks if (found := re.match(r"recipe: (\S+)", text))}


def inputs(name: str, folder: Path, *changes: str) -> Any:
    """Inputs of a recipe of the page, on three pictures."""
    (folder / "photos").mkdir()
    draw = np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photos/{number}.png")
    recipe = Recipe.parse(recipes()[name], folder, name, changes)
    return Audit(recipe, Workspace(folder / "w")).inputs


def outputs(inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = inputs.network(torch.tensor(inputs.encode(np.arange(3), -1)[0]))
    return result


@pytest.mark.parametrize("name", ["timm", "torchvision", "transformers"])
def test_the_recipe_can_be_read(name: str) -> None:
    values = resources.parse_value(recipes()[name])
    assert read_settings(RecipeFile, values, name).network.factory.startswith(name)


def test_timm(tmp_path: Path) -> None:
    timm = library("timm")
    module = timm.create_model("resnet18", num_classes=0)
    torch.save(module.state_dict(), tmp_path / "resnet50.pth")
    opened = inputs("timm", tmp_path, "network.arguments.model_name=resnet18")
    cfg = module.pretrained_cfg
    assert opened.source.input_shape == cfg["input_size"]
    assert opened.opened_source_spec.interpolation == cfg["interpolation"]
    assert outputs(opened).shape == (PICTURES, 512)
    # A live model of timm is named by its factory.
    example = opened.encode(np.zeros(1, dtype=np.int64), -1)[0]
    named = name_factory(module, example)
    assert named == ("timm:create_model", {"model_name": "resnet18", "num_classes": 0})
    module.conv1.stride = (1, 1)
    assert name_factory(module, example) == (LIVE, {})


def test_torchvision(tmp_path: Path) -> None:
    models = library("torchvision").models
    module = models.resnet18(weights=None)
    # A checkpoint without the classifier, which lies behind the embedding.
    state = {k: v for k, v in module.state_dict().items() if not k.startswith("fc.")}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}},
               tmp_path / "checkpoint.pth.tar")  # fmt: skip
    opened = inputs("torchvision", tmp_path, "network.factory=torchvision.models:resnet18")
    got = outputs(opened)
    module.fc = torch.nn.Identity()
    x = torch.tensor(opened.encode(np.arange(3), -1)[0])
    with torch.no_grad():
        assert torch.equal(got, module.eval()(x))
    assert not any(name.startswith("fc") for name in opened.network.trainable)


def test_transformers(tmp_path: Path) -> None:
    transformers = library("transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    module = transformers.Dinov2Model(config).eval()
    module.save_pretrained(tmp_path / "dinov2-base")
    (tmp_path / "dinov2-base/preprocessor_config.json").write_text(
        '{"size": {"height": 28, "width": 28}, "image_mean": [0.5, 0.5, 0.5], '
        '"image_std": [0.5, 0.5, 0.5], "resample": 3}'
    )
    opened = inputs("transformers", tmp_path)
    assert opened.source.input_shape == (3, 28, 28)
    x = torch.tensor(opened.encode(np.arange(3), -1)[0])
    with torch.no_grad():
        assert torch.equal(outputs(opened), module(x).pooler_output)
    # The same weights, from the folder, into a network that a factory of the user builds.
    (tmp_path / "nets.py").write_text(
        "import transformers\n\n\ndef build(**given):\n"
        "    return transformers.Dinov2Model(transformers.Dinov2Config(**given))\n"
    )
    given = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    spec = NetworkSpec(
        "nets.py:build", {**given, "image_size": 28, "patch_size": 14}, "dinov2-base"
    )
    # The names in the file are those of earlier versions of the library.
    block = "encoder.layer.*.attention"
    old = {"attention.query": "q_proj", "attention.key": "k_proj", "attention.value": "v_proj"}
    old["output.dense"] = "o_proj"
    stored = load_file(tmp_path / "dinov2-base/model.safetensors")
    rename = {
        f"{block}.{name}": f"{block}.{new}"
        for name, new in old.items()
        if f"encoder.layer.0.attention.{name}.weight" in stored
    }
    spec = replace(spec, output="pooler_output", rename=rename)
    network = load_network(spec, None, tmp_path)
    with torch.no_grad():
        assert torch.equal(network(x), module(x).pooler_output)
