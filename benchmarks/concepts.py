"""Discovered concepts, refitted weights and odd samples: figures beside their controls, and costs.

    python benchmarks/concepts.py WORK [--cells digits,fashion,...] [--cost]

Every cell is an audit as far as stage examples needs it, in a workspace of its own under WORK; an
interrupted one goes on where it stopped, a finished one is read. ``fashion`` plants 200 copies of
its images moved by one pixel and 100 digits of MNIST among 19,700 images, and audits all of them
with their originals. Figures go into ``benchmarks/results/concepts.json``. The data are fetched
first: ``python benchmarks/fetch.py fashion-mnist --to .cache/data``, likewise mnist and adult.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from krepes_ooc.core.float16 import to_float32
from krepes_ooc.runner.audit import Audit, Options
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner.run import run
from krepes_ooc.stages.discovery.concept_map import ConceptMap
from krepes_ooc.stages.discovery.fits import FIT_ROWS, REFITS, STARTS
from krepes_ooc.stages.discovery.spherical_kmeans import fit_clusters, unit_rows
from krepes_ooc.stages.discovery.stored_concepts import ROWS, read_concept_map
from krepes_ooc.stages.examples.concept_figures import average_precision, best_class_precision
from krepes_ooc.stages.examples.convex_weights import convex_weights
from krepes_ooc.storage.workspace import Workspace
from krepes_ooc.views.spec import CLEAN

DATA = Path(".cache/data")
RESULTS = Path(__file__).parent / "results" / "concepts.json"
CARDS = 300
# What stage examples reads, and nothing else of an audit.
STAGES = (
    *("pretrain", "features", "landmarks", "audited", "kernel", "moments", "spectrum"),
    *("discovery", "newton", "minimiser", "influence", "examples"),
)
# Kernel rows of the measured pass: n, 2 n, 4 n.
PASS_ROWS = (16_384, 32_768, 65_536)
# Samples of the planted set.
IMAGES, TWINS, DIGITS, OTHERS = 19_700, 200, 100, 1000
VIEWS = "count: 2, crop: 0.6, flip: true, shift: 2, jitter: 0.3, noise: 0.05"
WEAK_VIEWS = "count: 2, shift: 2, noise: 0.1"
FASHION = """
recipe: fashion-planted
source:
  {{kind: idx, path: {folder}/images.idx, labels: {folder}/labels.idx, mean: [0.286], std: [0.353]}}
views: {{{views}}}
network:
  factory: krepes_ooc.network.zoo:mlp
  arguments: {{inputs: 784, hidden: [256, 256], outputs: {outputs}}}
  weights: pretrain
stages:
  pretrain: {{objective: barlow-twins, epochs: {epochs}, batch: 256}}
  landmarks: {{count: 1000}}
  spectrum: {{components: 32}}
  audited: {{fit: 2000, sample_ids: {ids}}}
  groups: {{clusters: 0}}
  examples: {{table: 400}}
"""


@dataclass(frozen=True)
class Planted:
    """Positions of the planted samples.

    Args:
        originals: of the copied images.
        twins: their copies.
        digits: images of another kind.
        others: further audited images.
    """

    originals: np.ndarray
    twins: np.ndarray
    digits: np.ndarray
    others: np.ndarray


def planted() -> Planted:
    """Where everything lies in the planted set; keyed."""
    drawn = np.random.default_rng(0).permutation(IMAGES)[: TWINS + OTHERS]
    twins = np.arange(IMAGES, IMAGES + TWINS)
    digits = np.arange(IMAGES + TWINS, IMAGES + TWINS + DIGITS)
    return Planted(drawn[:TWINS], twins, digits, drawn[TWINS:])


def read_idx(path: Path) -> np.ndarray:
    """Images or labels of an idx file."""
    raw = path.read_bytes()
    data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write images or labels as an idx file."""
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(head + np.ascontiguousarray(values).tobytes())


