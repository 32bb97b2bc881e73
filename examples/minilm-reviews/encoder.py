"""all-MiniLM-L6-v2 in plain torch: token ids [sample, token] to unit vectors [sample, 384].

Modules carry the names of the published checkpoint, so that it loads as it is.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, INNER = 384, 12, 6, 1536
WORDS, POSITIONS, SEGMENTS = 30522, 512, 2


def minilm() -> nn.Module:
    """The encoder with its mean pooling and normalisation, untrained."""
    return Sentences()


class Sentences(nn.Module):
    """The whole sentence encoder; id 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})
        # In the checkpoint, but no part of the sentence embedding.
        pooler = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.pooler = nn.ModuleDict({"dense": pooler})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Unit vectors [sample, 384] of ids [sample, token]."""
        ids = ids.long()
        real = ids != 0
        hidden = self.embeddings(ids)
        mask = torch.zeros_like(real, dtype=hidden.dtype).masked_fill(~real, -torch.inf)
        for layer in self.encoder["layer"]:
            hidden = layer(hidden, mask[:, None, None, :])
        kept = hidden * real[:, :, None]
        mean = kept.sum(dim=1) / real.sum(dim=1, keepdim=True)
        return functional.normalize(mean, dim=1)


class Embeddings(nn.Module):
    """Words, positions and the one segment, added up and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(SEGMENTS, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(POSITIONS)[None])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states [sample, token, 384] of ids [sample, token]."""
        places = self.position_ids[:, : ids.shape[1]].expand_as(ids)
        words = self.word_embeddings(ids) + self.position_embeddings(places)
        return self.LayerNorm(words + self.token_type_embeddings(torch.zeros_like(ids)))


class Layer(nn.Module):
    """Attention and a perceptron, each normalised after its residual sum."""

    def __init__(self) -> None:
        super().__init__()
        parts = {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(parts), "output": Sum(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = Sum(INNER)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The next hidden states; ``mask`` [sample, 1, 1, token] is added to the scores."""
        shape = (*hidden.shape[:2], HEADS, WIDTH // HEADS)
        heads = self.attention["self"]
        query, key, value = (
            heads[name](hidden).reshape(shape).transpose(1, 2) for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5
        mixed = (torch.softmax(scores + mask, dim=3) @ value).transpose(1, 2).flatten(2)
        hidden = self.attention["output"](mixed, hidden)
        return self.output(functional.gelu(self.intermediate["dense"](hidden)), hidden)


class Sum(nn.Module):
    """A Linear layer whose result is added to a residual and normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, inputs: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The normalised sum."""
        return self.LayerNorm(self.dense(inputs) + residual)
