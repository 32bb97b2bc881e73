"""krepes_ooc: out-of-core audits of frozen self-supervised networks.

The functions ``run``, ``plan``, ``status``, ``verdict``, ``verify``, ``explain`` and ``compare`` do
what the commands do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from krepes_ooc.errors import KrepesError
    from krepes_ooc.rendering.explanation import Explained
    from krepes_ooc.runner.api import compare, explain, plan, run, status, verdict, verify
    from krepes_ooc.runner.audit import Options
    from krepes_ooc.runner.learn_encoding import learn_encoding as encode
    from krepes_ooc.runner.live import LiveAudit as Audit
    from krepes_ooc.runner.recipe import Recipe
    from krepes_ooc.runner.run_history import Summary
    from krepes_ooc.runner.workspace import Workspace

__all__ = [  # noqa: RUF022  grouped, in the order of use
    # what is run
    "Audit",
    "Recipe",
    "Options",
    "encode",
    "plan",
    "run",
    "Summary",
    # what a run left
    "Workspace",
    "Explained",
    "explain",
    "compare",
    "status",
    "verdict",
    "verify",
    # what goes wrong on purpose
    "KrepesError",
]

# Loaded on first use: a worker or a single stage imports only what it needs.
_HOMES = {
    "Audit": ("krepes_ooc.runner.live", "LiveAudit"),
    "KrepesError": ("krepes_ooc.errors", "KrepesError"),
    "Explained": ("krepes_ooc.rendering.explanation", "Explained"),
    "Options": ("krepes_ooc.runner.audit", "Options"),
    "compare": ("krepes_ooc.runner.api", "compare"),
    "explain": ("krepes_ooc.runner.api", "explain"),
    "encode": ("krepes_ooc.runner.learn_encoding", "learn_encoding"),
    "plan": ("krepes_ooc.runner.api", "plan"),
    "Recipe": ("krepes_ooc.runner.recipe", "Recipe"),
    "run": ("krepes_ooc.runner.api", "run"),
    "Summary": ("krepes_ooc.runner.run_history", "Summary"),
    "status": ("krepes_ooc.runner.api", "status"),
    "verdict": ("krepes_ooc.runner.api", "verdict"),
    "verify": ("krepes_ooc.runner.api", "verify"),
    "Workspace": ("krepes_ooc.runner.workspace", "Workspace"),
}


def __getattr__(name: str) -> Any:
    """A public name, imported from its module on first use.

    Raises:
        AttributeError: there is no such name.
    """
    if name == "__version__":
        from importlib.metadata import version

        return version("krepes-ooc")
    if name not in _HOMES:
        raise AttributeError(f"module 'krepes_ooc' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
