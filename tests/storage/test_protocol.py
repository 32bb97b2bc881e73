"""The protocol of one store against a dict: write, crash, resume, change, damage, repair."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from krepes_ooc.errors import WorkspaceError
from krepes_ooc.runner.repair import repair
from krepes_ooc.stages.registry import STAGES
from krepes_ooc.storage.verify import verify
from krepes_ooc.storage.workspace import Workspace
from tests.storage import stores
from tests.storage.stores import BLOCKS

FEATURES = [stage for stage in STAGES if stage.name == "features"]
INDEX = st.integers(0, len(BLOCKS) - 1)


class Protocol(RuleBasedStateMachine):
    """``model`` maps the number of every block that is on record to whether it is whole.

    ``lost`` are the blocks that a journal names and that are not there, or not of their size: the
    next run computes them.
    """

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="krepes-protocol-"))
        self.model: dict[int, bool] = {}
        self.lost: set[int] = set()
        self.stripped = False  # of a deleted store everything is lost, not one chunk a block
        self.digest, self.sealed = "d0", False
        stores.open_workspace(self.root)
        self._open(new=True)

    def _open(self, *, new: bool) -> None:
        self.space = Workspace(self.root)
        self.space.remove_stale_files()
        if new:
            self.record, self.writer = stores.begin(self.space, self.digest)
        else:
            self.record = self.space.record("features", "features")
            self.writer = self.space.writer(stores.SPEC, self.digest)
            self.writer.create()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @precondition(lambda self: not self.sealed)
    @rule(index=INDEX)
    def write(self, index: int) -> None:
        stores.write_unit(self.record, self.writer, BLOCKS[index])
        self.model[index] = True
        self.lost.discard(index)

    @rule(index=INDEX, torn=st.integers(0, 40))
    def crash(self, index: int, torn: int) -> None:
        """Chunks of a block without their line, a torn line, a rest in temp; then a new process."""
        self.record.journal.close()
        if not self.sealed:
            if index not in self.model:
                stores.write_block(self.writer, BLOCKS[index])
                if index in self.lost:  # its line is there: now its bytes are as well
                    self.lost.remove(index)
                    self.model[index] = True
            with (self.record.folder / "journal-0000.jsonl").open("ab") as file:
                file.write(b'{"crc32c":12345678,"body":{"unit":"block 1","fil'[:torn])
        (self.root / ".krepes/temp/rest.partial").write_bytes(b"x")
        self._open(new=False)

    @precondition(lambda self: all(self.model.values()))
    @rule()
    def resume_to_the_end(self) -> None:
        if not self.sealed:
            stores.finish(self.record, self.writer)
            self.model, self.sealed = dict.fromkeys(range(len(BLOCKS)), True), True
            self.lost, self.stripped = set(), False
        values = self.space.reader("features").array("values")
        assert (values == stores.VALUES).all()

    @rule()
    def change_a_setting(self) -> None:
        self.record.journal.close()
        self.record.archive_previous()
        self.digest, self.model, self.sealed = f"d{int(self.digest[1:]) + 1}", {}, False
        self.lost, self.stripped = set(), False
        self._open(new=True)

    @rule(index=INDEX, bit=st.integers(0, 5000), kind=st.sampled_from(["flip", "zero"]))
    def damage(self, index: int, bit: int, kind: str) -> None:
        """Bytes that changed: no run trusts them, but their unit stays on record."""
        if self.model.get(index):
            path = self.writer.path / f"values/c/1/{index}/0"
            if kind == "flip":
                stores.flip(path, bit)
            else:
                path.write_bytes(bytes(path.stat().st_size))
            self.model[index] = False

    @precondition(lambda self: not self.sealed)
    @rule(index=INDEX, keep=st.integers(0, 500), delete=st.booleans())
    def lose(self, index: int, keep: int, delete: bool) -> None:
        """A chunk that is cut or gone: its unit is missing, and is computed again."""
        if self.model.get(index):
            path = self.writer.path / f"values/c/1/{index}/0"
            path.write_bytes(path.read_bytes()[:keep])
            if delete:
                path.unlink()
            del self.model[index]
            self.lost.add(index)

    @rule()
    def verify(self) -> None:
        """All of the record: what is damaged or lost, by name, and nothing else."""
        self.record.journal.close()
        found = {item.file for item in verify([self.record]).damage if item.stage == "features"}
        assert {name for name in found if name.startswith("values/c/1/")} == self.bad()
        if not self.stripped:
            assert found == self.bad()

    def bad(self) -> set[str]:
        """Chunks that are not what a journal or the seal says."""
        harmed = {index for index, whole in self.model.items() if not whole}
        return {f"values/c/1/{index}/0" for index in harmed | self.lost}

    @rule()
    def repair(self) -> None:
        found = {item.file for item in repair(self.space, FEATURES)}
        bad = {index for index, whole in self.model.items() if not whole}
        assert {name for name in found if name.startswith("values/c/1/")} == self.bad()
        self.model = {index: True for index, whole in self.model.items() if whole}
        self.lost |= bad
        self.sealed = self.sealed and not bad
        self.record.journal.close()
        self._open(new=False)

    @rule()
    def delete_the_store(self) -> None:
        self.record.journal.close()
        shutil.rmtree(self.writer.path)
        if self.sealed:
            assert verify([self.record]).damage
            (self.record.folder / "seal.json").unlink()
        self.lost |= set(self.model)
        self.model, self.sealed, self.stripped = {}, False, True
        self._open(new=False)

    @rule()
    def second_process(self) -> None:
        with (
            self.space.lock(),
            pytest.raises(WorkspaceError, match="in use by process"),
            Workspace(self.root).lock(),
        ):
            raise AssertionError("two hold the workspace")

    @invariant()
    def record_says_what_the_model_says(self) -> None:
        assert self.record.is_sealed() == self.sealed
        whole = {name for name, unit in self.record.done().items() if unit}
        assert whole == {f"block {index}" for index in self.model}


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=6, stateful_step_count=10, deadline=None)
