"""Other libraries' gradient features, on the same network, probe and number of columns.

    python -m venv peers && peers/bin/pip install -e . traker==0.3.2 dattri==0.3.0 "torch==2.13.0"

One that is not installed is skipped with one line.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import nn

Rows = Callable[[torch.Tensor], torch.Tensor]


def peers(module: nn.Module, probe: torch.Tensor, columns: int) -> dict[str, Callable[[], Rows]]:
    """What makes each peer's rows [sample, column]; making it may raise ImportError."""
    return {
        "traker BasicProjector": lambda: traker_rows(module, probe, columns),
        "dattri random_project": lambda: dattri_rows(module, probe, columns),
        "dattri LoGra": lambda: logra_rows(module, probe, columns),
    }


def sample_gradients(module: nn.Module, probe: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Gradients [sample, parameter number] of <probe, f> by vmap, as these libraries take them."""
    state = {name: value.detach() for name, value in module.named_parameters()}

    def value(parameters: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, parameters, (sample[None],))[0] @ probe

    found = torch.func.vmap(torch.func.grad(value), (None, 0))(state, inputs)
    return torch.cat([gradient.flatten(1) for gradient in found.values()], dim=1)


def traker_rows(module: nn.Module, probe: torch.Tensor, columns: int) -> Rows:
    """TRAK's projector for processors."""
    project = traker_projector(sum(p.numel() for p in module.parameters()), columns)

    def rows(inputs: torch.Tensor) -> torch.Tensor:
        gradients = [sample_gradients(module, probe, part) for part in inputs.split(32)]
        return project(torch.cat(gradients))

    return rows


def traker_projector(size: int, columns: int) -> Rows:
    """TRAK's projection of gradients [sample, parameter number]; it makes its matrix anew."""
    from trak.projectors import BasicProjector, ProjectionType

    projector = BasicProjector(size, columns, 0, ProjectionType.rademacher, torch.device("cpu"))
    return lambda gradients: projector.project(gradients, model_id=0)


def dattri_rows(module: nn.Module, probe: torch.Tensor, columns: int) -> Rows:
    """dattri's dense projector behind vmap."""
    from dattri.func.projection import random_project

    def rows(inputs: torch.Tensor) -> torch.Tensor:
        parts = [sample_gradients(module, probe, part) for part in inputs.split(32)]
        gradients = torch.cat(parts)
        project = random_project(gradients, len(gradients), columns, len(gradients))
        return project(gradients)

    return rows


def logra_rows(module: nn.Module, probe: torch.Tensor, columns: int) -> Rows:
    """dattri's LoGra on all Linear layers, which share the columns among them."""
    from dattri.algorithm.block_projected_if.core.compressor import setup_model_compressors
    from dattri.algorithm.block_projected_if.core.hook import HookManager

    # Attention applies its own Linear layers functionally, where LoGra cannot see them.
    names = [
        name
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear and "self_attn" not in name
    ]
    module = copy.deepcopy(module)  # it replaces the layers' own methods
    side = math.isqrt(columns // len(names))
    first = {"device": "cpu", "proj_dim": side, "proj_max_batch_size": 64, "proj_type": "normal"}
    second = first | {"proj_dim": -1, "proj_type": "identity"}
    manager: list[HookManager] = []

    def rows(inputs: torch.Tensor) -> torch.Tensor:
        if not manager:
            made = setup_model_compressors(
                module,
                names,
                sparsifier_kwargs=first,
                projector_kwargs=second,
                sample_inputs=[inputs[:2]],  # it takes the first entry for the batch
                device="cpu",
            )
            manager.append(HookManager(module, names))
            manager[0].set_compressors(made)
        module.zero_grad(set_to_none=True)
        (module(inputs) @ probe).sum().backward()
        return torch.cat([part.flatten(1) for part in manager[0].get_compressed_grads()], dim=1)

    return rows
