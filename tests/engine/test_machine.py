from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import threadpoolctl

from krepes_ooc.engine import machine
from krepes_ooc.engine.machine import LIBRARIES, OPTIONAL, examine

GIB = 2**30


def blas_threads() -> list[int]:
    return [
        lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"
    ]


def run(code: str) -> str:
    """Output of a fresh process that has loaded ``machine`` and nothing else of the package."""
    load = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('machine', {machine.__file__!r})\n"
        "machine = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(machine)\n"
        "assert 'scipy.linalg' not in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", load + code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stdout.strip()


def group(folder: Path, limit: str, used: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name, key = (("memory.limit_in_bytes", "total_rss"), ("memory.max", "anon"))[version - 1]
    (folder / name).write_text(f"{limit}\n")
    (folder / "memory.stat").write_text(f"file 999\n{key} {used}\nshmem 5\n")


def test_cores_are_those_of_the_affinity():
    assert machine.cores() == len(os.sched_getaffinity(0)) >= 1


def test_available_memory_is_at_most_the_machines():
    assert 0 < machine.available_bytes() <= psutil.virtual_memory().total


def test_every_limited_group_above_the_process_counts(tmp_path: Path):
    (tmp_path / "cgroup").write_text("0::/slurm/job_7/step_0\n")
    mount = tmp_path / "mount"
    group(mount / "slurm" / "job_7" / "step_0", "max", 100, 2)
    group(mount / "slurm" / "job_7", str(4 * GIB), GIB, 2)
    group(mount / "slurm", str(64 * GIB), 2 * GIB, 2)
    found = machine.cgroup_free(tmp_path / "cgroup", mount)
    assert sorted(found) == [3 * GIB, 62 * GIB]


def test_first_version_of_control_groups(tmp_path: Path):
    (tmp_path / "cgroup").write_text("9:cpu,cpuacct:/a\n4:memory:/docker/abc\n0::/\n")
    mount = tmp_path / "mount"
    group(mount / "memory", str(8 * GIB), GIB, 1)
    group(mount / "memory" / "docker" / "abc", str(2 * GIB), GIB, 1)
    assert sorted(machine.cgroup_free(tmp_path / "cgroup", mount)) == [GIB, 7 * GIB]


def test_group_that_this_process_cannot_see_leaves_the_mounted_one(tmp_path: Path):
    (tmp_path / "cgroup").write_text("0::/../../outside\n")
    group(tmp_path / "mount", str(2 * GIB), GIB, 2)
    assert machine.cgroup_free(tmp_path / "cgroup", tmp_path / "mount") in ([], [GIB])
    (tmp_path / "cgroup").write_text("0::/not/here\n")
    assert machine.cgroup_free(tmp_path / "cgroup", tmp_path / "mount") == [GIB]


def test_system_without_control_groups(tmp_path: Path):
    assert machine.cgroup_free(tmp_path / "none", tmp_path) == []


def test_anonymous_memory_grows_with_arrays_and_not_with_maps(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.ones(2**22))
    before = machine.anonymous_bytes()
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert mapped.sum() == 2**22
    assert machine.anonymous_bytes() - before < 2**22
    held = np.ones(2**22)
    assert machine.anonymous_bytes() - before > 0.9 * held.nbytes
    assert machine.peak_bytes() >= machine.anonymous_bytes()


def test_numerics_name_libraries_blas_and_processor():
    text = machine.numerics()
    assert text.startswith(f"numpy {np.__version__}, scipy ")
    assert re.fullmatch(r"numpy \S+, scipy \S+, torch \S+; (\w+ \S+ ?\w*(, )?)+; .+", text)


def test_numerics_do_not_depend_on_what_is_loaded_when_they_are_first_asked():
    code = """
before = machine.numerics()
import torch
machine._host_numerics.cache_clear()
print(machine.numerics() == before)
"""
    assert run(code) == "True"


def test_one_blas_thread_holds_for_libraries_that_are_loaded_later():
    code = """
import threadpoolctl
def threads():
    found = threadpoolctl.threadpool_info()
    return [lib["num_threads"] for lib in found if lib["user_api"] == "blas"]
with machine.one_blas_thread():
    import scipy.linalg
    print(threads())
print(threads())
"""
    inside, after = run(code).splitlines()
    assert set(eval(inside)) == {1}
    if machine.cores() > 1:
        assert set(eval(after)) != {1}


def test_one_blas_thread_comes_back():
    import scipy.linalg  # noqa: F401

    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        with machine.one_blas_thread():
            assert set(blas_threads()) == {1}
        assert blas_threads() == before


def test_version_of_a_package_that_is_not_installed():
    assert machine.library_version("numpy") == np.__version__
    assert machine.library_version("no-such-package") == "not installed"


def test_doctor_tells_every_part(tmp_path: Path):
    found = examine(tmp_path)
    assert set(LIBRARIES) | set(OPTIONAL.values()) <= set(found)
    assert found["numerics"] == machine.numerics()
    assert all(found.values())
    assert list(tmp_path.iterdir()) == []
