"""Whole audits of ResNet-50 and ViT-B/16 at 224 pixels: opening, cost of a row, peak memory.

    python -m benchmarks.backbones resnet50 vit_base_patch16_224
    python -m benchmarks.backbones resnet50 --pictures 16
    python -m benchmarks.backbones --table

Needs timm. The pictures are generated (smooth colour noise with a few shapes) and the weights are
random: costs depend on neither. Each network runs ``krepes plan`` and ``krepes run`` as processes
of their own; what they print and measure goes to ``benchmarks/results/backbone-NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
SIZE = 224
N_PICTURES, N_LANDMARKS = 128, 48
# Rows take seconds: blocks so small that both workers have several.
BLOCK_ROWS = 16
FACTORY = '''\
"""A network of timm with random weights, the same at every call."""

import contextlib

import torch

KEPT = []


def build(name):
    # Without its compiled operators torchvision is imported all the same: none is called.
    try:
        import torchvision
    except RuntimeError:
        KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):
                KEPT[0].define(
                    operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
    import timm

    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0)
'''


def main() -> None:
    """Run the audits of the named networks, write their figures and print the table."""
    asked = _parser().parse_args()
    for name in [] if asked.table else asked.networks:
        figures = measure(name, asked)
        asked.out.mkdir(parents=True, exist_ok=True)
        path = asked.out / f"backbone-{name}.json"
        path.write_text(json.dumps(figures, indent=1) + "\n")
    files = sorted(asked.out.glob("backbone-*.json"))
    print(table([json.loads(path.read_text()) for path in files]))


def generated_picture(number: int) -> npt.NDArray[np.uint8]:
    """A picture [y, x, channel]: smooth colour noise and four ellipses of one colour each."""
    draw = np.random.default_rng(number)
    pixels = np.zeros((SIZE, SIZE, 3))
    # Noise at three scales, enlarged by cubic interpolation.
    for cells, weight in ((4, 0.5), (14, 0.3), (56, 0.2)):
        small = Image.fromarray(draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += weight * np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:SIZE, :SIZE]
    for _ in range(4):
        (cy, cx), (ry, rx) = draw.uniform(0, SIZE, 2), draw.uniform(10, 70, 2)
        inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        pixels[inside] = 0.3 * pixels[inside] + 0.7 * draw.uniform(0, 255, 3)
    return pixels.round().clip(0, 255).astype(np.uint8)


def write_inputs(name: str, folder: Path, n_pictures: int) -> Path:
    """Pictures, factory and recipe of one network; the recipe's path."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for number in range(n_pictures):
        path = pictures / f"{number:04d}.png"
        if not path.exists():
            Image.fromarray(generated_picture(number)).save(path)
    (folder / "factory.py").write_text(FACTORY)
    recipe = {
        "recipe": name.replace("_", "-"),
        "source": {"kind": "images", "path": "pictures", "size": SIZE},
        "views": {"count": 2, "crop": 0.4, "flip": True, "jitter": 0.2},
        "network": {
            "factory": "factory.py:build",
            "arguments": {"name": name},
            "weights": "factory",
        },
        "stages": {
            "features": {"forward_batch": "auto", "block_rows": BLOCK_ROWS},
            "landmarks": {"count": min(N_LANDMARKS, n_pictures // 2)},
            "audited": {"audit": 32, "fit": 32},
            "randomised": {"draws": 3, "fit": 16},
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def measure(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Figures of plan and run of one network."""
    folder = asked.folder.resolve()
    recipe = write_inputs(name, folder, asked.pictures)
    workspace = folder / f"workspace-{name}-{asked.pictures}"
    options = [str(recipe), "-w", str(workspace), "--workers", str(asked.workers)]
    options += ["--memory", asked.memory]
    planned = call(["plan", *options, "--json"], folder / f"plan-{name}.log")
    plan = json.loads(planned.pop("stdout"))
    features = next(row for row in plan["stages"] if row["stage"] == "features")
    until = ["--until", asked.until] if asked.until else []
    ran = call(["run", *options, *until], folder / f"run-{name}.log")
    log = ran.pop("stdout")
    return {
        "network": name,
        "pictures": asked.pictures,
        "workers": asked.workers,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load_before": asked.load,
        "plan": {
            **planned,
            "rows": plan["rows"],
            "shape": plan["shape"],
            "features_bytes": features["memory_bytes"],
            "largest_bytes": max(row["memory_bytes"] for row in plan["stages"]),
            "seconds_range": [
                sum(row["seconds_range"][end] for row in plan["stages"]) for end in (0, 1)
            ],
        },
        "run": {**ran, "log": log.replace(str(folder), "build/backbones").splitlines()},
        "stage_cpu_seconds": stage_seconds(workspace),
        "opening": opening_figures(log),
        "row_cost": json.loads((workspace / ".krepes/row-cost.json").read_text())["body"],
    }


def stage_seconds(workspace: Path) -> dict[str, float]:
    """Processor seconds of every sealed stage, also of those that an earlier run sealed."""
    seals = sorted(workspace.glob(".krepes/stages/*/seal.json"))
    bodies = [json.loads(path.read_text())["body"] for path in seals]
    return {body["stage"]: body["cpu_seconds"] for body in bodies}


def opening_figures(log: str) -> dict[str, Any]:
    """Passes that the opening announced, and the processor seconds that its parts took."""
    announced = re.search(r"\((\d+) forward and backward passes", log)
    parts = re.findall(r"opening: (.*?): done in ([\d.]+) s", log)
    return {
        "passes": int(announced[1]) if announced else None,
        "parts": {words: float(seconds) for words, seconds in parts},
    }


def call(arguments: list[str], log: Path) -> dict[str, Any]:
    """Output, wall and processor seconds and peak memory of one krepes command."""
    command = [sys.executable, "-m", "krepes_ooc", *arguments]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    peak = 0
    output = log.with_suffix(".out")
    with log.open("w") as stderr, output.open("w") as stdout:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.05)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    noted = log.read_text()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}\n{noted[-2000:]}")
    return {
        "command": "krepes " + " ".join(arguments).replace(str(log.parent), "build/backbones"),
        "wall_seconds": time.perf_counter() - begun,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_anonymous_bytes": peak,
        "stdout": output.read_text() if "--json" in arguments else noted + output.read_text(),
    }


def anonymous_bytes(process: int) -> int:
    """Anonymous resident bytes of a process now; 0 where it has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", text)
    return 1024 * int(found[1]) if found else 0


def table(all_figures: list[dict[str, Any]]) -> str:
    """Figures as a Markdown table."""
    head = ("network", "pictures", "opening, passes", "row over plain pass", "CPU-s a row")
    head += ("whole run, CPU-s", "peak, MiB", "planned, MiB")
    lines = [_line(head), _line(["---"] * len(head))]
    for f in all_figures:
        cost = f["row_cost"]
        sizes = (f["run"]["peak_anonymous_bytes"], f["plan"]["largest_bytes"])
        cells = [f["network"], f["pictures"], f["opening"]["passes"]]
        cells += [f"{cost['row'] / cost['plain']:.2f}", f"{cost['row']:.2f}"]
        cells += [f"{f['run']['cpu_seconds']:,.0f}", *(f"{size / 2**20:,.0f}" for size in sizes)]
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=["resnet50", "vit_base_patch16_224"])
    parser.add_argument("--pictures", type=int, default=N_PICTURES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="8GiB")
    parser.add_argument("--until", help="last stage of the run; default: all")
    parser.add_argument("--folder", type=Path, default=Path("build/backbones"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the figures that lie there")
    parser.set_defaults(load=os.getloadavg()[0])
    return parser


if __name__ == "__main__":
    main()
