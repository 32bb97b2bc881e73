"""Items, labels and repeatability of a user's data set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from krepes_ooc.core.settings import read_settings
from krepes_ooc.errors import DataError, KrepesError, SourceError
from krepes_ooc.sources import map_dataset
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source

CODE = """
import collections, random
import numpy as np
import torch
N = 24
V = np.random.default_rng(1).normal(size=(N, 6)).astype("f4")
P = np.random.default_rng(2).random((N, 3, 8, 8))
Y = np.arange(N) % 3
class Base:
    def __len__(self): return N
    def __getitem__(self, i): return V[i], int(Y[i])
"""
V = np.random.default_rng(1).normal(size=(24, 6)).astype("f4")
P = np.random.default_rng(2).random((24, 3, 8, 8))
Y = np.arange(24) % 3


def opened(folder: Path, body: str, **keys: Any) -> Source:
    (folder / "data.py").write_text(CODE + body)
    keys = {"kind": "factory", "factory": "data.py:Data"} | keys
    return open_source(read_settings(SourceSpec, keys, "source"), folder, folder / "cache")


def item(expression: str, more: str = "") -> str:
    return f"class Data(Base):\n    {more}\n    def __getitem__(self, i): return {expression}\n"


def refused(folder: Path, body: str, message: str, **keys: Any) -> KrepesError:
    with pytest.raises(KrepesError, match=message) as caught:
        opened(folder, body, **keys)
    assert "\n" not in str(caught.value)
    return caught.value


def named_labels(source: Source) -> list[str]:
    codes = source.labels(np.arange(source.n_samples)).tolist()
    return [source.classes[code] if code >= 0 else "" for code in codes]


@pytest.mark.parametrize(
    ("expression", "keys", "want"),
    [
        ("{'pixels': P[i].tolist(), 'label': int(Y[i])}", {}, np.moveaxis(P, 1, -1)),
        ("{'label': np.eye(3)[Y[i]], 'image': V[i]}", {"key": "image"}, V),
        ("{'label': int(Y[i]), 'image': V[i].tolist()}", {}, V),
        ("collections.UserDict(image=torch.tensor(V[i]), name='a')", {}, V),
        ("{0: V[i], 1: V[i] + 1}", {"key": "1"}, V + 1),
        ("(int(Y[i]), V[i])", {"key": "1"}, V),
        ("collections.namedtuple('Item', 'label x')(int(Y[i]), V[i])", {"key": "x"}, V),
        ("V[i].tolist()", {}, V),
        ("[V[i], int(Y[i])]", {}, V),
        ("[V[i].tolist(), int(Y[i])]", {}, V),
        ("P[i, 0].tolist()", {}, P[:, 0]),
    ],
)
def test_the_sample_of_an_item(
    tmp_path: Path, expression: str, keys: dict[str, Any], want: npt.NDArray[Any]
) -> None:
    source = opened(tmp_path, item(expression), **keys)
    np.testing.assert_allclose(source.read(np.arange(24)), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("expression", "keys", "message"),
    [
        (
            "{'label': np.eye(3)[Y[i]], 'image': V[i]}",
            {},
            r"data.py:Data: 2 entries of an item are arrays of numbers \('label', 'image'\); "
            r"expected one array, or source.key; set source.key to one of 'label', 'image'",
        ),
        ("{'a': 1, 'b': 'x'}", {}, r"0 entries of an item .*none.* source.key to one of 'a', 'b'"),
        ("{'a': V[i]}", {"key": "b"}, "items have no entry 'b'; expected source.key one of 'a'"),
        ("(V[i], 3)", {"key": "2"}, "items have no entry '2'; .* one of '0', '1'"),
        ("V[i]", {"key": "x"}, "items are of type ndarray and have no entry 'x'"),
        ("(0.5, 0.25)", {}, "sample 0: float64 sample; expected an array .*source.key"),
        ("{'x': V[i]} if i < 9 else {'z': V[i]}", {}, "sample 9: KeyError: 'x'"),
        ("{'x': V[i]} if i < 9 else V[i]", {}, "sample 9: .*but sample 0 is a mapping"),
    ],
)
def test_items_that_do_not_say_their_sample(
    tmp_path: Path, expression: str, keys: dict[str, Any], message: str
) -> None:
    assert refused(tmp_path, item(expression), message, **keys).exit_code in (1, 2)


def test_the_key_is_for_factories_and_part_of_the_identity(tmp_path: Path) -> None:
    body = item("{'a': V[i], 'b': V[i] + 1}")
    one, other = (opened(tmp_path, body, key=key) for key in "ab")
    assert one.fingerprint() != other.fingerprint()
    np.save(tmp_path / "x.npy", V)
    with pytest.raises(SourceError, match="key 'key' means nothing for kind 'arrays'"):
        open_source(SourceSpec(kind="arrays", path="x.npy", key="a"), tmp_path, tmp_path / "cache")


WORDS = ["cat", "dog", "eel"]


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("Data = Base\n", [str(y) for y in Y]),
        (item("V[i], float(Y[i])"), [str(y) for y in Y]),
        (
            item("V[i], bool(Y[i])", "classes = ['no', 'yes']"),
            [["no", "yes"][int(y > 0)] for y in Y],
        ),
        (item("V[i], torch.tensor(Y[i])"), [str(y) for y in Y]),
        (item("V[i], np.eye(3)[Y[i]]", f"classes = {WORDS}"), [WORDS[y] for y in Y]),
        (item(f"V[i], {WORDS}[Y[i]]"), [WORDS[y] for y in Y]),
        (
            item("V[i], None if i == 5 else int(Y[i])"),
            [str(y) if i != 5 else "" for i, y in enumerate(Y)],
        ),
        (item("{'x': V[i], 'label': int(Y[i])}"), [str(y) for y in Y]),
        (item("V[i]", f"targets = {WORDS} * 8"), WORDS * 8),
        (item("V[i]", f"targets = {WORDS} * 8; classes = {WORDS[::-1]}"), WORDS * 8),
        (item("V[i]", "labels = [0.0, 1.0, float('nan')] * 8"), ["0", "1", ""] * 8),
        (item("V[i]", "targets = np.eye(3)[Y]"), [str(y) for y in Y]),
        (item("V[i]", "targets = ['a', None] * 12"), ["a", ""] * 12),
        (item("V[i]", "targets = torch.tensor(Y)[:, None]"), [str(y) for y in Y]),
    ],
)
def test_labels_are_kept(tmp_path: Path, body: str, want: list[str]) -> None:
    source = opened(tmp_path, body)
    assert named_labels(source) == want
    assert source.warnings == ()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (item("V[i], V[i]"), "the labels inside the items are not used for 24 samples: sample 0"),
        (item("V[i], 0.5"), "labels inside the items are not used for 24 samples"),
        (item("V[i], 0.5 * i"), "not used for 24 samples: they are not all whole numbers"),
        (item("V[i]", "targets = [0.5] * N"), "attribute targets is not used for its 24 samples"),
        (item("V[i]", "targets = [[1], [1, 2]] * 12"), "attribute targets is not used"),
    ],
)
def test_labels_that_are_not_used_are_named(tmp_path: Path, body: str, message: str) -> None:
    source = opened(tmp_path, body)
    assert source.classes == ()
    assert re.search(message, source.warnings[0])


def test_labels_of_many_items_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_dataset, "LABELLED_SAMPLES", 20)
    source = opened(tmp_path, "Data = Base\n")
    assert "not used for 24 samples: list them in an attribute targets" in source.warnings[0]
    assert opened(tmp_path, "Data = Base\n", limit=20).classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("targets = [0, 1, 2, 0, 1]", "data.py:Data: 5 targets for 24 samples; expected one label"),
        ("labels = np.zeros((3, 24))", "3 labels for 24 samples"),
        ("targets = ['cat', 'fox'] * 12; classes = ['cat']", "label 'fox' is not among the 1 cl"),
        ("targets = [10**9] * 24", "label 1000000000; expected labels below"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, body: str, message: str) -> None:
    assert refused(tmp_path, item("V[i]", body), message).exit_code == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (item("V[i] + np.random.normal(size=6).astype('f4')"), "with different values"),
        (item("torch.tensor(V[i]) + torch.rand(6)"), "with different values"),
        (item("V[i] * random.choice([1, -1])"), "with different values"),
        (item("V[i], random.random() > .5"), "with different labels"),
        # An iterator that does not look at its index.
        (
            "class Data(Base):\n    n = 0\n    def __getitem__(self, i):\n"
            "        self.n += 1\n        return V[self.n % N]\n",
            "with different values",
        ),
        # Normalised by what was read before.
        (
            "class Data(Base):\n    last = 0\n    def __getitem__(self, i):\n"
            "        x = V[i] + self.last\n        self.last = V[i]\n        return x\n",
            "with different values",
        ),
    ],
)
def test_items_that_differ_at_the_second_read(tmp_path: Path, body: str, message: str) -> None:
    error = refused(tmp_path, body, rf"data.py:Data, sample \d+: was read twice {message}")
    assert isinstance(error, DataError)


@pytest.mark.parametrize(
    "made", ["np.random.default_rng().normal(size=(N, 6))", "torch.rand(N, 6).numpy()"]
)
def test_a_factory_that_draws_anew(tmp_path: Path, made: str) -> None:
    body = f"class Data(Base):\n    def __init__(self): self.v = {made}\n"
    body += "    def __getitem__(self, i): return self.v[i]\n"
    refused(tmp_path, body, r"data.py:Data, sample 0: two calls of the factory gave different")


def test_the_second_call_is_made_once_and_buffers_are_copied(tmp_path: Path) -> None:
    body = "class Data(Base):\n    calls = []\n    def __init__(self):\n"
    body += "        self.calls.append(1)\n        self.keep = np.empty(6, 'f4')\n"
    body += "    def __getitem__(self, i):\n        self.keep[:] = V[i]\n        return self.keep\n"
    body += "    def from_text(self, text): return self[int(text)]\n"
    source: Any = opened(tmp_path, body)
    assert np.array_equal(source.read(np.arange(24)), V)
    assert np.array_equal(source.read_text(["3", "9"]), V[[3, 9]])
    calls = source._rows._dataset.calls
    assert len(calls) == 2
    opened(tmp_path, body)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (item("np.ma.masked_array(V[i], V[i] > 0)"), r"sample 0: .* of 6 values are masked"),
        (item("(np.ma.masked_array(V[i], V[i] > 0), 1)"), "values are masked"),
        (item("((V[i], V[i] + 1), int(Y[i]))"), "a tuple of 2 arrays in place of one array"),
        (item("([torch.tensor(V[i])] * 3, int(Y[i]))"), "a list of 3 arrays in place of one"),
        (item("torch.tensor(V[i]).to_sparse()"), "a sparse tensor"),
        (item("torch.tensor(V[i]).to('meta')"), "a meta tensor"),
        (
            item("torch.quantize_per_tensor(torch.tensor(V[i]), 0.1, 0, torch.quint8)"),
            "a quantised tensor",
        ),
        ("import pandas as pd\ndef Data(): return pd.DataFrame(V)", "a DataFrame.*kind: table"),
        (item("type('Item', (), {})()"), "object sample, of type Item"),
    ],
)
def test_samples_without_plain_values_are_refused(tmp_path: Path, body: str, message: str) -> None:
    refused(tmp_path, body, message)


@pytest.mark.parametrize(
    ("expression", "want"),
    [
        ("torch.tensor(V[i], requires_grad=True)", V),
        ("(torch.nn.Parameter(torch.tensor(V[i])), int(Y[i]))", V),
        ("torch.tensor(np.round(V[i])).bfloat16()", np.round(V)),
        ("np.ma.masked_array(V[i], np.zeros(6, dtype=bool))", V),
        ("V[i].astype('>f8')[::-1]", V[:, ::-1]),
    ],
)
def test_tensors_and_arrays_of_any_form_are_read(
    tmp_path: Path, expression: str, want: Any
) -> None:
    source = opened(tmp_path, item(expression))
    np.testing.assert_array_equal(source.read(np.arange(24)), want)


LISTED = "class Listed(Base):\n    targets = Y.tolist(); classes = ['cat', 'dog', 'eel']\n"
PLAIN = LISTED + "    def __getitem__(self, i): return V[i]\n"
SPLIT = "from torch.utils.data import ConcatDataset, Subset\n"


@pytest.mark.parametrize(
    ("data", "positions"),
    [
        ("Subset(Listed(), [5, 3, 3, 22])", [5, 3, 3, 22]),
        ("Subset(Subset(Listed(), range(4, 20)), [1, 0])", [5, 4]),
        ("ConcatDataset([Listed(), Listed()])", [*range(24), *range(24)]),
        ("ConcatDataset([Subset(Listed(), [7]), Listed()])", [7, *range(24)]),
    ],
)
def test_labels_of_a_data_set_inside_another_are_kept(
    tmp_path: Path, data: str, positions: list[int]
) -> None:
    """Items without labels: only the list of the inner data set has them."""
    source = opened(tmp_path, f"{SPLIT}{PLAIN}def Data(): return {data}\n")
    assert named_labels(source) == [WORDS[Y[i]] for i in positions]
    np.testing.assert_array_equal(source.read(np.arange(source.n_samples)), V[positions])


def test_a_list_of_labels_that_fails_is_none(tmp_path: Path) -> None:
    body = (
        "class Data(Base):\n    @property\n    def targets(self): raise RuntimeError('no labels')\n"
    )
    assert named_labels(opened(tmp_path, body)) == [str(y) for y in Y]


@pytest.mark.parametrize(
    ("expression", "keys", "said"),
    [
        ("(255 * P[i]).astype('f4')", {}, "from 0.* to 25.* are taken as they are: source.range"),
        ("(255 * P[i]).astype('f4')", {"range": [0, 255]}, ""),
        ("((P[i] - 0.5) / 0.25).astype('f4')", {}, ""),
        ("P[i].astype('f4')", {}, ""),
        ("(255 * P[i]).astype('i8')", {}, "int64 .* if they are pictures"),
        ("(255 * P[i, 0]).astype('u1')", {}, "uint8 .* if they are pictures"),
        ("(255 * P[i]).astype('u1')", {}, ""),
        ("np.arange(6) + i", {}, ""),
    ],
)
def test_pictures_that_no_one_has_scaled_are_pointed_out(
    tmp_path: Path, expression: str, keys: dict[str, Any], said: str
) -> None:
    warnings = opened(tmp_path, item(expression), **keys).warnings
    assert bool(warnings) == bool(said)
    assert re.search(said, " ".join(warnings))
