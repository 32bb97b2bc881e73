"""The newton stage on a small workspace: oracle residuals, resuming, refusals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from krepes_ooc.errors import Stopped, UsageError
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.kernel import stream
from krepes_ooc.stages.newton.objectives.registry import OBJECTIVES
from tests.residual import relative_residual

ROWS, LANDMARKS, COMPONENTS = 600, 16, 4
SETTINGS = (
    f"source.limit={ROWS}",
    "network.arguments={inputs: 64, hidden: [12], outputs: 6}",
    "stages.pretrain.epochs=2",
    "stages.features.block_rows=256",
    f"stages.landmarks.count={LANDMARKS}",
    "stages.audited={audit: 20, fit: 40}",
    f"stages.spectrum.components={COMPONENTS}",
)
SIMCLR = ("objective=simclr", "objective_settings={batch: 64}", "damping_grid=[1.0e-1, 10, 1000]")
STREAMED = ("simclr", "byol")


def recipe(views: int, *settings: str) -> Recipe:
    mine = (f"stages.newton.{text}" for text in settings)
    return Recipe.load("digits", (*SETTINGS, f"views.count={views}", *mine))


class Notes:
    """A listener that remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, stage: str, total: int, done: int) -> None: ...
    def advance(self, units: int = 1, n_bytes: int = 0) -> None: ...
    def end(self, stage: str, seconds: float, memory: str = "") -> None: ...

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Workspaces sealed up to the spectrum, one for each number of views."""
    known: dict[int, Path] = {}

    def at(views: int) -> Path:
        if views not in known:
            known[views] = tmp_path_factory.mktemp(f"views-{views}") / "w"
            run(recipe(views), known[views], Options(until="spectrum"))
        return known[views]

    return at


@pytest.fixture
def fresh(upstream: Callable[[int], Path], tmp_path: Path) -> Callable[..., Path]:
    def copy(views: int = 2, name: str = "w") -> Path:
        return Path(shutil.copytree(upstream(views), tmp_path / name))

    return copy


def solve(workspace: Path, views: int, *settings: str) -> tuple[Any, list[str]]:
    notes = Notes()
    run(recipe(views, *settings), workspace, Options(only="newton"), notes)
    # What is said of the network comes before the stage.
    lines = [line for line in notes.lines if not line.startswith("network: ")]
    return sealed(workspace), lines


def sealed(workspace: Path) -> Any:
    return zarr.open_group(str(workspace / "audit.zarr"), mode="r", use_consolidated=False)[
        "newton"
    ]


def contents(group: Any) -> dict[str, Any]:
    arrays = {name: np.asarray(array[:]) for name, array in group.arrays()}
    return arrays | {"attributes": dict(group.attrs)}


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        same = value == right[name] if name == "attributes" else np.array_equal(value, right[name])
        assert same, name


# ------------------------------------------------------------------ the step solves its system


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("metric", ["euclidean", "rkhs"])
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_the_sealed_step_solves_its_system(
    fresh: Callable[..., Path], objective: str, metric: str, views: int
) -> None:
    workspace = fresh(views)
    batch = "objective_settings={batch: 64}" if objective == "simclr" else "lm_steps=auto"
    group, notes = solve(workspace, views, f"objective={objective}", f"metric={metric}", batch)
    facts = dict(group.attrs)
    name, residual = relative_residual(workspace)
    assert name == objective == facts["objective"]
    # The solver's norm is that of the metric; the oracle's is that of the coefficients.
    assert residual <= (2 if metric == "rkhs" else 1.01) * facts["tolerance"]
    assert facts["residual_norm"] <= facts["tolerance"]
    assert residual == pytest.approx(facts["residual_norm"], rel=0.05, abs=1e-4)
    assert all(np.isfinite(array[:]).all() for _, array in group.arrays())
    assert facts["trusted"] == (facts["loss_step"] < facts["loss_start"])
    assert facts["products"] == sum(facts["diagnostics"]["products"].values())
    passes = facts["diagnostics"]["passes"]
    assert (passes > 0) == (objective in STREAMED)
    assert (f"{passes} passes over the kernel" in notes[0]) == (passes > 0)
    assert ("coefficients_lm" in group) == (objective not in STREAMED)
    assert group["stability"].shape == group["damping"].shape
    at = list(group["damping_relative"][:]).index(facts["damping_relative"])
    assert group["relative_residual"][at] == facts["residual_norm"]


@pytest.mark.parametrize("objective", ["barlow-twins", "byol"])
def test_a_fixed_damping_is_taken_and_judged(fresh: Callable[..., Path], objective: str) -> None:
    workspace = fresh()
    group, _ = solve(workspace, 2, f"objective={objective}", "damping=33", "lm_steps=0")
    assert group.attrs["damping_relative"] == 33
    assert 33 in group["damping_relative"][:]
    assert group.attrs["reason"].startswith("damping fixed by the recipe")
    assert relative_residual(workspace)[1] <= group.attrs["tolerance"]


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("how", ["kronecker", "nystrom", "none"])
def test_every_preconditioner_reaches_the_same_step(
    fresh: Callable[..., Path], objective: str, how: str
) -> None:
    batch = ("objective_settings={batch: 64}",) if objective == "simclr" else ()
    common = (f"objective={objective}", *batch, "damping_grid=[10]", "damping=10", "tolerance=1e-5")
    workspace = fresh()
    group, _ = solve(
        workspace, 2, *common, "solver=krylov", f"preconditioner={how}", "preconditioner_rank=20"
    )
    assert relative_residual(workspace)[1] < 2e-5
    products = group.attrs["diagnostics"]["products"]["preconditioner"]
    turns = int(objective in ("simclr", "spectral-contrastive"))
    assert products == {"kronecker": turns, "nystrom": 20, "none": 0}[how]


def test_a_solve_that_stops_early_is_not_trusted(fresh: Callable[..., Path]) -> None:
    group, notes = solve(fresh(), 2, *SIMCLR, "max_iterations=1", "damping=0.1")
    facts = dict(group.attrs)
    assert facts["residual_norm"] > facts["tolerance"]
    assert not facts["trusted"]
    assert "does not reach the tolerance" in facts["reason"]
    assert "raise max_iterations or the damping" in facts["reason"]
    assert "this step is NOT to be trusted" in notes


def test_a_step_that_raises_the_loss_is_not_trusted(fresh: Callable[..., Path]) -> None:
    group, _ = solve(
        fresh(),
        2,
        "objective=spectral-contrastive",
        "damping=0.01",
        "damping_grid=[0.01]",
        "lm_steps=0",
    )
    facts = dict(group.attrs)
    assert facts["loss_step"] > facts["loss_start"]
    assert facts["rho"] < 0
    assert not facts["trusted"]
    assert "does not lower the loss" in facts["reason"]


def test_the_fitted_predictor_is_sealed(fresh: Callable[..., Path]) -> None:
    workspace = fresh()
    group, _ = solve(
        workspace, 2, "objective=byol", "objective_settings={predictor: ridge}", "damping=1"
    )
    assert group["predictor_weight"].shape == (COMPONENTS, COMPONENTS)
    assert relative_residual(workspace)[1] <= 1e-3


# ------------------------------------------------------------------ killed and resumed


class Killed(BaseException):
    """Stands for a kill inside a pass."""


def count_passes(monkeypatch: pytest.MonkeyPatch, limit: int | None = None) -> list[int]:
    """Count finished passes; after ``limit`` of them the next one is done but never noted."""
    done: list[int] = []
    reduce = stream.KernelStream.reduce

    def counted(self: Any, function: Any) -> Any:
        found = reduce(self, function)
        done.append(1)
        if limit is not None and len(done) > limit:
            raise Killed
        return found

    monkeypatch.setattr(stream.KernelStream, "reduce", counted)
    return done


@pytest.mark.parametrize(
    "extra",
    [(), ("lm_steps=2",), ("preconditioner=nystrom", "preconditioner_rank=40")],
    ids=["kronecker", "descent", "nystrom"],
)
def test_a_killed_solve_resumes_to_the_same_bits(
    fresh: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...]
) -> None:
    settings = (*SIMCLR, *extra)
    with monkeypatch.context() as patch:
        done = count_passes(patch)
        whole = contents(solve(fresh(name="whole"), 2, *settings)[0])
        passes = len(done)
    assert passes == whole["attributes"]["diagnostics"]["passes"]
    assert passes >= 8
    for limit in (0, 1, 2, passes // 2, passes - 2, passes - 1):
        workspace = fresh(name=f"killed-{limit}")
        with monkeypatch.context() as patch:
            before = count_passes(patch, limit)
            with pytest.raises(Killed):
                solve(workspace, 2, *settings)
        with monkeypatch.context() as patch:
            after = count_passes(patch)
            resumed = contents(solve(workspace, 2, *settings)[0])
        assert_same(resumed, whole)
        assert len(before) + len(after) - passes == 1  # the pass that was never noted


KILL = """
import os, signal, sys
from krepes_ooc.stages.kernel import stream
from tests.stages.newton.test_stage import SIMCLR, solve
from pathlib import Path
reduce, done = stream.KernelStream.reduce, []
def counted(self, function):
    if len(done) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(1)
    return reduce(self, function)
