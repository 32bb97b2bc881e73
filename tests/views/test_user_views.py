"""Views by a callable of the user are not believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from krepes_ooc.errors import DataError
from krepes_ooc.sources.base import Source, SourceSpec
from krepes_ooc.sources.open import open_source
from krepes_ooc.views.spec import ViewSpec
from krepes_ooc.views.views import Views

X = np.random.default_rng(1).normal(size=(24, 6)).astype(np.float32)
HEAD = "import random, time\nimport numpy as np\nimport torch\nkeep = np.zeros(6, 'f4')\nn = 0\n"
HEAD += "def view(x, sample_id, view_id, seed):\n    global n\n    "


@pytest.fixture
def source(tmp_path: Path) -> Source:
    np.save(tmp_path / "x.npy", X)
    return open_source(SourceSpec(kind="arrays", path="x.npy"), tmp_path, tmp_path / "cache")


def views(folder: Path, source: Source, body: str, seed: int = 3) -> Views:
    (folder / "view.py").write_text(HEAD + body + "\n")
    return Views(ViewSpec(count=3, function="view.py:view"), source, seed, folder)


@pytest.mark.parametrize(
    "body",
    [
        "return np.multiply(x, 2, out=keep)",
        "keep[:] = x; keep[...] *= 2; return keep",
        "x *= 2; return x",
        "return torch.from_numpy(x).mul_(2)",
    ],
)
def test_buffers_are_copied(tmp_path: Path, source: Source, body: str) -> None:
    ids = np.arange(24)
    raw = source.read(ids)
    made = views(tmp_path, source, body).apply(raw, ids, 0)
    assert np.array_equal(made, 2 * X)
    assert np.array_equal(raw, X)


def test_seeded_views_pass(tmp_path: Path, source: Source) -> None:
    body = "return x + np.random.default_rng((seed, view_id, sample_id)).normal(size=6)"
    made = views(tmp_path, source, body).apply(X, np.arange(24), 1)
    draws = [np.random.default_rng((3, 1, i)).normal(size=6) for i in range(24)]
    np.testing.assert_array_equal(made, X + np.asarray(draws))
    # The global state is theirs to seed.
    views(tmp_path, source, "np.random.seed(sample_id); return x + np.random.normal(size=6)")


@pytest.mark.parametrize(
    "body",
    [
        "return x + np.random.normal(size=x.shape)",
        "return x + torch.rand(6).numpy()",
        "return x[::-1] if random.random() < 0.3 else x",
        "return x * (time.perf_counter_ns() % 1000 + 1)",
        # Keeps something of the call before.
        "n += 1; return x + n",
        "keep[:] = keep / 2 + x; return keep",
        "keep[sample_id % 6] = x[0]; return keep",
    ],
)
def test_views_that_differ_at_the_second_call(tmp_path: Path, source: Source, body: str) -> None:
    message = r"views.function view.py:view, sample \d+, view \d: was called twice and gave diff"
    with pytest.raises(DataError, match=message) as caught:
        views(tmp_path, source, body)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
