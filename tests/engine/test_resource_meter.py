"""What a stage costs, what this machine can do, and the memory a run starts from."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.engine import machine
from krepes_ooc.engine.budget import base_bytes, release
from krepes_ooc.engine.calibration import Rates, calibrate, fastest
from krepes_ooc.engine.machine import INTERVAL_SECONDS, ResourceMeter


def test_peak_is_seen_although_it_is_gone() -> None:
    meter = ResourceMeter()
    with meter:
        values = np.ones(2**24)
        time.sleep(5 * INTERVAL_SECONDS)
        del values
        release()
        time.sleep(2 * INTERVAL_SECONDS)
    facts = meter.facts()
    assert facts["anonymous_peak"] - facts["anonymous_before"] > 2**26
    assert machine.anonymous_bytes() < facts["anonymous_peak"] - 2**26


def test_cpu_seconds_of_all_threads() -> None:
    def burn() -> None:
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass

    with ResourceMeter() as meter:
        threads = [threading.Thread(target=burn) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        facts = meter.facts()
    assert facts["cpu_seconds"] > 0.18
    assert facts["seconds"] > 0.1


def test_meter_stops_its_thread() -> None:
    with pytest.raises(KeyError), ResourceMeter():
        raise KeyError("the stage failed")
    assert not any(thread.name == "krepes-meter" for thread in threading.enumerate())


def test_rates_and_their_use(tmp_path: Path) -> None:
    rates = calibrate(tmp_path)
    assert all(value > 0 for value in vars(rates).values())
    assert not list(tmp_path.iterdir())
    known = Rates(single=100.0, double=50.0, read=1.0, write=10.0, disk=1.0)
    assert known.cpu_seconds(200.0, 30.0) == 2 + 3
    assert known.cpu_seconds(200.0, 30.0, double=True) == 4 + 3


def test_fastest_is_of_cpu_time() -> None:
    assert fastest(lambda: time.sleep(0.01), 2) < 0.008


def test_base_holds_the_libraries_and_does_not_grow() -> None:
    first = base_bytes()
    assert base_bytes() < 1.05 * first + 2**22
