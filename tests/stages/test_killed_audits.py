"""Every audit stage, killed by SIGKILL while it writes, ends in the same bits when run again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from krepes_ooc.runner.audit import Options
from krepes_ooc.runner.run import run
from tests.crash.compare import differences
from tests.small import seals
from tests.stages import audits

# Stage, and how many of its files are published before the kill.
KILLED = {"influence": 3, "concepts": 2, "alignment": 4, "fidelity": 1}
KILL = """
import os, signal, sys
from pathlib import Path
from krepes_ooc.runner.recipe import Recipe
from krepes_ooc.runner import Options, run

recipe, workspace, stage, limit = sys.argv[1:]
replace, done = Path.replace, []

def counted(self, target):
    if f"/{stage}/" in f"{target}":
        if len(done) == int(limit):
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(target)
    return replace(self, target)

Path.replace = counted
run(Recipe.load(recipe), Path(workspace), Options(workers=2, until=stage))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A copy of the finished audit; its last stages were computed anew, through a kill each."""
    finished = audits.finished()
    workspace = tmp_path_factory.mktemp("killed") / "w"
    shutil.copytree(finished.root, workspace)
    for stage in (*KILLED, "report"):
        shutil.rmtree(workspace / ".krepes" / "stages" / stage)
        shutil.rmtree(workspace / "audit.zarr" / stage, ignore_errors=True)
    root, recipe, codes = Path(__file__).parents[2], finished.root.parent / "own.yaml", {}
    for stage, limit in KILLED.items():
        ended = subprocess.run(
            [sys.executable, "-c", KILL, str(recipe), str(workspace), stage, str(limit)],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            check=False,
            capture_output=True,
        )
        codes[stage] = ended.returncode
        assert stage not in seals(workspace), ended.stderr.decode()
    run(audits.recipe_of(finished), workspace, Options(workers=2))
    return workspace, codes


def test_every_stage_was_killed_before_its_seal(killed) -> None:
    assert killed[1] == dict.fromkeys(KILLED, -signal.SIGKILL)


def test_nothing_tells_that_it_was_killed(killed) -> None:
    finished = audits.finished()
    assert differences(finished.root, killed[0]) == []
    assert seals(killed[0]) == seals(finished.root)
