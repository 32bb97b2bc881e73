"""Opening of a network: bounded by its passes, announced, recorded part by part, or deferred."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from krepes_ooc.errors import NetworkError
from krepes_ooc.jacobian import feature_map as feature_maps
from krepes_ooc.jacobian import gradient_plan, sketched_features
from krepes_ooc.jacobian import opening as openings
from krepes_ooc.jacobian.feature_map import FeatureSettings, expected_layout, open_features
from krepes_ooc.jacobian.gradients.tape import Recording
from krepes_ooc.jacobian.opening import Opening, OpeningDeferred, SampleSize, sample_size
from krepes_ooc.jacobian.output_range import count_range_passes
from krepes_ooc.jacobian.sketched_features import SketchPlan, plan_sketch
from krepes_ooc.network import zoo
from krepes_ooc.network.frozen import FrozenNetwork, freeze

IMAGES = np.random.default_rng(0).random((12, 2, 8, 8)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(8, 12)).astype(np.float32)
AUTO = FeatureSettings()


def cnn(outputs: int = 24) -> nn.Module:
    """A small CNN whose outputs share a few directions, as trained ones do."""
    torch.manual_seed(0)
    module = zoo.small_cnn(2, 8, outputs)
    with torch.no_grad():
        head = module[-1]
        mix = torch.randn(outputs, 5) @ torch.randn(5, head.in_features)
        head.weight.copy_(0.2 * head.weight + mix / 5)
    return module


def sketch_plan(module: nn.Module) -> SketchPlan:
    network = freeze(module)
    n_outputs = network(torch.tensor(IMAGES[:1])).shape[1]
    return plan_sketch(network, network.trainable, tuple(range(n_outputs)), IMAGES, 4096)


def kernel(plan: SketchPlan, probes: np.ndarray) -> np.ndarray:
    rows = plan.build(probes.astype(np.float32), 0).rows(IMAGES)[0].astype(np.float64)
    return rows @ rows.T


# Probes ------------------------------------------------------------------------------------------


def test_the_range_finder_is_as_good_as_the_exact_gram_matrix() -> None:
    plan = sketch_plan(cnn())
    gram = plan.output_gram(0)
    best = np.linalg.eigvalsh(gram)[-4:].sum()
    directions = plan.output_range(4, 0)
    np.testing.assert_allclose(directions @ directions.T, np.eye(4), atol=1e-6)
    assert np.trace(directions @ gram @ directions.T) >= 0.95 * best
    # Mean error of the probed kernel over draws of the random part, against the exact trace.
    exact = kernel(plan, np.eye(24))
    errors: dict[str, list[float]] = {"exact": [], "range": []}
    for seed in range(6):
        given = {
            "exact": sketched_features.deflated_probes(gram, 4, 4, seed),
            "range": sketched_features.complete_probes(directions, 4, seed),
        }
        for name, probes in given.items():
            error = np.linalg.norm(kernel(plan, probes) - exact) / np.linalg.norm(exact)
            errors[name].append(float(error))
    assert np.mean(errors["range"]) <= 1.2 * np.mean(errors["exact"])


def test_many_outputs_take_a_few_dozen_backward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = {"taped": 0, "plain": 0}
    taped, plain = Recording.backward, torch.autograd.grad

    def counted(recording: Recording, probe: torch.Tensor) -> Any:
        passes["taped"] += 1
        passes["plain"] -= 1
        return taped(recording, probe)

    def grad(*args: Any, **kwargs: Any) -> Any:
        passes["plain"] += 1
        return plain(*args, **kwargs)

    network = cnn(2048)
    lines: list[str] = []
    monkeypatch.setattr(Recording, "backward", counted)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    opened = open_features(network, AUTO, IMAGES, opening=Opening(note=lines.append))
    assert opened.probes.shape == (8, 2048)
    np.testing.assert_allclose((opened.probes[:4] @ opened.probes[:4].T), np.eye(4), atol=1e-5)
    # Eight directions on each of four samples.
    assert count_range_passes(4, 4) == 36
    total = sum(passes.values())
    # With the probes given, ways and scales alone: the rest are those of the range finder.
    open_features(network, AUTO, IMAGES, opened.probes)
    others = sum(passes.values()) - total
    assert total - others == 32
    # Scales take 8 probes on all samples and on 4 of them alone, ways a few trials.
    assert others <= 8 * 5 + 20


def test_large_samples_are_opened_in_sixty_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    forward = FrozenNetwork.forward

    def counted(network: FrozenNetwork, inputs: torch.Tensor) -> Any:
        nonlocal seen
        seen += len(inputs)
        return forward(network, inputs)

    size = SampleSize(2**25)
    monkeypatch.setattr(openings, "sample_size", lambda *_: size)
    monkeypatch.setattr(FrozenNetwork, "forward", counted)
    opening = Opening()
    settings = FeatureSettings(kind="sketch")
    opened = open_features(cnn(2048), settings, IMAGES, opening=opening)
    assert opened.probes.shape == (8, 2048)
    assert opening.n_passes <= 60
    # Forward passes alone: every one of them is a third of a pass, or a part of a whole one.
    assert seen <= 60


def test_shapes_alone_decide_between_both() -> None:
    assert sketched_features.uses_gram(128, 64)
    assert not sketched_features.uses_gram(129, 64)
    assert not sketched_features.uses_gram(9, 32), "a pass of a large sample for every output"


def test_few_outputs_keep_the_exact_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SketchPlan, "output_range", None)
    assert open_features(cnn(), AUTO, IMAGES).probes.shape == (8, 24)


# Record ------------------------------------------------------------------------------------------


def test_a_second_opening_computes_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "openings" / "one.json"
    first = open_features(cnn(200), AUTO, IMAGES, opening=Opening(path))
    for module, name in ((gradient_plan, "_proven_rules"), (feature_maps, "calibrate")):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(SketchPlan, "choose_probes", None)
    again = open_features(cnn(200), AUTO, IMAGES, opening=Opening(path))
    assert again.describe() == first.describe()
    assert again.layout == first.layout
    np.testing.assert_array_equal(again.rows(IMAGES)[0], first.rows(IMAGES)[0])


def test_a_killed_opening_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "openings" / "one.json"
    whole = open_features(cnn(), AUTO, IMAGES)

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SketchPlan, "choose_probes", killed)
        with pytest.raises(KeyboardInterrupt):
            open_features(cnn(), AUTO, IMAGES, opening=Opening(path))
    monkeypatch.setattr(gradient_plan, "_proven_rules", None)
    resumed = open_features(cnn(), AUTO, IMAGES, opening=Opening(path))
    assert resumed.layout == whole.layout
    np.testing.assert_array_equal(resumed.rows(IMAGES)[0], whole.rows(IMAGES)[0])


@pytest.mark.parametrize("killed_behind", ["rules", "probes", "scales"])
def test_passes_of_finished_parts_are_not_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_behind: str
) -> None:
    seen = 0
    forward, keep = FrozenNetwork.forward, Opening.keep

    def counted(network: FrozenNetwork, inputs: torch.Tensor) -> Any:
        nonlocal seen
        seen += len(inputs)
        return forward(network, inputs)

    def killed(opening: Opening, key: str, value: Any, **inputs: Any) -> None:
        keep(opening, key, value, **inputs)
        if key == killed_behind:
            raise KeyboardInterrupt

    def samples_of(path: Path) -> int:
        before = seen
        open_features(cnn(200), AUTO, IMAGES, opening=Opening(path))
        return seen - before

    monkeypatch.setattr(FrozenNetwork, "forward", counted)
    whole = samples_of(tmp_path / "whole" / "one.json")
    again = samples_of(tmp_path / "whole" / "one.json")
    path = tmp_path / "killed" / "one.json"
    with monkeypatch.context() as patched:
        patched.setattr(Opening, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            samples_of(path)
    # Every opening looks at the network a little; beside that nothing runs a second time.
    first = seen - whole - again
    resumed = samples_of(path)
    assert first + resumed <= whole + again
    assert again < resumed < whole or killed_behind == "scales"
    assert samples_of(path) == again


@pytest.mark.parametrize("fault", ["damaged record", "other forward", "other width"])
def test_a_record_that_does_not_fit_is_not_used(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "openings" / "one.json"
    module = cnn()
    first = open_features(module, AUTO, IMAGES, opening=Opening(path))
    if fault == "damaged record":
        path.write_bytes(path.read_bytes().replace(b"rules", b"wrong"))
    elif fault == "other forward":
        # The same weights and classes, and another function of them.
        module.register_forward_hook(lambda layer, args, output: output.flip(1))
    else:
        module.register_forward_hook(lambda layer, args, output: output[:, :20])
    again = open_features(module, AUTO, IMAGES, opening=Opening(path))
    assert np.array_equal(again.probes, first.probes) == (fault == "damaged record")


# Estimate and limit ------------------------------------------------------------------------------


def slow(opening: Opening, work: Any, _: int) -> Any:
    opening.pass_seconds = 1.0
    return work()


def test_a_long_opening_is_announced_with_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opening, "measure", slow)
    lines: list[str] = []
    open_features(cnn(200), AUTO, IMAGES, opening=Opening(note=lines.append))
    assert lines[0].startswith("opening the network: about ")
    assert "forward and backward passes of one sample" in lines[0]
    assert [line for line in lines if "8 probes, about 36 s" in line]
    assert lines[-2].startswith("opening: scales on 12 samples, about ")
    assert "done in" in lines[-1]


@pytest.mark.parametrize("build", [cnn, lambda: zoo.mlp(12, [9, 7], 5)], ids=["cnn", "mlp"])
def test_a_deferred_opening_tells_the_sizes_that_it_would_have(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = IMAGES if build is cnn else ROWS
    opened = open_features(build(), AUTO, inputs)
    monkeypatch.setattr(Opening, "measure", slow)
    with pytest.raises(OpeningDeferred) as caught:
        open_features(build(), AUTO, inputs, opening=Opening(limit=5.0))
    assert caught.value.seconds > 5.0
    expected = expected_layout(opened.network, AUTO, caught.value.parameters)
    assert expected.n_features == opened.layout.n_features
    assert expected.n_moments == opened.layout.n_moments
    assert caught.value.n_outputs == opened.n_outputs


def test_large_samples_are_calibrated_a_few_at_a_time() -> None:
    assert SampleSize(1000).batch == SampleSize(1000).n_calibration == 64
    assert SampleSize(2**21).batch == 8
    assert SampleSize(2**21).n_calibration == 3
    assert SampleSize(10**9).batch == 2
    layer = freeze(nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3)))
    assert sample_size(layer, ROWS).numbers == 40 + 40 + 3


# Embedding alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [cnn, lambda: zoo.mlp(12, [9, 7], 5)], ids=["cnn", "mlp"])
def test_the_embedding_alone_has_the_bits_of_rows_and_takes_no_backward_pass(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = IMAGES if build is cnn else ROWS
    opened = open_features(build(), AUTO, inputs)
    expected = opened.rows(inputs)[1]
    monkeypatch.setattr(Recording, "backward", None)
    np.testing.assert_array_equal(opened.embedding(inputs), expected)


class Asserting(nn.Module):
    """A network that asserts the size of its input, as those of timm do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == 4, "Input width does not match model (4)."
        return self.layer(x)


def test_an_assertion_of_the_network_names_the_inputs() -> None:
    with pytest.raises(NetworkError, match=r"does not run: Input width does not match") as caught:
        open_features(Asserting(), AUTO, ROWS)
    assert "inputs of shape (2, 12)" in caught.value.where
