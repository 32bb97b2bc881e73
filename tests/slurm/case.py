"""One audit of the harness: its recipe, its references, and the workspaces of the scenarios."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tests.slurm.commands import KREPES, ROOT, WAIT

sys.path.insert(0, str(ROOT))

from benchmarks.bootstrap import bootstrap
from tests.crash.compare import differences

STREAMED = ("stages.newton.objective=simclr", "stages.newton.tolerance=1e-12")


@dataclass(frozen=True)
class Case:
    """A recipe with overrides.

    Args:
        name: of the case.
        recipe: its shipped recipe.
        sets: overrides.
        folder: for workspaces.
        max_time: of one job in the scenario that requeues itself.
        long: overrides that make it long enough to meet a walltime: the kernel is streamed.
    """

    name: str
    recipe: str
    sets: tuple[str, ...]
    folder: Path
    max_time: str
    long: tuple[str, ...]

    def longer(self) -> Case:
        """The same audit with an objective that takes minutes on workers."""
        return replace(self, name=f"{self.name}-long", sets=(*self.sets, *self.long))

    @property
    def options(self) -> list[str]:
        return [part for text in self.sets for part in ("--set", text)]

    def bare(self, scenario: str) -> Path:
        """No workspace yet."""
        workspace = self.folder / f"{self.name}-{scenario}"
        shutil.rmtree(workspace, ignore_errors=True)
        return workspace

    def fresh(self, scenario: str) -> Path:
        """A workspace in which the network is trained, which runs on one thread, and no more."""
        trained = self.folder / f"{self.name}-trained"
        if not (trained / ".krepes/stages/pretrain/seal.json").exists():
            shutil.rmtree(trained, ignore_errors=True)
            self.run(trained, "--until", "pretrain")
        workspace = self.bare(scenario)
        shutil.copytree(trained, workspace)
        return workspace

    def command(self, workspace: Path, *more: str) -> list[str]:
        return [*KREPES, "run", self.recipe, "-w", str(workspace), *self.options, "-q", *more]

    def run(self, workspace: Path, *more: str) -> None:
        subprocess.run(self.command(workspace, *more), check=True, cwd=ROOT, timeout=WAIT)

    def start(self, workspace: Path, *more: str) -> subprocess.Popen[str]:
        """A run in the background; what it says is kept in a file beside its workspace."""
        with self.output(workspace).open("w") as file:
            line = [part for part in self.command(workspace, *more) if part != "-q"]
            return subprocess.Popen(line, cwd=ROOT, stdout=file, stderr=file, text=True)

    def output(self, workspace: Path) -> Path:
        return workspace.with_suffix(".out")

    def check(self, workspace: Path) -> str:
        """Words for a workspace that equals threads.

        Raises:
            AssertionError: a stored bit differs, or there is no result.
        """
        reference = self.folder / f"{self.name}-threads"
        if not (reference / "report.html").exists():
            self.run(self.fresh("threads"), "--workers", "2")
        assert (workspace / "report.html").exists(), f"no report in {workspace}"
        found = differences(reference, workspace)
        assert not found, found
        count = sum(path.is_file() for path in (reference / "audit.zarr").rglob("*"))
        shutil.rmtree(workspace)
        return f"{count} files equal threads"


def digits(folder: Path) -> Case:
    return Case("digits", "digits", (), folder, "10s", (*STREAMED, "views.count=10"))


def adult(folder: Path, table: Path, samples: int) -> Case:
    """Rows of Adult, drawn again with replacement and moved a little, and a small network."""
    rows = bootstrap(table, folder / f"adult-{samples}.parquet", samples)
    sets = (
        f"source.path={rows}",
        "network.arguments={inputs: 107, hidden: [32], outputs: 8}",
        "stages.pretrain.epochs=1",
        "stages.landmarks.count=64",
        "stages.spectrum.components=8",
        "stages.audited.audit=200",
        "stages.audited.fit=1000",
    )
    # A job of a minute must get through a pass: its parts are lost with the last worker.
    blocks = "stages.features.block_rows=4096"
    long = (*STREAMED, "stages.newton.max_iterations=60", blocks)
    return Case(f"adult-{samples}", "adult", sets, folder, "7s", long)
