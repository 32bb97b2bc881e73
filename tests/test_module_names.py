"""Names of modules: none is that of a library, and none occurs twice without a reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "krepes_ooc"
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_no_module_is_named_like_a_library(path: Path):
    taken = {"stores", "pipelines", "zarr", "dask", "torch", "numpy", "scipy", "yaml", "click"}
    assert path.stem not in taken | (sys.stdlib_module_names - {"__main__"})


# The same thing at two levels; every stage has a stage.py.
SAME_NAME = {
    "compare": {"cli", "runner/comparison"},
    "explain": {"cli", "runner/explanation"},
    "groups": {"rendering/panels", "stages/alignment"},
    "plan": {"cli", "runner"},
    "registry": {"stages", "stages/newton/objectives"},
    "run": {"cli", "runner"},
    "spec": {"network", "views"},
    "summary": {"stages/alignment", "stages/fidelity"},
    "table": {"sources/tables", "views"},
    "workspace": {"runner", "storage"},
}


def test_a_file_name_occurs_twice_only_where_both_are_one_thing():
    folders: dict[str, set[str]] = {}
    for path in MODULES:
        if path.stem not in ("__init__", "stage"):
            folder = str(path.parent.relative_to(PACKAGE))
            folders.setdefault(path.stem, set()).add(folder)
    assert {name: where for name, where in folders.items() if len(where) > 1} == SAME_NAME
    stages = {str(p.parent.relative_to(PACKAGE)) for p in MODULES if p.stem == "stage"}
    assert all(folder.startswith("stages/") for folder in stages)
