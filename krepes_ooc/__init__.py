"""krepes_ooc: out-of-core audits of frozen self-supervised networks."""

from krepes_ooc.errors import KrepesError
from krepes_ooc.rendering.explanation import Explained
from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.explain import explain
from krepes_ooc.runner.plan import make_plan as plan
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.runner.run_history import Summary
from krepes_ooc.runner.status import read_status as status
from krepes_ooc.runner.status import verify_workspace as verify
from krepes_ooc.runner.workspace import Workspace

__all__ = [  # noqa: RUF022  grouped, in the order of use
    # what is run
    "Recipe",
    "Options",
    "plan",
    "run",
    "Summary",
    # what a run left
    "Workspace",
    "Explained",
    "explain",
    "status",
    "verify",
    # what goes wrong on purpose
    "KrepesError",
]
