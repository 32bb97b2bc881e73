"""Declared inputs: every stage reads them alone, and reaches a worker with nothing opened twice."""

from __future__ import annotations

import ast
import dataclasses
import pickle
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.engine.cluster.cluster_executor import TransferFolder
from krepes_ooc.errors import UndeclaredInputError
from krepes_ooc.stages.base.recipe_inputs import RECIPE_PARTS, RecipeInputs
from krepes_ooc.stages.base.stage import Stage, StageContext, is_enabled
from krepes_ooc.stages.base.stage_inputs import StageInputs, recipe_parts
from krepes_ooc.stages.registry import BY_NAME, STAGES
from krepes_ooc.storage.contracts import contract_names
from krepes_ooc.storage.store_reader import StoreReader
from tests import small

# Stages of every audit; an optional one is run by its own tests.
NAMES = [stage.name for stage in STAGES if is_enabled(stage.settings())]
EVERY = [stage.name for stage in STAGES]
# Their digests hold these digests, and so do workspaces that exist.
READS = {
    "pretrain": ("source", "factory", "views"),
    "features": ("source", "network", "views"),
    "landmarks": ("features", "source", "labels", "network", "views"),
    "audited": ("features", "landmarks", "source", "labels", "network"),
    "kernel": ("features", "landmarks"),
    "moments": ("kernel",),
    "spectrum": ("features", "kernel", "moments"),
}
DIGESTS = {
    "pretrain": "6636fdee66c7f331c10ed9f7ed9d8946d372005c6ea9efcfe80e4dec68f34f9b",
    "features": "38c9a7543bd78b1525bd29418a05f054688ba11a658a7bec27def87664b881ba",
    "landmarks": "2b6c136080845807ce0485228494f2f668ff2943255a970e80d46d16049279ec",
    "audited": "185abe273686c9d14fe10e5430d69d440b4689b77aab051bc6da7c3ce44d318a",
    "kernel": "12d6aa5dac3f3a0560dd556402fff6346e7c0046978bff96ed98908973291750",
    "moments": "3a16fc9a862694217bb9ebfed887cf70f914193fe047e60b745b14d94e4d72c2",
    "spectrum": "47e45afc6f625e2ec03798c075d0dcda9f545b20336695eefe8d294b963205e3",
}
# The read of a recipe part that a stage would do; ``factory`` is text in the network's key.
READ_PART: dict[str, Callable[[RecipeInputs], Any]] = {
    "source": lambda recipe: recipe.source,
    "labels": lambda recipe: recipe.source.labels,
    "views": lambda recipe: recipe.views,
    "network": lambda recipe: recipe.network,
}


@dataclasses.dataclass(frozen=True)
class Finished:
    """A sealed audit, and the inputs and context that every stage ran with."""

    workspace: Path
    ran: dict[str, tuple[Any, StageContext]]


def replace_run(stage: Stage, run: Callable[[Any, StageContext], None]) -> Iterator[None]:
    """Let a stage run another function, for as long as the generator lives."""
    before = stage.run
    vars(stage)["run"] = run
    try:
        yield
    finally:
        vars(stage)["run"] = before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    ran: dict[str, tuple[Any, StageContext]] = {}

    def recorded(stage: Stage) -> Callable[[Any, StageContext], None]:
        run = stage.run

        def record(inputs: Any, context: StageContext) -> None:
            ran[stage.name] = inputs, context
            run(inputs, context)

        return record

    workspace = tmp_path_factory.mktemp("finished") / "w"
    replaced = [replace_run(stage, recorded(stage)) for stage in STAGES]
    for each in replaced:
        next(each)
    try:
        small.audit(workspace)
    finally:
        for each in replaced:
            each.close()  # type: ignore[attr-defined]
    assert list(ran) == NAMES
    return Finished(workspace, ran)


