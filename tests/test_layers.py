"""The layers of the house: who imports whom. Each contract is shown to fail on a planted import."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "krepes_ooc"
MODULES = sorted(PACKAGE.rglob("*.py"))
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]

# contract, module, what it must not import
PLANTS = [
    ("layers", "errors", "import krepes_ooc.core.blocks"),
    ("layers", "core", "from krepes_ooc import storage"),
    ("layers", "storage", "from krepes_ooc import engine"),
    ("layers", "storage", "from krepes_ooc import sources"),
    ("layers", "sources", "def late():\n    from krepes_ooc import storage"),
    ("layers", "network", "import krepes_ooc.storage"),
    ("layers", "network", "import krepes_ooc.views"),
    ("layers", "rendering", "import krepes_ooc.sources"),
    ("layers", "views", "import krepes_ooc.engine"),
    ("layers", "jacobian", "import krepes_ooc.engine"),
    ("layers", "engine", "import krepes_ooc.jacobian"),
    ("layers", "engine", "from krepes_ooc import stages"),
    ("layers", "stages", "import krepes_ooc.runner"),
    ("layers", "runner", "import krepes_ooc.cli"),
    ("layers", "helpers", ""),
    ("stages", "stages.kernel", "import krepes_ooc.stages.newton"),
    ("stages", "stages.audited", "import krepes_ooc.stages.landmarks"),
    ("stages", "stages.extra", ""),
    ("sources", "sources.arrays", "import krepes_ooc.sources.tables"),
    ("sources", "sources.tables", "import krepes_ooc.sources.map_dataset"),
    ("rendering", "rendering", "import zarr"),
    ("rendering", "rendering.panels", "import torch"),
    ("torch", "stages.features", "import torch.nn"),
    ("torch", "storage", "def late():\n    import torch"),
    ("zarr", "engine", "def late():\n    from zarr import open_group"),
    ("zarr", "sources.arrays", "import zarr"),
    ("dask", "stages", "import dask.array"),
    ("dask", "runner", "from distributed import Client"),
    ("dask", "network", "import xarray"),
    ("terminal", "runner", "import click"),
    ("terminal", "stages", "from rich.progress import Progress"),
    ("yaml", "runner", "import yaml"),
    ("sklearn", "sources.tables.table", "import sklearn.metrics"),
    ("cycles", "stages.kernel.first", "import krepes_ooc.stages.kernel.second"),
]


def lint_imports(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command as main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-logo", "--no-cache", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("law")
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(PACKAGE, root / "krepes_ooc", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def test_the_law_is_kept():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in result.stdout


@pytest.mark.parametrize(("contract", "module", "code"), PLANTS)
def test_a_planted_import_breaks_its_contract(copy: Path, contract: str, module: str, code: str):
    """Only the named contract is checked, so nothing else can be what fails."""
    file = copy.joinpath("krepes_ooc", *module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    planted = {file: f"{file.read_text() if file.exists() else ''}\n{code}\n"}
    if contract == "cycles":
        planted[file.with_name("second.py")] = f"import krepes_ooc.{module}\n"
    before = {path: path.read_text() if path.exists() else None for path in planted}
    for path, text in planted.items():
        path.write_text(text)
    try:
        result = lint_imports(copy, "--contract", contract)
    finally:
        for path, text in before.items():
            path.unlink() if text is None else path.write_text(text)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "0 kept, 1 broken" in result.stdout, result.stdout + result.stderr


def test_every_contract_has_a_planted_violation():
    assert {contract["id"] for contract in CONTRACTS} == {contract for contract, *_ in PLANTS}


def test_the_command_line_starts_without_the_heavy_libraries():
    """Together they cost two seconds and 200 MB; each is imported where it is used."""
    heavy = "{'torch', 'xarray', 'distributed', 'sklearn', 'scipy', 'pyarrow', 'zarr'}"
    code = f"import sys, krepes_ooc, krepes_ooc.cli; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a module imports, inside functions and for types too.

    A folder of which a module is imported counts as that module, not as all that it hands on.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("krepes_ooc"):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                place = ROOT / module.replace(".", "/")
                inside = place.is_dir() or place.with_suffix(".py").is_file()
                found.add(module if inside else node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def import_circle(edges: dict[str, set[str]]) -> list[str]:
    """A circle of imports, or nothing."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return trail[trail.index(name) :]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if circle := visit(other, [*trail, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(edges) if (circle := visit(name, []))), [])


def test_no_module_imports_itself_in_a_circle():
    names = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in MODULES
    }
    edges = {name: imported_modules(path) & set(names) - {name} for name, path in names.items()}
    assert import_circle(edges) == []
    assert import_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c"]
