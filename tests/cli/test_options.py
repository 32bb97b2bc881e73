"""Options and help of every command."""

from __future__ import annotations

from typing import Any

import click
import pytest

from krepes_ooc.cli import main
from tests import small

RUN = {
    "workspace",
    "memory",
    "workers",
    "device",
    "cluster",
    "print-job",
    "shard",
    "set",
    "with",
    "until",
    "only",
    "restart-stale",
    "repair",
    "allow-mixed-numerics",
    "max-time",
    "strict",
    "open",
    "verbose",
    "quiet",
    "json",
}
OPTIONS = {
    "run": RUN,
    "plan": {"workspace", "memory", "workers", "cluster", "set", "with", "json"},
    "status": {"workspace", "set", "json"},
    "encode": {"workspace", "set", "out", "json"},
    "compare": {"out", "open", "json"},
    "concepts list": {"workspace", "json"},
    "concepts keep": {"workspace", "as"},
    "concepts drop": {"workspace"},
    "explain": {
        "workspace",
        "sample",
        "input",
        "against",
        "probe",
        "without",
        "coefficients",
        "corpus",
        "top",
        "png",
        "json",
    },
    "export": {"workspace", "store", "format", "out", "dim"},
    "report": {"workspace", "open", "quiet", "samples"},
    "verdict": {"workspace", "strict", "json", "schema"},
    "verify": {"workspace", "store", "json"},
    "doctor": {"json"},
    "stores list": set(),
    "stores show": set(),
    "recipes list": set(),
    "recipes show": set(),
    "recipes copy": set(),
    "recipes schema": {"out"},
    "sites list": set(),
    "sites copy": set(),
}


def commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


def test_options_of_every_command() -> None:
    found = {
        name: {
            option.opts[0].removeprefix("--")
            for option in command.params
            if isinstance(option, click.Option)
        }
        for name, command in commands(main).items()
    }
    assert found == OPTIONS


def test_same_option_is_the_same_everywhere() -> None:
    seen: dict[str, Any] = {}
    for command in commands(main).values():
        for option in command.params:
            if isinstance(option, click.Option):
                told = (option.opts, option.help, type(option.type))
                assert seen.setdefault(option.opts[0], told) == told


@pytest.mark.parametrize("command", [*OPTIONS, "", "stores", "recipes", "sites"])
def test_help(capsys: Any, command: str) -> None:
    outcome = small.krepes(capsys, *command.split(), "--help")
    assert outcome.code == 0
    assert outcome.out.startswith("Usage: ")
    lines = outcome.out.splitlines()
    assert all(len(line) <= 100 for line in lines)


def test_group_without_command_shows_its_help(capsys: Any) -> None:
    outcome = small.krepes(capsys)
    assert outcome.code == 2
    assert "Commands:" in outcome.err
