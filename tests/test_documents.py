"""Every command in README and docs is run here, or stands below with the reason why not."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from docs.source_links import missing_links
from krepes_ooc.core.settings import read_settings
from krepes_ooc.core.stage_order import STAGE_ORDER
from krepes_ooc.runner.recipe import Recipe, RecipeFile
from tests import small
from tests.document_figures import DOCUMENTS

ROOT = Path(__file__).parents[1]
TINY = (
    "--set", "source.limit=400", "--set", "stages.pretrain.epochs=2",
    "--set", "stages.landmarks.count=64", "--set", "stages.audited.fit=150",
    "--set", "stages.spectrum.components=8", "--set", "stages.concepts.sets={}",
    *(part for text in small.FEW for part in ("--set", text) if "discovery" not in text),
)  # fmt: skip
NOT_RUN = {
    "make ": "installs; tests/test_packaging.py checks that each target exists",
    "pip install": "installs",
    "python benchmarks/": "hours, or a download; tests/benchmarks runs their parts",
    r"python -m (pytest -m crash )?tests[./]crash": "long campaigns; tests/crash runs short ones",
    "eval ": "changes the shell; test_completion below asks for the same script",
    r"krepes \w+ (adult|fashion-mnist|examples/\S+)\b": "needs a download",
    r"krepes run mine\.yaml": "a copy of adult, which needs the downloaded table",
    r"krepes export bias\b": "the audit of adult, which needs a download",
    "krepes compare ": "needs several audits; tests/runner/comparison/test_compare.py",
    "python examples/audit_digits.py": "tests/test_examples.py",
    "python examples/open_workspace.py": "tests/test_examples.py",
}
# Documents of other parts whose commands need a site or a large disk say so themselves.
ELSEWHERE = {"clusters.md", "scale.md"}


def blocks(path: Path, kinds: tuple[str, ...]) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind in kinds]


def commands() -> list[str]:
    """Commands in the order in which a reader meets them."""
    order = ["README.md", "start.md", "own.md", "report.md", "explain.md", "choosing.md"]
    rank = {name: place for place, name in enumerate(order)}
    found: list[str] = []
    for path in sorted(DOCUMENTS, key=lambda p: rank.get(p.name, len(rank))):
        if path.name in ELSEWHERE:
            continue
        for text in blocks(path, ("", "bash", "sh")):
            lines = [line.split(" #")[0].strip() for line in text.splitlines()]
            found += [line for line in lines if re.match(r"(krepes|make|python|pip|eval) ?", line)]
    return list(dict.fromkeys(found))


def reason_not_to(command: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if re.match(start, command)), None)


def test_reasons_are_still_needed() -> None:
    for start in NOT_RUN:
        assert any(re.match(start, command) for command in commands()), start


@pytest.mark.timeout(600)
def test_commands(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one folder, one after the other, as somebody would type them; on 400 digits."""
    monkeypatch.chdir(tmp_path)
    small.krepes(capsys, "run", "digits", *TINY)
    run = 0
    for command in commands():
        if reason_not_to(command):
            continue
        assert command.startswith("krepes "), f"neither run nor excused: {command}"
        given = shlex.split(command)[1:]
        if given[0] in ("run", "plan"):
            given += [part for part in TINY if not _named(part, given)]
            given = _without_lonely_sets(given)
        done = small.krepes(capsys, *given)
        stale = given[0] == "run" and "newton.objective" in command and "--restart" not in command
        assert done.code == (4 if stale else 0), (command, done.err)
        run += 1
    assert run > 15


def _named(part: str, given: list[str]) -> bool:
    """Whether the command itself sets this key."""
    key = part.partition("=")[0]
    return "=" in part and any(word.startswith(f"{key}=") for word in given)


def _without_lonely_sets(given: list[str]) -> list[str]:
    """Drop every --set that lost its value."""
    kept: list[str] = []
    for word in given:
        if word == "--set" and kept and kept[-1] == "--set":
            continue
        kept.append(word)
    return kept[:-1] if kept[-1] == "--set" else kept


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_yaml_keys_are_known(path: Path) -> None:
    from krepes_ooc.core import resources

    for text in blocks(path, ("yaml",)) if path.name not in ELSEWHERE else ():
        values = resources.parse_value(text)
        whole = {
            "recipe": "shown",
            "source": {"kind": "digits"},
            "network": {"factory": "a:b", "weights": "factory"},
        }
        read_settings(RecipeFile, {**whole, **values}, path.name)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """What click writes for the shells, and what it answers them."""
    command = [sys.executable, "-m", "krepes_ooc"]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    program = "from krepes_ooc.cli import main; main(prog_name='krepes')"
    script = subprocess.run(
        [command[0], "-c", program],
        env=env | {"_KREPES_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "krepes" in script.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("krepes run d", "digits"),
        ("krepes run digits --until spec", "spectrum"),
        ("krepes export digits --store infl", "influence"),
        ("krepes ex", "explain"),
    ],
)
def test_completion_offers(typed: str, offered: str) -> None:
    words = typed.split()
    env = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "_KREPES_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    program = "from krepes_ooc.cli import main; main(prog_name='krepes')"
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert f"plain,{offered}" in done.stdout.split()


