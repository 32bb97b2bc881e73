from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.engine import executor as executor_module
from krepes_ooc.engine.executor import Executor, tree_reduce
from krepes_ooc.engine.run_control import StopFlag
from krepes_ooc.errors import DataError, Interrupted, Stopped

_rng = np.random.default_rng(3)
PARTS = (_rng.normal(size=(300, 8)) * 10.0 ** _rng.integers(-8, 8, size=(300, 1))).astype("f4")


@pytest.fixture
def small_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "WAVE_TASKS", 16)


def pair(left: Any, right: Any) -> tuple[Any, Any]:
    """Not associative: shows the tree itself."""
    return left, right


def dawdle(index: int) -> np.ndarray:
    """A part that is ready in no particular order."""
    time.sleep(0.0005 * (index * 7 % 5))
    return PARTS[index]


def test_tree_of_a_few_parts():
    assert tree_reduce(1, lambda i: i, pair) == 0
    assert tree_reduce(5, lambda i: i, pair) == (((0, 1), (2, 3)), 4)
    assert tree_reduce(7, lambda i: i, pair) == (((0, 1), (2, 3)), ((4, 5), 6))


@given(st.integers(1, 70))
def test_tree_adds_every_part_once_in_order_and_is_shallow(count: int):
    asked: list[int] = []

    def part(index: int) -> tuple[tuple[int, ...], int]:
        asked.append(index)
        return (index,), 0

    def add(left: Any, right: Any) -> Any:
        return left[0] + right[0], 1 + max(left[1], right[1])

    indices, depth = tree_reduce(count, part, add)
    assert indices == tuple(range(count)) == tuple(asked)
    assert depth == (count - 1).bit_length()


def test_tree_holds_few_parts():
    alive, most = 0, 0

    class Part:
        def __init__(self, *_: Any) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    tree_reduce(1000, Part, Part)
    assert most <= 12


@pytest.mark.parametrize("count", [0, -1])
def test_nothing_cannot_be_folded(count: int):
    with pytest.raises(ValueError, match="nothing to reduce"):
        tree_reduce(count, lambda i: i, pair)


def test_fold_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to reduce"):
        Executor().reduce(lambda i: i, [], pair)


@pytest.mark.usefixtures("small_waves")
@given(st.integers(1, 70), st.sampled_from([1, 3]))
def test_fold_adds_in_the_tree_of_its_parts_whatever_the_waves(count: int, workers: int):
    expected = tree_reduce(count, lambda i: i, pair)
    assert Executor(workers).reduce(lambda i: i, range(count), pair) == expected


@pytest.mark.usefixtures("small_waves")
def test_fold_is_bitwise_the_same_for_any_number_of_workers():
    found = [Executor(w).reduce(dawdle, range(len(PARTS)), np.add) for w in (1, 2, 4, 4)]
    assert len({total.tobytes() for total in found}) == 1
    assert found[0].tobytes() == tree_reduce(len(PARTS), PARTS.__getitem__, np.add).tobytes()
    running = PARTS[0]
    for part in PARTS[1:]:
        running = running + part
    assert running.tobytes() != found[0].tobytes(), "the order of the additions shows in the bits"


def test_fold_holds_few_parts():
    lock, alive, most = threading.Lock(), 0, 0

    class Part:
        def __init__(self, *_: Any) -> None:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    Executor(2).reduce(Part, range(500), Part)
    assert most <= 30


@pytest.mark.usefixtures("small_waves")
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_results_keep_the_order_of_their_items(workers: int):
    items = [f"item {i}" for i in range(50)]

    def task(item: str) -> tuple[str, str]:
        time.sleep(0.001 * (hash(item) % 3))
        return item, threading.current_thread().name

    found = list(Executor(workers).map(task, items))
    assert [item for item, _ in found] == items
    assert all(name.startswith("krepes") for _, name in found)
    assert list(Executor(workers).map(task, [])) == []


def test_names_of_tasks_may_be_results():
    """Dask looks results up by name: a result that looks like a name must stay what it is."""
    items = [f"task-{i:06d}" for i in range(12)]
    assert list(Executor(2).map(lambda item: item, items)) == items
    assert list(Executor(2).map(lambda item: (len, item), items)) == [(len, i) for i in items]
    assert Executor(2).reduce(lambda item: [item], items, lambda a, b: a + b) == items


def test_run_calls_for_effect_and_keeps_nothing():
    seen: list[int] = []

    def task(index: int) -> np.ndarray:
        seen.append(index)
        return np.zeros(2)

    assert Executor(2).run(task, range(20)) is None  # type: ignore[func-returns-value]
    assert sorted(seen) == list(range(20))


def test_at_most_as_many_tasks_run_as_there_are_workers():
    lock, running, most = threading.Lock(), 0, 0

    def task(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    Executor(3).run(task, range(60))
    assert most == 3


def test_exceptions_come_out_unchanged():
    thrown = DataError("row 7 is NaN", where="sample 7", expected="finite", advice="clean it")
    done: list[int] = []

    def task(index: int) -> None:
        if index == 5:
            raise thrown
        done.append(index)

    with pytest.raises(DataError) as caught:
        Executor(2).run(task, range(1000))
    assert caught.value is thrown
    assert caught.traceback[-1].name == "task"
    assert len(done) < 20

    class Odd(BaseException):
        pass

    def odd(_: int) -> None:
        raise Odd

    with pytest.raises(Odd):
        Executor(2).run(odd, range(3))


def test_error_while_adding_comes_out_too():
    def add(left: int, right: int) -> int:
        raise DataError("cannot add")

    with pytest.raises(DataError, match="cannot add"):
        Executor(2).reduce(lambda i: i, range(4), add)


@pytest.mark.parametrize("workers", [1, 4])
def test_stop_is_prompt_and_finished_tasks_keep_what_they_wrote(workers: int):
    stop, written, lock = StopFlag(), set(), threading.Lock()

    def task(index: int) -> int:
        with lock:
            written.add(index)
        if index == 9:
            stop.request("SIGTERM was received")
        time.sleep(0.001)
        return index

    with pytest.raises(Stopped, match="stopped, because SIGTERM was received; nothing is lost"):
        list(Executor(workers, stop).map(task, range(10_000)))
    assert set(range(9)) <= written
    assert len(written) <= 10 + workers


def test_stop_before_the_first_task():
    stop = StopFlag()
    stop.request("Ctrl-C was pressed", interrupted=True)
    with pytest.raises(Interrupted):
        Executor(1, stop).run(lambda i: pytest.fail("ran"), range(3))


def test_stop_between_waves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executor_module, "WAVE_TASKS", 8)
    stop = StopFlag()
    results = Executor(2, stop).map(lambda i: i, range(20))
    assert [next(results) for _ in range(8)] == list(range(8))
    stop.request("the test says so")
    with pytest.raises(Stopped):
        next(results)


def test_threads_end_with_their_wave():
    before = threading.active_count()
    Executor(4).run(lambda i: None, range(10))
    assert threading.active_count() == before
