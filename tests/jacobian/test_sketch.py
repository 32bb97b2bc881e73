"""Sketches against their definition, entry by entry, and against the exact kernel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from krepes_ooc.jacobian import sketch as sketch_module
from krepes_ooc.jacobian.feature_map import FeatureSettings, open_features
from krepes_ooc.jacobian.gradients.layer_gradients import (
    ConvGradient,
    DenseGradient,
    EmbeddingGradient,
    GradientTerm,
    OuterProduct,
    expand,
)
from krepes_ooc.jacobian.self_check import self_check
from krepes_ooc.jacobian.sketch import ParameterSketch, Sketch, largest_prime, plan_sketches
from krepes_ooc.network import zoo

SAMPLES = 3
IMAGES = np.random.default_rng(0).normal(size=(12, 2, 8, 8)).astype(np.float32)


def draw(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(sum(shape)).normal(size=shape)).float()


def patches(
    rows: int, channels: int, groups: int = 1, entries: int = 1, size: int = 5
) -> ConvGradient:
    shape = (rows, channels // groups, 3, 2)
    out = ((size - 3) // 2 + 1, size - 1)
    inputs = draw(SAMPLES, entries, channels, size, size)
    return ConvGradient(
        "p", inputs, draw(SAMPLES, entries, rows, *out), shape, (2, 1), (1, 1), groups
    )


FOLDED: dict[str, tuple[tuple[int, ...], GradientTerm]] = {
    "scalar": ((), DenseGradient("p", draw(SAMPLES))),
    "vector": ((7,), DenseGradient("p", draw(SAMPLES, 7))),
    "dense": ((9, 4, 2), DenseGradient("p", draw(SAMPLES, 9, 4, 2))),
    "rows of a dense one": ((9, 4), DenseGradient("p", draw(SAMPLES, 3, 4), start=5)),
    "later samples": ((9, 4), DenseGradient("p", draw(1, 9, 4), first=2)),
    "outer": ((11, 6), OuterProduct("p", draw(SAMPLES, 4, 6), draw(SAMPLES, 4, 11))),
    "rows of an outer one": (
        (11, 6),
        OuterProduct("p", draw(SAMPLES, 2, 6), draw(SAMPLES, 2, 5), 4),
    ),
    "few patches": ((4, 2, 3, 2), patches(4, 2)),
    "many patches": ((4, 2, 3, 2), patches(4, 2, size=13)),
    "patches in groups": ((6, 2, 3, 2), patches(6, 4, groups=2)),
    "folded patches": ((4, 2, 3, 2), patches(4, 2, entries=3)),
    "tokens": (
        (5, 6),
        EmbeddingGradient(
            "p", torch.tensor([[0, 4, 4], [1, 1, 1], [3, 2, 0]]), draw(SAMPLES, 3, 6)
        ),
    ),
}
TENSORED = [name for name in FOLDED if "outer" in name or name in ("few patches", "folded patches")]


def fold_matrix(sketch: Sketch, shape: tuple[int, ...], probe: int) -> np.ndarray:
    """The definition: entry i goes with its three signs to column (offset + i) mod q."""
    fold, width = sketch.maps["p"], int(np.prod(shape[1:], dtype=int))
    matrix = np.zeros((int(np.prod(shape, dtype=int)), sketch.n_columns))
    for i in range(len(matrix)):
        chunk, column = divmod(fold.offsets[probe] + i, sketch.prime)
        sign = sketch.table[(chunk + fold.first_row) % sketch_module.TABLE_ROWS, column]
        sign = sign * fold.chunk_signs[chunk] * fold.row_signs[probe, i // width]
        matrix[i, column] = float(sign)
    return matrix


def tensor_matrix(sketch: Sketch, shape: tuple[int, ...], probe: int) -> np.ndarray:
    """The definition: entry (i, j) goes with two signs to column left(i) + right(j) mod D."""
    tensor, width = sketch.maps["p"], int(np.prod(shape[1:], dtype=int))
    left, right = tensor.left[probe], tensor.right
    matrix = np.zeros((shape[0] * width, sketch.n_columns))
    for i in range(shape[0]):
        for j in range(width):
            column = int(left.columns[i] + right.columns[j]) % sketch.n_columns
            matrix[i * width + j, column] = float(left.signs[i] * right.signs[j])
    return matrix


@pytest.mark.parametrize("scratch", [2**21, 64])
@pytest.mark.parametrize("name", [*FOLDED, *(f"tensor {name}" for name in TENSORED)])
@pytest.mark.parametrize("n_columns", [16, 64])
def test_a_sketch_is_its_definition(name, n_columns, scratch, monkeypatch) -> None:
    monkeypatch.setattr(sketch_module, "SCRATCH", scratch)
    monkeypatch.setattr(sketch_module, "TENSOR_ROWS", scratch // 16)
    shape, piece = FOLDED[name.removeprefix("tensor ")]
    tensor = name.startswith("tensor ")
    sketch = Sketch([ParameterSketch("p", shape, tensor)], n_columns, 2, seed=5)
    dense = np.zeros((SAMPLES, int(np.prod(shape, dtype=int))))
    values = expand(piece, shape).double().numpy()
    first = piece.first if isinstance(piece, DenseGradient) else 0
    dense[first : first + len(values)] = values.reshape(len(values), -1)
    for probe in range(2):
        rows = sketch.open_rows(SAMPLES)
        rows.add(piece, probe)
        matrix = (tensor_matrix if tensor else fold_matrix)(sketch, shape, probe)
        assert (np.abs(matrix).sum(axis=1) == 1.0).all()
        np.testing.assert_allclose(rows.finish().numpy(), dense @ matrix, atol=2e-4)


def test_all_tiles_of_a_batch_lie_in_one_small_buffer(monkeypatch) -> None:
    monkeypatch.setattr(sketch_module, "SCRATCH", 64)
    names = ("outer", "few patches", "many patches", "patches in groups")
    slots = [ParameterSketch(name, FOLDED[name][0], False) for name in names]
    rows = Sketch(slots, 32, 1, seed=5).open_rows(SAMPLES)
    used: list[int] = []
    scratch = rows.scratch

    def watched(numbers: int) -> torch.Tensor:
        used.append(numbers)
        return scratch(numbers)

    monkeypatch.setattr(rows, "scratch", watched)
    for name in names:
        before = len(used)
        rows.add(replace(FOLDED[name][1], parameter=name), 0)
        assert len(used) > before, f"{name} takes memory of its own"
    assert len(rows._scratch) == max(used) <= 72, "one sample of the grouped convolution"


@pytest.mark.parametrize("tensor", [False, True])
def test_inner_products_are_unbiased_over_seeds(tensor: bool) -> None:
    """Two parameters, two probes: the kernel of the sum, without cross terms."""
    draws, n_columns = 400, 16
    rng = np.random.default_rng(1)
    exact, actual = np.zeros((2, 2)), np.zeros((draws, 2, 2))
    pieces = []
    for name in "ab":
        for probe in range(2):
            inputs, gradients = (
                torch.from_numpy(rng.normal(size=(2, 1, 5))).float() for _ in range(2)
            )
            pieces.append((OuterProduct(name, inputs, gradients), probe))
            flat = expand(pieces[-1][0], (5, 5)).flatten(1).double().numpy()
            exact += flat @ flat.T
    for seed in range(draws):
        rows = Sketch(
            [ParameterSketch("a", (5, 5), tensor), ParameterSketch("b", (5, 5), tensor)],
            n_columns,
            2,
            seed,
        )
        opened = rows.open_rows(2)
        for piece, probe in pieces:
            opened.add(piece, probe)
        row = opened.finish().double().numpy()
        actual[seed] = row @ row.T
    error = actual.mean(axis=0) - exact
    assert (np.abs(error) < 4.5 * actual.std(axis=0) / np.sqrt(draws)).all()


def test_the_plan_follows_shapes() -> None:
    def planned(piece: GradientTerm, shape: tuple[int, ...], n_columns: int = 4096) -> bool:
        return plan_sketches([piece], {"p": shape}, n_columns)[0].tensor

    wide, narrow = draw(1, 1, 2000), draw(1, 1, 20)
    assert planned(OuterProduct("p", wide, wide), (2000, 2000))
    assert not planned(OuterProduct("p", narrow, narrow), (20, 20))
    assert not planned(OuterProduct("p", draw(1, 400, 200), draw(1, 400, 200)), (200, 200))
    assert planned(OuterProduct("p", draw(1, 400, 200), draw(1, 400, 200)), (200, 200), 16)
    assert not planned(DenseGradient("p", draw(1, 2000, 20)), (2000, 20))
    mixed = [OuterProduct("p", wide, wide), DenseGradient("p", draw(1, 2000, 2000))]
    assert not plan_sketches(mixed, {"p": (2000, 2000)}, 4096)[0].tensor
    assert not plan_sketches([], {"p": (2000, 2000)}, 4096)[0].tensor
    assert plan_sketches([], {"p": (3,)}, 16)[0].to_attributes() == {
        "parameter": "p",
        "sketch": "fold",
    }


def test_largest_prime() -> None:
    assert [largest_prime(n) for n in (2, 4, 16, 256, 1024, 4096)] == [2, 3, 13, 251, 1021, 4093]


def exact_kernel(actual, images: np.ndarray) -> np.ndarray:
    """sum over probes of the exact gradients' inner products, float64."""
    kernel, double = np.zeros((len(images), len(images))), actual.double()
    for probe in actual.probes:
        full = torch.from_numpy(probe).double()
        for _, gradient in double.gradients(torch.from_numpy(images).double(), full):
            flat = gradient.flatten(1).numpy()
            kernel += flat @ flat.T
    return kernel


