"""The command line: options declared once, commands of a few lines, errors as one line."""

from __future__ import annotations

from krepes_ooc.cli.main import main

__all__ = ["main"]
