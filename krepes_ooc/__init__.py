"""krepes_ooc: out-of-core audits of frozen self-supervised networks."""

from krepes_ooc.recipes import Recipe
from krepes_ooc.runner import Options, run
from krepes_ooc.runner.opened import Workspace

__all__ = ["Options", "Recipe", "Workspace", "run"]
