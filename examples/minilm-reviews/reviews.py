"""The reviews as a data set of token ids, and a view of text: some tokens left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from krepes_ooc.core import counter_rng

CACHE = Path(__file__).resolve().parent / ".cache"
TOKENS = 64
DROPPED = 0.2
PADDING, START, END = 0, 101, 102
Ids = npt.NDArray[np.int64]


class Reviews:
    """Item i: the token ids [token] of review i.

    Args:
        label: which column is the label: department or rating.
    """

    def __init__(self, label: str = "department") -> None:
        if not (CACHE / "reviews.npz").exists():
            fetch = CACHE.with_name("fetch.py")
            raise FileNotFoundError(f"the reviews are not there; fetch them: python {fetch}")
        with np.load(CACHE / "reviews.npz") as stored:
            self.ids, self.names = stored["ids"], stored["texts"].tolist()
            classes, self.targets = np.unique(stored[label], return_inverse=True)
        self.classes = classes.tolist()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Ids:
        return self.ids[index]

    def from_text(self, text: str) -> Ids:
        """A new review as token ids, cut as those of the table were; needs ``tokenizers``."""
        return cut([" ".join(text.split())])[0]


def cut(texts: list[str]) -> Ids:
    """Token ids [text, token] of texts, padded."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(CACHE / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=PADDING)
    return np.array([found.ids for found in tokenizer.encode_batch(texts)], dtype=np.int64)


def drop_tokens(ids: Ids, sample_id: int, view_id: int, seed: int) -> Ids:
    """Leave out each token but the first and the last with probability ``DROPPED``.

    The draw is keyed by sample and view, so a view is the same whenever it is made.
    """
    drawn = counter_rng.uniform(seed, view_id, sample_id, np.arange(len(ids)))
    kept = ids[(ids != PADDING) & ((drawn >= DROPPED) | (ids == START) | (ids == END))]
    return np.pad(kept, (0, len(ids) - len(kept)), constant_values=PADDING)
