"""The command line: options declared once, commands of a few lines, errors as one line.

In come arguments; out go text, JSON and exit codes. click and rich are imported only here; nothing
imports this folder.
"""

from __future__ import annotations

from krepes_ooc.cli.main import main

__all__ = ["main"]
