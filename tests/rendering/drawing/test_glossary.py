import re
from pathlib import Path

from krepes_ooc.rendering.drawing.glossary import TERMS, define_terms
from krepes_ooc.rendering.drawing.markup import element, user_text
from krepes_ooc.rendering.page import build_report
from tests.rendering.samples import Page, full_audit

GLOSSARY = Path(__file__).parents[3] / "docs" / "glossary.md"


def test_definitions_are_those_of_the_glossary():
    lines = re.findall(r"^\| (.+?) \| (.+?) \|$", GLOSSARY.read_text(), re.MULTILINE)
    # Names of stores and keys in brackets are for programs
    known = {re.sub(r" \(`\w+`\)", "", words).replace("`", "") for _, words in lines}
    assert [term for term, definition in TERMS.items() if definition not in known] == []


def test_the_first_occurrence_of_a_term_is_defined():
    text = str(define_terms(element("p", "Plain kernel, kernel, kernels and plain kernel.")))
    assert text.count("<abbr") == 2
    assert text.startswith(f'<p><abbr title="{TERMS["plain kernel"]}">Plain kernel</abbr>, <abbr')
    assert text.endswith("kernels and plain kernel.</p>")


def test_texts_of_users_scripts_and_attributes_stay():
    name = user_text("CKA <b>")
    script = element("script", "CKA")
    assert define_terms(element("p", name, script, title="CKA")) == element(
        "p", name, script, title="CKA"
    )
    nested = element("svg", element("q", "CKA"), "CKA")
    assert define_terms(nested) == nested


def test_the_page_defines_its_terms():
    page = Page(build_report(full_audit()).html)
    titles = {abbr["title"] for abbr in page.all("abbr")}
    assert titles <= set(TERMS.values())
    assert len(titles) > 10
