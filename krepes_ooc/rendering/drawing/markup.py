"""HTML that cannot be unbalanced or unescaped: elements are built, never pasted.

A plain ``str`` is always escaped; only ``Markup`` of markupsafe, which ``element`` returns, passes
as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from markupsafe import Markup, escape

__all__ = [
    "DASH",
    "MINUS",
    "Child",
    "Markup",
    "element",
    "format_number",
    "format_seconds",
    "join",
    "number",
    "shorten",
    "table",
    "to_plain",
    "user_text",
]

# Elements without children or end tag
VOID = frozenset({"img", "meta", "br", "hr", "input", "link"})
MAX_TEXT = 160
MINUS = "\u2212"
TIMES = "\u00d7"
DASH = "\u2013"
# Control characters, lone surrogates and non-characters, which HTML refuses
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


Child: TypeAlias = "str | Markup | Iterable[Child] | None"


def element(name: str, /, *children: Child, **attributes: Any) -> Markup:
    """One element with its children; ``class_`` gives ``class``, ``data_value`` ``data-value``."""
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{_escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    # Attribute values are always escaped, even those that are markup
    opening = f"<{name}{''.join(pairs)}>"
    return Markup(opening if name in VOID else f"{opening}{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after the other; text is escaped, None is nothing."""
    parts: list[str] = []
    for child in children:
        # Nothing but Markup passes as it is; an iterable is joined
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(_escape(child))
        elif child is not None:
            parts.append(join(*child))
    return Markup("".join(parts))


def user_text(text: str, limit: int = MAX_TEXT) -> Markup:
    """Text that a user or a file gave: shortened, escaped, and isolated from its surroundings.

    ``bdi`` keeps right-to-left marks in a name from turning the rest of the line around.
    """
    return element("bdi", shorten(text, limit))


def shorten(text: str, limit: int = MAX_TEXT) -> str:
    """Text of a user on one line, cut to a length; SVG has no ``bdi``, and takes it as it is."""
    # Line breaks of a name must not break the layout
    text = " ".join(str(text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def number(value: Any, *, signed: bool = False, digits: int = 3, words: str = "") -> Markup:
    """A figure that is shown, with its full value in ``data-value``; NaN is said in words.

    Args:
        value: any real number, NumPy's included.
        signed: whether a plus sign is written.
        digits: significant digits that are printed.
        words: what to print instead, such as ``2 min 3 s``.
    """
    plain = to_plain(value)
    if plain is None:
        return element("span", "not measured", class_="none")
    shown = words or format_number(plain, signed=signed, digits=digits)
    return element("data", shown, class_="num", value=repr(plain), data_value=repr(plain))


def to_plain(value: Any) -> Any:
    """Any value as JSON: arrays become lists, NaN and infinity None, what JSON lacks its words."""
    # NumPy scalars and arrays become plain Python
    if hasattr(value, "tolist"):
        value = value.tolist()
    # JSON has neither NaN nor infinity
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def format_number(value: float, *, signed: bool = False, digits: int = 3) -> str:
    """Significant digits for people, whole numbers in full: ``1,797``, ``0.0312``, ``4.1×10⁻⁵``.

    A value that was given with fewer digits, such as 0.001, is not padded with zeros.
    """
    sign = MINUS if value < 0 else "+" if signed and value > 0 else ""
    size = abs(value)
    if isinstance(value, int):
        return f"{sign}{size:,}"
    if size == 0:
        return "0"
    # Plain digits for sizes that a reader can count, powers of ten beyond
    exponent = math.floor(math.log10(size))
    if -5 < exponent < 6:
        shown = f"{size:,.{max(0, digits - 1 - exponent)}f}"
        # Zeros are cut only where they add no digit
        exact = float(shown.replace(",", "")) == size and "." in shown
        return sign + (shown.rstrip("0").rstrip(".") if exact else shown)
    # Scientific notation, without a mantissa of 1
    mantissa, power = f"{size:.{digits - 1}e}".split("e")
    if float(f"{mantissa}e{power}") == size and "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    scale = f"10{str(int(power)).translate(_SUPERSCRIPTS)}"
    return f"{sign}{scale}" if mantissa == "1" else f"{sign}{mantissa}{TIMES}{scale}"


def format_seconds(seconds: float) -> str:
    """Seconds for people: ``0.82 s``, ``2 min 3 s``, ``5 h 10 min``."""
    if seconds < 99.5:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    return f"{hours} h {minutes_rest} min" if hours else f"{minutes} min {rest} s"


def table(head: list[Child], rows: list[list[Child]], *, caption: str, class_: str = "") -> Markup:
    """A table with a caption; the first cell of a row is its header."""
    heading = element("tr", [element("th", cell, scope="col") for cell in head])
    body = [
        element("tr", element("th", row[0], scope="row"), [element("td", cell) for cell in row[1:]])
        for row in rows
    ]
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", heading),
            element("tbody", body),
            class_=class_ or None,
        ),
        class_="scroll",
        # A wide table scrolls; without a tab stop that needs a mouse.
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def _escape(text: str) -> Markup:
    # A plain str: whatever says of itself that it is HTML, by ``__html__``, is not believed
    return escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(text)))
