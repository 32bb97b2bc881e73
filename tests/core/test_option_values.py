import re
from pathlib import Path

import numpy as np
import pytest

import krepes_ooc
from krepes_ooc.core.option_values import path_text, positions
from krepes_ooc.errors import UsageError


def test_positions_are_whole_numbers():
    assert positions(17) == positions(np.int32(17)) == positions([17]) == [17]
    assert positions(np.array([3, 1])) == positions((3, 1)) == [3, 1]
    for wrong in ("17", 1.5, [1, "2"], None, [[1]]):
        with pytest.raises(UsageError, match=re.escape(f"{wrong!r} is no sample; expected")):
            positions(wrong)


def test_paths_are_texts_or_paths():
    assert path_text("digits", "recipe") == "digits"
    assert path_text(Path("a") / "b", "workspace") == "a/b"
    for wrong in (3, None, b"digits", ["digits"]):
        with pytest.raises(UsageError, match=r"recipe: \w+ .*; expected a name, a path"):
            path_text(wrong, "recipe")


@pytest.mark.parametrize("wrong", [3, 2.5, b"digits", ["digits"], object()])
@pytest.mark.parametrize("name", ["run", "plan", "status", "verdict", "verify", "explain"])
def test_functions_refuse_what_names_nothing(name, wrong):
    more = {"sample": 1} if name == "explain" else {}
    with pytest.raises(krepes_ooc.KrepesError, match="expected a name, a path or a folder"):
        getattr(krepes_ooc, name)(wrong, **more)


@pytest.mark.parametrize("wrong", [None, 3, b"folder"])
def test_a_workspace_is_a_folder(wrong):
    with pytest.raises(krepes_ooc.KrepesError, match=r"workspace: .* expected a name"):
        krepes_ooc.Workspace(wrong)
