"""Definitions of the page's terms, as in docs/glossary.md, shown on hover."""

from __future__ import annotations

import re

from krepes_ooc.rendering.drawing.markup import Markup, element

# As the page writes a term: its definition in docs/glossary.md
TERMS = {
    "kernel model": "f = K A + γ: every embedding is a sum over landmarks",
    "kernel": "k(x, x'), inner product of feature rows: the empirical neural tangent kernel, "
    "centred and normalised",
    "landmarks": "one of m samples that the kernel model is built on; m is hundreds to thousands",
    "attracting": "signed contribution above or below 0; elsewhere: proponent and opponent",
    "repelling": "signed contribution above or below 0; elsewhere: proponent and opponent",
    "influence score": "rank of a landmark for a sample; the measure says which: aligned, is, "
    "unique, kernel",
    "contribution": "part of a landmark in the sample's embedding, projected on it",
    "discovered concepts": "cluster of directions found without labels",
    "stability": "mean cosine of a discovered concept with its match in fits on half samples",
    "alignment gap": "agreement of a sample with its top landmarks in a column, minus its "
    "agreement with all landmarks",
    "mean effect": "how the embedding of a sample would change without a group: 1 − correlation of "
    "its cosines to anchors",
    "plain kernel": "landmarks ranked by kernel value, no step",
    "random weights": "the audit of the same architecture with permuted weights",
    "noise ceiling": "the most that an agreement can reach: the network against itself, refitted "
    "on other samples",
    "ridge ceiling": "the most that any linear readout of these landmarks can reach: held-out R²",
    "τ": "rank correlation of the answers of a probe on the audit's embedding and on the network's",
    "tau": "rank correlation of the answers of a probe on the audit's embedding and on the "
    "network's",
    "CKA": "linear centred kernel alignment of two embeddings, columns standardised",
    "RankMe": "effective rank of an embedding; below 2 it has collapsed",
    "deletion test": "how much a decision or a k-NN prediction changes when a sample's first "
    "landmarks are removed",
    "Nystrom error": "share of the kernel that the landmarks miss",
    "damping": "λ: how much a solution is held near A₀",
    "95 % interval": "95 %, by bootstrap over samples where nothing else is said",
    "closeness": "mean of a sample's ten largest kernel values to landmarks; small is novel",
    "mixing": "share of a sample's explanation outside its main class or concept",
    "lift": "share of a sample's landmarks that agree with it in a column, over the share of all "
    "audited samples that do",
    "gain ratio": "real over predicted decrease of the loss (rho); near 1 the step is where its "
    "quadratic model holds",
    "spectral entropy": "how evenly the step uses the kernel's directions; 1 is all alike",
}
# Text of users, drawings, controls and scripts stay as they are
SKIPPED = frozenset({"abbr", "bdi", "button", "code", "h2", "option", "pre", "q", "script", "svg"})
_TAG = re.compile(r"(<[^>]*>)")
# Longer terms first, so that "kernel model" is not read as "kernel"
_TERM = re.compile(
    r"(?<![\w'-])("
    + "|".join(map(re.escape, sorted(TERMS, key=len, reverse=True)))
    + r")(?![\w'-])",
    re.IGNORECASE,
)
_KEYS = {term.lower(): term for term in TERMS}


def define_terms(markup: Markup) -> Markup:
    """Give the first occurrence of every term its definition as a title.

    Args:
        markup: balanced elements; as attributes are escaped, ``<`` and ``>`` are tags alone.
    """
    parts: list[str] = []
    skipped: list[str] = []
    seen: set[str] = set()
    for piece in _TAG.split(str(markup)):
        if piece.startswith("<"):
            # Nested skipped elements close in reverse order
            name = re.split(r"[\s>]", piece.lstrip("</"), maxsplit=1)[0]
            if name in SKIPPED:
                skipped = skipped[:-1] if piece.startswith("</") else [*skipped, name]
            parts.append(piece)
        else:
            parts.append(piece if skipped else _defined(piece, seen))
    return Markup("".join(parts))


def _defined(text: str, seen: set[str]) -> str:
    """Escaped text with titles; terms that were seen before stay plain."""

    def replace(found: re.Match[str]) -> str:
        key = _KEYS[found[0].lower()]
        if key in seen:
            return found[0]
        seen.add(key)
        return str(element("abbr", Markup(found[0]), title=TERMS[key]))

    return _TERM.sub(replace, text)
