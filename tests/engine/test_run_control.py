from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from krepes_ooc.engine.run_control import StopFlag, stop_on_signals
from krepes_ooc.errors import Interrupted, Stopped

PROGRAM = """
import sys, time
from krepes_ooc.engine.executor import Executor
from krepes_ooc.engine.run_control import StopFlag, stop_on_signals
from krepes_ooc.errors import KrepesError

def task(index):
    print(index, flush=True)
    time.sleep(0.02)

flag = StopFlag()
try:
    with stop_on_signals(flag):
        Executor(2, flag).run(task, range(100_000))
except KrepesError as error:
    print("told:", error, flush=True)
    sys.exit(error.exit_code)
"""


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"no {text!r}")


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGTERM, 75, "stopped, because SIGTERM was received"),
        (signal.SIGUSR1, 75, "stopped, because SIGUSR1 was received"),
        (signal.SIGINT, 130, "stopped, because Ctrl-C was pressed"),
    ],
)
def test_signal_stops_a_running_process(number: signal.Signals, code: int, told: str):
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_for_line(process, "5")
        begin = time.monotonic()
        process.send_signal(number)
        rest = process.communicate(timeout=20)[0]
        assert time.monotonic() - begin < 5
    assert f"told: {told}; nothing is lost: run the same command again to resume" in rest
    assert process.returncode == code


def test_second_press_interrupts_code_that_asks_no_flag():
    program = """
import time
from krepes_ooc.engine.run_control import StopFlag, stop_on_signals
with stop_on_signals(StopFlag()):
    try:
        for turn in range(1000):
            print("turn", turn, flush=True)
            time.sleep(0.02)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_for_line(process, "turn 1")
        process.send_signal(signal.SIGINT)
        wait_for_line(process, "turn")
        wait_for_line(process, "turn")
        process.send_signal(signal.SIGINT)
        assert "interrupted" in process.communicate(timeout=20)[0]
    assert process.returncode == 0


def test_flag_is_down_at_first():
    flag = StopFlag()
    assert not flag.requested
    flag.check()


@pytest.mark.parametrize(("interrupted", "kind"), [(False, Stopped), (True, Interrupted)])
def test_request_is_told(interrupted: bool, kind: type[Stopped]):
    flag = StopFlag()
    flag.request("the test says so", interrupted=interrupted)
    assert flag.requested
    for _ in range(2):
        with pytest.raises(Stopped) as caught:
            flag.check()
        assert type(caught.value) is kind
        assert str(caught.value) == (
            "stopped, because the test says so; "
            "nothing is lost: run the same command again to resume"
        )


def test_first_reason_stays_with_its_exit_code():
    flag = StopFlag()
    flag.request("first")
    flag.request("second", interrupted=True)
    with pytest.raises(Stopped, match="because first") as caught:
        flag.check()
    assert caught.value.exit_code == 75


def test_time_limit():
    flag = StopFlag(0.05)
    flag.check()
    time.sleep(0.06)
    assert flag.requested
    with pytest.raises(Stopped, match="stopped, because its time limit is reached") as caught:
        flag.check()
    assert caught.value.exit_code == 75


def test_first_press_after_the_time_limit_does_not_interrupt():
    flag = StopFlag(0.0)
    with stop_on_signals(flag):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match=r"time limit|Ctrl-C"):
        flag.check()


def test_handlers_come_back():
    def mine(*_: object) -> None:
        pass

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.signal(number, mine) for number in numbers]
    try:
        with stop_on_signals(StopFlag()):
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert [signal.getsignal(number) for number in numbers] == [mine] * 3
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_other_threads_leave_signals_alone():
    found: list[object] = []

    def work() -> None:
        with stop_on_signals(StopFlag()):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