def test_python_of_the_documents_names_what_exists() -> None:
    import krepes_ooc

    for path in DOCUMENTS:
        for text in blocks(path, ("python",)):
            compile(text, path.name, "exec")
            for names in re.findall(r"from krepes_ooc import (.*)", text):
                assert all(hasattr(krepes_ooc, name.strip()) for name in names.split(","))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_python_line_of_the_interface_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks of explain.md, one after the other; on 400 digits and in one process."""
    monkeypatch.chdir(tmp_path)
    text = "".join(blocks(ROOT / "docs/explain.md", ("python",)))
    shown = 'changes = {"stages.landmarks.count": 128}'
    assert shown in text
    text = text.replace(shown, f"changes = {[key for key in TINY if '=' in key]}")
    space: dict[str, Any] = {}
    for line in text.splitlines():
        exec(compile(line, "explain.md", "exec"), space)
    assert len(space["ws"]) == len(list(space["ws"])) > 10
    frame = space["one"].to_dataframe()
    assert list(frame["rank"][:3]) == [1, 2, 3]
    assert len(frame) > space["one"].record()["ranked"]
    assert (tmp_path / "seventeen.png").read_bytes().startswith(b"\x89PNG")
    assert space["one"].plot().size[0] > 300


def test_an_audited_sample_is_explained_without_slow_libraries() -> None:
    """What explain.md says of its time holds while none of these is imported."""
    program = "import sys, krepes_ooc.runner.explanation.questions; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"torch", "sklearn", "scipy.stats", "pandas", "distributed"} & {*done.stdout.split()}


def test_recipe_of_the_documents_can_be_loaded() -> None:
    assert Recipe.load("digits", ["stages.landmarks.count=128"]).name == "digits"


def test_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="no mkdocs: make docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(tmp_path / "s")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_to_headings_exist() -> None:
    """MkDocs says nothing of a heading that is not there."""
    for path in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(([\w-]*(?:\.md)?)#([^)]+)\)", path.read_text()):
            page = path.parent / target if target else path
            heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert anchor in map(anchor_of, heads), f"{path.name}: {target}#{anchor}"


def anchor_of(heading: str) -> str:
    """Anchor of a heading as MkDocs and GitHub make it."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_pages_link_the_glossary_near_their_head(path: Path) -> None:
    head = "\n".join(path.read_text().splitlines()[:45])
    assert path.name == "glossary.md" or "glossary.md)" in head


def test_checks_of_the_verdict_page_have_the_names_of_the_program() -> None:
    """A check is documented under the title that it has where it passes."""
    text = (ROOT / "docs/verdict.md").read_text().partition("## What it says")[0]
    rows = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    names = [name for name in rows if name != "check" and not name.startswith("---")]
    source = (ROOT / "krepes_ooc/stages/verdict/criteria.py").read_text()
    assert len(names) > 12
    assert [name for name in names if f'"{name[0].upper()}{name[1:]}"' not in source] == []


def test_the_walk_through_a_run_names_every_stage_in_order() -> None:
    text = (ROOT / "docs/follow.md").read_text().partition("## The stages")[2]
    rows = re.findall(r"^\| ([a-z_, ]+) \|", text.partition("## One block")[0], re.MULTILINE)
    names = [name for row in rows for name in row.split(", ") if name != "stage"]
    assert tuple(names) == STAGE_ORDER


def test_links_to_files_of_the_repository_exist() -> None:
    for path in DOCUMENTS:
        if path.parent.name == "docs":
            assert not missing_links(path.read_text()), path.name


def test_a_missing_link_is_found() -> None:
    assert missing_links("see [x](../krepes_ooc/nothing.py) and [y](../krepes_ooc/errors.py)") == [
        "krepes_ooc/nothing.py"
    ]


def test_named_files_exist() -> None:
    folders = "tests|benchmarks|krepes_ooc|examples|stores|pipelines"
    for path in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", path.read_text()):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


class _ParsedError(Exception):
    """Raised after the arguments of a benchmark were read, before it does anything."""


def benchmark_commands() -> list[str]:
    """Every documented command of `benchmarks/`: code of README, docs and recipes."""
    codes: list[str] = []
    for path in (*DOCUMENTS, ROOT / "CONTRIBUTING.md", *(ROOT / "pipelines").glob("*.yaml")):
        text = path.read_text().replace("\\\n", " ")
        codes += [re.split(r" #|; done", line)[0] for line in text.splitlines() if "`" not in line]
        spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
        codes += [" ".join(span.split()) for span in spans]
    found = (re.search(r"python (?:-m benchmarks\.|benchmarks/)\w.*", code) for code in codes)
    # A loop over data sets
    return sorted({command[0].replace("$set", "adult").strip() for command in found if command})


@pytest.mark.parametrize("command", benchmark_commands())
def test_documented_benchmarks_take_their_arguments(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, *words = shlex.split(command)
    name = words[1] if words[0] == "-m" else words[0].replace("/", ".").removesuffix(".py")
    given = words[2:] if words[0] == "-m" else words[1:]
    path = ROOT / (name.replace(".", "/") + ".py")
    assert path.exists(), command
    if "ArgumentParser" not in path.read_text():
        assert not given, f"{name} takes no argument"
        return

    read = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, args: Any = None, space: Any = None) -> Any:
        read(parser, args, space)
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [str(path), *given])
    monkeypatch.syspath_prepend(str(path.parent))
    # Peers that are not installed here
    for peer in re.findall(
        r"^\s*(?:from|import) ((?:lfxai|simplexai)[\w.]*)", path.read_text(), re.M
    ):
        for end in [*(match.start() for match in re.finditer(r"\.", peer)), len(peer)]:
            monkeypatch.setitem(sys.modules, peer[:end], MagicMock())
    with pytest.raises(_ParsedError):
        runpy.run_path(str(path), run_name="__main__")
