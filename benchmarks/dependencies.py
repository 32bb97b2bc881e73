"""Megabytes and import time of every dependency of the package.

    python -m benchmarks.dependencies

writes benchmarks/results/dependencies.json. A distribution's size is that of its own files; the
import is CPU time of a fresh interpreter above that of an empty one, the least of three.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "dependencies.json"
# Names that differ from those of their modules
MODULES = {
    "array-api-compat": "array_api_compat",
    "dask": "dask.array",
    "distributed": "distributed",
    "google-crc32c": "google_crc32c",
    "pillow": "PIL.Image",
    "pyarrow": "pyarrow.parquet",
    "pyyaml": "yaml",
    "rich": "rich.progress",
    "safetensors": "safetensors.torch",
    "scikit-learn": "sklearn.linear_model",
    "scipy": "scipy.linalg",
}
REPEATS = 3


def main() -> None:
    """Measure and write."""
    empty = import_seconds("sys")
    found = {}
    for name in dependencies():
        module = MODULES.get(name, name.replace("-", "_"))
        found[name] = {
            "megabytes": round(own_bytes(name) / 1e6, 1),
            "import_cpu_seconds": round(max(0.0, import_seconds(module) - empty), 2),
        }
        print(name, found[name], flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def dependencies() -> list[str]:
    """Names of the distributions that the package requires without an extra."""
    project = tomllib.loads((RESULTS.parents[2] / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[\[<>=; ]", line)[0].lower() for line in project["dependencies"]]
    # An extra of dask
    return sorted({*names, "distributed"})


def own_bytes(name: str) -> int:
    """Bytes of the files of one distribution, without compiled Python."""
    files = distribution(name).files or []
    paths = (Path(str(file.locate())) for file in files if "__pycache__" not in str(file))
    return sum(path.stat().st_size for path in paths if path.is_file())


def import_seconds(module: str) -> float:
    """CPU seconds of a fresh interpreter that imports one module."""
    spent = []
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(spent)


if __name__ == "__main__":
    main()
