"""Break one promise at a time in a copy of the tree: each break must make a test fail.

python -m tests.crash.mutations
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("krepes_ooc", "pipelines", "stores", "tests")


@dataclass(frozen=True)
class Mutation:
    """One break.

    Args:
        name: what is broken.
        file: where, below ``krepes_ooc``.
        old: text that is there once.
        new: what replaces it.
        tests: the tests that must notice.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "the journal line comes before the chunks",
        "stages/base/writing.py",
        "    files: Files = {}\n    # Chunks first",
        "    files: Files = {}\n    context.record.journal.append(Unit(block_name(block), {}))\n"
        "    # Chunks first",
        "tests/crash/test_order.py",
    ),
    Mutation(
        "the seal is written before the files are flushed",
        "storage/stage_record.py",
        "        with disk_errors(self.folder):\n            self._flush(files)\n        # The",
        "        # The",
        "tests/crash/test_order.py",
    ),
    Mutation(
        "records are not flushed",
        "core/files.py",
        "    sync_path(temporary)\n",
        "",
        "tests/crash/test_order.py",
    ),
    Mutation(
        "renames are not flushed",
        "core/files.py",
        "    temporary.replace(path)\n    sync_path(path.parent)",
        "    temporary.replace(path)",
        "tests/crash/test_order.py",
    ),
    Mutation(
        "the journal is not flushed",
        "storage/journal.py",
        "                    os.fsync(file.fileno())",
        "                    pass",
        "tests/crash/test_order.py",
    ),
    Mutation(
        "chunks are not checked when they are read",
        "storage/store_reader.py",
        "if (crc := checksum(values)) != suffix:",
        "if (crc := suffix) != suffix:",
        "tests/storage/test_store_reader.py",
    ),
    Mutation(
        "verification believes every checksum",
        "storage/file_checks.py",
        "    if computed != crc:",
        "    if False:",
        "tests/storage/test_verify.py",
    ),
    Mutation(
        "records are believed without their checksum",
        "core/files.py",
        '    if rest[-2:] != b"}\\n" or head not in known:\n',
        '    if rest[-2:] != b"}\\n":\n',
        "tests/core/test_files.py",
    ),
    Mutation(
        "the cache is believed without its checksums",
        "sources/cache.py",
        "        if len(content) == length and checksum(content) == self.checksums[piece]:",
        "        if True:",
        "tests/sources/test_cache.py",
    ),
    Mutation(
        "sizes are trusted after a reboot",
        "storage/stage_record.py",
        "trust_size=bool(boot) and unit.boot == boot",
        "trust_size=True",
        "tests/storage/test_stage_record.py",
    ),
    Mutation(
        "the digest forgets the settings",
        "runner/staleness.py",
        "        settings: dict[str, Any] = digest_mapping(self.settings[stage.name])\n",
        "        settings: dict[str, Any] = {}\n",
        "tests/runner/test_staleness.py",
    ),
    Mutation(
        "code that a workspace names is run",
        "runner/audit.py",
        "    if unknown:",
        "    if False:",
        "tests/test_security.py -k runs_no_code",
    ),
    Mutation(
        "a whole chunk of another place or run is believed",
        "storage/store_reader.py",
        "        if recorded is not None and recorded[1] != crc:",
        "        if False:",
        "tests/runner/test_recorded_bytes.py -k whole_chunk",
    ),
    Mutation(
        "a seal of another run is believed",
        "storage/stage_record.py",
        "        if seal is not None and begun and seal",
        "        if False and seal is not None and seal",
        "tests/runner/test_recorded_bytes.py -k record_of_another_seed",
    ),
    Mutation(
        "a journal of another run is believed",
        "storage/journal.py",
        "    return not (unit.digest and digest) or unit.digest == digest",
        "    return True",
        "tests/storage/test_journal.py",
    ),
    Mutation(
        "a document of another run is believed",
        "storage/store_reader.py",
        "        if problem := file_problem(path, *recorded, suffixed=False):",
        "        if False:",
        "tests/runner/test_recorded_bytes.py -k document",
    ),
    Mutation(
        "the digest of a store is not compared",
        "storage/store_writer.py",
        "        if stamp != self._stamp():",
        "        if False:",
        "tests/storage/test_store_writer.py -k digest",
    ),
)


def fails(tests: str, mutation: Mutation | None = None) -> bool:
    """Whether tests fail in a copy of the tree, with a break or as it is."""
    with tempfile.TemporaryDirectory(prefix="krepes-mutation-") as folder:
        copy = Path(folder)
        for name in FOLDERS:
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=leave)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if mutation:
            path = copy / "krepes_ooc" / mutation.file
            text = path.read_text()
            if text.count(mutation.old) != 1:
                raise SystemExit(f"{mutation.file} has not this text once: {mutation.old!r}")
            path.write_text(text.replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        found = subprocess.run(
            [*command, *tests.split()],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode not in (0, 1):
            raise SystemExit(found.stdout[-2000:] + found.stderr[-2000:])
        return found.returncode == 1


def main() -> None:
    """Try every mutation; without one the same tests pass, else they would catch everything."""
    for tests in sorted({mutation.tests for mutation in MUTATIONS}):
        if fails(tests):
            raise SystemExit(f"fails without any break: {tests}")
    missed = 0
    for mutation in MUTATIONS:
        caught = fails(mutation.tests, mutation)
        missed += not caught
        print(f"{'caught' if caught else 'MISSED'}: {mutation.name} ({mutation.tests})", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