stream.KernelStream.reduce = counted
solve(Path(sys.argv[1]), 2, *SIMCLR)
"""


def test_sigkill_costs_nothing_but_the_pass_it_hits(
    fresh: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(solve(fresh(name="whole"), 2, *SIMCLR)[0])
    workspace = fresh(name="killed")
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", KILL, str(workspace)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    done = count_passes(monkeypatch)
    assert_same(contents(solve(workspace, 2, *SIMCLR)[0]), whole)
    assert len(done) == whole["attributes"]["diagnostics"]["passes"] - 6


def count_checkpoints(monkeypatch: pytest.MonkeyPatch, limit: int | None = None) -> list[str]:
    """Count the places to stop at; the run is asked to when it has reached ``limit`` of them."""
    done: list[str] = []
    checkpoint = stream.KernelStream.checkpoint

    def counted(self: Any, name: str, arrays: Any) -> None:
        done.append(name)
        if len(done) == limit:
            self.context.stop.request("the test says so")
        checkpoint(self, name, arrays)

    monkeypatch.setattr(stream.KernelStream, "checkpoint", counted)
    return done


IN_MEMORY = [
    ("objective=vicreg", "lm_steps=0", "solver=krylov"),
    ("objective=barlow-twins", "lm_steps=1", "solver=krylov"),
    ("objective=barlow-twins", "lm_steps=3"),
    ("objective=spectral-contrastive", "lm_steps=2"),
]


@pytest.mark.parametrize("settings", IN_MEMORY, ids=" ".join)
def test_a_solve_in_memory_stops_when_asked_and_goes_on_from_there(
    fresh: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    """However often it is stopped: the work of every start is kept, or a short limit would loop."""
    workspace = fresh(name="whole")
    with monkeypatch.context() as patch:
        done = count_checkpoints(patch)
        whole = contents(solve(workspace, 2, *settings)[0])
        places = len(done)
    assert places >= 3
    workspace, stops = fresh(name="stopped"), 0
    for _ in range(places + 1):
        with monkeypatch.context() as patch:
            done = count_checkpoints(patch, limit=1)
            try:
                solve(workspace, 2, *settings)
            except Stopped:
                assert len(done) == 1
                stops += 1
    assert stops == places
    assert_same(contents(sealed(workspace)), whole)


def test_what_takes_long_in_memory_is_kept(
    fresh: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill costs what was computed since the last checkpoint, not the solve."""
    settings = IN_MEMORY[1]
    whole = contents(solve(fresh(name="whole"), 2, *settings)[0])
    workspace = fresh(name="killed")
    monkeypatch.setattr(stream, "KEEP_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        done = count_checkpoints(patch)
        save = stream.KernelStream.save_checkpoint

        def killed(self: Any, name: str, arrays: Any) -> None:
            save(self, name, arrays)
            if len(done) == 5:
                raise Killed

        patch.setattr(stream.KernelStream, "save_checkpoint", killed)
        with pytest.raises(Killed):
            solve(workspace, 2, *settings)
    with monkeypatch.context() as patch:
        after = count_checkpoints(patch)
        assert_same(contents(solve(workspace, 2, *settings)[0]), whole)
    with monkeypatch.context() as patch:
        undisturbed = count_checkpoints(patch)
        solve(fresh(name="counted"), 2, *settings)
    assert len(after) == len(undisturbed) - 5


# ------------------------------------------------------------------ refused at the door


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("objective=byol", "lm_steps=1"), r"1 further steps of byol.* collapse; expected 0"),
        (
            ("objective=simclr", "objective_settings={batch: 100}"),
            r"batch of 100 does not divide blocks of 256 rows; expected a divisor of 256; take 128",
        ),
        (
            ("objective=simclr", "objective_settings={batch: 512}"),
            r"batch of 512 does not divide blocks of 256 rows; .* take 256",
        ),
        (
            ("objective=simclr", "objective_settings={temperature: 0}"),
            r"temperature: 0.* not allowed; expected at least 0.01",
        ),
        (("objective=simclr", "objective_settings={temperature: -1}"), r"expected at least 0.01"),
        (("objective=simclr", "objective_settings={tau: 1}"), r"unknown key 'tau'"),
        (("damping=0",), r"expected more than 0"),
        (("objective=moco",), r"expected one of barlow-twins, vicreg"),
    ],
)
def test_misuse_is_one_line_and_exit_2(
    fresh: Callable[..., Path], settings: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        solve(fresh(), 2, *settings)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [("source.limit=1", "1 sample"), ("stages.spectrum.components=17", "17 components of 16")],
)
def test_impossible_sizes_are_refused(tmp_path: Path, setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(Recipe.load("digits", (*SETTINGS, setting)), tmp_path / "w")
