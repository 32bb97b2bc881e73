"""Shards of a stage computed apart, in any order and any number of times: the bits of one run."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.errors import UsageError, WorkspaceError
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.run import run
from krepes_ooc.storage import locks
from krepes_ooc.storage.locks import WorkspaceLock
from krepes_ooc.storage.workspace import Workspace
from tests import small
from tests.crash.compare import differences

# More rows than elsewhere, so that there are several shards in the plan.
CHANGES = ("source.limit=1700", "stages.features.block_rows=256", "stages.audited.fit=40")
CUT = ("features", "kernel", "moments")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("reference") / "w"
    small.audit(workspace, *CHANGES)
    return workspace


def begun(reference: Path, tmp_path: Path, stage: str) -> Path:
    return small.copy_before(reference, tmp_path / "w", stage)


def shard(workspace: Path, stage: str, number: int, count: int, **more: Any) -> Any:
    return small.audit(workspace, *CHANGES, only=stage, shard=(number, count), **more)


@pytest.mark.parametrize("stage", CUT)
def test_shards_in_any_order_and_more_than_once(reference: Path, tmp_path: Path, stage: str):
    workspace = begun(reference, tmp_path, stage)
    for number in (3, 1, 3, 2):
        found = shard(workspace, stage, number, 3)
        assert found.shard == f"shard {number}/3 of {stage}"
        assert found.ran == []
        assert stage in found.left
    assert small.seals(workspace).keys() < small.seals(reference).keys()
    small.audit(workspace, *CHANGES)
    assert differences(reference, workspace) == []
    assert small.seals(workspace) == small.seals(reference)


def test_a_shard_writes_its_own_part_and_its_own_journal(reference: Path, tmp_path: Path):
    workspace = begun(reference, tmp_path, "kernel")
    shard(workspace, "kernel", 2, 3)
    record = Workspace(workspace).record("kernel", "kernel")
    assert [path.name for path in record.journals] == ["journal-shard-000002-of-000003.jsonl"]
    some = len(record.done())
    assert 0 < some < 7
    shard(workspace, "kernel", 1, 3)
    shard(workspace, "kernel", 3, 3)
    assert len(record.done()) == 7
    assert shard(workspace, "kernel", 5, 99).shard == "shard 5/99 of kernel"


def test_a_sealed_stage_is_left_alone(reference: Path):
    before = (reference / ".krepes" / "stages" / "kernel" / "seal.json").read_bytes()
    found = shard(reference, "kernel", 1, 2)
    assert (found.shard, found.skipped) == ("", ["kernel"])
    assert (reference / ".krepes" / "stages" / "kernel" / "seal.json").read_bytes() == before


def test_many_shards_may_start_at_once(reference: Path, tmp_path: Path):
    workspace = begun(reference, tmp_path, "kernel")
    jobs: list[subprocess.Popen[str]] = [
        small.process(
            small.arguments(
                workspace, "--only", "kernel", "--shard", f"{n}/3", "-q", changes=CHANGES
            )
        )
        for n in (1, 2, 3)
    ]
    for job in jobs:
        assert job.communicate(timeout=100)[1] == ""
        assert job.returncode == 0
    small.audit(workspace, *CHANGES)
    assert differences(reference, workspace) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shard": (0, 4), "only": "kernel"}, "--shard 0/4: shard 0 of 4; expected 1 to 4"),
        ({"shard": (5, 4), "only": "kernel"}, "--shard 5/4: shard 5 of 4; expected 1 to 4"),
        ({"shard": (1, 4)}, "no stage is named; expected --only STAGE"),
        ({"shard": (1, 4), "only": "newton"}, "not cut into shards; expected one of features"),
        ({"shard": (1, 4), "only": "kernel", "repair": True}, "--repair with a shard"),
        ({"shard": (1, 4), "only": "kernel", "restart_stale": True}, "--restart-stale with a sh"),
    ],
)
def test_shards_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, Any], said: str):
    with pytest.raises(UsageError) as caught:
        run(small.recipe(), tmp_path / "w", Options(**options))
    assert said in str(caught.value)
    assert not (tmp_path / "w").exists()


def test_the_command_line_refuses_what_is_no_part(capsys: pytest.CaptureFixture[str]):
    for text in ("3", "3/", "/3", "a/b", "-1/3"):
        found = small.krepes(capsys, "run", "digits", "--only", "kernel", "--shard", text)
        assert found.code == 2
        assert "is no part; expected such as 3/16" in found.line


def test_a_shard_needs_sealed_stages_before_it(tmp_path: Path):
    with pytest.raises(UsageError, match=r"kernel reads .*features \(missing\)"):
        shard(tmp_path, "kernel", 1, 2)


class TestHolds:
    """Who may be in a workspace at the same time."""

    @pytest.fixture
    def private(self, tmp_path: Path) -> Path:
        return tmp_path / ".krepes"

    @staticmethod
    def hold(private: Path, number: int, count: int = 4, stage: str = "kernel") -> Any:
        return locks.lock_shard(private, stage, (number, count), lambda: None)

    def test_other_shards_may_and_the_same_one_may_not(self, private: Path):
        said = "shard 2/4 of kernel is being computed by process"
        with (
            self.hold(private, 1),
            self.hold(private, 2),
            pytest.raises(WorkspaceError, match=said),
            self.hold(private, 2),
        ):
            pytest.fail("held twice")
        with self.hold(private, 2):
            pass

    def test_shards_of_another_number_may_not(self, private: Path):
        with (
            self.hold(private, 1),
            pytest.raises(WorkspaceError, match=r"shard 1/4 of kernel .*of the same number"),
            self.hold(private, 1, 8),
        ):
            pytest.fail("held")

    def test_a_plain_run_keeps_shards_out(self, private: Path):
        with (
            WorkspaceLock(private / "lock"),
            pytest.raises(WorkspaceError, match="the workspace is in use by process"),
            self.hold(private, 1),
        ):
            pytest.fail("held")

    def test_a_shard_keeps_a_plain_run_out(self, private: Path):
        with self.hold(private, 3):
            with pytest.raises(WorkspaceError, match="shard 3/4 of kernel is being computed"):
                locks.refuse_running_shards(private)
            with pytest.raises(WorkspaceError), WorkspaceLock(private / "lock"):
                pytest.fail("held")
        locks.refuse_running_shards(private)
        locks.clear_shards(private)
        assert not (private / "shards").exists()

    def test_a_live_lease_of_another_host_counts_and_a_dead_one_does_not(
        self, private: Path, monkeypatch: pytest.MonkeyPatch
    ):
        with self.hold(private, 1):
            pass
        elsewhere = private / "shards" / "kernel-000001-of-000004" / "lease"
        elsewhere.write_text('{"host": "elsewhere", "pid": 1, "boot": "b", "token": "t"}')
        with pytest.raises(WorkspaceError, match=r"1/4 of kernel .* process 1 on elsewhere"):
            locks.refuse_running_shards(private)
        whole = private / "lease"
        whole.write_text('{"host": "elsewhere", "pid": 2, "boot": "b", "token": "u"}')
        with pytest.raises(WorkspaceError, match="process 2 on elsewhere"), self.hold(private, 2):
            pytest.fail("held")
        monkeypatch.setattr(locks, "LEASE_SECONDS", -1e6)
        locks.refuse_running_shards(private)
        with self.hold(private, 2):
            pass

    def test_one_process_at_a_time_opens_a_stage(
        self, private: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(locks, "OPENING_SECONDS", 0.1)
        with (
            locks.lock_opening(private),
            pytest.raises(WorkspaceError, match="the opening of a stage is being computed"),
            locks.lock_opening(private),
        ):
            pytest.fail("opened twice")
        with locks.lock_opening(private):
            pass

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
    def test_a_file_system_without_flock_still_has_leases(
        self, private: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ):
        import fcntl

        def refuse(*_: Any) -> None:
            raise OSError(number, "no locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        with self.hold(private, 1):
            with pytest.raises(WorkspaceError, match="shard 1/4"), self.hold(private, 1):
                pytest.fail("held twice")
            with pytest.raises(WorkspaceError, match="shard 1/4"):
                locks.refuse_running_shards(private)
