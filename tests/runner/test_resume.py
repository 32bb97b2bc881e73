"""The same bits, however often and wherever a run is stopped, and with whatever resources."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from krepes_ooc.engine import machine
from krepes_ooc.engine.run_control import StopFlag
from krepes_ooc.errors import Stopped, WorkspaceError
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.run import run
from tests import small
from tests.crash.compare import differences

FINISHING = "krepes: finishing the blocks in flight; Ctrl-C again drops them\n"
RESUME = "nothing is lost: run the same command again to resume"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.finished_copy(tmp_path_factory.mktemp("reference") / "w")


@pytest.mark.parametrize("resources", [{"workers": 1}, {"workers": 3, "memory": 3 * 2**30}])
def test_resources_do_not_change_a_bit(
    reference: Path, tmp_path: Path, resources: dict[str, int]
) -> None:
    small.audit(tmp_path, **resources)
    assert differences(reference, tmp_path) == []
    assert small.seals(tmp_path) == small.seals(reference)


def test_a_slow_disk_changes_no_bit(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.004)
        quick(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    with pytest.raises(Stopped):
        small.audit(tmp_path, max_seconds=0.5)
    small.audit(tmp_path)
    assert differences(reference, tmp_path) == []


def test_stopping_after_every_stage(reference: Path, tmp_path: Path) -> None:
    names = [stage.name for stage in small.recipe().stages]
    for index, name in enumerate(names):
        summary = small.audit(tmp_path, until=name, workers=1 + index % 2)
        assert summary.ran == [name]
        assert summary.skipped == names[:index]
        assert summary.left == names[index + 1 :]
    assert differences(reference, tmp_path) == []


class Impatient(StopFlag):
    """Stops a run at its n-th question."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self._left = questions

    def check(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.request("the test is impatient")
        super().check()


def test_stopping_inside_stages(reference: Path, tmp_path: Path) -> None:
    draw, stops = random.Random(1), 0
    while stops < 100:
        with contextlib.suppress(Stopped):
            run(small.recipe(), tmp_path, Options(workers=2), stop=Impatient(draw.randint(4, 60)))
            break
        stops += 1
    assert 2 < stops < 100
    assert differences(reference, tmp_path) == []


def test_sigkill_at_random_instants(reference: Path, tmp_path: Path) -> None:
    draw, kills = random.Random(0), 0
    given = small.arguments(tmp_path, "--quiet", "--workers", "2")
    while kills < 3:
        process = small.process(given, start_new_session=True)
        try:
            process.communicate(timeout=1.5 + draw.uniform(0, 2.0))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
    small.audit(tmp_path)
    assert differences(reference, tmp_path) == []


SIGNALS = (
    (signal.SIGTERM, 75, "SIGTERM was received"),
    (signal.SIGUSR1, 75, "SIGUSR1 was received"),
    (signal.SIGINT, 130, "Ctrl-C was pressed"),
)


def test_signals_and_a_time_limit_stop_and_the_next_run_resumes(
    reference: Path, tmp_path: Path
) -> None:
    """One after the other in one workspace: what each leaves behind, the next goes on with."""
    process = small.process(small.arguments(tmp_path, "--quiet", "--max-time", "0.1s"))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75
    assert err == f"krepes: stopped, because its time limit is reached; {RESUME}\n"
    for number, code, words in SIGNALS:
        process = small.process(small.arguments(tmp_path))
        assert process.stdout is not None
        # Its first words: a stage is at work.
        assert process.stdout.readline()
        process.send_signal(number)
        begun = time.monotonic()
        _, err = process.communicate(timeout=30)
        assert time.monotonic() - begun < 10
        told = FINISHING if number == signal.SIGINT else ""
        assert (process.returncode, err) == (
            code,
            f"{told}krepes: stopped, because {words}; {RESUME}\n",
        )
        assert "report" not in small.seals(tmp_path)
    small.audit(tmp_path)
    assert differences(reference, tmp_path) == []


def test_second_press_drops_the_blocks_in_flight(reference: Path, tmp_path: Path) -> None:
    changes = ["stages.pretrain.epochs=2000"]
    process = small.process(small.arguments(tmp_path, changes=changes))
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("pretrain: ")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == FINISHING
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    # Between the two presses the block may have been finished.
    assert process.returncode == 130
    assert err.startswith("krepes: stopped")
    assert err.endswith("to resume\n")
    small.audit(tmp_path, restart_stale=True)
    assert differences(reference, tmp_path) == []


def test_signal_while_modules_are_imported(tmp_path: Path) -> None:
    process = small.process(small.arguments(tmp_path, "--quiet"))
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    # Before the handler is there Python ends at once; afterwards the run stops at its first task.
    assert process.returncode in (75, -signal.SIGTERM), err
    assert small.seals(tmp_path) == {}


def test_deleted_folder_of_a_stage_is_computed_again(reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / ".krepes" / "stages" / "kernel")
    assert small.audit(tmp_path).ran == ["kernel"]
    assert differences(reference, tmp_path) == []


def test_other_numerics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped):
        run(small.recipe(), tmp_path, Options(until="features"), stop=Impatient(6))
    assert small.seals(tmp_path).keys() == {"pretrain"}
    monkeypatch.setattr(machine, "numerics", lambda *_: "another machine")
    with pytest.raises(WorkspaceError, match="stage features: what is on disk was computed") as it:
        small.audit(tmp_path, until="features")
    assert it.value.exit_code == 4
    assert "'another machine'" in it.value.expected
    summary = small.audit(tmp_path, until="features", mixed_numerics=True)
    assert summary.ran == ["features"]


def test_nothing_to_do(reference: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
    summary = small.audit(reference)
    assert summary.ran == []
    assert summary.left == []
    after = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
    changed = {path.name for path in before if before[path] != after.get(path)}
    assert changed | {p.name for p in after.keys() ^ before.keys()} <= {"lock", "lease"}