def run_again(
    finished: Finished,
    folder: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Any, StageContext], None],
) -> Path:
    """Run one stage of a copy of the audit anew, which reads first."""
    workspace = folder / "w"
    shutil.copytree(finished.workspace, workspace)
    shutil.rmtree(workspace / ".krepes" / "stages" / name)
    shutil.rmtree(workspace / "audit.zarr" / name, ignore_errors=True)
    stage = BY_NAME[name]
    run = stage.run

    def reads_first(inputs: Any, context: StageContext) -> None:
        read(inputs, context)
        run(inputs, context)

    monkeypatch.setitem(vars(stage), "run", reads_first)
    try:
        small.audit(workspace, until=name)
    finally:
        monkeypatch.undo()
    return workspace


def undeclared_stores(stage: Stage) -> list[str]:
    known = {*stage.inputs.stores(), stage.store}
    return [store for store in (*contract_names(), "another") if store not in known]


@pytest.mark.parametrize("name", NAMES)
def test_an_undeclared_store_is_refused(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    *others, last = undeclared_stores(BY_NAME[name])

    def read(inputs: Any, context: StageContext) -> None:
        for store in others:
            with pytest.raises(UndeclaredInputError, match=f"{name}.*{store}"):
                context.workspace.reader(store)
        context.workspace.reader(last)

    with pytest.raises(UndeclaredInputError, match=f"{name}.*{last}"):
        run_again(finished, tmp_path, name, monkeypatch, read)
    assert name not in small.seals(tmp_path / "w")


# Stages that declare every part could read none that they do not declare.
PARTIAL = [n for n in NAMES if not set(READ_PART) <= set(BY_NAME[n].inputs.parts())]


@pytest.mark.parametrize("name", PARTIAL)
def test_an_undeclared_part_of_the_recipe_is_refused(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    declared = BY_NAME[name].inputs.parts()
    undeclared = [part for part in READ_PART if part not in declared]
    # A stage that declares no part has no such field; it could build one from its context.
    *others, last = undeclared

    def read(inputs: Any, context: StageContext) -> None:
        recipe = getattr(inputs, "recipe", RecipeInputs(context, ()))
        for part in declared:
            if part in READ_PART:
                READ_PART[part](recipe)
        for part in others:
            with pytest.raises(UndeclaredInputError, match=f"{name}.*(source|{part})"):
                READ_PART[part](recipe)
        READ_PART[last](recipe)

    with pytest.raises(UndeclaredInputError, match=f"{name}.*(source|{last})"):
        run_again(finished, tmp_path, name, monkeypatch, read)
    assert name not in small.seals(tmp_path / "w")


def test_a_stage_that_reads_what_it_declares_ends_in_the_same_digest(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(inputs: Any, context: StageContext) -> None:
        assert inputs.features.attributes["layout"]
        assert len(inputs.recipe.source.labels(np.arange(3))) == 3

    workspace = run_again(finished, tmp_path, "landmarks", monkeypatch, read)
    assert small.seals(workspace)["landmarks"] == small.seals(finished.workspace)["landmarks"]


@pytest.mark.parametrize("name", EVERY)
def test_reads_are_the_declared_fields(name: str) -> None:
    inputs = BY_NAME[name].inputs
    hints = typing.get_type_hints(inputs)
    fields = [field.name for field in dataclasses.fields(inputs)[1:]]
    readers = (StoreReader, StoreReader | None)
    stores = tuple(field for field in fields if hints[field] in readers)
    assert all(hints[field] in (*readers, RecipeInputs) for field in fields)
    optional = tuple(field for field in fields if hints[field] == readers[1])
    assert tuple(inputs.optional()) == optional
    # The store of an optional stage, or one that a setting of the reader asks for.
    settings = BY_NAME[name].settings()
    for store, key in inputs.optional().items():
        assert getattr(settings, key) is False if key else store not in NAMES
    assert inputs.stores() == stores
    covered = {part for parts in inputs.covered().values() for part in parts}
    assert set(inputs.parts()) <= set(RECIPE_PARTS)
    assert BY_NAME[name].reads == (
        *stores,
        *(part for part in inputs.parts() if part not in covered),
    )


@pytest.mark.parametrize("name", EVERY)
def test_a_stage_reads_earlier_stages_alone(name: str) -> None:
    stage = BY_NAME[name]
    earlier = EVERY[: EVERY.index(name)]
    assert set(stage.inputs.stores()) <= set(earlier)
    for store, parts in stage.inputs.covered().items():
        assert store in stage.inputs.stores()
        assert set(parts) <= set(BY_NAME[store].reads)


def test_reads_and_digests_of_the_early_stages_are_the_recorded_ones(finished: Finished) -> None:
    assert {name: BY_NAME[name].reads for name in READS} == READS
    seals = small.seals(finished.workspace)
    assert {name: seals[name] for name in DIGESTS} == DIGESTS


def test_labels_are_refused_where_they_are_not_declared(finished: Finished) -> None:
    inputs, context = finished.ran["features"]
    source = inputs.recipe.source
    assert source.n_samples == small.ROWS
    for read in ("labels", "names", "label_fingerprint"):
        with pytest.raises(UndeclaredInputError, match=r"features.*labels"):
            getattr(source, read)
    declared = finished.ran["landmarks"][0].recipe.source
    assert declared is context.audit_inputs.source


def test_clean_inputs_need_no_views_and_augmented_ones_do(finished: Finished) -> None:
    recipe = finished.ran["audited"][0].recipe
    assert recipe.encode(np.arange(2), -1)[0].shape[0] == 2
    with pytest.raises(UndeclaredInputError, match=r"audited.*views"):
        recipe.encode(np.arange(2), 0)


def test_an_unknown_part_of_the_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="no recipe part"):
        recipe_parts("source", "sources")


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_context_survive_pickling(finished: Finished, tmp_path: Path, name: str) -> None:
    """As a payload carries them to a worker: whole, one by one, and twice."""
    context = dataclasses.replace(finished.ran[name][1], transfer=TransferFolder.open(tmp_path, ""))
    inputs = context.inputs
    opened = {store: getattr(inputs, store) for store in inputs.stores()}
    assert all(opened[store] is None for store in inputs.optional())
    stores = {store: reader for store, reader in opened.items() if reader is not None}
    payload = pickle.dumps((inputs, context, stores, getattr(inputs, "recipe", None)))
    arrived, on_worker, readers, recipe = pickle.loads(payload)
    # One context for all payloads of a stage, and one reader and source in it.
    assert on_worker is not context
    assert pickle.loads(payload)[0] is arrived is on_worker.inputs
    for store, reader in readers.items():
        assert reader is getattr(arrived, store)
        assert reader.attributes == stores[store].attributes
    assert on_worker.digest == context.digest
    if recipe is not None:
        assert recipe == arrived.recipe
        assert recipe.audit is on_worker.audit_inputs
        again = pickle.loads(payload)[3]
        assert again.audit.source is on_worker.audit_inputs.source
    for store in undeclared_stores(context.stage):
        with pytest.raises(UndeclaredInputError, match=name):
            on_worker.workspace.reader(store)


def test_a_source_without_labels_is_pickled_with_its_inputs(
    finished: Finished, tmp_path: Path
) -> None:
    context = dataclasses.replace(
        finished.ran["features"][1], transfer=TransferFolder.open(tmp_path, "")
    )
    inputs: Any = context.inputs
    source = pickle.loads(pickle.dumps(inputs.recipe.source))
    assert source.n_samples == small.ROWS
    with pytest.raises(UndeclaredInputError):
        source.labels(np.arange(2))


def test_a_declared_reader_shares_what_was_verified(finished: Finished) -> None:
    inputs, context = finished.ran["landmarks"]
    reader = context.workspace.reader("features")
    assert inputs.features is not reader
    assert inputs.features._verified is reader._verified
    block = context.plan.block(0)
    np.testing.assert_array_equal(
        inputs.features.block("sample_id", block), reader.block("sample_id", block)
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_stage_goes_around_its_inputs(name: str) -> None:
    """``audit_inputs`` opens any part of a recipe: the base alone may ask the context for it."""
    folder = Path(__file__).parents[3] / "krepes_ooc" / "stages" / name
    for path in folder.rglob("*.py"):
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
        }
        assert "audit_inputs" not in names, path


def test_inputs_are_frozen() -> None:
    for stage in STAGES:
        assert issubclass(stage.inputs, StageInputs)
        assert dataclasses.fields(stage.inputs)[0].name == "context"
