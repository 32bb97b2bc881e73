"""Tasks on worker processes: the bits of threads, whatever happens to a worker."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import psutil
import pytest

from krepes_ooc.engine import machine
from krepes_ooc.engine.cluster import cluster_executor, worker
from krepes_ooc.engine.cluster import worker as worker_module
from krepes_ooc.engine.cluster.array_transfer import (
    arrays_as_files,
    load_arrays,
    spill_arrays,
    write_array,
)
from krepes_ooc.engine.cluster.cluster import Cluster
from krepes_ooc.engine.cluster.cluster_executor import ClusterExecutor, TransferFolder, task_items
from krepes_ooc.engine.cluster.connect import open_cluster, parse_cluster
from krepes_ooc.engine.cluster.worker import (
    RUN_TOKEN,
    ProgressRecorder,
    TaskPayload,
    TaskResult,
    WorkerState,
    worker_state,
)
from krepes_ooc.engine.executor import Executor
from krepes_ooc.engine.memory_limit import MemoryLimit, PlannedMemory
from krepes_ooc.engine.run_control import Silent, StopFlag
from krepes_ooc.errors import DataError, Stopped, UsageError, WorkspaceError

_rng = np.random.default_rng(3)
PARTS = (_rng.normal(size=(300, 8)) * 10.0 ** _rng.integers(-8, 8, size=(300, 1))).astype("f4")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    spec = parse_cluster("local", None)
    with open_cluster(spec, 2, tmp_path_factory.mktemp("logs")) as cluster:
        yield cluster


@pytest.fixture
def transfer(tmp_path: Path) -> Iterator[TransferFolder]:
    opened = TransferFolder.open(tmp_path / "temp", machine.numerics())
    yield opened
    opened.close()


class Near:
    """A pool of one worker: computes the graph here, the last task first."""

    n_workers = 2

    @contextlib.contextmanager
    def publish(self, folder: Path, key: str, payload: TaskPayload) -> Iterator[None]:
        self.sent = b""
        with arrays_as_files(folder):
            self.sent = cloudpickle.dumps(payload)
        worker_state().enter(str(folder))
        worker_state().install(key, cloudpickle.loads(self.sent))
        yield
        worker_state().remove(key)

    def compute(
        self, graph: Any, names: Any, check: Any, notify: Any
    ) -> Iterator[tuple[str, TaskResult]]:
        from dask import get

        check()
        for name in reversed(names):
            yield name, get(graph, name)


def near(transfer: TransferFolder, **more: Any) -> ClusterExecutor:
    return ClusterExecutor(2, pool=Near(), transfer=transfer, **more)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 31, 300])
def test_sums_and_results_are_those_of_threads(transfer: TransferFolder, count: int):
    def part(index: int) -> np.ndarray:
        return PARTS[index] * 1

    expected = Executor(2).reduce(part, range(count), np.add)
    assert near(transfer).reduce(part, range(count), np.add).tobytes() == expected.tobytes()
    assert list(near(transfer).map(lambda i: i * i, range(count))) == [i * i for i in range(count)]


def test_waves_do_not_change_the_tree(transfer: TransferFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster_executor, "WAVE_TASKS", 4)
    pair = near(transfer).reduce(lambda i: i, range(45), lambda a, b: (a, b))
    assert pair == Executor(1).reduce(lambda i: i, range(45), lambda a, b: (a, b))
    assert list(near(transfer).map(str, range(45))) == list(map(str, range(45)))


@pytest.mark.parametrize(
    ("count", "workers", "expected"), [(1, 2, 1), (16, 2, 1), (64, 2, 4), (10**6, 4, 64)]
)
def test_a_task_is_a_range_of_a_power_of_two(count: int, workers: int, expected: int):
    assert task_items(count, workers) == expected


def test_nothing_is_mapped_and_nothing_cannot_be_folded(transfer: TransferFolder):
    assert list(near(transfer).map(str, [])) == []
    with pytest.raises(ValueError, match="nothing to reduce"):
        near(transfer).reduce(str, [], pair := lambda a, b: (a, b)) and pair


def test_big_results_and_big_work_are_files_not_messages(transfer: TransferFolder):
    big = np.arange(200_000.0)
    sent = []

    class Watched(Near):
        def compute(
            self, graph: Any, names: Any, check: Any, notify: Any
        ) -> Iterator[tuple[str, TaskResult]]:
            sent.append(len(pickle.dumps(graph)))
            for name, part in super().compute(graph, names, check, notify):
                sent.append(len(pickle.dumps(part)))
                yield name, part

    watched = Watched()
    executor = ClusterExecutor(2, pool=watched, transfer=transfer)
    found = list(executor.map(lambda i: big + i, range(3)))
    assert all((values == big + i).all() for i, values in enumerate(found))
    assert executor.reduce(lambda i: big, range(3), np.add)[1] == 3
    assert max(sent) < 10_000
    assert len(watched.sent) < 10_000
    assert [path.name for path in transfer.folder.iterdir()] == [RUN_TOKEN]


def test_what_tasks_tell_reaches_the_client(transfer: TransferFolder):
    told: list[Any] = []

    class Listener(Silent):
        def advance(self, units: int = 1, n_bytes: int = 0) -> None:
            told.append((units, n_bytes))

        def note(self, text: str) -> None:
            told.append(text)

    def task(index: int) -> None:
        worker_state().progress.advance(1, index)
        if index == 2:
            worker_state().progress.note("two")

    near(transfer, progress=Listener()).run(task, range(4))
    assert sorted(map(str, told)) == ["(1, 0)", "(1, 1)", "(1, 2)", "(1, 3)", "two"]


def test_a_tally_sums_advances_and_begins_anew():
    tally = ProgressRecorder()
    tally.begin("kernel", 3, 0)
    tally.advance(1, 10)
    tally.advance(2, 5)
    tally.end("kernel", 1.0)
    assert tally.collect() == (("advance", (3, 15)),)
    assert tally.collect() == ()


def test_the_peak_of_the_workers_memory_is_kept(transfer: TransferFolder):
    executor = near(transfer)
    executor.run(lambda i: None, range(3))
    assert 2**20 < executor.peaks[0] <= machine.peak_bytes()


def test_a_worker_of_another_version_is_refused(transfer: TransferFolder):
    other = replace(transfer, package="0" * 64)
    with pytest.raises(UsageError, match=r"has digest .*expected 000000000000, as here; install"):
        near(other).run(str, range(2))


def test_a_worker_that_gives_other_bits_is_refused_unless_told(transfer: TransferFolder):
    with pytest.raises(WorkspaceError, match=r"computes with .*--allow-mixed-numerics"):
        near(replace(transfer, numerics="another processor")).run(str, range(2))
    near(replace(transfer, numerics="")).run(str, range(2))


def test_the_digest_of_the_package_covers_code_and_contracts(monkeypatch, tmp_path: Path):
    def digest() -> str:
        worker.package_sha256.cache_clear()
        return worker.package_sha256()

    (tmp_path / "stores").mkdir()
    module, contract = tmp_path / "__init__.py", tmp_path / "stores" / "kernel.yaml"
    module.write_text("a = 1")
    contract.write_text("a: 1")
    monkeypatch.setattr(worker_module, "files", lambda name: tmp_path)
    monkeypatch.setattr(worker.resources, "folder", lambda name: tmp_path / name)
    found = {digest()}
    module.write_text("a = 2")
    found.add(digest())
    contract.write_text("a: 2")
    found.add(digest())
    monkeypatch.undo()
    worker.package_sha256.cache_clear()
    assert len(found) == 3


def test_an_array_that_is_not_what_was_written_is_refused(tmp_path: Path):
    values = np.arange(12.0).reshape(3, 4).T
    stored = write_array(values, tmp_path)
    assert (stored.read() == values).all()
    Path(stored.path).write_bytes(bytes(8 * 12))
    with pytest.raises(WorkspaceError, match="not what was written; expected 96 bytes"):
        stored.read()
    Path(stored.path).write_bytes(b"short")
    with pytest.raises(WorkspaceError, match="not what was written; expected 96 bytes"):
        stored.read()
    Path(stored.path).unlink()
    with pytest.raises(Stopped, match="its run has ended"):
        stored.read()
    with pytest.raises(Stopped, match="its run has ended"):
        write_array(values, tmp_path / "gone")


def test_arrays_are_files_only_while_asked(tmp_path: Path):
    big, small = np.arange(10_000.0), np.arange(3.0)
    with arrays_as_files(tmp_path):
        data = pickle.dumps({"big": big, "small": small, "again": [big]})
    assert len(data) < 1000
    found = pickle.loads(data)
    assert (found["big"] == big).all()
    assert (found["small"] == small).all()
    assert len(pickle.dumps(big)) > big.nbytes
    assert len(list(tmp_path.iterdir())) == 1, "an array that occurs twice is one file"


def test_values_are_put_away_and_taken_back(tmp_path: Path):
    value = {"a": (np.arange(10_000.0), [1, "x"]), "b": np.zeros((0, 3), dtype="f4")}
    away = spill_arrays(value, tmp_path)
    assert len(pickle.dumps(away)) < 1000
    back = load_arrays(away)
    assert (back["a"][0] == value["a"][0]).all()
    assert back["a"][1] == [1, "x"]
    assert back["b"].shape == (0, 3)
    assert not list(tmp_path.iterdir())


def test_without_its_run_token_a_worker_stops_before_its_next_block(
    transfer: TransferFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker_module, "ARRIVAL_SECONDS", 0.1)
    state = WorkerState()
    task = transfer.new_task()
    state.enter(task.folder)
    state.install(task.key, TaskPayload(str, range(2)))
    assert state.payload(task).function(3) == "3"
    assert not state.stop.requested
    state.remove(task.key)
    with pytest.raises(Stopped, match="its run has ended"):
        state.payload(task)
    (transfer.folder / RUN_TOKEN).unlink()
    with pytest.raises(Stopped, match="its run has ended"):
        state.stop.check()


def test_a_worker_that_does_not_see_the_workspace_is_refused(tmp_path: Path):
    with pytest.raises(WorkspaceError, match=r"does not see this folder; .*all workers share"):
        WorkerState().enter(str(tmp_path / "elsewhere"))


def test_a_station_keeps_one_object_at_a_time_and_none_of_another_run(
    transfer: TransferFolder, tmp_path: Path
):
    own = WorkerState()
    own.enter(str(transfer.folder))
    first = own.cached("kernel", object)
    own.enter(str(transfer.folder))
    assert own.cached("kernel", object) is first
    assert own.cached("newton", object) is not first
    assert own.cached("kernel", object) is not first
    last = own.cached("kernel", object)
    own.enter(str(TransferFolder.open(tmp_path / "other", "").folder))
    assert own.cached("kernel", object) is not last


def test_finish_follows_every_task_even_one_that_fails(transfer: TransferFolder, tmp_path: Path):
    def finish() -> None:
        with (tmp_path / "finished").open("a") as file:
            file.write("x")

    def task(index: int) -> None:
        if index == 1:
            raise DataError("row 1 is NaN")

    near(transfer, finish=finish).run(str, range(3))
    assert (tmp_path / "finished").read_text() == "xxx"
    with pytest.raises(DataError, match="row 1 is NaN"):
        near(transfer, finish=finish).run(task, [1])
    assert (tmp_path / "finished").read_text() == "xxxx"


def test_processes_give_the_bits_of_threads(pool: Cluster, transfer: TransferFolder):
    def part(index: int) -> np.ndarray:
        return PARTS[index] * 1

    executor = ClusterExecutor(2, pool=pool, transfer=transfer)
    expected = Executor(2).reduce(part, range(300), np.add)
    assert executor.reduce(part, range(300), np.add).tobytes() == expected.tobytes()
    assert list(executor.map(lambda i: os.getpid() != 0 and i, range(20))) == list(range(20))
    with pytest.raises(DataError, match="sample 7: row 7 is NaN; expected finite; clean it"):
        executor.run(
            lambda i: (_ for _ in ()).throw(
                DataError("row 7 is NaN", where="sample 7", expected="finite", advice="clean it")
            ),
            range(3),
        )


def test_everything_listens_on_this_machine_alone(pool: Cluster):
    me = psutil.Process()
    found = {
        connection.laddr.ip
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert found == {"127.0.0.1"}


def test_a_killed_worker_costs_its_tasks_alone(
    pool: Cluster, transfer: TransferFolder, tmp_path: Path
):
    def task(index: int) -> int:
        time.sleep(0.05)
        if index == 5 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    assert list(ClusterExecutor(2, pool=pool, transfer=transfer).map(task, range(40))) == list(
        range(40)
    )
    assert (tmp_path / "killed").exists()


def test_a_worker_above_its_memory_ends_the_run(pool: Cluster, transfer: TransferFolder) -> None:
    def task(index: int) -> int:
        return index

    for memory, fits in ((64 << 30, True), (1 << 20, False)):
        limit = MemoryLimit("kernel", PlannedMemory(0, 64 << 30, memory), 1, StopFlag())
        executor = ClusterExecutor(2, limit, Silent(), pool, transfer, limit=limit)
        if fits:
            assert list(executor.map(task, range(8))) == list(range(8))
        else:
            with pytest.raises(Stopped, match=r"a worker process takes .* --memory 1\.0 MiB"):
                executor.run(task, range(50_000))


def test_a_stop_request_ends_the_wait_and_the_tasks(
    pool: Cluster, transfer: TransferFolder, tmp_path: Path
):
    stop = StopFlag()

    def task(index: int) -> None:
        (tmp_path / f"{index:03d}").touch()
        for _ in range(200):
            worker_state().stop.check()
            time.sleep(0.02)

    class Soon(Silent):
        pass

    stop_at = time.monotonic() + 1.0

    class Flag(StopFlag):
        @property
        def requested(self) -> bool:
            if time.monotonic() > stop_at:
                self.request("SIGTERM was received")
            return super().requested

    begun = time.monotonic()
    with pytest.raises(Stopped, match="SIGTERM was received"):
        ClusterExecutor(2, Flag(), Soon(), pool, transfer).run(task, range(50))
    assert time.monotonic() - begun < 10
    transfer.close()
    assert not stop.requested
    assert len(list(tmp_path.glob("0*"))) < 10


class _Pair(NamedTuple):
    """A result with arrays."""

    rows: np.ndarray
    parts: tuple[np.ndarray, ...]


def test_named_tuples_keep_their_type(tmp_path: Path) -> None:
    rows = np.arange(300_000.0)
    away = spill_arrays(_Pair(rows, (rows, rows[:2])), tmp_path)
    assert list(tmp_path.iterdir())
    back = load_arrays(away)
    assert type(back) is _Pair
    np.testing.assert_array_equal(back.rows, rows)
    np.testing.assert_array_equal(back.parts[1], rows[:2])


def test_files_that_cannot_be_removed_stop_nothing(
    tmp_path: Path, transfer: TransferFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(300_000.0)
    away = spill_arrays(rows, tmp_path)
    monkeypatch.setattr(Path, "unlink", _refuse)
    np.testing.assert_array_equal(load_arrays(away), rows)
    (transfer.folder / "left.values").touch()
    transfer.clear()
    assert (transfer.folder / "left.values").exists()


def _refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.ESTALE, "Stale file handle")
