"""Examples of krepes beside those of SimplEx and Label-Free XAI, on the same network and samples.

    pip install --no-deps --target PEERS simplexai lfxai tqdm termcolor seaborn matplotlib \
        cycler kiwisolver fonttools contourpy pyparsing python-dateutil six
    PYTHONPATH=PEERS python benchmarks/examples_peers.py WORKSPACE

Without their dependencies, so that no other torch is installed. WORKSPACE is a finished audit. The
tools get the network's own embeddings of audited samples and landmarks; figures go into
``benchmarks/results/examples-peers.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lfxai.explanations.examples import NearestNeighbours as LfxaiNearest
from lfxai.explanations.examples import SimplEx as LfxaiSimplex
from simplexai.explainers.simplex import Simplex

from krepes_ooc.stages.examples.convex_weights import (
    convex_weights,
    random_landmarks,
    share_explained,
    weighted_sum,
    weights_over_all,
    without_own,
)
from krepes_ooc.storage.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "examples-peers.json"
SAMPLES, KEPT, EPOCHS = 100, 10, 5000
Weights = Callable[[np.ndarray, np.ndarray], np.ndarray]


def simplex(target: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """Weights of the library SimplEx, ten examples kept [sample, example]."""
    examples, samples = (torch.tensor(each, dtype=torch.float32) for each in (corpus, target))
    explainer = Simplex(examples, examples)
    with contextlib.redirect_stdout(io.StringIO()):
        explainer.fit(samples, samples, n_epoch=EPOCHS, n_keep=KEPT)
    return np.asarray(explainer.weights)


def lfxai_simplex(target: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """Weights of SimplEx in Label-Free XAI, with its own 1,000 epochs."""
    given = (torch.tensor(each, dtype=torch.float32) for each in (target, corpus))
    return np.asarray(LfxaiSimplex.compute_weights(*given))


class _Identity(torch.nn.Module):
    """A model whose encoder gives back embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Identity()


def lfxai_nearest(target: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """Scores of deep nearest neighbours in Label-Free XAI."""
    explainer = LfxaiNearest(_Identity(), X_train=torch.tensor(corpus, dtype=torch.float32))
    samples = torch.tensor(target, dtype=torch.float32)
    # One batch: what does not fill a batch is silently left at 0.
    found = explainer.attribute(samples, list(range(len(corpus))), batch_size=len(target))
    return np.asarray(found)


TOOLS: dict[str, Weights] = {
    "SimplEx, 5,000 epochs": simplex,
    "SimplEx of Label-Free XAI": lfxai_simplex,
    "nearest neighbours of Label-Free XAI": lfxai_nearest,
    "exact weights on all landmarks": weights_over_all,
}


def main() -> None:
    """Measure every tool, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    space = Workspace(parser.parse_args().workspace)
    torch.set_num_threads(1)
    audited, examples = space.reader("audited"), space.reader("examples")
    rows = np.flatnonzero(audited.array("role") == 0)
    corpus = examples.array("landmark_embedding").astype(np.float64)
    own = examples.array("own_landmark")[rows]
    # Samples that are no landmarks, so that no tool explains a sample by itself
    rows = rows[own < 0][:SAMPLES]
    target = audited.array("network_embedding")[rows].astype(np.float64)
    label, classes = audited.array("label")[rows], space.reader("landmarks").array("label")
    more = audited.array("network_embedding")[audited.array("role") == 1].astype(np.float64)
    none = np.full(len(rows), -1, dtype=np.int64)

    def entry(ranked: np.ndarray, seconds: float) -> dict[str, float]:
        """Figures of ten examples of every sample."""
        chosen = without_own(ranked.astype(np.int64), none, KEPT)
        same = classes[chosen] == label[:, None]
        refit = weighted_sum(convex_weights(target, corpus, chosen), corpus, chosen)
        return {
            "label_top_1": float(same[:, 0].mean()),
            "label_top_10": float(same.mean()),
            "refit_r_squared": share_explained(target, refit),
            "cpu_ms_a_sample": 1e3 * seconds / len(rows),
        }

    started = time.process_time()
    ranked = space.reader("influence").array("top_landmark")[rows][:, :KEPT]
    convex_weights(target, corpus, ranked.astype(np.int64))
    found = {"krepes, ranking of influence": entry(ranked, time.process_time() - started)}
    found["random"] = entry(random_landmarks(len(rows), len(corpus), KEPT, 0), 0.0)
    for name, tool in TOOLS.items():
        started = time.process_time()
        weights = tool(target, corpus)
        seconds = time.process_time() - started
        found[name] = entry(np.argsort(-weights, axis=1, kind="stable"), seconds)
        if "nearest" not in name:
            found[name]["own_r_squared"] = share_explained(target, weights @ corpus)
        started = time.process_time()
        tool(target, more)
        found[name]["cpu_ms_larger_corpus"] = 1e3 * (time.process_time() - started) / len(rows)
    found["sizes"] = {"samples": len(rows), "landmarks": len(corpus), "larger": len(more)}
    for name, figures in found.items():
        print(name, {key: round(value, 3) for key, value in figures.items()})
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
