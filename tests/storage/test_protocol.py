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
    """``model`` maps the number of every block that is on record to whether it is whole."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="krepes-protocol-"))
        self.model: dict[int, bool] = {}
        self.digest, self.sealed = "d0", False
        stores.open_workspace(self.root)
        self._open(new=True)

    def _open(self, *, new: bool) -> None:
        self.space = Workspace(self.root)
        self.space.sweep()
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

    @rule(index=INDEX, torn=st.integers(0, 40))
    def crash(self, index: int, torn: int) -> None:
        """Chunks of a block without their line, a torn line, a rest in temp; then a new process."""
        self.record.journal.close()
        if not self.sealed:
            if index not in self.model:
                stores.write_block(self.writer, BLOCKS[index])
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
        values = self.space.reader("features").array("values")
        assert (values == stores.VALUES).all()

    @rule()
    def change_a_setting(self) -> None:
        self.record.journal.close()
        self.record.park()
        self.digest, self.model, self.sealed = f"d{int(self.digest[1:]) + 1}", {}, False
        self._open(new=True)

    @rule(index=INDEX, bit=st.integers(0, 5000))
    def damage(self, index: int, bit: int) -> None:
        if self.model.get(index):
            path = self.writer.path / f"values/c/1/{index}/0"
            stores.flip(path, bit)
            self.model[index] = False

    @rule()
    def repair(self) -> None:
        found = repair(self.space, FEATURES)
        bad = {index for index, whole in self.model.items() if not whole}
        assert {item.file for item in found} == {f"values/c/1/{index}/0" for index in bad}
        self.model = {index: True for index, whole in self.model.items() if whole}
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
        self.model, self.sealed = {}, False
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

    @invariant()
    def verification_names_what_is_damaged(self) -> None:
        self.record.journal.close()
        bad = {f"values/c/1/{index}/0" for index, whole in self.model.items() if not whole}
        found = {item.file for item in verify([self.record]).damage if "/c/" in item.file}
        if self.model:
            assert found == bad


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=6, stateful_step_count=10, deadline=None)