NETWORKS = {
    "cnn": lambda: zoo.small_cnn(2, 8, 12),
    "vit": lambda: zoo.small_vit(2, 8, 12, 4, 16, 2, 2),
    "mlp": lambda: zoo.mlp(128, [300], 12),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n_columns", [256, 4096])
def test_rows_estimate_the_probed_kernel(name: str, n_columns: int) -> None:
    torch.manual_seed(0)
    module = NETWORKS[name]()
    settings = FeatureSettings(kind="sketch", sketch=n_columns)
    actual = open_features(module, settings, IMAGES)
    assert len(actual.probes) == (1 if name == "mlp" else 8)
    assert actual.layout.is_sketch
    rows, embedding = actual.rows(IMAGES)
    assert rows.dtype == np.float32
    assert rows.shape == (12, n_columns)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(IMAGES))
    np.testing.assert_allclose(embedding, expected, atol=1e-5)
    exact = exact_kernel(actual, IMAGES)
    error = np.linalg.norm(rows.astype(float) @ rows.T - exact) / np.linalg.norm(exact)
    assert error < 4.0 / np.sqrt(n_columns)
    assert self_check(module, actual, IMAGES[:2]).max_relative_error < 1e-9


def test_clones_in_threads_give_the_same_bits() -> None:
    torch.manual_seed(0)
    actual = open_features(NETWORKS["vit"](), FeatureSettings(), IMAGES)
    expected = actual.rows(IMAGES)[0]
    clones = [actual.clone() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        # The last three share one map: they wait for each other.
        futures = [pool.submit(clone.rows, IMAGES) for clone in [*clones, actual, actual, actual]]
        for future in futures:
            np.testing.assert_array_equal(future.result()[0], expected)
    assert clones[0].sketch is actual.sketch


def test_opening_again_gives_the_same_bits_and_probes_can_be_given() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return NETWORKS["cnn"]()

    first = open_features(build(), FeatureSettings(sketch=64), IMAGES)
    again = open_features(build(), FeatureSettings(sketch=64), IMAGES)
    described = first.describe()
    provided = open_features(build(), FeatureSettings(sketch=64), IMAGES[:2], described["probes"])
    other = open_features(build(), FeatureSettings(sketch=64), IMAGES, seed=1)
    np.testing.assert_array_equal(first.rows(IMAGES)[0], again.rows(IMAGES)[0])
    np.testing.assert_array_equal(first.rows(IMAGES)[0], provided.rows(IMAGES)[0])
    assert (first.rows(IMAGES)[0] != other.rows(IMAGES)[0]).any()
    assert described["kind"] == "sketch"
    assert {unit["method"] for unit in described["plan"]} == {"layer"}
    assert [slot["parameter"] for slot in described["sketch"]] == list(first.parameters)


def test_calibrated_probes_span_the_leading_outputs() -> None:
    """One output direction carries nearly all of the Jacobian: deflation finds it."""
    torch.manual_seed(0)
    module = NETWORKS["cnn"]()
    with torch.no_grad():
        module[-1].weight *= 0.01
        module[-1].weight[3] *= 1000.0
    actual = open_features(module, FeatureSettings(probes=2, deflated_probes=1), IMAGES)
    assert len(actual.probes) == 3
    assert abs(actual.probes[0, 3]) > 0.99
    assert np.abs(actual.probes[1:, 3]).max() < 0.1
    few = open_features(
        module, FeatureSettings(probes=3, outputs=(3, 5), deflated_probes=2), IMAGES
    )
    np.testing.assert_array_equal(few.probes, np.eye(2))
