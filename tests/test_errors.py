from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from krepes_ooc import errors
from krepes_ooc.errors import KrepesError, UsageError

KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, KrepesError)
]


def test_message_has_four_parts_in_order():
    error = KrepesError(
        "rows is 0", where="a.yaml: source", expected="1 or more", advice="add rows"
    )
    assert str(error) == "a.yaml: source: rows is 0; expected 1 or more; add rows"


def test_message_leaves_out_what_is_unknown():
    assert str(KrepesError("rows is 0")) == "rows is 0"
    assert str(KrepesError("rows is 0", advice="add rows")) == "rows is 0; add rows"


def test_message_is_one_line_whatever_was_put_in():
    error = KrepesError("first\n  second\r\nthird", where="a\tb", expected="x\ny")
    assert str(error) == "a b: first second third; expected x y"


def drawing() -> list[tuple[int, str, int]]:
    """(depth, name, exit code) of every line of the tree drawn in the module."""
    lines = [line.partition("── ") for line in (errors.__doc__ or "").splitlines()]
    return [
        (1 + len(head) // 4, rest.split()[0], int(rest.split()[1]))
        for head, mark, rest in lines
        if mark
    ]


def test_exit_codes_are_the_drawn_ones():
    drawn = {name: code for _, name, code in drawing()} | {"KrepesError": 1}
    assert drawn == {kind.__name__: kind.exit_code for kind in KINDS}


def test_tree_is_the_drawn_one():
    path = ["KrepesError"]
    for depth, name, _ in drawing():
        path = [*path[:depth], name]
        assert getattr(errors, name).__base__.__name__ == path[depth - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_error_survives_the_trip_between_processes(kind: type[KrepesError]):
    sent = kind("what", where="where", expected="expected", advice="advice")
    for received in (pickle.loads(pickle.dumps(sent)), copy.copy(sent)):
        assert type(received) is kind
        assert str(received) == str(sent)
        assert (received.what, received.where) == ("what", "where")
        assert (received.expected, received.advice) == ("expected", "advice")


def test_recipe_errors_are_usage_errors():
    with pytest.raises(UsageError):
        raise errors.RecipeError("key")
