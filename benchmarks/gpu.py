"""An NVIDIA device beside its own limits, and whole audits on it beside the processor.

    python benchmarks/gpu.py --folder /tmp/gpu-benchmark
    python benchmarks/gpu.py --folder /tmp/gpu-benchmark --dry-run

One command, no network, no data: the rows are drawn here. ``--dry-run`` does all of it at small
size on the processor, to see that the command works; its figures say nothing about a device.
Every rate is the best of several calls, first call excluded; times of audits are those of their
stages, so that process start is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.resnet50 import resnet50  # noqa: E402
from krepes_ooc.engine import machine  # noqa: E402
from krepes_ooc.engine.calibration import calibrate  # noqa: E402
from krepes_ooc.engine.cuda_device import open_gpu  # noqa: E402
from krepes_ooc.engine.device import HOST, Device  # noqa: E402
from krepes_ooc.jacobian.feature_map import FeatureSettings, open_features  # noqa: E402
from krepes_ooc.network.torch_device import available_device, one_torch_thread  # noqa: E402
from krepes_ooc.stages.moments.stage import GRAM_ROWS  # noqa: E402
from krepes_ooc.stages.moments.sums import block_shift, moment_sums  # noqa: E402
from krepes_ooc.stages.newton.objectives.families import times_columns, transposed_times  # noqa: E402
from krepes_ooc.storage.workspace import Workspace  # noqa: E402

COMPONENTS, COLUMNS, INPUTS = 64, 8, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for data and workspaces")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--landmarks", type=int, default=1000)
    parser.add_argument("--cpu-workers", type=int, default=2)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.dry_run:
        asked.samples, asked.landmarks = min(asked.samples, 2000), min(asked.landmarks, 48)
    asked.folder.mkdir(parents=True, exist_ok=True)
    device: Device = HOST if asked.dry_run else open_gpu()
    print(f"device: {device.name or 'this processor (dry run)'}")
    with machine.one_blas_thread(), one_torch_thread():
        rows = [*Rates(device, asked).rows(), features(device, asked)]
    audits = [audit("digits", asked), audit("table", asked)]
    disk = calibrate(asked.folder).disk
    found = {
        "device": device.name or "dry run",
        "numerics": machine.numerics(device.name),
        "python": platform.python_version(),
        "disk_bytes_a_second": disk,
        "rates": rows,
        "audits": audits,
    }
    show(found)
    out = asked.out or asked.folder / ("gpu-dry-run.json" if asked.dry_run else "gpu.json")
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {out}")


class Rates:
    """What the device can do, and what block functions make of it."""

    def __init__(self, device: Device, asked: argparse.Namespace) -> None:
        self.device = device
        small, m = asked.dry_run, asked.landmarks
        self.side, self.copied = (256, 2**22) if small else (8192, 2**30)
        draw, count = np.random.default_rng(0), (1024 if small else 65_536)
        self.stored = draw.normal(size=(count, m)).astype(np.float16)
        self.V = device.to_device(draw.normal(size=(m, COMPONENTS, COLUMNS)).astype(np.float32))

    def rows(self) -> list[dict[str, Any]]:
        """Each figure beside the limit that binds it."""
        device, stored = self.device, self.stored
        ones = device.to_device(np.ones((self.side, self.side), dtype=np.float32))
        long = device.to_device(np.ones(self.copied // 4, dtype=np.float32))
        matmul = 2.0 * self.side**3 / self.seconds(lambda: ones @ ones)
        copy = 2.0 * self.copied / self.seconds(lambda: long + 0)
        wire = stored.nbytes / self.seconds(lambda: device.to_float32(stored))
        there = device.to_float32(stored)
        resident = self.seconds(lambda: product(there, self.V))
        streamed = self.seconds(lambda: product(device.to_float32(stored), self.V))
        shift, views = block_shift([there]), [there]
        gram = self.seconds(lambda: moment_sums(views, shift, GRAM_ROWS).products)
        (n, m), wide = stored.shape, COMPONENTS * COLUMNS
        flops = 4.0 * n * m * wide
        # K is read twice; the embeddings of all columns are written and read once.
        bound = max(flops / matmul, (8.0 * n * m + 8.0 * n * wide) / copy)
        return [
            figure("matrix product, float32, FLOP/s", matmul),
            figure("copy on the device, bytes read and written a second", copy),
            figure("stored float16 to the device, bytes/s", wire),
            figure(
                "streaming product on rows that stay, FLOP/s", flops / resident, flops / bound, 0.6
            ),
            figure(
                "streaming product on rows that come, FLOP/s",
                flops / streamed,
                flops / max(bound, stored.nbytes / wire),
                0.6,
            ),
            figure("Gram, FLOP/s of the full product", 2.0 * n * m * m / gram, matmul, 0.7),
        ]

    def seconds(self, work: Callable[[], Any], repeats: int = 5) -> float:
        """Of the fastest call, until a number of its result is on the host."""
        found = []
        for _ in range(1 + repeats):
            begin = time.perf_counter()
            result = work()
            self.device.to_host(result[:1])
            found.append(time.perf_counter() - begin)
        return max(min(found[1:]), 1e-9)


def product(K: Any, V: Any) -> Any:
    """K^T (K V) [landmark, column, component]: the two products of every curvature pass."""
    return transposed_times(K, times_columns(K, V))


def figure(
    name: str, measured: float, limit: float | None = None, goal: float | None = None
) -> dict[str, Any]:
    """One line: what was measured, the limit, and the share of it that is the goal."""
    return {"figure": name, "measured": measured, "limit": limit, "goal": goal}


def features(device: Device, asked: argparse.Namespace) -> dict[str, Any]:
    """Jacobian rows a second of a ResNet-50: one probe, all parameters."""
    size, batch, width = (32, 2, 8) if asked.dry_run else (224, 128, 64)
    inputs = np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype(np.float32)
    shared = open_features(
        resnet50(width), FeatureSettings(kind="sketch", probes=1, deflated_probes=0), inputs[:2]
    )
    where = available_device(device.torch)
    own = shared.clone() if where == "cpu" else shared.to(where)
    repeats, times = (1 if asked.dry_run else 3), []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        own.rows(inputs)
        times.append(time.perf_counter() - begin)
    name = f"features of a ResNet-50 on {where}, {size} x {size}, samples/s"
    return figure(name, batch / min(times[1:]))


def audit(which: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One audit on the processor and on the device, by stages, and how their results differ."""
    recipe, sets = ("digits", []) if which == "digits" else (str(table_recipe(asked)), [])
    if asked.dry_run:
        sets = ["source.limit=300", "stages.landmarks.count=24", "stages.audited.fit=80"]
        sets += ["stages.audited.audit=30", "stages.spectrum.components=4"]
        sets += ["stages.concepts.sets={}", "stages.pretrain.epochs=1"] if which == "digits" else []
    folders, kinds = {}, {"cpu": "cpu", "device": "cpu" if asked.dry_run else "cuda"}
    for name, kind in kinds.items():
        folder = folders[name] = asked.folder / f"{which}-{name}"
        more = ["--workers", str(asked.cpu_workers)] if kind == "cpu" else []
        changes = [part for one in sets for part in ("--set", one)]
        command = [sys.executable, "-m", "krepes_ooc", "run", recipe, "-w", str(folder)]
        subprocess.run([*command, "--device", kind, "-q", *more, *changes], check=True, cwd=ROOT)
    seconds = {name: stage_seconds(folder) for name, folder in folders.items()}
    sums = {name: sum(each.values()) for name, each in seconds.items()}
    return {
        "audit": which,
        "samples": Workspace(folders["cpu"]).reader("kernel").info("values").shape[1],
        "seconds": seconds,
        "whole": sums,
        "times_faster": sums["cpu"] / sums["device"],
        "differences": differences(folders["cpu"], folders["device"]),
    }


