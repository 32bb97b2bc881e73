"""Block kernels speak the array API alone: no host array and no host number inside them.

Two nets, each shown to catch a planted hole: a lint for ``np.`` and ``float()``, and
array-api-strict on a device that is not the host's.
"""

from __future__ import annotations
import __future__

import ast
import types
from functools import partial
from pathlib import Path
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

from krepes_ooc.core.blocks import Block
from krepes_ooc.stages.moments import sums
from krepes_ooc.stages.newton import basis
from krepes_ooc.stages.newton.objectives import byol, simclr

FOLDER = Path(__file__).parents[2] / "krepes_ooc"
# What runs inside a task on blocks, or with moments that lie on a device; all else is the host's.
KERNELS = {
    "stages/features/inner_products": [
        *("gram", "unscale", "self_kernel", "centre_sum", "centre_kernel", "_moments"),
        *("_row_dot", "_sum", "_added", "to_float64"),
    ],
    "stages/kernel/kernel_map": ["landmark_tile", "rows", "centre_rows"],
    "stages/kernel/normalisation": [
        *("normalise", "normalised_self", "centred_self", "is_collapsed", "_inverse_root"),
        "_centred",
    ],
    "stages/moments/sums": [
        *("block_shift", "moment_sums", "merge", "finish", "cross_sums", "merge_cross"),
        "finish_cross",
    ],
    "stages/influence/scores": [
        *(
            "embedding",
            "row_norms",
            "influence_score",
            "aligned",
            "aligned_with",
            "unique",
            "contribution",
        ),
        *(
            "embedding_contribution",
            "unit_rows",
            "top_k",
            "repelling",
            "kernel_score",
        ),
        "positive_only",
    ],
    "stages/landmarks/sampling": [
        "squared_distance",
        "nearest",
        "closest",
        "leverage_scores",
        "unit_scores",
    ],
    "stages/influence/ranking": ["rank"],
    "stages/newton/checkpointed_solve": ["_compute", "parts"],
    "stages/features/featurizer": ["rows_on_device"],
    "jacobian/float16_rows": ["store_rows_on_device"],
    "core/array_columns": [
        "dots",
        "take_columns",
        "put_columns",
        "asarray_like",
        "diagonal_matrix",
        "identity_like",
    ],
    "stages/moments/moments": [
        *("uncentred", "uncentred_times", "uncentred_trace", "difference", "mean_uncentred"),
        "embedding_rms",
    ],
    "stages/newton/objectives/interface": ["wrapped"],
    "stages/newton/basis": ["moments", "_changed", "_times", "_to_float64"],
    "stages/newton/conjugate_gradient": [
        *("conjugate_gradient", "begin", "advance", "verify", "_precondition", "_active"),
        *("_advice", "residual_of", "norms", "rhs_norm", "without_columns"),
    ],
    "stages/newton/solvers": ["_columns", "_eigenpairs"],
    "stages/newton/preconditioners": [
        *("eigh_in_place", "build", "apply", "along", "rotation_curvature", "_eigenpairs"),
    ],
    "stages/newton/objectives/barlow_twins": [
        *("linearise", "residual", "value", "gradient", "jacobian", "adjoint", "product", "gram"),
        *("mean_diagonal", "kronecker", "_component_trace", "rows", "row_products"),
        "_correlation",
    ],
    "stages/newton/objectives/vicreg": [
        *(
            "difference",
            "linearise",
            "_invariance_gradient",
            "value",
            "gradient",
            "product",
            "mean_diagonal",
        ),
        *("kronecker", "active_hinge", "_spread"),
    ],
    "stages/newton/objectives/spectral_contrastive": [
        *("linearise", "_others", "value", "gradient", "product", "mean_diagonal", "kronecker"),
    ],
    "stages/newton/objectives/families": [
        *("times_columns", "flat_columns", "times_flat", "transposed_times", "unit_vectors"),
        *("tangent", "values"),
    ],
    "stages/newton/objectives/simclr": [
        *("softmax", "weighted", "_sides", "unit_derivative", "gradient", "product"),
        *("contrast", "point_curvature", "curvature_trace"),
        *("batches", "embeddings", "shift", "points", "_values", "_product", "_linearise"),
    ],
    "stages/newton/objectives/byol": [
        *("rows", "embeddings", "units", "targets", "_values", "_linearise", "_product"),
        *("_predicted", "_normal_equations"),
    ],
}
HOST = ("np.", "numpy.")
NUMBERS = ("float", "complex", "item", "tolist", "cpu", "numpy")


