"""Words that the glossary replaced stand nowhere: page, documents, help, messages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from krepes_ooc.rendering.page import build_report
from tests.rendering.samples import Page, full_audit, table_audit

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Pattern and the word to write instead
REPLACED = {
    r"noise floor": "noise ceiling; of two seeds: variation by seed",
    r"(?<!lfs )\bpull(s|ed|ing)?\b": "signed contribution; attract, repel",
    r"\bpush(es|ed|ing)?\b": "repel",
    r"\btold\b|\btells?\b|\btelling\b": "say, show, distinguish",
    r"\b(foresee|foresaw|foreseen|foretell|foretold)s?\b": "predict",
    r"\bvot(e|es|ed|ing)\b": "k-NN",
    r"\btak(e|es|en) over\b": "refit, adopt",
    r"\bhold(s)? (up|in place|an embedding)\b": "attract, repel",
    r"\btake care\b": "warning",
    r"\bspeaks? (for|to)\b": "influence, connect",
    r"\bcarr(y|ies|ied) (the|its|an|more) (embedding|network)": "explain",
    r"\bleft over\b": "unexpected",
    r"\bcan it be believed|\bhow faithful\b": "reliability checks, fidelity",
    r"\bis parked\b|\bparked (stage|result)": "previous",
}


def replaced_words(text: str) -> list[str]:
    """Every replaced word of a text, with its surroundings."""
    plain = " ".join(text.split())
    return [
        f"{plain[max(0, found.start() - 40) : found.end() + 20]!r}: write {instead}"
        for pattern, instead in REPLACED.items()
        for found in re.finditer(pattern, plain, re.IGNORECASE)
    ]


def messages(path: Path) -> str:
    """Texts of a module that people may read: strings of three words and more, help included."""
    tree = ast.parse(path.read_text())
    plain = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    # Docstrings of commands are their help
    if path.parent.name == "cli":
        plain = set()
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in plain
    ]
    return " | ".join(text for text in texts if len(text.split()) > 2)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents(path: Path) -> None:
    assert replaced_words(path.read_text()) == []


@pytest.mark.parametrize("audit", [full_audit, table_audit])
def test_page(audit: object) -> None:
    assert callable(audit)
    assert replaced_words(Page(build_report(audit()).html).text) == []


def test_messages_and_help() -> None:
    found = {
        str(path.relative_to(ROOT)): words
        for path in sorted((ROOT / "krepes_ooc").rglob("*.py"))
        if (words := replaced_words(messages(path)))
    }
    assert found == {}


def test_contracts_and_recipes() -> None:
    paths = [*(ROOT / "stores").glob("*.yaml"), *(ROOT / "pipelines").rglob("*.yaml")]
    assert {path.name: words for path in paths if (words := replaced_words(path.read_text()))} == {}


def test_a_replaced_word_is_found() -> None:
    assert len(replaced_words("the landmarks that\nhold up a sample; the noise floor is told")) == 3
    assert replaced_words("a pullover; git lfs fetch; attracting landmarks") == []
