"""Declared inputs: what a stage reads is a frozen dataclass, opened in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, Self

from krepes_ooc.stages.base.inputs import AuditInputs
from krepes_ooc.stages.base.recipe_inputs import RECIPE_PARTS, RecipeInputs
from krepes_ooc.storage.workspace import Workspace

_PARTS = "recipe_parts"


class InputContext(Protocol):
    """What opening inputs takes: a ``StageContext``."""

    @property
    def stage_name(self) -> str:
        """Name of the running stage."""
        ...

    @property
    def workspace(self) -> Workspace:
        """Workspace that gives readers of declared stores only."""
        ...

    @property
    def audit_inputs(self) -> AuditInputs:
        """Source, network and views of the recipe."""
        ...

    @property
    def inputs(self) -> StageInputs:
        """The opened inputs."""
        ...


def recipe_parts(*parts: str) -> Any:
    """A field of ``StageInputs`` that gives parts of the recipe.

    Args:
        parts: of ``RECIPE_PARTS``: ``source`` (its samples), ``labels`` (labels and names of its
            samples), ``views``, ``factory`` (the network before its weights), ``network``.

    Raises:
        ValueError: there is no such part.
    """
    if unknown := set(parts) - set(RECIPE_PARTS):
        raise ValueError(f"no recipe part {sorted(unknown)}; known: {', '.join(RECIPE_PARTS)}")
    return dataclasses.field(metadata={_PARTS: parts})


@dataclass(frozen=True)
class StageInputs:
    """Base of the inputs of every stage.

    Each field but the first names a store of an earlier stage and holds its ``StoreReader``, or is
    declared by ``recipe_parts`` and holds ``RecipeInputs``.

    Args:
        context: the running stage; how these inputs are opened again on a worker.
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
        """All that the stage reads: its digest holds the digest of each."""
        return (*cls.stores(), *cls.parts())

    @classmethod
    def open(cls, context: InputContext) -> Self:
        """Open everything declared; the only place that opens stores."""
        opened: dict[str, Any] = {}
        for field in dataclasses.fields(cls)[1:]:
            parts = field.metadata.get(_PARTS)
            if parts is None:
                opened[field.name] = context.workspace.reader(field.name)
            else:
                opened[field.name] = RecipeInputs(context.stage_name, parts, context.audit_inputs)
        return cls(context, **opened)

    def __reduce__(self) -> tuple[Any, ...]:
        """Reach a worker as the stage's context, which opens the inputs there once."""
        return _opened, (self.context,)


def _opened(context: InputContext) -> StageInputs:
    return context.inputs
