"""Declared inputs: a frozen dataclass of the stores and recipe parts that a stage reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, Self

from krepes_ooc.stages.base.recipe_inputs import RECIPE_PARTS, RecipeContext, RecipeInputs
from krepes_ooc.storage.store_reader import StoreReader
from krepes_ooc.storage.workspace import Workspace

_PARTS = "recipe_parts"
_COVERED_BY = "covered_by"
_ONLY_WITH = "only_with"


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


def store_with(setting: str) -> Any:
    """A field of ``StageInputs`` for a store that the stage reads only with a setting.

    Without it the field is None, and the store is no part of the stage's digest.

    Args:
        setting: key of the stage's settings; the store is read where its value is true.
    """
    return dataclasses.field(metadata={_ONLY_WITH: setting})


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
    declared by ``recipe_parts`` and holds ``RecipeInputs``.

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
    def parts(cls) -> tuple[str, ...]:
        """Parts of the recipe that the stage reads."""
        declared = dataclasses.fields(cls)[1:]
        return tuple(part for field in declared for part in field.metadata.get(_PARTS, ()))

    @classmethod
    def reads(cls) -> tuple[str, ...]:
        """Stores and recipe parts whose digests the stage's digest holds, whatever its settings."""
        declared = dataclasses.fields(cls)[1:]
        stores = tuple(name for name in cls.stores() if name not in cls._by_setting())
        # Parts that the digest of a store holds would be in this digest twice.
        named = [field for field in declared if not field.metadata.get(_COVERED_BY)]
        parts = [part for field in named for part in field.metadata.get(_PARTS, ())]
        return (*stores, *parts)

    @classmethod
    def reads_with(cls, settings: Any) -> tuple[str, ...]:
        """Stores that the stage reads because of its settings; its digest holds theirs too."""
        return tuple(name for name, key in cls._by_setting().items() if getattr(settings, key))

    @classmethod
    def _by_setting(cls) -> dict[str, str]:
        """The setting of every store that is read only with one, by the name of the store."""
        declared = dataclasses.fields(cls)[1:]
        return {f.name: f.metadata[_ONLY_WITH] for f in declared if _ONLY_WITH in f.metadata}

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
            setting = field.metadata.get(_ONLY_WITH)
            if setting and not getattr(context.settings, setting):
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
