"""Run a recipe, plan it, look at what it left."""

from krepes_ooc.runner.audit import Audit, Options, default_workspace
from krepes_ooc.runner.inspection import read_status, verify_workspace
from krepes_ooc.runner.planning import make_plan, refuse_unfit_plan
from krepes_ooc.runner.running import Summary, run

__all__ = [
    "Audit",
    "Options",
    "Summary",
    "default_workspace",
    "make_plan",
    "read_status",
    "refuse_unfit_plan",
    "run",
    "verify_workspace",
]
