from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krepes_ooc.errors import DataError, KrepesError
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source

CODE = """
import numpy as np
import torch

class Squares:
    classes = ("even", "odd")
    def __init__(self, count=20, channels=3, kind="tuple", top=2, named=None):
        self.targets = torch.arange(count) % top
        self.count, self.channels, self.kind = count, channels, kind
        if named is not None:
            self.names = [f"sentence {i}" for i in range(named)]
    def __len__(self):
        return self.count
    def __getitem__(self, i):
        if self.kind == "broken" and i == 7:
            raise OSError("disk on fire")
        if self.kind == "ragged" and i == 7:
            return torch.zeros(2)
        x = torch.full((self.channels, 4, 5), float(i)) / self.count
        if self.kind == "words":
            return "a word"
        if self.kind == "vector":
            return {"x": x[:, 0, 0].numpy(), "other": 1}
        return (x, int(self.targets[i]))

def nothing():
    return 3
"""


def opened(
    folder: Path, factory: str = "data.py:Squares", limit: int | None = None, **arguments: Any
) -> Source:
    (folder / "data.py").write_text(CODE)
    spec = SourceSpec(kind="factory", factory=factory, arguments=arguments, limit=limit)
    return open_source(spec, folder, folder / "cache")


def test_images_labels_and_classes(tmp_path: Path) -> None:
    source = opened(tmp_path)
    picked = np.asarray([19, 4])
    assert (source.kind, source.n_samples, source.input_shape) == ("image", 20, (3, 4, 5))
    raw = source.read(picked)
    assert raw.shape == (2, 4, 5, 3)
    np.testing.assert_allclose(source.encode(raw)[:, 1, 2, 3], picked / 20, rtol=1e-6)
    assert source.labels(picked).tolist() == [1, 0]
    assert source.classes == ("even", "odd")
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(picked), raw)
    assert opened(tmp_path, limit=3).n_samples == 3


def test_vectors_in_mappings(tmp_path: Path) -> None:
    source = opened(tmp_path, kind="vector", channels=6)
    assert (source.kind, source.input_shape) == ("array", (6,))
    np.testing.assert_allclose(source.read(np.asarray([5])), np.full((1, 6), 0.25))


def test_names_of_samples(tmp_path: Path) -> None:
    picked = np.asarray([3, 0])
    assert opened(tmp_path).names(picked) == ["3", "0"]
    assert opened(tmp_path, named=20, limit=5).names(picked) == ["sentence 3", "sentence 0"]


def test_fingerprint_follows_code_length_and_samples(tmp_path: Path) -> None:
    first = opened(tmp_path).fingerprint()
    assert opened(tmp_path).fingerprint() == first
    assert opened(tmp_path, count=21).fingerprint() != first
    (tmp_path / "other.py").write_text(CODE + "\n# changed\n")
    assert opened(tmp_path, "other.py:Squares").fingerprint() != first


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        ("data.py:nothing", {}, r"source.factory data.py:nothing: TypeError: object of type 'int'"),
        ("data.py:Squares", {"size": 3}, r"TypeError: .*unexpected keyword argument 'size'"),
        ("data.py:absent", {}, r"source.factory: no callable 'absent'"),
        ("absent_package:thing", {}, r"source.factory: no module 'absent_package'"),
        ("data.py:Squares", {"count": 0}, r"no samples; expected at least one"),
        ("data.py:Squares", {"kind": "broken"}, r"sample 7: OSError: disk on fire"),
        ("data.py:Squares", {"kind": "words"}, r"sample 0: <U6 sample; expected an array of num"),
        ("data.py:Squares", {"named": 3}, r"3 names for 20 samples; expected one name for each"),
        ("data.py:Squares", {"top": 5}, r"label 4 but 2 classes; expected a class for every"),
        (
            "data.py:Squares",
            {"kind": "ragged"},
            r"sample 7: float32 of shape \[2\]; expected float32 of shape \[3, 4, 5\] as in",
        ),
    ],
)
def test_what_cannot_be_used_is_told(
    tmp_path: Path, factory: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(KrepesError, match=message) as caught:
        opened(tmp_path, factory, **arguments)
    assert caught.value.exit_code == (1 if isinstance(caught.value, DataError) else 2)