def stage_seconds(folder: Path) -> dict[str, float]:
    """Wall seconds of every stage."""
    seals = sorted(folder.glob(".krepes/stages/*/seal.json"))
    return {path.parent.name: json.loads(path.read_text())["body"]["seconds"] for path in seals}


def differences(cpu: Path, device: Path) -> dict[str, Any]:
    """Largest differences of what people read, in the units of each array's largest value."""
    left, right = Workspace(cpu), Workspace(device)
    chosen = [one.reader("landmarks").array("sample_id") for one in (left, right)]
    found: dict[str, Any] = {"same landmarks": float(np.isin(*chosen).mean())}
    for store, name in (
        ("kernel", "landmark_kernel"),
        ("moments", "mean"),
        ("spectrum", "eigenvalues"),
        ("newton", "step"),
        ("influence", "embedding"),
    ):
        a, b = (one.reader(store).array(name).astype(np.float64) for one in (left, right))
        found[f"{store}.{name}"] = float(np.abs(a - b).max() / np.abs(a).max())
    first = [one.reader("influence").array("top_landmark")[:, 0] for one in (left, right)]
    found["same first landmark"] = float((first[0] == first[1]).mean())
    return found


def table_recipe(asked: argparse.Namespace) -> Path:
    """A table of correlated numbers with a label, and a fixed network of 512-512 units."""
    import torch
    import yaml
    from safetensors.torch import save_file

    path, weights = asked.folder / "rows.parquet", asked.folder / "weights.safetensors"
    if not path.exists():
        import pyarrow as pa
        import pyarrow.parquet as pq

        draw = np.random.default_rng(0)
        label = draw.integers(0, 10, asked.samples)
        centres = draw.normal(size=(10, INPUTS)) * 2
        values = (centres[label] + draw.normal(size=(asked.samples, INPUTS))).astype(np.float32)
        columns = {f"x{i:02d}": values[:, i] for i in range(INPUTS)}
        pq.write_table(pa.table({**columns, "kind": [f"c{i}" for i in label]}), path)
    from krepes_ooc.network.zoo import mlp

    torch.manual_seed(0)
    save_file(mlp(INPUTS, [512, 512], 64).state_dict(), weights)
    recipe = {
        "recipe": "gpu-table",
        "source": {"kind": "table", "path": str(path.resolve()), "label": "kind"},
        "views": {"count": 2, "corruption": 0.3},
        "network": {
            "factory": "krepes_ooc.network.zoo:mlp",
            "arguments": {"inputs": INPUTS, "hidden": [512, 512], "outputs": 64},
            "weights": str(weights.resolve()),
        },
        "stages": {"landmarks": {"count": asked.landmarks}},
    }
    written = asked.folder / "table.yaml"
    written.write_text(yaml.safe_dump(recipe))
    return written


def show(found: dict[str, Any]) -> None:
    """The figures for people."""
    print(f"python {found['python']}; disk {found['disk_bytes_a_second'] / 1e9:.2f} GB/s, flushed")
    for row in found["rates"]:
        share = f"{row['measured'] / row['limit']:8.2f}" if row["limit"] else " " * 8
        goal = f"  goal {row['goal']:g}" if row["goal"] else ""
        print(f"{row['figure']:<58}{row['measured']:12.4g}{share}{goal}")
    for each in found["audits"]:
        whole = each["whole"]
        print(
            f"audit {each['audit']}, {each['samples']:,} samples: {whole['cpu']:.1f} s on the "
            f"processor, {whole['device']:.1f} s on the device, {each['times_faster']:.1f} times"
        )
        for stage, seconds in each["seconds"]["cpu"].items():
            print(f"  {stage:<12}{seconds:10.2f}{each['seconds']['device'][stage]:10.2f}")
        for name, value in each["differences"].items():
            print(f"  {name:<28}{value:12.3g}")


if __name__ == "__main__":
    main()
