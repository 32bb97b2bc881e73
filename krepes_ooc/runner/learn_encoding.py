"""Encoding of the table that a recipe names, learned from all of its rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from krepes_ooc.errors import UsageError
from krepes_ooc.runner.audit import workspace_folder
from krepes_ooc.runner.plan import trial_folder
from krepes_ooc.runner.recipe import Recipe


@dataclass(frozen=True)
class LearnedEncoding:
    """Outcome of learning an encoding.

    Args:
        layout: the inputs in words.
        sha256: digest of the content, as runs record it.
        missing: missing numbers of each column that has some.
    """

    layout: str
    sha256: str
    missing: dict[str, int]


def learn_encoding(
    recipe: Recipe, out: Path | str, workspace: Path | str | None = None
) -> LearnedEncoding:
    """Learn the encoding of a recipe's table and write it to a new file.

    Numbers are standardised by mean and standard deviation, missing ones filled with the mean.
    An encoding that the recipe names already is not read.

    Args:
        recipe: its source names the table that the network was trained on.
        out: file to write.
        workspace: whose caches are used if it exists; default ``krepes-workspace/<recipe>``.

    Raises:
        UsageError: the source is no table, or the file exists or cannot be written.
        SourceError: the table cannot be opened as declared.
        DataError: it holds values that cannot be used.
    """
    from krepes_ooc.sources.base import check_keys
    from krepes_ooc.sources.tables import encoding_file, table, table_encoding

    out = Path(out)
    if recipe.source.kind != "table":
        raise UsageError(
            f"a source of kind {recipe.source.kind!r} has no encoding",
            where="source.kind",
            expected="table",
        )
    # A file that audits read is never replaced in silence.
    if out.exists():
        raise UsageError("the file exists", where=str(out), expected="a new file")
    spec = dataclasses.replace(recipe.source, encoding="", unseen="refuse")
    check_keys(spec)
    root = workspace_folder(recipe, workspace)
    with trial_folder(root) as folder:
        cache = folder / ".krepes" / "cache"
        scanned = table.scan_source(spec, recipe.base, cache, keep_missing=True)
    encoding = table_encoding.learn_encoding(scanned.scan.columns)
    try:
        out.write_bytes(encoding_file.encoding_bytes(encoding))
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(out)) from error
    columns = scanned.scan.columns
    missing = {c.name: c.missing for c in columns if c.shown and c.kind == "numeric" and c.missing}
    return LearnedEncoding(encoding.layout, encoding.digest, missing)
