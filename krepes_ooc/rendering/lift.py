"""Lift of a table column: agreement with the landmarks over agreement with all samples."""

from __future__ import annotations

import numpy as np

from krepes_ooc.rendering.data import Array, AuditData
from krepes_ooc.rendering.drawing.sample_view import AGREES_FROM, agreement, explained_rows
from krepes_ooc.rendering.explanation import Explained

# Columns of a card, audited ones besides
MAX_COLUMNS = 10


def column_lift(explained: Explained, places: list[int]) -> Array:
    """Share of landmarks that agree over the share of all explained samples that do [column].

    The sample itself is among the samples, so that the lift of a value that it alone has is finite;
    NaN where the value is missing.

    Args:
        explained: one sample of a table.
        places: of the landmarks among ``displayed``.
    """
    audit = explained.audit
    audited = audit.audited
    assert audited is not None
    assert audited.values is not None
    assert explained.agrees is not None
    others = audited.values[explained_rows(audited)]
    one = audited.values[explained.row]
    base = (agreement(one, others, audit.columns, explained.spans) >= AGREES_FROM).mean(axis=0)
    n_columns = len(audit.columns)
    share = explained.agrees[places].mean(axis=0) if places else np.zeros(n_columns)
    return np.where(base > 0, share / np.where(base > 0, base, 1.0), np.nan)


def card_columns(audit: AuditData, lift: Array) -> list[int]:
    """Columns of a card by descending lift; audited ones always, in their place.

    Args:
        audit: with its columns.
        lift: [column]; NaN comes last.
    """
    order = np.argsort(-np.nan_to_num(lift, nan=-1.0), kind="stable")
    audited = {i for i, column in enumerate(audit.columns) if column.name in audit.audited_columns}
    free = [int(c) for c in order if int(c) not in audited][:MAX_COLUMNS]
    chosen = audited | set(free)
    return [int(c) for c in order if int(c) in chosen]
