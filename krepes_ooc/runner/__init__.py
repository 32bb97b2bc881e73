"""Runs, plans and states of recipes; explanations and the Python interface of workspaces.

Input: a recipe and options. ``explanation`` answers questions about samples of a finished audit,
``comparison`` puts finished audits side by side. Only ``cli`` and users of the Python interface
import it.
"""

from krepes_ooc.runner.audit import Audit, Options, default_workspace
from krepes_ooc.runner.plan import make_plan, refuse_unfit_plan
from krepes_ooc.runner.run import run
from krepes_ooc.runner.run_history import Summary
from krepes_ooc.runner.status import read_status, verify_workspace

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
