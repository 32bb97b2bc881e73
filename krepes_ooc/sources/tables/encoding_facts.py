"""Origin of a table's encoding: for records, and as a warning where the network may not know it."""

from __future__ import annotations

from typing import Any, cast

from krepes_ooc.sources.base import Source

WARNING = (
    "the encoding was learned from this table, not from the one that the network was trained on: "
    "means, scales and places of categories may be others than the network knows ({layout}); "
    "name the file of the training as source.encoding (krepes encode writes one)"
)


def encoding_warnings(source: Source, *, trained_here: bool) -> list[str]:
    """The warning that a network of the user's own is shown an encoding learned here, or none.

    Args:
        source: any source.
        trained_here: whether the network is trained by this run, with the same encoding.
    """
    if source.kind != "table" or trained_here or _table(source).encoding_file is not None:
        return []
    return [WARNING.format(layout=_table(source).encoding.layout)]


def describe_encoding(source: Source, *, trained_here: bool) -> dict[str, Any]:
    """Facts about a table's encoding, as JSON; {} for other sources.

    Args:
        source: any source.
        trained_here: whether the network is trained by this run, with the same encoding.

    Returns:
        ``origin``: ``file``, ``trained here`` or ``learned here`` (which nobody has compared with
        the training of the network); ``layout`` in words, ``sha256`` of the content, and with a
        file its ``file`` name, the ``unseen`` rows and the ``filled`` numbers by column.
    """
    if source.kind != "table":
        return {}
    table = _table(source)
    facts = {"layout": table.encoding.layout, "sha256": table.encoding.digest}
    file = table.encoding_file
    if file is None:
        return {"origin": "trained here" if trained_here else "learned here", **facts}
    return {"origin": "file", "file": file.name, **facts, **file.counted(table.columns)}


def _table(source: Source) -> Any:
    # A stage holds a source that hides labels: only its kind says that it is a table.
    return cast(Any, source)
