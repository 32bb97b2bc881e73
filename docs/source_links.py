"""MkDocs hook: a page may link to files of the repository; those must exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def missing_links(markdown: str) -> list[str]:
    """Linked paths outside ``docs`` that are no file or folder of the repository."""
    return [path for _, path in LINK.findall(markdown) if not (ROOT / path).exists()]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Check the links of one page and show each as its text and path, since the site has no code.

    Raises:
        FileNotFoundError: a linked file is gone, which ends the build.
    """
    if missing := missing_links(markdown):
        raise FileNotFoundError(f"{page.file.src_path} links to missing {', '.join(missing)}")
    return LINK.sub(lambda link: f"{link[1]} (`{link[2]}`)", markdown)
