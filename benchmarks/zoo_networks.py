"""Architectures of torchvision, timm and transformers with random weights, at small sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

N_SAMPLES = 4
N_TOKENS, N_WORDS = 12, 200
Built = tuple[nn.Module, npt.NDArray[Any]]
_OPERATORS = ("nms", "qnms")
_KEPT: list[torch.library.Library] = []


def declare_operators() -> None:
    """Make torchvision importable without its compiled operators; none is called here."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in _OPERATORS:
            with contextlib.suppress(RuntimeError):
                _KEPT[0].define(f"{name}(Tensor dets, Tensor scores, float iou) -> Tensor")
    except ModuleNotFoundError:
        pass


def moved(module: nn.Module) -> nn.Module:
    """The module in eval mode, with every weight moved a little."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


def pictures(size: int) -> npt.NDArray[np.float32]:
    """Random pictures [sample, channel, y, x]."""
    return np.random.default_rng(0).normal(size=(N_SAMPLES, 3, size, size)).astype(np.float32)


def words() -> npt.NDArray[np.int64]:
    """Random tokens [sample, token]."""
    return np.random.default_rng(0).integers(5, N_WORDS, (N_SAMPLES, N_TOKENS))


class Mean(nn.Module):
    """Mean over tokens of the last hidden state of a model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs [sample, output]."""
        hidden: torch.Tensor = self.model(x).last_hidden_state
        return hidden.flatten(2).mean(2) if hidden.ndim == 4 else hidden.mean(1)


def _torchvision(library: Any, *, name: str, size: int, **arguments: Any) -> Built:
    models = __import__("torchvision.models", fromlist=["models"])
    return getattr(models, name)(weights=None, num_classes=16, **arguments), pictures(size)


def _timm(library: Any, *, name: str, size: int, **arguments: Any) -> Built:
    return library.create_model(name, num_classes=0, **arguments), pictures(size)


def _transformers(
    library: Any, *, kind: str, vision: int = 0, sound: int = 0, **configuration: Any
) -> Built:
    model_class = getattr(library, f"{kind}Model", None) or getattr(library, kind)
    config_class = getattr(library, f"{kind.replace('Encoder', '')}Config")
    model = model_class(config_class(**configuration))
    if sound:
        inputs = np.random.default_rng(0).normal(size=(N_SAMPLES, sound)).astype(np.float32)
    else:
        inputs = pictures(vision) if vision else words()
    return Mean(model), inputs


BERT = {
    "vocab_size": N_WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
TORCHVISION: dict[str, dict[str, Any]] = {
    **{
        name: {"size": 64}
        for name in (
            "resnet18",
            "resnext50_32x4d",
            "densenet121",
            "squeezenet1_1",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "shufflenet_v2_x0_5",
            "mnasnet0_5",
            "efficientnet_b0",
            "efficientnet_v2_s",
            "regnet_y_400mf",
            "convnext_tiny",
            "swin_t",
            "swin_v2_t",
        )
    },
    "googlenet": {"size": 64, "aux_logits": False, "init_weights": False},
    "inception_v3": {"size": 96, "aux_logits": False, "init_weights": False},
}
TIMM: dict[str, dict[str, Any]] = {
    **{
        name: {"size": 64, "img_size": 64}
        for name in (
            "vit_tiny_patch16_224",
            "deit3_small_patch16_224",
            "cait_xxs24_224",
            "mixer_s32_224",
            "resmlp_12_224",
            "eva02_tiny_patch14_224",
            "xcit_nano_12_p16_224",
            "beit_base_patch16_224",
        )
    },
    "eva02_tiny_patch14_224": {"size": 56, "img_size": 56},
    "xcit_nano_12_p16_224": {"size": 64},
    "beit_base_patch16_224": {"size": 64, "img_size": 64, "embed_dim": 96, "depth": 2,
                              "num_heads": 4},
    **{
        name: {"size": 64}
        for name in (
            "convnext_atto",
            "convnextv2_atto",
            "poolformer_s12",
            "edgenext_xx_small",
            "mobilevit_xxs",
            "mobilevitv2_050",
            "pvt_v2_b0",
            "fastvit_t8",
            "repvgg_a0",
            "ghostnet_100",
            "hrnet_w18_small",
            "dla34",
            "resnest14d",
            "skresnet18",
            "seresnet18",
            "ecaresnet26t",
            "mambaout_femto",
            "gernet_s",
            "lcnet_050",
            "vgg11_bn",
        )
    },
    "levit_128s": {"size": 224},
    "tiny_vit_5m_224": {"size": 224},
    "hiera_tiny_224": {"size": 224},
    "coat_lite_tiny": {"size": 224},
    "nf_regnet_b0": {"size": 64},
    "resnetv2_50x1_bit": {"size": 64},
}  # fmt: skip
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Bert": BERT,
    "Roberta": BERT,
    "Electra": BERT | {"embedding_size": 16},
    "Albert": BERT | {"embedding_size": 16},
    "MPNet": BERT,
    "DistilBert": {"vocab_size": N_WORDS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "DebertaV2": BERT,
    "GPT2": {"vocab_size": N_WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "OPT": {"vocab_size": N_WORDS, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64,
            "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 32},
    "Llama": BERT | {"num_key_value_heads": 2},
    "Mistral": BERT | {"num_key_value_heads": 2},
    "T5Encoder": {"vocab_size": N_WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
                  "num_heads": 4},
    "ViT": VIT | {"vision": 32},
    "DeiT": VIT | {"vision": 32},
    "Beit": VIT | {"vision": 32},
    "Dinov2": VIT | {"vision": 32},
    "CLIPVision": VIT | {"vision": 32},
    "Swin": {"vision": 32, "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1],
             "num_heads": [2, 4], "window_size": 4},
    "ConvNext": STAGES | {"vision": 64},
    "ResNet": STAGES | {"vision": 64, "embedding_size": 8, "layer_type": "basic"},
    "Wav2Vec2": {"sound": 800, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "intermediate_size": 64, "conv_dim": (16, 16), "conv_stride": (5, 4),
                 "conv_kernel": (10, 8), "num_conv_pos_embeddings": 8,
                 "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2},
}  # fmt: skip
NETWORKS: dict[str, Callable[[Any], Built]] = {
    **{f"torchvision:{n}": partial(_torchvision, name=n, **kw) for n, kw in TORCHVISION.items()},
    **{f"timm:{n}": partial(_timm, name=n, **kw) for n, kw in TIMM.items()},
    **{f"transformers:{n}": partial(_transformers, kind=n, **kw) for n, kw in TRANSFORMERS.items()},
}