def host_calls(text: str, names: list[str]) -> list[str]:
    """Uses of NumPy, and conversions of arrays to host numbers, in the named functions."""
    found, seen = [], set()
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef) or function.name not in names:
            continue
        seen.add(function.name)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(HOST):
                found.append(f"{function.name}: {ast.unparse(node)}")
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func).rpartition(".")[2]
                if called in NUMBERS:
                    found.append(f"{function.name}: {called}()")
    assert seen == set(names), f"no such kernels: {set(names) - seen}"
    return found


@pytest.mark.parametrize("module", KERNELS)
def test_kernels_hold_no_host_arrays_and_no_host_numbers(module: str):
    assert host_calls((FOLDER / f"{module}.py").read_text(), KERNELS[module]) == []


def planted(line: str) -> str:
    """The module of the moments with one more line in its kernel."""
    text = (FOLDER / "stages/moments/sums.py").read_text()
    before = "    xp = array_namespace(*views)\n    rows, m = views"
    assert before in text
    return "import numpy as np\n" + text.replace(before, f"    {line}\n{before}").replace(
        "from __future__ import annotations\n", ""
    )


@pytest.mark.parametrize(
    "line",
    [
        "views = [np.asarray(K) for K in views]",
        "scale = float(views[0][0, 0])",
        "scale = views[0][0, 0].item()",
        "views = [np.ascontiguousarray(K) for K in views]",
    ],
)
def test_the_lint_finds_a_planted_hole(line: str):
    assert host_calls(planted(line), KERNELS["stages/moments/sums"])
    assert not host_calls(planted("views = list(views)"), KERNELS["stages/moments/sums"])


def run_planted(line: str) -> Any:
    module = types.ModuleType("planted")
    module.__dict__["__name__"] = "krepes_ooc.stages.moments.sums"
    exec(compile(planted(line), "planted", "exec"), module.__dict__)
    views = [strict.asarray(np.eye(4, dtype="f4"), device=strict.Device("device1"))] * 2
    return module.__dict__["moment_sums"](views, sums.block_shift(views), 2)


@pytest.mark.parametrize(
    "line",
    [
        "views = [np.asarray(K) for K in views]",
        "views = [K + array_namespace(K).zeros((4, 4), dtype=K.dtype) for K in views]",
    ],
)
def test_the_strict_device_stops_a_planted_transfer(line: str):
    assert run_planted("views = list(views)").sums.device == strict.Device("device1")
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        run_planted(line)


OBJECTIVE_HOLES = [
    ("stages/newton/objectives/simclr", "_product", "V = np.asarray(V)"),
    ("stages/newton/objectives/simclr", "_values", "scale = float(views[0][0, 0])"),
    ("stages/newton/objectives/byol", "_product", "V = np.asarray(V)"),
    ("stages/newton/objectives/byol", "_linearise", "scale = views[0][0, 0].item()"),
    ("stages/newton/objectives/simclr", "contrast", "Z = np.asarray(Z)"),
    ("stages/influence/scores", "contribution", "kernel = np.asarray(kernel)"),
    ("stages/influence/scores", "positive_only", "kernel = np.asarray(kernel)"),
    ("stages/landmarks/sampling", "closest", "kernel = np.asarray(kernel)"),
    ("stages/landmarks/sampling", "unit_scores", "damping = float(whitening[0, 0])"),
    ("stages/influence/ranking", "rank", "kernel = np.asarray(kernel)"),
    ("stages/newton/basis", "_times", "K = np.asarray(K)"),
    ("core/array_columns", "put_columns", "new = np.asarray(new)"),
    ("stages/moments/moments", "embedding_rms", "A = np.asarray(A)"),
    ("stages/newton/basis", "moments", "scale = float(self.T[0, 0])"),
    ("stages/newton/conjugate_gradient", "conjugate_gradient", "scale = float(rhs[0, 0])"),
    ("stages/newton/conjugate_gradient", "advance", "rz = state.rz.tolist()"),
    ("stages/newton/solvers", "_columns", "largest = shifts[-1].item()"),
    ("stages/newton/preconditioners", "along", "R = np.asarray(R)"),
    ("stages/newton/objectives/barlow_twins", "gram", "scale = float(self.root[0, 0])"),
    ("stages/newton/objectives/vicreg", "_spread", "scale = A[0, 0].item()"),
    ("stages/newton/objectives/spectral_contrastive", "product", "V = np.asarray(V)"),
    (
        "stages/newton/checkpointed_solve",
        "_compute",
        "scale = float(self.linearisation.on_device.value)",
    ),
    ("stages/features/featurizer", "rows_on_device", "device = made.cpu()"),
    ("jacobian/float16_rows", "store_rows_on_device", "features = features.numpy()"),
]


