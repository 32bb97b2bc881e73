"""krepes_ooc: out-of-core audits of frozen self-supervised networks."""

from krepes_ooc.errors import KrepesError
from krepes_ooc.recipes import Recipe
from krepes_ooc.report import Explained
from krepes_ooc.runner import Options, Summary, run
from krepes_ooc.runner import make_plan as plan
from krepes_ooc.runner import read_status as status
from krepes_ooc.runner import verify_workspace as verify
from krepes_ooc.runner.explaining import explain
from krepes_ooc.runner.opened import Workspace

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
