"""The tape, its layers, its plan: every gradient against autograd on each sample alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from krepes_ooc.errors import NetworkError
from krepes_ooc.jacobian import gradient_plan
from krepes_ooc.jacobian.gradients import module_vjp
from krepes_ooc.jacobian.gradients.replaced_parameters import replaced_parameters
from krepes_ooc.jacobian.gradients.tape import Tape
from krepes_ooc.jacobian.jacobian import GradientRule, Jacobian
from krepes_ooc.network.frozen import FrozenNetwork, freeze
from tests.jacobian.tape_networks import CASES, Custom, build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # vmap tells where it is slow


def overwriting() -> FrozenNetwork:
    def run(m, x):
        h = m.a(x)
        z = m.b(h)
        h.mul_(2.0)
        return z + h

    torch.manual_seed(0)
    return freeze(Custom(run, a=nn.Linear(6, 4), b=nn.Linear(4, 4)))


def exact_gradients(network: FrozenNetwork, inputs, probe, names=()) -> dict[str, torch.Tensor]:
    """One sample after the other, by plain autograd."""
    names = names or [name for name, _ in network.inner.named_parameters()]
    copied = network.differentiable_copy(names)
    leaves = [copied.inner.get_parameter(name) for name in names]
    rows = [
        torch.autograd.grad(copied(x[None].clone())[0] @ probe, leaves, materialize_grads=True)
        for x in inputs
    ]
    return {
        name: torch.stack(row) for name, row in zip(names, zip(*rows, strict=True), strict=True)
    }


@pytest.mark.parametrize("case", CASES)
def test_planned_gradients_are_exact(case: str) -> None:
    network, inputs = build(case)
    units = gradient_plan.plan_rules(network, network.trainable, inputs[:2])
    methods = CASES[case][2]
    assert not methods or {unit.method for unit in units} == methods
    double = network.deep_copy().double()
    probe = torch.linspace(-1.0, 1.5, double(inputs.double()).shape[1], dtype=torch.float64)
    exact = exact_gradients(double, inputs.double(), probe)
    scale = max(float(g.norm()) for g in exact.values())
    loops = Jacobian(double, [unit.in_loop() for unit in units])
    actual = dict(loops.gradients(inputs.double(), probe))
    assert set(actual) == set(exact)
    for name, gradient in exact.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-9, atol=1e-11 * scale)
    single = dict(Jacobian(network, units).gradients(inputs, probe.float()))
    for name, gradient in exact.items():
        torch.testing.assert_close(single[name].double(), gradient, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("case", [case for case in CASES if "shared" in case])
def test_a_module_with_several_names_is_as_it_was_afterwards(case: str) -> None:
    network, inputs = build(case)
    inner = network.inner
    before = dict(inner.named_parameters(remove_duplicate=False))
    state = {name: 2.0 * value for name, value in inner.named_parameters()}
    for _ in range(2):
        with replaced_parameters(inner, state):
            result = inner(inputs.clone())
        assert not torch.equal(result, inner(inputs.clone()))
        after = dict(inner.named_parameters(remove_duplicate=False))
        assert all(after[name] is parameter for name, parameter in before.items())
    # As if the weights themselves were changed.
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.mul_(2.0)
    torch.testing.assert_close(result, inner(inputs.clone()))


def test_modules_in_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = build("transposed convolution")
    jacobian = Jacobian(network, gradient_plan.plan_rules(network, network.trainable, inputs[:2]))
    probe = torch.ones(network(inputs).shape[1])
    whole = dict(jacobian.gradients(inputs, probe))
    monkeypatch.setattr(
        module_vjp, "CHUNK_NUMBERS", 3 * sum(p.numel() for p in network.parameters())
    )
    for name, part in jacobian.gradients(inputs, probe):
        torch.testing.assert_close(part, whole[name])


def test_where_vmap_fails_a_loop_is_taken() -> None:
    def run(m, x):
        assert float(x.sum()) < 1e9  # vmap refuses to turn a value into a number
        return functional.linear(x, m.a.weight)

    network = freeze(Custom(run, a=nn.Linear(6, 4, bias=False)))
    inputs, probe = torch.randn(3, 6), torch.ones(4)
    units = gradient_plan.plan_rules(network, network.trainable, inputs[:2])
    assert [unit.method for unit in units] == ["loop"]
    for _, gradient in Jacobian(network, units).gradients(inputs, probe):
        torch.testing.assert_close(gradient, inputs[:, None, :].expand(3, 4, 6))


def test_what_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = build("weight used functionally")
    monkeypatch.setattr(gradient_plan, "_common_ancestors", lambda owners: owners)
    with pytest.raises(NetworkError, match=r"a.weight: no way was found.*leave it out"):
        gradient_plan.plan_rules(network, network.trainable, inputs[:2])


def test_an_input_overwritten_behind_the_tape_is_run_again() -> None:
    network, inputs = overwriting(), torch.randn(3, 6)
    units = gradient_plan.plan_rules(network, ("a.weight", "b.bias"), inputs[:2])
    assert {(unit.method, unit.name) for unit in units} == {("layer", "a"), ("vjp", "")}
    probe = torch.ones(4)
    exact = exact_gradients(network, inputs, probe, ("a.weight", "b.bias"))
    for name, gradient in Jacobian(network, units).gradients(inputs, probe):
        torch.testing.assert_close(gradient, exact[name])


def test_wrong_plans_are_not_believed() -> None:
    """The trial that judges plans sees each planted fault."""
    network, inputs = build("transformer")
    trial = gradient_plan.GradientTrial(network, network.trainable, inputs[:2])
    good = {"head.weight": (GradientRule("layer", "head", ("head.weight",)),)}
    assert trial.wrong_parameters(good) == []
    name = "encoder.layers.0.linear1.weight"
    faults: list[gradient_plan.GradientPath] = [
        (),
        (GradientRule("layer", "encoder.layers.0.linear1", (name,), 1),),
        (GradientRule("layer", "encoder.layers.0.linear2", (name,)),),
        (GradientRule("vjp", "encoder.layers.0.linear1", (name,), 0, (1, 1)),),
        (GradientRule("bare", name, (name,), 3),),
    ]
    for fault in faults:
        assert trial.wrong_parameters({name: fault}) == [name]
        assert trial.wrong_parameters({**good, name: fault}) == [name]


def sensitive() -> FrozenNetwork:
    """Rounding of a sample alone changes the gradient by some hundredths, and no output."""

    def run(m, x):
        if len(x) == 1 and x.dtype == torch.float32:
            x = x * (1 + 2e-7)
        z = m.a(x)
        # The derivative 1 + 0.05 cos(2e7 z), which float32 can only guess.
        return m.b(z + 2.5e-9 * torch.sin(2e7 * z))

    torch.manual_seed(0)
    return freeze(Custom(run, a=nn.Linear(6, 4), b=nn.Linear(4, 3)))


def test_sample_axes_are_found_for_all_modules_in_two_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = freeze(nn.Sequential(*[nn.PReLU(6) for _ in range(9)]))
    tapes: list[tuple[str, ...]] = []

    class Counted(Tape):
        def __init__(self, network: FrozenNetwork, layers: tuple[str, ...]) -> None:
            tapes.append(tuple(layers))
            super().__init__(network, layers)

    monkeypatch.setattr(gradient_plan, "Tape", Counted)
    rules = gradient_plan.plan_rules(network, network.trainable, torch.randn(4, 6))
    assert {rule.axes for rule in rules} == {(0, 0)}
    assert [len(names) for names in tapes if names] == [9]


def test_rounding_is_no_fault_of_a_path() -> None:
    network, inputs = sensitive(), torch.randn(4, 6)
    trial = gradient_plan.GradientTrial(network, network.trainable, inputs[:2])
    right = {name: (GradientRule("layer", name[0], (name,)),) for name in ("a.weight", "a.bias")}
    paths = Jacobian(network, gradient_plan.merge_rules(u for p in right.values() for u in p))
    rows = paths.gradients(trial.inputs, trial.probe)
    # Beside the sample alone both are wrong, whatever the path.
    assert min(trial._exact.errors(list(right), rows).values()) > 1e-2
    assert trial.wrong_parameters(right) == []
    # What is wrong in the batch too stays wrong.
    name = "a.weight"
    for fault in (
        (),
        (GradientRule("layer", "b", (name,)),),
        (GradientRule("bare", name, (name,), 3),),
    ):
        assert trial.wrong_parameters({**right, name: fault}) == [name]
    assert {u.method for u in gradient_plan.plan_rules(network, network.trainable, inputs[:2])} == {
        "layer"
    }


def test_an_overwritten_input_is_told_by_the_tape() -> None:
    call = Tape(overwriting(), ["b"]).record(torch.randn(3, 6)).calls[0]
    with pytest.raises(NetworkError, match=r"b: the network overwrites this layer's input.*x \+="):
        _ = call.input


def test_hooks_stay_on_the_tape() -> None:
    network, inputs = build("transformer")
    before = network(inputs)
    Tape(network, ["head"], ["encoder.layers.0.self_attn"]).record(inputs)
    assert not any(layer._forward_hooks for layer in network.modules())
    assert torch.equal(network(inputs), before)


def test_what_runs_without_gradient_has_none() -> None:
    def run(m, x):
        with torch.no_grad():
            h = m.a(x)
        return m.b(h)

    network = freeze(Custom(run, a=nn.Linear(6, 4), b=nn.Linear(4, 2)))
    inputs = torch.randn(3, 6)
    units = gradient_plan.plan_rules(network, network.trainable, inputs[:2])
    actual = dict(Jacobian(network, units).gradients(inputs, torch.ones(2)))
    assert float(actual["a.weight"].norm()) == 0.0
    assert float(actual["b.weight"].norm()) > 0.0