def fashion_recipe(folder: Path, views: str, epochs: int = 20, outputs: int = 64) -> Path:
    """The planted set and its recipe with these views, epochs and outputs; written once."""
    target = folder / "fashion.yaml"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    where = planted()
    images = read_idx(DATA / "fashion-mnist/train-images-idx3-ubyte.gz")[:IMAGES]
    labels = read_idx(DATA / "fashion-mnist/train-labels-idx1-ubyte.gz")[:IMAGES]
    # Copies moved by a pixel to the right
    moved = np.zeros_like(images[where.originals])
    moved[:, :, 1:] = images[where.originals][:, :, :-1]
    digits = read_idx(DATA / "mnist/train-images-idx3-ubyte")[:DIGITS]
    write_idx(folder / "images.idx", np.concatenate([images, moved, digits]))
    kinds = np.full(DIGITS, 10, dtype=np.uint8)
    write_idx(folder / "labels.idx", np.concatenate([labels, labels[where.originals], kinds]))
    ids = np.concatenate([where.originals, where.twins, where.digits, where.others])
    found = {"folder": folder.resolve(), "ids": sorted(ids.tolist()), "views": views}
    found |= {"epochs": epochs, "outputs": outputs}
    target.write_text(FASHION.format(**found))
    return target


def digits_cell(work: Path) -> Recipe:
    """Digits as the recipe has them."""
    return Recipe.load("digits", ("stages.groups.clusters=0",))


def fashion_cell(work: Path) -> Recipe:
    """The planted Fashion-MNIST, views of the shipped recipe."""
    return Recipe.load(str(fashion_recipe(work / "data", VIEWS)))


def longer_cell(work: Path) -> Recipe:
    """The planted Fashion-MNIST, a network trained three times as long."""
    return Recipe.load(str(fashion_recipe(work / "longer", VIEWS, 60)))


def longest_cell(work: Path) -> Recipe:
    """The planted Fashion-MNIST, a network trained nine times as long."""
    return Recipe.load(str(fashion_recipe(work / "longest", VIEWS, 180)))


def narrow_cell(work: Path) -> Recipe:
    """The planted Fashion-MNIST, a network of half as many outputs."""
    return Recipe.load(str(fashion_recipe(work / "narrow", VIEWS, outputs=32)))


def weak_views_cell(work: Path) -> Recipe:
    """The planted Fashion-MNIST under weak views."""
    return Recipe.load(str(fashion_recipe(work / "weak-views", WEAK_VIEWS)))


def adult_cell(work: Path) -> Recipe:
    """20,000 rows of Adult."""
    sizes = (
        *("source.limit=20000", "network.arguments.inputs=106"),
        *("stages.landmarks.count=1000", "stages.audited.fit=2000"),
    )
    changes = ("stages.concepts.sets={}", "stages.groups.clusters=0", "stages.alignment.groups=[]")
    return Recipe.load("adult", (*sizes, *changes))


CELLS: dict[str, Callable[[Path], Recipe]] = {
    "digits": digits_cell,
    "fashion": fashion_cell,
    "fashion-60-epochs": longer_cell,
    "fashion-180-epochs": longest_cell,
    "fashion-32-outputs": narrow_cell,
    "fashion-weak-views": weak_views_cell,
    "adult": adult_cell,
}


def activations(recipe: Recipe, space: Workspace) -> dict[str, np.ndarray]:
    """Activations of the audited samples: concepts, random directions, k-means on inputs."""
    audited, discovery = space.reader("audited"), space.reader("discovery")
    kernel = space.reader("influence").whole("kernel")
    rows = {"concepts": ("", kernel), "random": ("random_", kernel)}
    if discovery.has("input_weights"):
        inputs, _ = Audit(recipe, space).inputs.encode(audited.array("sample_id"), CLEAN)
        rows["inputs"] = ("input_", inputs.reshape(len(inputs), -1).astype(np.float64))
    return {
        name: read_concept_map(discovery, prefix).activation(values)
        for name, (prefix, values) in rows.items()
    }


def best_concept_precision(activation: np.ndarray, label: np.ndarray) -> float:
    """Average precision of the concept that matches a class best, mean over the classes."""
    member = label[:, None] == np.unique(label)
    precision = [average_precision(scores, member) for scores in activation.T]
    return float(np.max(precision, axis=0).mean())


def entry(recipe: Recipe, space: Workspace) -> dict[str, Any]:
    """Figures of one finished audit."""
    discovery, examples = space.reader("discovery"), space.reader("examples")
    stability, label = discovery.array("stability"), space.reader("audited").array("label")
    shown, known = activations(recipe, space), label >= 0
    found: dict[str, Any] = {
        "samples": int(space.reader("kernel").info("values").shape[1]),
        "landmarks": int(space.reader("kernel").info("values").shape[2]),
        "rank": int(discovery.attributes["rank"]),
        "concepts": len(stability),
        "stable": int(discovery.array("stable").sum()),
        "stability": float(stability.mean()),
        "stability_weighted": float(stability @ discovery.array("share")),
        "view_agreement": discovery.attributes["view_agreement"],
        "average_precision": examples.attributes["average_precision"],
        "best_concept_precision": {
            name: best_concept_precision(values[known], label[known])
            for name, values in shown.items()
        },
        "embedding_r_squared": examples.attributes["embedding_r_squared"],
        "refit_r_squared": examples.attributes["r_squared"],
        "cards_cpu_seconds": cards_seconds(space),
    }
    if space.recipe() == "fashion-planted":
        found |= planted_figures(space, shown)
    return found


