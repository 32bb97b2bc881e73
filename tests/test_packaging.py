"""What is shipped: wheel, sdist, declared dependencies, the commands that the documents name."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import itertools
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from krepes_ooc.core import resources

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARATIONS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("pipelines", "stores")
    for path in (ROOT / folder).rglob("*")
    if path.is_file()
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel built from that sdist, so the sdist is whole."""
    folder = tmp_path_factory.mktemp("dist")
    result = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_every_declaration_inside_the_package(wheel: zipfile.ZipFile):
    names = wheel.namelist()
    assert DECLARATIONS
    assert [
        f"krepes_ooc/{name}" for name in DECLARATIONS if f"krepes_ooc/{name}" not in names
    ] == []
    tops = {name.split("/")[0] for name in names}
    assert tops == {"krepes_ooc", f"krepes_ooc-{PROJECT['version']}.dist-info"}


def test_wheel_holds_every_module_and_its_types(wheel: zipfile.ZipFile):
    names = set(wheel.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "krepes_ooc").rglob("*.py")}
    assert modules <= names
    assert "krepes_ooc/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any("__pycache__" in name for name in names)


def test_wheel_has_the_command(wheel: zipfile.ZipFile):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "krepes = krepes_ooc.cli:main" in wheel.read(name).decode()


def test_sdist_can_be_worked_with(built: Path):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Makefile", "constraints.txt", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"}
    assert wanted | {"tests/test_packaging.py", *DECLARATIONS} <= names
    assert not [name for name in names if name.startswith((".venv", "krepes-workspace"))]


def test_declarations_are_found_from_an_unpacked_wheel(wheel: zipfile.ZipFile, tmp_path: Path):
    wheel.extractall(tmp_path)
    code = (
        "from krepes_ooc.core import resources as c\n"
        "print(c.__file__)\n"
        "for kind in ('pipelines', 'stores'):\n"
        "    print(*c.names(kind))\n"
        "    for name in c.names(kind):\n"
        "        c.load_yaml(c.find(kind, name))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert Path(said[0]) == tmp_path / "krepes_ooc" / "core" / "resources.py"
    assert said[1].split() == resources.names("pipelines") != []
    assert said[2].split() == resources.names("stores") != []


@functools.cache
def imported_libraries(folder: Path) -> set[str]:
    """Top-level names of what the modules of a folder import, at the top, lazily or by name."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("find_spec", "import_module")
            ):
                names = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
                found |= {name.split(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {folder.name}


def declared(*extras: str) -> set[str]:
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(line).name) for line in lines}


# Extras need not be installed, so their import names are written down.
EXTRAS = {"cupy": "cupy-cuda13x", "cupyx": "cupy-cuda13x", "dask_jobqueue": "dask-jobqueue"}


@functools.cache
def installed() -> Mapping[str, list[str]]:
    """Distributions by the name that is imported: reads the records of all that is installed."""
    return importlib.metadata.packages_distributions()


def distributions(library: str) -> set[str]:
    found = installed().get(library, [])
    return {canonicalize_name(name) for name in [*found, EXTRAS.get(library, library)]}


def test_every_import_is_declared():
    known = declared("cuda", "hpc", "hdf5") | {"distributed"}  # by dask[distributed]
    undeclared = {
        name for name in imported_libraries(ROOT / "krepes_ooc") if not distributions(name) & known
    }
    assert undeclared == set()


def test_every_dependency_is_imported():
    libraries = imported_libraries(ROOT / "krepes_ooc")
    used = set().union(*(distributions(name) for name in libraries))
    # distributed makes the keys of its processes with it, and does not install it.
    assert declared() - used == {"cryptography"}


def test_constraints_pin_every_dependency_within_its_bound():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for line in itertools.chain(
        PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()
    ):
        needed = Requirement(line)
        if needed.name != PROJECT["name"]:
            assert needed.specifier.contains(pins[canonicalize_name(needed.name)]), line


def test_the_version_has_a_changelog_entry():
    first = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first
    assert first[1] in {"Unreleased", PROJECT["version"]}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_commands_that_exist(document: str):
    text = (ROOT / document).read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)\b(?=`| +#)", text)) <= targets
    assert set(re.findall(r"krepes run ([a-z][\w-]*)", text)) <= set(resources.names("pipelines"))
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_help_lists_every_target():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    named = re.findall(r"^ *make ([\w-]+)", said.stdout, re.MULTILINE)
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named == targets
    assert {"demo", "test", "browser", "docs", "crash"} <= set(named)


def test_ci_runs_exactly_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1] == "set -euo pipefail"
    assert lines[-1] == "exec make test"