def with_line(module: str, function: str, line: str) -> str:
    """A module with one more line at the head of a kernel."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text())
    (found,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    found.body.insert(0, ast.parse(line).body[0])
    return ast.unparse(tree)


@pytest.mark.parametrize(("module", "function", "line"), OBJECTIVE_HOLES)
def test_the_lint_finds_a_hole_in_every_module(module: str, function: str, line: str):
    assert host_calls(with_line(module, function, line), KERNELS[module])
    assert not host_calls(with_line(module, function, "pass"), KERNELS[module])


DEVICE = strict.Device("device1")
CPU = strict.Device("CPU_DEVICE")
BLOCK = Block(0, 0, 8)


def on_device(values: Any) -> Any:
    return strict.asarray(values, device=DEVICE)


def block_functions(move: Any) -> dict[str, Any]:
    """Every function that passes over kernel blocks, its arrays moved."""
    draw = np.random.default_rng(0)
    A, V = draw.normal(size=(5, 3, 1)), draw.normal(size=(5, 3, 2))
    offset, W = draw.normal(size=3), draw.normal(size=(3, 3))
    state = simclr._PassState(move(A), move(offset), 0.5, 4)
    predictor = byol.Predictor(move(W), move(offset))
    byol_state = byol._PassState(move(A[..., 0]), move(offset), predictor, 3)
    times = partial(basis._times, move(draw.normal(size=(5, 5))))
    product = partial(simclr._product, state, move(V))
    return {
        "simclr-values": partial(simclr._values, state),
        "simclr-product": product,
        "simclr-linearise": partial(simclr._linearise, state),
        "simclr-in-basis": partial(basis._changed, times, product),
        "simclr-in-float64": partial(basis._changed, basis._to_float64, product),
        "byol-values": partial(byol._values, byol_state, move(V)),
        "byol-product": partial(byol._product, byol_state, move(A[..., 0]), move(V)),
        "byol-linearise": partial(byol._linearise, byol_state, move(A[..., 0])),
        "byol-predictor": partial(byol._normal_equations, byol_state),
    }


VIEWS = [np.random.default_rng(seed).normal(size=(8, 5)).astype("f4") for seed in (1, 2)]


@pytest.mark.parametrize("name", block_functions(np.asarray))
def test_passes_of_objectives_stay_on_the_device(name: str):
    wanted = block_functions(np.asarray)[name](tuple(VIEWS), BLOCK)
    found = block_functions(on_device)[name](tuple(map(on_device, VIEWS)), BLOCK)
    for value, right in zip(found, wanted, strict=True):
        assert value.device == DEVICE
        np.testing.assert_allclose(np.asarray(value.to_device(CPU)), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (simclr, "V = np.asarray(V)"),
        (simclr, "views = [K + array_namespace(K).zeros((8, 5)) for K in views]"),
        (byol, "V = np.asarray(V)"),
        (byol, "views = [K + array_namespace(K).zeros((8, 5)) for K in views]"),
    ],
)
def test_the_strict_device_stops_a_hole_in_an_objective(module: Any, line: str):
    name = module.__name__.rpartition(".")[2]
    text = with_line(f"stages/newton/objectives/{name}", "_product", line)
    assert line.partition(" = ")[0] in text
    changed = types.ModuleType(module.__name__)
    exec(
        compile(
            "import numpy as np\n" + text.replace("from __future__ import annotations", ""),
            "planted",
            "exec",
            flags=__future__.annotations.compiler_flag,
        ),
        changed.__dict__,
    )
    function = block_functions(on_device)[f"{name}-product"]
    assert function(tuple(map(on_device, VIEWS)), BLOCK)[0].device == DEVICE
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        partial(changed.__dict__["_product"], *function.args)(tuple(map(on_device, VIEWS)), BLOCK)
