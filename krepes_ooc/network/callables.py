"""Load a view or a data set that a recipe names; the message names the recipe's own key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from krepes_ooc.errors import NetworkError, SourceError, UsageError
from krepes_ooc.network.modelspec import find_factory


def load_callable(text: str, base: Path, key: str) -> Callable[..., Any]:
    """The callable named ``module:callable`` or ``path/to/file.py:callable``; that code is run.

    Args:
        text: the name.
        base: folder of the recipe, where a file is looked up.
        key: the recipe's key, for messages.

    Raises:
        SourceError: the name has another form, the code fails, or holds no such callable.
    """
    try:
        return find_factory(text, base)
    except (UsageError, NetworkError) as error:
        raise SourceError(
            error.what, where=key, expected="module:callable or path/to/file.py:callable"
        ) from error
