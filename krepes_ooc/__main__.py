"""``python -m krepes_ooc`` is ``krepes``."""

from krepes_ooc.cli import main

main()
