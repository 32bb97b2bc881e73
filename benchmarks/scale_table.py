"""Tables of docs/scale.md from benchmarks/results.

python -m benchmarks.scale_table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MIB = 2**20
# Samples, landmarks, name of the results file after scale-SAMPLES-LANDMARKS-barlow-twins-factors
MILLION = (1_000_000, 1000, "-cgroup")
SAME_LANDMARKS = ((100_000, 1000, ""), (300_000, 1000, ""), MILLION)
ROOT_LANDMARKS = ((100_000, 316, ""), (300_000, 548, ""), MILLION)
PASSES = ("features", "landmarks", "kernel", "moments")


def read(samples: int, landmarks: int, suffix: str) -> dict[str, Any]:
    """One results file."""
    name = f"scale-{samples}-{landmarks}-barlow-twins-factors{suffix}.json"
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def stage_table() -> str:
    """CPU-seconds of each stage for three sizes; floor, memory and disk of the last."""
    runs = [read(*size) for size in SAME_LANDMARKS]
    sizes = [size[0] for size in SAME_LANDMARKS]
    head = [f"{n:,}" for n in sizes]
    lines = [
        f"| stage | {' | '.join(head)} | growth | wall s | floor | ratio | anonymous MiB "
        "| planned MiB | GB |",
        "|" + "---|" * 11,
    ]
    for stages in zip(*(run["stages"] for run in runs), strict=True):
        seconds = [stage["cpu_seconds"] for stage in stages]
        last = stages[-1]
        # CPU time of a further sample above 300,000 over that below: 1 is linear
        below, above = ((seconds[i + 1] - seconds[i]) / (sizes[i + 1] - sizes[i]) for i in range(2))
        growth = f"{above / below:.2f}" if last["stage"] in PASSES else "-"
        ratio = f"{last['ratio']:.2f}" if last["floor"] > 0.05 else "-"
        lines.append(
            f"| {last['stage']} | {' | '.join(f'{s:.1f}' for s in seconds)} "
            f"| {growth} | {last['wall']:.1f} | {last['floor']:.1f} | {ratio} "
            f"| {last['anonymous_peak'] / MIB:.0f} | {last['planned_peak'] / MIB:.0f} "
            f"| {last['bytes'] / 1e9:.2f} |"
        )
    whole = [run["whole"] for run in runs]
    spent = " | ".join(f"{one['cpu_seconds']:.1f}" for one in whole)
    last = runs[-1]
    lines.append(
        f"| whole | {spent} | - "
        f"| {last['wall']:.1f} | {whole[-1]['floor']:.1f} | {whole[-1]['ratio']:.2f} "
        f"| {last['peak_anonymous'] / MIB:.0f} | - | {whole[-1]['bytes'] / 1e9:.2f} |"
    )
    return "\n".join(lines)


def run_table() -> str:
    """Wall time beside its plan for landmarks fixed and landmarks = sqrt(samples)."""
    lines = [
        "| n | m | wall, s | planned | longer | CPU-seconds | ratio to the floor "
        "| features, landmarks, kernel, moments: wall, s |",
        "|" + "---|" * 8,
    ]
    for size in (*SAME_LANDMARKS[:2], *ROOT_LANDMARKS):
        run = read(*size)
        walls = {stage["stage"]: stage["wall"] for stage in run["stages"]}
        lines.append(
            f"| {size[0]:,} | {size[1]} | {run['wall']:.0f} | {run['planned_wall']:.0f} "
            f"| {100 * (run['wall'] / run['planned_wall'] - 1):.0f} % "
            f"| {run['whole']['cpu_seconds']:.0f} | {run['whole']['ratio']:.2f} "
            f"| {', '.join(f'{walls[name]:.0f}' for name in PASSES)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(stage_table(), run_table(), sep="\n\n")
