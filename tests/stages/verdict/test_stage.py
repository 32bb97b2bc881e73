"""Whole audits that each reach one verdict: a verdict that no network can fail is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from krepes_ooc.core.verdict import Verdict
from krepes_ooc.runner.run_history import Summary
from krepes_ooc.storage.workspace import Workspace
from tests import small

# A large constant beside little that depends on the sample: an effective rank of about 1.
COLLAPSED = """
import torch

def build() -> torch.nn.Module:
    torch.manual_seed(0)
    first, last = torch.nn.Linear(64, 16), torch.nn.Linear(16, 8)
    with torch.no_grad():
        last.weight *= 1e-3
        last.bias.fill_(10.0)
    return torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.Tanh(), last)
"""


def audited(folder: Path, *changes: str) -> tuple[Summary, Verdict]:
    summary = small.audit(folder / "w", *changes)
    stored = Workspace(folder / "w").reader("verdict").attributes["verdict"]
    return summary, Verdict.from_json(stored)


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {check.key: check.outcome for check in verdict.checks}


def test_random_weights_are_not_usable(tmp_path: Path) -> None:
    random = ("network.weights=factory", "stages.randomised.draws=5")
    summary, verdict = audited(tmp_path, *random)
    assert verdict.status == summary.verdict == "not usable"
    assert [check.key for check in verdict.reasons] == ["random_weights"]
    assert summary.verdict_sentence == "Not usable: Not distinguishable from random weights."
    assert outcomes(verdict)["objective"] == "unknown"


def test_a_collapsed_network_is_not_usable(tmp_path: Path) -> None:
    (tmp_path / "collapsed.py").write_text(COLLAPSED)
    factory = f"network.factory={tmp_path / 'collapsed.py'}:build"
    _, verdict = audited(tmp_path, factory, "network.weights=factory", "network.arguments={}")
    assert verdict.status == "not usable"
    assert "collapse" in [check.key for check in verdict.reasons]


def test_another_objective_than_the_training_s_is_not_usable(tmp_path: Path) -> None:
    _, verdict = audited(tmp_path, "stages.newton.objective=vicreg")
    assert verdict.status == "not usable"
    assert "objective" in [check.key for check in verdict.reasons]
    (check,) = [check for check in verdict.checks if check.key == "objective"]
    assert check.words() == "The network was trained with barlow-twins, but vicreg is audited."


def test_a_step_that_is_not_trusted_is_not_usable(tmp_path: Path) -> None:
    untrusted = (
        "stages.newton.objective=spectral-contrastive",
        "stages.pretrain.objective=spectral-contrastive",
        "stages.newton.damping=0.01",
        "stages.newton.damping_grid=[0.01]",
        "stages.newton.lm_steps=0",
    )
    summary, verdict = audited(tmp_path, *untrusted)
    assert summary.trusted is False
    assert "step" in [check.key for check in verdict.reasons]


def test_stating_the_objective_makes_the_verdict_stale_and_nothing_before_it(
    tmp_path: Path,
) -> None:
    changes = ("network.weights=factory",)
    audited(tmp_path, *changes)
    stated: Any = (*changes, "network.objective=simclr")
    summary = small.audit(tmp_path / "w", *stated, restart_stale=True)
    assert summary.ran == ["verdict", "report"]
    assert summary.verdict == "not usable"
    assert "not the training objective" in summary.verdict_sentence


@pytest.mark.parametrize("flag", [(), ("--json",)])
def test_strict_exits_with_1_and_shows_the_figures(
    tmp_path: Path, capsys: Any, flag: tuple[str, ...]
) -> None:
    small.audit(tmp_path / "w", "stages.newton.objective=vicreg")
    shown = small.krepes(capsys, "verdict", "-w", str(tmp_path / "w"), "--strict", *flag)
    assert shown.code == 1
    assert "expected a usable audit, because of --strict" in shown.line
    assert "Audited objective is not the training objective" in shown.out


def test_there_is_none_before_the_stage(tmp_path: Path, capsys: Any) -> None:
    small.audit(tmp_path / "w", until="features")
    shown = small.krepes(capsys, "verdict", "-w", str(tmp_path / "w"))
    assert shown.code == 2
    assert "there is no verdict yet" in shown.line
