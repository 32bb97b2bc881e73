"""Peak memory of convolutional networks and transformers against plan and ``--memory``.

    python -m benchmarks.network_memory
    python -m benchmarks.network_memory resnet18@160 --memory 1GiB
    python -m benchmarks.network_memory --table

Needs timm. A handful of generated pictures, random weights, one probe, up to the stage kernel: the
memory of a row depends on the network and the pixels alone. Each row of the table is one ``krepes
run`` in a process of its own; figures go to ``benchmarks/results/network-memory.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from benchmarks.backbones import FACTORY, ROOT, anonymous_bytes, generated_picture

RESULTS = ROOT / "benchmarks/results/network-memory.json"
NETWORKS = (
    *("resnet18@160", "resnet18@224", "resnet50@160", "resnet50@224"),
    *("vit_small_patch16_224@224", "vit_base_patch16_224@224"),
)
MEMORY = ("1GiB", "2GiB", "8GiB")
N_PICTURES, BLOCK_ROWS = 12, 8
REFUSED = 3
POLL_SECONDS = 0.02


def main() -> None:
    """Run the asked networks under the asked limits, write the figures and print the table."""
    asked = _parser().parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for name in [] if asked.table else asked.networks:
        for memory in asked.memory:
            row = measure(name, memory, asked.folder.resolve())
            known = [r for r in known if (r["network"], r["memory"]) != (name, memory)] + [row]
            known.sort(key=lambda r: (NETWORKS.index(r["network"]), MEMORY.index(r["memory"])))
            RESULTS.write_text(json.dumps(known, indent=1) + "\n")
            print(json.dumps(row), flush=True)
    print(table(known))


def write_recipe(name: str, folder: Path) -> Path:
    """Pictures, factory and recipe of a network such as ``resnet18@160``; the recipe's path."""
    network, _, side = name.partition("@")
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for number in range(N_PICTURES):
        Image.fromarray(generated_picture(number)).save(pictures / f"{number:04d}.png")
    (folder / "factory.py").write_text(FACTORY)
    recipe = {
        "recipe": "network-memory",
        "source": {"kind": "images", "path": "pictures", "size": int(side)},
        "views": {"count": 2, "crop": 0.4, "flip": True, "jitter": 0.2},
        "network": {
            "factory": "factory.py:build",
            "arguments": {"name": network},
            "weights": "factory",
        },
        "stages": {
            "features": {
                "forward_batch": "auto",
                "block_rows": BLOCK_ROWS,
                "probes": 1,
                "deflated_probes": 0,
            },
            "landmarks": {"count": 4},
            "audited": {"audit": 4, "fit": 4},
            "spectrum": {"components": 2},
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def measure(name: str, memory: str, folder: Path) -> dict[str, Any]:
    """Plan and peak of the stages up to the kernel, or the words of the refusal."""
    folder = folder / f"{name}-{memory}"
    recipe = write_recipe(name, folder)
    command = [sys.executable, "-m", "krepes_ooc", "run", str(recipe), "-w", str(folder / "w")]
    command += ["--memory", memory, "--workers", "2", "--until", "kernel"]
    log = folder / "log"
    peak = 0
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(POLL_SECONDS)
    words = log.read_text()
    if process.returncode not in (0, REFUSED):
        raise SystemExit(words[-2000:])
    row = {"network": name, "memory": memory, "exit": process.returncode, "peak_bytes": peak}
    if process.returncode == REFUSED:
        return row | {"refused": words.strip().splitlines()[-1]}
    seals = (folder / "w/.krepes/stages").glob("*/seal.json")
    facts = [json.loads(path.read_text())["body"] for path in seals]
    begun = json.loads((folder / "w/.krepes/stages/features/begun.json").read_text())["body"]
    return row | {
        "batch": begun["shape"]["plan"]["forward_batch"],
        "stages": {
            f["stage"]: {"planned": f["planned_memory"], "peak": f["anonymous_peak"]} for f in facts
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Figures as a Markdown table."""
    head = ("network", "--memory", "batch", "whole process, MiB", "features: peak / planned, MiB")
    lines = [_line((*head, "largest peak / plan of a stage")), _line(["---"] * (len(head) + 1))]
    for row in rows:
        cells = [row["network"], row["memory"]]
        if "refused" in row:
            said = re.sub(r"^krepes: ", "", row["refused"])
            cells += ["-", f"{row['peak_bytes'] / 2**20:,.0f}", f"refused: {said}", "-"]
        else:
            features = row["stages"]["features"]
            parts = [f["peak"] / f["planned"] for f in row["stages"].values()]
            sizes = " / ".join(f"{features[key] / 2**20:,.0f}" for key in ("peak", "planned"))
            cells += [row["batch"], f"{row['peak_bytes'] / 2**20:,.0f}", sizes, f"{max(parts):.2f}"]
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--memory", nargs="*", default=MEMORY)
    parser.add_argument("--folder", type=Path, default=Path("build/network-memory"))
    parser.add_argument("--table", action="store_true", help="print the figures that lie there")
    return parser


if __name__ == "__main__":
    main()
