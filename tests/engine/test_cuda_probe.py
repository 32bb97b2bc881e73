"""What is said where no NVIDIA device can be used; only the questions to the machine are faked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from krepes_ooc.engine import cuda_probe, machine
from krepes_ooc.errors import UsageError


@dataclass
class Answers:
    """A machine that answers as told; an error is raised."""

    loads: Exception | None = None
    version: Any = 13000
    devices: Any = 1
    result: Any = 2.0

    def load(self) -> None:
        if self.loads is not None:
            raise self.loads

    def driver(self) -> int:
        return given(self.version)

    def count(self) -> int:
        return given(self.devices)

    def trial(self) -> float:
        return given(self.result)


def given(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


REFUSALS = [
    (
        Answers(loads=ModuleNotFoundError("No module named 'cupy'", name="cupy")),
        "CuPy is not installed",
        "pip install 'krepes-ooc[cuda]'",
    ),
    (
        Answers(loads=ModuleNotFoundError("No module named 'cuda'", name="cuda")),
        "CuPy does not load: ModuleNotFoundError: No module named 'cuda'",
        "reinstall",
    ),
    (
        Answers(loads=ImportError("libnvrtc.so.13: cannot open\nshared object file")),
        "CuPy does not load: ImportError: libnvrtc.so.13: cannot open shared object file",
        "reinstall",
    ),
    (Answers(version=0), "there is no NVIDIA driver", "nvidia-smi"),
    (Answers(version=12000, devices=RuntimeError("too old")), "no device answers", "nvidia-smi"),
    (Answers(devices=0), "no device is visible", "CUDA_VISIBLE_DEVICES"),
    (
        Answers(result=ImportError("libcublas.so.13: cannot open shared object file")),
        "a CUDA library is missing: ImportError: libcublas.so.13",
        "cupy-cuda13x[ctk]",
    ),
    (Answers(result=RuntimeError("out of memory")), "the device does not compute", "nvidia-smi"),
    (Answers(result=1.0), "the device gives 1 for 2", "nvidia-smi"),
]


@pytest.mark.parametrize(("answers", "what", "advice"), REFUSALS, ids=lambda v: str(v)[:40])
def test_each_no_is_one_line(answers: Answers, what: str, advice: str):
    with pytest.raises(UsageError) as caught:
        cuda_probe.check_usable(answers)
    assert what in caught.value.what
    assert advice in caught.value.advice
    assert caught.value.advice.endswith("or take --device cpu")
    assert "\n" not in str(caught.value)


def test_a_device_that_computes_is_not_refused():
    cuda_probe.check_usable(Answers())


@pytest.mark.parametrize(
    ("answers", "words"), [(Answers(), "ready"), (Answers(version=0), "not usable: there is no")]
)
def test_doctor_says_the_same(monkeypatch: pytest.MonkeyPatch, answers: Answers, words: str):
    monkeypatch.setattr(machine, "CupyProbe", lambda: answers)
    assert machine._gpu().startswith(words)
