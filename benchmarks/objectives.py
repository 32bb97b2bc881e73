"""What a product with the curvature costs, and how many of them a step needs.

    python -m benchmarks.objectives --work /tmp/objectives --json objectives.json

CPU-seconds of one thread, all ratios within one run:
 (a) Barlow Twins and VICReg at n = 200,000, m = 512, h = 64: the product from moments against the
     streamed one over a stored float16 kernel (two passes) and against torch.func on batches;
 (b) the streamed product of BYOL and SimCLR over a float16 kernel, as a share of the same process's
     sgemm rate;
 (c) products that preconditioned conjugate gradients need to a residual of 1e-3 at the damping that
     the rule chooses, and (d) over the whole grid, on digits and Adult.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.objective_table import audit, measure
from krepes_ooc.core.blocks import Block
from krepes_ooc.core.float16 import to_float32
from krepes_ooc.stages.moments.moments import Moments
from krepes_ooc.stages.newton.objectives.barlow_twins import BarlowTwins
from krepes_ooc.stages.newton.objectives.byol import BYOL
from krepes_ooc.stages.newton.objectives.simclr import SimCLR
from krepes_ooc.stages.newton.objectives.vicreg import VICReg

SAMPLES, LANDMARKS, COMPONENTS, BLOCK, SUB_ROWS = 200_000, 512, 64, 4096, 512
TORCH_BATCHES = 4
GOALS = {"barlow-twins": 1000, "vicreg": 300, "rate": 0.58}
LIMITS = {"byol": 15, "vicreg": 15, "simclr": 30}


@dataclass(frozen=True)
class Stored:
    """A float16 kernel of two views in a file, as a stream of float32 blocks."""

    path: Path
    n_samples: int = SAMPLES
    n_views: int = 2

    def blocks(self) -> Iterator[tuple[tuple[np.ndarray, ...], Block]]:
        kernel = np.load(self.path, mmap_mode="r")
        for index, start in enumerate(range(0, self.n_samples, BLOCK)):
            stop = min(start + BLOCK, self.n_samples)
            yield (
                tuple(to_float32(np.asarray(view[start:stop])) for view in kernel),
                Block(index, start, stop),
            )

    def reduce(self, function: Callable[..., tuple[Any, ...]]) -> tuple[Any, ...]:
        totals: tuple[Any, ...] = ()
        for views, block in self.blocks():
            parts = function(views, block)
            totals = tuple(t + p for t, p in zip(totals, parts, strict=True)) if totals else parts
        return totals

    @classmethod
    def draw(cls, folder: Path, n_samples: int = SAMPLES) -> Stored:
        """Two views of correlated rows of the size of a normalised kernel."""
        draw, path = np.random.default_rng(0), folder / "kernel.npy"
        kernel = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float16, shape=(2, n_samples, LANDMARKS)
        )
        mixing = draw.normal(size=(32, LANDMARKS)).astype(np.float32) / 32
        for start in range(0, n_samples, BLOCK):
            rows = min(BLOCK, n_samples - start)
            shared = draw.standard_normal((rows, 32), dtype=np.float32)
            for view in kernel:
                moved = shared + 0.3 * draw.standard_normal((rows, 32), dtype=np.float32)
                noise = 0.02 * draw.standard_normal((rows, LANDMARKS), dtype=np.float32)
                view[start : start + rows] = moved @ mixing + noise
        return cls(path, n_samples)

    def moments(self) -> Moments:
        """Means and covariances of all rows, for values; their cost is that of another stage."""
        sums, products = np.zeros((2, LANDMARKS)), np.zeros((2, 2, LANDMARKS, LANDMARKS))
        for views, _ in self.blocks():
            for a in range(2):
                sums[a] += views[a].sum(axis=0, dtype=np.float64)
                for b in range(2):
                    products[a, b] += views[a].T @ views[b]
        mean = sums / self.n_samples
        second = products / self.n_samples - mean[:, None, :, None] * mean[None, :, None, :]
        return Moments(mean, second, self.n_samples)


def cpu_seconds(function: Callable[[], Any], repeats: int = 3, inner: int = 1) -> float:
    """Least CPU time of one call."""
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        for _ in range(inner):
            function()
        found.append((time.process_time() - begun) / inner)
    return min(found)


def sgemm_rate() -> float:
    """Operations per second of a square float32 product."""
    X = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    return 2 * 1024**3 / cpu_seconds(lambda: X @ X, repeats=8)


# ------------------------------------------------------------------ (a) moments against streams


def streamed_product(name: str, stream: Stored, moments: Moments, A: Any, V: Any) -> np.ndarray:
    """H V in two passes without moments: covariances of embeddings and tangents, then K^T rows.

    The first pass finds Z^T Z and Z^T dZ of all pairs of views, from which the cotangents of the
    embeddings follow as small matrices; the second applies them. Means are those of the moments.
    """
    single = np.concatenate([A, V], axis=1).astype(np.float32)
    h, n = A.shape[1], stream.n_samples
    centres = [(mean @ single.astype(np.float64)).astype(np.float32) for mean in moments.mean]

    def both(views: Any, cut: int) -> list[np.ndarray]:
        rows = slice(cut, cut + SUB_ROWS)
        return [K[rows] @ single - c for K, c in zip(views, centres, strict=True)]

    sums = np.zeros((2, 2, h, 2 * h))
    for views, block in stream.blocks():
        for cut in range(0, block.rows, SUB_ROWS):
            Z = both(views, cut)
            for a in range(2):
                for b in range(2):
                    sums[a, b] += Z[a][:, :h].T @ Z[b]
    maps = _small_maps(name, sums / n, n)
    total = np.zeros_like(A)
    for views, block in stream.blocks():
        for cut in range(0, block.rows, SUB_ROWS):
            Z = both(views, cut)
            for a in range(2):
                back = sum(Z[b] @ maps[a, b] for b in range(2))
                total += views[a][cut : cut + SUB_ROWS].T @ back
    return total / n


def _small_maps(name: str, sums: np.ndarray, n: int) -> np.ndarray:
    """What multiplies (Z_b, dZ_b) in the cotangent of Z_a [view, view_, 2 component, component]."""
    h = sums.shape[2]
    C, X = sums[..., :h], sums[..., h:]  # Z_a^T Z_b and Z_a^T dZ_b
    maps = np.zeros((2, 2, 2 * h, h))
    if name == "vicreg":
        _vicreg_maps(maps, C, X, n)
        return maps
    v = [np.diag(C[a, a]) + 1e-5 for a in range(2)]
    scale = 1 / np.sqrt(np.outer(*v))
    c = C[0, 1] * scale
    weight = np.full((h, h), 0.0051)
    np.fill_diagonal(weight, 1.0)
    r = [np.diag(X[a, a]) / v[a] for a in range(2)]
    E = 2 * weight * ((X[1, 0].T + X[0, 1]) * scale - c * (r[0][:, None] + r[1]))
    scaled, shrunk = E * scale, E * c
    maps[0, 1, :h], maps[1, 0, :h] = scaled.T, scaled
    maps[0, 0, :h] = -np.diag(shrunk.sum(axis=1) / v[0])
    maps[1, 1, :h] = -np.diag(shrunk.sum(axis=0) / v[1])
    return maps


def _vicreg_maps(maps: np.ndarray, C: np.ndarray, X: np.ndarray, n: int) -> None:
    h, unbiased = C.shape[2], n / (n - 1)
    for a in range(2):
        deviation = np.sqrt(np.diag(C[a, a]) * unbiased + 1e-4)
        bend = 2 / h * (1 - np.eye(h)) + np.diag(25 / (2 * h) * (deviation < 1) / 4 / deviation**3)
        turned = 2 * bend * (X[a, a] + X[a, a].T) * unbiased
        maps[a, a, :h] = unbiased * turned
        for b in range(2):
            maps[a, b, h:] = 50 / h * (1 if a == b else -1) * np.eye(h)


def torch_product(name: str, stream: Stored, A: np.ndarray, V: np.ndarray) -> float:
    """CPU-seconds of jvp, outer gradient and vjp on batches, extrapolated to all samples."""
    torch.set_num_threads(1)
    start, tangent = (torch.tensor(x, dtype=torch.float32) for x in (A, V))
    batches = []
    for views, _ in stream.blocks():
        batches.append([torch.from_numpy(K) for K in views])
        if len(batches) == TORCH_BATCHES:
            break

    def one(views: list[torch.Tensor]) -> torch.Tensor:
        inner = lambda a: _torch_inner(name, [K @ a for K in views])  # noqa: E731
        at, along = torch.func.jvp(inner, (start,), (tangent,))
        outer = torch.func.grad(lambda c: _torch_outer(name, c, A.shape[1]))
        _, bent = torch.func.jvp(outer, (at,), (along,))
        return torch.func.vjp(inner, start)[1](bent)[0]

    one(batches[0])
    spent = cpu_seconds(lambda: [one(views) for views in batches], repeats=2)
    return spent * stream.n_samples / (TORCH_BATCHES * BLOCK)


def _torch_inner(name: str, Z: list[torch.Tensor]) -> torch.Tensor:
    centred = [z - z.mean(0) for z in Z]
    if name == "barlow-twins":
        sd = [(z.square().mean(0) + 1e-5).sqrt() for z in centred]
        return (centred[0] / sd[0]).T @ (centred[1] / sd[1]) / len(Z[0])
    spread = [(z.T @ z / (len(z) - 1)).flatten() for z in centred]
    return torch.cat([(Z[0] - Z[1]).flatten(), *spread])


def _torch_outer(name: str, inner: torch.Tensor, h: int) -> torch.Tensor:
    if name == "barlow-twins":
        eye = torch.eye(h)
        return ((eye + 0.0051 * (1 - eye)) * (inner - eye) ** 2).sum()
    apart, spreads = inner[: -2 * h * h], inner[-2 * h * h :].reshape(2, h, h)
    total = 25 * apart.square().mean()
    for s in spreads:
        hinge = torch.relu(1 - (s.diagonal() + 1e-4).sqrt()).mean()
        total = total + 12.5 * hinge + ((s**2).sum() - (s.diagonal() ** 2).sum()) / h
    return total


def compare_moments(stream: Stored) -> dict[str, Any]:
    """Seconds of the three ways to one product, and their agreement."""
    moments, draw = stream.moments(), np.random.default_rng(1)
    A = draw.normal(size=(LANDMARKS, COMPONENTS)) / 8
    V = draw.normal(size=A.shape)
    found = {}
    for kind in (BarlowTwins, VICReg):
        name, here = kind.name, kind(moments).linearise(A)
        exact = here.product(V)
        streamed = streamed_product(name, stream, moments, A, V)
        error = np.linalg.norm(streamed - exact) / np.linalg.norm(exact)
        fast = cpu_seconds(lambda here=here: here.product(V), repeats=5, inner=10)
        slow = cpu_seconds(
            lambda name=name: streamed_product(name, stream, moments, A, V), repeats=2
        )
        found[name] = {
            "moment_seconds": fast,
            "streamed_seconds": slow,
            "streamed_passes": 2,
            "torch_seconds_extrapolated": torch_product(name, stream, A, V),
            "difference": float(error),
        }
        found[name]["ratio_streamed"] = slow / fast
        found[name]["ratio_torch"] = found[name]["torch_seconds_extrapolated"] / fast
    return found


# ---------------------------------------------------------------- (b) the rate of streamed products


def compare_rates(stream: Stored) -> dict[str, Any]:
    """Streamed products as a share of the sgemm rate.

    ``share`` counts K V and K^T Y, 8 n m h operations for two views; ``share_done`` also K A, the
    embedding that every pass computes anew instead of keeping n-sized arrays.
    """
    draw, m, h, n = np.random.default_rng(2), LANDMARKS, COMPONENTS, stream.n_samples
    A, offset, rate = draw.normal(size=(m, h)), np.zeros(h), sgemm_rate()
    found: dict[str, Any] = {"sgemm": rate}
    for objective in (BYOL(stream, offset, A), SimCLR(stream, offset)):
        for columns in (1, 8):
            V = draw.normal(size=(m, h, columns))
            spent = cpu_seconds(lambda o=objective, V=V: o.multiply(A, V), repeats=2)
            useful = 8.0 * n * m * h * columns
            batches = 24.0 * n * 256 * h * columns if objective.name == "simclr" else 0.0
            found[f"{objective.name}, {columns} columns"] = {
                "seconds": spent,
                "share": useful / spent / rate,
                "share_done": (useful + 4.0 * n * m * h + batches) / spent / rate,
            }
    return found


# -------------------------------------------------------------- (c), (d) products that a step needs


def count_products(work: Path, data: list[str]) -> dict[str, Any]:
    """Products to 1e-3 at the chosen damping, and over the whole grid."""
    found = {}
    for name in data:
        for objective, limit in LIMITS.items():
            one = measure(audit(name, objective, work))
            products = one["diagnostics"]["products"]
            found[f"{name}, {objective}"] = {
                "damping": one["facts"]["damping_relative"],
                "products_to_1e-3": one["products_to_1e-3"],
                "limit": limit,
                "grid": products["grid"],
                "preconditioner": products["preconditioner"],
                "passes": one["diagnostics"]["passes"],
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder of the audits for (c) and (d)")
    parser.add_argument("--data", nargs="*", default=["digits", "adult"])
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of the synthetic kernel")
    parser.add_argument("--json", type=Path, help="file for all figures")
    chosen = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        stream = Stored.draw(Path(folder), chosen.samples)
        found["moments"] = compare_moments(stream)
        for name, one in found["moments"].items():
            print(
                f"{name}: {one['moment_seconds'] * 1e3:.2f} ms from moments; streamed "
                f"{one['ratio_streamed']:,.0f}x (goal {GOALS[name]}), torch.func "
                f"{one['ratio_torch']:,.0f}x (extrapolated from {TORCH_BATCHES} batches of "
                f"{BLOCK}); difference {one['difference']:.0e}"
            )
        found["rates"] = compare_rates(stream)
    print(f"sgemm {found['rates']['sgemm'] / 1e9:.0f} Gflop/s")
    for name, one in found["rates"].items():
        if name != "sgemm":
            print(f"{name}: {one['share']:.0%} of sgemm, {one['share_done']:.0%} with all it does")
    if chosen.work:
        found["products"] = count_products(chosen.work, chosen.data)
        for name, one in found["products"].items():
            print(
                f"{name}: {one['products_to_1e-3']} products to 1e-3 (limit {one['limit']}) at "
                f"damping {one['damping']:g}; {one['grid']} + {one['preconditioner']} over the "
                f"grid, {one['passes']} passes"
            )
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
