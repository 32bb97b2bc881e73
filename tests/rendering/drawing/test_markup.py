import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.rendering.drawing.markup import (
    Markup,
    element,
    format_number,
    format_seconds,
    join,
    number,
    table,
    to_plain,
    user_text,
)
from tests.rendering.samples import HOSTILE, Page


class Reader(HTMLParser):
    """Collects the text and the attributes that a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.names, self.attributes = "", [], {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes.update(attrs)

    def handle_data(self, data):
        self.text += data


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"])))
def test_text_comes_back_as_text(text):
    reader = Reader(element("p", text, title=text))
    assert reader.names == ["p"]
    assert reader.text == text
    assert reader.attributes == {"title": text}


def test_text_is_escaped_and_markup_is_not():
    inner = element("b", "<i>")
    assert inner == "<b>&lt;i&gt;</b>"
    assert element("p", inner, "<i>", None, [inner, ["&"]]) == (
        "<p><b>&lt;i&gt;</b>&lt;i&gt;<b>&lt;i&gt;</b>&amp;</p>"
    )
    assert isinstance(join("a"), Markup)


class Pretender(str):
    """Text that says of itself that it is HTML."""

    def __html__(self) -> str:
        return "<script>"


def test_what_calls_itself_html_is_escaped_all_the_same():
    for text in (Pretender("<i>"), np.str_("<i>")):
        assert element("p", text, title=text) == '<p title="&lt;i&gt;">&lt;i&gt;</p>'
        assert join(text) == "&lt;i&gt;"
    assert element("p", title=element("b", "x")) == '<p title="&lt;b&gt;x&lt;/b&gt;"></p>'
    assert element("p", "a" + join("&")) == "<p>a&amp;</p>"
    assert join(element("b"), "<") + "<" == "<b></b>&lt;&lt;"


def test_attributes():
    made = element("img", alt='"x"', class_="a", data_value=1, title=None)
    assert made == '<img alt="&#34;x&#34;" class="a" data-value="1">'


def test_user_text_is_isolated_shortened_and_encodable():
    made = user_text(HOSTILE + "\ud800" + "a" * 500)
    assert made.startswith("<bdi>&lt;script&gt;")
    assert "\x00" not in made
    made.encode("utf-8")
    assert len(Reader(made).text) == 160
    assert Reader(user_text("a\n  b")).text == "a b"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1797, "1,797"),
        (-3, "−3"),
        (0.0, "0"),
        (0.61349, "0.613"),
        (20.7349, "20.7"),
        (0.001, "0.001"),
        (1.0, "1"),
        (10.0, "10"),
        (12345.678, "12,346"),
        (0.000123456, "0.000123"),
        (0.0000123456, "1.23×10⁻⁵"),
        (1e-7, "10⁻⁷"),
        (-2e9, "−2×10⁹"),
        (0.9999999, "1.000"),
    ],
)
def test_format_number(value, shown):
    assert format_number(value) == shown


def test_signed_and_short_numbers():
    assert format_number(0.5, signed=True) == "+0.5"
    assert format_number(-0.5, signed=True) == "−0.5"
    assert format_number(0.123456, digits=2) == "0.12"


def read(shown: str) -> float:
    """What a person reads in a printed number."""
    plain = shown.translate(str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789", ","))
    sign, digits, power = re.fullmatch(r"([-+]?)(?:([0-9.]+)×)?10(-?[0-9]+)", plain).groups()
    return float(f"{sign}{digits or 1}e{power}")


@given(st.floats(-1e300, 1e300))
def test_a_printed_number_reads_as_the_value(value):
    shown = format_number(value)
    superscript = any(digit in shown for digit in "⁰¹²³⁴⁵⁶⁷⁸⁹")
    plain = float(shown.replace("−", "-").replace(",", "")) if not superscript else read(shown)
    assert math.isclose(plain, value, rel_tol=6e-3, abs_tol=1e-300)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.824, "0.82 s"),
        (41.6, "42 s"),
        (99.6, "1 min 40 s"),
        (123.0, "2 min 3 s"),
        (3599.7, "1 h 0 min"),
        (18600, "5 h 10 min"),
    ],
)
def test_format_seconds(seconds, shown):
    assert format_seconds(seconds) == shown


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, np.float32("nan")])
def test_what_was_not_measured_is_said(value):
    assert number(value) == '<span class="none">not measured</span>'


def test_number_keeps_its_full_value():
    value = np.float64(0.1) + np.float64(0.2)
    reader = Reader(number(value))
    assert float(reader.attributes["data-value"]) == value
    assert reader.text == "0.300"
    assert Reader(number(np.int64(12), words="a dozen")).text == "a dozen"


def test_to_plain_is_json():
    class Odd:
        def __str__(self):
            return "odd"

    plain = to_plain({"a": np.array([1.0, np.nan]), 2: (np.int64(3), math.inf), "c": [True, Odd()]})
    assert plain == {"a": [1.0, None], "2": [3, None], "c": [True, "odd"]}
    json.dumps(plain, allow_nan=False)


def test_table_has_headers_and_a_caption():
    page = Page(table(["name", "value"], [["a", "1"], ["b", "2"]], caption="Two rows"))
    assert [head["scope"] for head in page.all("th")] == ["col", "col", "row", "row"]
    assert page.text == "Two rows name value a 1 b 2"
    assert page.all("div")[0]["tabindex"] == "0"
