"""Declared inputs: a frozen dataclass of the stores and recipe parts that a stage reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from krepes_ooc.stages.base.recipe_inputs import RECIPE_PARTS, RecipeContext, RecipeInputs
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.workspace import Workspace

_PARTS = "recipe_parts"
_COVERED_BY = "covered_by"
_OPTIONAL = "optional"


class InputContext(RecipeContext, Protocol):
    """Context that inputs are opened in: a ``StageContext``."""

    @property
    def workspace(self) -> Workspace:
        """Workspace that gives readers of declared stores only."""
        ...

    @property
    def settings(self) -> Any:
        """Settings of the stage."""
        ...

    @property
    def inputs(self) -> StageInputs:
        """The opened inputs."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Fingerprint of the stage, whose inputs name every store that is read."""
        ...


def recipe_parts(*parts: str, covered_by: str = "") -> Any:
    """A field of ``StageInputs`` that gives parts of the recipe.

    Args:
        parts: of ``RECIPE_PARTS``: ``source`` (its samples), ``labels`` (labels and names of its
            samples), ``views``, ``factory`` (the network before its weights), ``network``.
        covered_by: a declared store whose digest holds these parts already; the stage's digest
            then does not repeat them.

    Raises:
        ValueError: a part is unknown.
    """
    if unknown := set(parts) - set(RECIPE_PARTS):
        raise ValueError(f"no recipe part {sorted(unknown)}; known: {', '.join(RECIPE_PARTS)}")
    return dataclasses.field(metadata={_PARTS: parts, _COVERED_BY: covered_by})


def optional_store(setting: str = "") -> Any:
    """A field of ``StageInputs`` for a store that is not read in every audit.

    Where it is not, the field is None, and no digest names the store.

    Args:
        setting: key of the reading stage's settings; the store is read where its value is true.
            Empty: it is read where the stage that writes it is part of the audit.
    """
    return dataclasses.field(metadata={_OPTIONAL: setting})


class DeclaredReader(StoreReader):
    """Reader of a declared store, which pickles as a field of the inputs.

    A worker keeps one context for all tasks of a stage; through it every task uses one reader, so
    that a chunk is verified once per worker and not once per pass.

    Args:
        reader: the workspace's reader; opened arrays and verified chunks are shared with it.
        context: the running stage.
        field: name of the field, which is the name of the store.
    """

    def __init__(self, reader: StoreReader, context: InputContext, field: str) -> None:
        # The same dictionaries: a chunk verified through either reader is not verified again.
        vars(self).update(vars(reader))
        self._context = context
        self._field = field

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the context and the name of the field."""
        return _declared_reader, (self._context, self._field)


def _declared_reader(context: InputContext, field: str) -> StoreReader:
    reader: StoreReader = getattr(context.inputs, field)
    return reader


@dataclass(frozen=True)
class StageInputs:
    """Base of the inputs of every stage.

    Each field but the first names a store of an earlier stage and holds its ``StoreReader``, or is
    declared by ``recipe_parts`` and holds ``RecipeInputs``. A field declared by ``optional_store``
    is None where that store is not read.

    Args:
        context: the running stage; a worker opens the inputs anew from it.
    """

    context: InputContext = dataclasses.field(repr=False, compare=False)

    @classmethod
    def stores(cls) -> tuple[str, ...]:
        """Names of the stores that the stage reads."""
        declared = dataclasses.fields(cls)[1:]
        return tuple(field.name for field in declared if _PARTS not in field.metadata)

    @classmethod
    def optional(cls) -> dict[str, str]:
        """Stores that are not read in every audit, with the setting that asks for them, if any."""
        declared = dataclasses.fields(cls)[1:]
        return {f.name: f.metadata[_OPTIONAL] for f in declared if _OPTIONAL in f.metadata}

    @classmethod
    def parts(cls) -> tuple[str, ...]:
        """Parts of the recipe that the stage reads."""
        declared = dataclasses.fields(cls)[1:]
        return tuple(part for field in declared for part in field.metadata.get(_PARTS, ()))

    @classmethod
    def reads(cls) -> tuple[str, ...]:
        """Stores and recipe parts whose digests the stage's digest holds."""
        declared = dataclasses.fields(cls)[1:]
        # Parts that the digest of a store holds would be in this digest twice.
        named = [field for field in declared if not field.metadata.get(_COVERED_BY)]
        parts = [part for field in named for part in field.metadata.get(_PARTS, ())]
        return (*cls.stores(), *parts)

    @classmethod
    def covered(cls) -> dict[str, tuple[str, ...]]:
        """Recipe parts that the digest of a declared store holds, by the name of that store."""
        covered: dict[str, tuple[str, ...]] = {}
        for field in dataclasses.fields(cls)[1:]:
            if store := field.metadata.get(_COVERED_BY):
                covered[store] = (*covered.get(store, ()), *field.metadata[_PARTS])
        return covered

    @classmethod
    def open(cls, context: InputContext) -> Self:
        """Open the declared stores and recipe parts; no other code opens a store for a stage.

        Args:
            context: the running stage.
        """
        opened: dict[str, Any] = {}
        for field in dataclasses.fields(cls)[1:]:
            parts = field.metadata.get(_PARTS)
            if _OPTIONAL in field.metadata and field.name not in context.fingerprint["inputs"]:
                opened[field.name] = None
            elif parts is None:
                # The workspace is limited to the declared stores, so an undeclared one raises.
                reader = context.workspace.reader(field.name)
                opened[field.name] = DeclaredReader(reader, context, field.name)
            else:
                opened[field.name] = RecipeInputs(context, parts)
        return cls(context, **opened)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the context, which opens the inputs once per worker."""
        return _inputs_of, (self.context,)


def _inputs_of(context: InputContext) -> StageInputs:
    return context.inputs
