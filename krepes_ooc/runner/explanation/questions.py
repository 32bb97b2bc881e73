"""The questions that an explanation answers, each by the module that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from krepes_ooc.errors import UsageError

if TYPE_CHECKING:
    from krepes_ooc.rendering.explanation import Explained
    from krepes_ooc.rendering.explanation_sum import ExplainedSum
    from krepes_ooc.rendering.explanation_without import ExplainedWithout

    Explanation: TypeAlias = Explained | ExplainedSum | ExplainedWithout


def answer(
    root: Path,
    asked: dict[str, Any],
    *,
    against: int | None = None,
    probe: str | None = None,
    without: str | None = None,
    corpus: bool = False,
    coefficients: str | None = None,
    prefix: str = "",
) -> Sequence[Explanation]:
    """Explanations of samples; without a question their landmarks.

    Args:
        root: folder of the audit.
        asked: ``sample`` or ``file``, ``top`` and ``recipe``.
        against: another sample: similarities as sums over landmarks.
        probe: label: logits of its linear probe as sums over landmarks.
        without: group: nearest landmarks with and without it.
        corpus: all samples of the source in the place of landmarks.
        coefficients: of the sums; None: auto.
        prefix: of the names of the questions in messages, ``--`` on the command line.

    Raises:
        UsageError: several questions, or coefficients where nothing is summed.
    """
    given = {"against": against, "probe": probe, "without": without, "corpus": corpus or None}
    named = [prefix + name for name, value in given.items() if value is not None]
    if len(named) > 1:
        one_of = ", ".join(prefix + name for name in given)
        raise UsageError(f"{' and '.join(named)} were given", expected=f"one of {one_of} at a time")
    if against is None and probe is None and coefficients is not None:
        raise UsageError(
            f"{prefix}coefficients {coefficients} without a sum",
            expected=f"{prefix}against or {prefix}probe beside it",
            advice="stages.minimiser.solution chooses what rankings of landmarks use",
        )
    # Each kind is imported where it is used.
    if against is not None:
        from krepes_ooc.runner.explanation.explain_sums import explain_pair

        return explain_pair(root, against=against, coefficients=coefficients or "auto", **asked)
    if probe is not None:
        from krepes_ooc.runner.explanation.explain_sums import explain_decision

        return explain_decision(root, probe=probe, coefficients=coefficients or "auto", **asked)
    if without is not None:
        from krepes_ooc.runner.explanation.explain_without import explain_without

        return explain_without(root, group=without, **asked)
    if corpus:
        from krepes_ooc.runner.explanation.explain_corpus import explain_corpus

        return explain_corpus(root, **asked)
    from krepes_ooc.runner.explanation.explain import explain

    return explain(root, **asked)