def cards_seconds(space: Workspace) -> float:
    """CPU seconds of the refitted weights of some hundred cards."""
    examples, audited = space.reader("examples"), space.reader("audited")
    landmarks = examples.array("landmark_embedding").astype(np.float64)
    rows = np.flatnonzero(audited.array("role") == 0)[:CARDS]
    target = audited.array("network_embedding")[rows].astype(np.float64)
    chosen = examples.array("top_landmark")[: len(rows)]
    started = time.process_time()
    convex_weights(target, landmarks, chosen)
    return (time.process_time() - started) * CARDS / len(rows)


def planted_figures(space: Workspace, shown: dict[str, np.ndarray]) -> dict[str, Any]:
    """AUROC of the planted digits, and the precision of concepts without them."""
    where, examples = planted(), space.reader("examples")
    ids = space.reader("audited").array("sample_id")
    closeness = examples.array("closeness")
    odd = np.isin(ids, where.digits)
    usual = np.isin(ids, where.others)
    label = space.reader("audited").array("label")
    known = label < 10
    return {
        "novelty_auroc": auroc(-closeness[odd], -closeness[usual]),
        "average_precision_without_digits": {
            name: best_class_precision(values[known], label[known])
            for name, values in shown.items()
        },
        "best_concept_precision_without_digits": {
            name: best_concept_precision(values[known], label[known])
            for name, values in shown.items()
        },
    }


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive score is larger than a negative one, ties half."""
    above = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    return float(above)


def measure_cost(landmarks: int = 1000, concepts: int = 20) -> dict[str, Any]:
    """CPU seconds of fits, and of the pass over synthetic kernel rows of growing number."""
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(FIT_ROWS, landmarks)).astype(np.float32)
    unit_rows(rows)
    started = time.process_time()
    fit_clusters(rows, concepts, 0, 0)
    one_fit = time.process_time() - started
    maps = [ConceptMap(draw.normal(size=(landmarks, concepts)), np.zeros(concepts))] * 2
    # The first conversion imports torch, which no number of rows makes longer.
    pass_seconds(ROWS, maps, draw)
    passes = {n: pass_seconds(n, maps, draw) for n in PASS_ROWS}
    return {
        "landmarks": landmarks,
        "fit_cpu_seconds": one_fit,
        # Refits are on half the rows.
        "all_fits_cpu_seconds": one_fit * (STARTS + REFITS / 2),
        "pass_cpu_seconds": {str(n): seconds for n, seconds in passes.items()},
        # From the largest number that was measured; growth over the numbers shows that it may be.
        "pass_cpu_seconds_a_million_samples_of_two_views": 2e6
        * passes[PASS_ROWS[-1]]
        / PASS_ROWS[-1],
    }


def pass_seconds(n: int, maps: list[ConceptMap], draw: np.random.Generator) -> float:
    """CPU seconds of the winners of n stored float16 rows of one view, by all maps."""
    rows = draw.integers(-1000, 1000, (n, maps[0].weights.shape[0]), dtype=np.int16)
    stored = (rows / np.float32(1000)).astype(np.float16)
    started = time.process_time()
    for each in maps:
        for start in range(0, n, ROWS):
            each.winners(to_float32(stored[start : start + ROWS]))
    return time.process_time() - started


def main() -> None:
    """Run the cells and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--cost", action="store_true", help="measure costs as well")
    parser.add_argument("--memory", type=float, default=3.0, help="GiB of a run")
    arguments = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in filter(None, arguments.cells.split(",")):
        root = arguments.work / name
        recipe, memory = CELLS[name](arguments.work), int(arguments.memory * 2**30)
        for stage in STAGES:
            run(recipe, root, Options(only=stage, workers=1, memory=memory))
        found[name] = entry(recipe, Workspace(root))
        print(name, json.dumps(found[name], indent=1))
        RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if arguments.cost:
        found["cost"] = measure_cost()
        print("cost", found["cost"])
        RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
