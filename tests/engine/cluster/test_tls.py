"""Encrypted clusters: who has no certificate of the authority gets nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from krepes_ooc.engine.cluster.cluster_executor import ClusterExecutor, TransferFolder
from krepes_ooc.engine.cluster.connect import open_cluster, parse_cluster
from krepes_ooc.engine.cluster.site_file import job_script, read_site
from krepes_ooc.errors import UsageError
from tests import small
from tests.crash.compare import differences

TLS = ("tls_ca: ca.pem", "tls_cert: cert.pem", "tls_key: key.pem")


def openssl(folder: Path, *given: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl here")
    subprocess.run([program, *given], cwd=folder, check=True, capture_output=True)


def authority(folder: Path) -> Path:
    """An authority and one certificate that it signed."""
    folder.mkdir(exist_ok=True)
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(folder, "req", "-x509", *curve, "-keyout", "ca-key.pem", "-out", "ca.pem",
            "-subj", "/CN=authority", "-days", "2")  # fmt: skip
    openssl(folder, "req", *curve, "-keyout", "key.pem", "-out", "asked.pem", "-subj", "/CN=krepes")
    openssl(folder, "x509", "-req", "-in", "asked.pem", "-CA", "ca.pem", "-CAkey", "ca-key.pem",
            "-CAcreateserial", "-out", "cert.pem", "-days", "2")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority(tmp_path_factory.mktemp("theirs"))


def site(folder: Path, *lines: str, name: str = "site.yaml") -> Path:
    path = folder / name
    path.write_text("\n".join(lines))
    return path


@contextlib.contextmanager
def scheduler(ours: Path, folder: Path, workers: int = 0) -> Iterator[str]:
    """A scheduler that speaks TLS alone, as a user starts one, with workers; its address."""
    tls = [f"--tls-{what}={ours / file}.pem" for what, file in
           (("ca-file", "ca"), ("cert", "cert"), ("key", "key"))]  # fmt: skip
    file = folder / "address.json"
    module = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--port=0"]
    command = [*module, "--protocol=tls", "--host=tls://127.0.0.1", f"--scheduler-file={file}"]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "cwd": small.ROOT}
    started = [subprocess.Popen([*command, *tls], **quiet)]  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text():
            assert time.monotonic() < deadline
            assert started[0].poll() is None
            time.sleep(0.1)
        address = str(json.loads(file.read_text())["address"])
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads=1"]
        for _ in range(workers):
            more = ["--no-dashboard", "--no-nanny", f"--local-directory={folder}"]
            started.append(subprocess.Popen([*worker, *more, *tls], **quiet))  # type: ignore[call-overload]
        yield address
    finally:
        for process in started[::-1]:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_an_audit_on_encrypted_processes_has_the_bits_of_threads(tmp_path: Path, ours: Path):
    spec = parse_cluster(str(site(ours, "scheduler: local", *TLS)), None)
    small.audit(tmp_path / "threads", until="kernel")
    small.audit(tmp_path / "processes", until="kernel", cluster=spec)
    assert differences(tmp_path / "threads", tmp_path / "processes") == []


def test_everybody_on_this_machine_speaks_tls(tmp_path: Path, ours: Path):
    spec = parse_cluster(str(site(ours, "scheduler: local", *TLS)), None)
    transfer = TransferFolder.open(tmp_path / "temp", "")
    with open_cluster(spec, 1, tmp_path) as cluster:
        assert cluster.client.scheduler.address.startswith("tls://127.0.0.1:")
        workers = cluster.client.scheduler_info()["workers"]
        assert all(worker.startswith("tls://127.0.0.1:") for worker in workers)
        assert list(ClusterExecutor(1, pool=cluster, transfer=transfer).map(str, range(3))) == [
            "0",
            "1",
            "2",
        ]


@pytest.mark.slow
def test_a_running_scheduler_lets_in_who_has_a_certificate_and_nobody_else(
    tmp_path: Path, ours: Path, theirs: Path, capsys: pytest.CaptureFixture[str]
):
    with scheduler(ours, tmp_path, workers=1) as address:
        lines = ("scheduler: running", f"address: {address}")
        transfer = TransferFolder.open(tmp_path / "temp", "")
        spec = parse_cluster(str(site(ours, *lines, *TLS)), None)
        with open_cluster(spec, 1, tmp_path) as cluster:
            found = ClusterExecutor(1, pool=cluster, transfer=transfer).map(str, range(2))
            assert list(found) == ["0", "1"]
        asked = ("run", "digits", "-w", str(tmp_path / "w"), "--until", "features", "--cluster")
        stranger = site(theirs, *lines, *TLS)
        for given in (str(stranger), address, address.replace("tls://", "tcp://")):
            told = small.krepes(capsys, *asked, given)
            assert told.code == 2
            assert "no scheduler answers at" in told.line or "certificates for tls" in told.line
        assert small.seals(tmp_path / "w").keys() <= {"pretrain"}


def test_the_job_script_hands_the_certificates_to_the_workers(ours: Path):
    pytest.importorskip("dask_jobqueue")
    script = job_script(read_site(site(ours, "scheduler: slurm", *TLS)))
    assert "tls://SCHEDULER:PORT" in script
    for option, file in (("ca-file", "ca"), ("cert", "cert"), ("key", "key")):
        assert f"--tls-{option} {ours / file}.pem" in script
    plain = job_script(read_site(site(ours, "scheduler: slurm")))
    assert "tcp://SCHEDULER:PORT" in plain
    assert "--tls" not in plain


def no_file(folder: Path) -> None:
    (folder / "key.pem").unlink()


def no_certificate(folder: Path) -> None:
    (folder / "ca.pem").write_text("no certificate")


def other_key(folder: Path) -> None:
    shutil.copy(folder / "ca-key.pem", folder / "key.pem")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (no_file, "key.pem: tls_key cannot be read (No such file or directory); expected a file"),
        (no_certificate, "ca.pem: tls_ca cannot be used ("),
        (other_key, "cert.pem: tls_cert and tls_key cannot be used (key values mismatch)"),
    ],
)
def test_unfit_certificates_are_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    ours: Path,
    harm: Callable[[Path], None],
    said: str,
):
    folder = tmp_path / "copy"
    shutil.copytree(ours, folder)
    harm(folder)
    path = site(folder, "scheduler: slurm", *TLS)
    told = small.krepes(capsys, "run", "digits", "-w", str(tmp_path / "w"), "--cluster", str(path))
    assert told.code == 2
    assert said in told.line
    assert f"mend {path}" in told.line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("scheduler: slurm", *TLS[:2]), "tls_key is not set; expected all of tls_ca, tls_cert"),
        (("scheduler: slurm", "tls_cafile: x"), "unknown key 'tls_cafile'"),
        (("scheduler: local", "jobs: 3"), "jobs has no meaning beside scheduler local"),
        (("scheduler: slurm", "address: x"), "address has no meaning beside scheduler slurm"),
        (("scheduler: running",), "address ''; expected the address of a running scheduler"),
        (("scheduler: running", "address: tcp://h:1", *TLS), "expected the address of a running "
         "scheduler, tls://HOST:PORT"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_one_line(ours: Path, lines: tuple[str, ...], said: str):
    with pytest.raises(UsageError) as caught:
        parse_cluster(str(site(ours, *lines)), None)
    assert said in str(caught.value)


def test_shipped_file_of_a_running_scheduler(tmp_path: Path):
    path = small.ROOT / "pipelines" / "hpc" / "running.yaml"
    spec = parse_cluster(str(path), 2**30)
    assert (spec.kind, spec.address, spec.memory) == ("address", "tcp://127.0.0.1:8786", 2**30)
    assert spec.certificates is None
    with pytest.raises(UsageError, match="scheduler running has no jobs"):
        job_script(read_site(path))


def listening() -> set[tuple[str, int]]:
    """Addresses and ports at which this process and its children accept connections."""
    import psutil

    here = psutil.Process()
    found = set()
    for process in [here, *here.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            sockets = process.net_connections(kind="inet")
            found |= {tuple(each.laddr) for each in sockets if each.status == psutil.CONN_LISTEN}
    return found


def ports() -> set[int]:
    return {port for _, port in listening()}


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_schedulers_workers_and_dashboards_listen_on_the_loopback_alone(tmp_path: Path, kind: str):
    pytest.importorskip("dask_jobqueue")
    before = listening()
    spec = parse_cluster(
        "local" if kind == "local" else str(site(tmp_path, "scheduler: slurm")), None
    )
    with open_cluster(spec, 1, tmp_path / "jobs"):
        opened = listening() - before
        assert {address for address, _ in opened} == {"127.0.0.1"}


def connections(address: str) -> list[bytes]:
    """What a port answers to a stranger: in the clear, and with a certificate of his own making."""
    import socket
    import ssl

    host, port = address.rpartition("://")[2].rsplit(":", 1)
    answers = []
    for context in (None, ssl._create_unverified_context()):
        with socket.create_connection((host, int(port)), timeout=10) as plain:
            plain.settimeout(2)
            try:
                stream = plain if context is None else context.wrap_socket(plain)
                stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answers.append(stream.recv(4096))
            except (OSError, ssl.SSLError):
                answers.append(b"")
    return answers


def test_another_user_of_this_machine_reaches_no_process_of_a_local_cluster(tmp_path: Path):
    """Certificates are made for each cluster; nothing but them opens a connection."""
    from distributed.comm import connect
    from distributed.security import Security

    async def knock(address: str, security: Security) -> None:
        comm = await connect(address, timeout=2, **security.get_connection_args("client"))
        await comm.write({"op": "identity", "reply": True})
        await comm.read()

    strangers = (("tls", Security.temporary()), ("tcp", Security()))
    before = ports()
    spec = parse_cluster("local", None)
    with open_cluster(spec, 1, tmp_path) as cluster:
        transfer = TransferFolder.open(tmp_path / "temp", "")
        executor = ClusterExecutor(1, pool=cluster, transfer=transfer)
        assert list(executor.map(str, range(2))) == ["0", "1"]
        info = cluster.client.scheduler_info(n_workers=-1)
        addresses = [cluster.client.scheduler.address, *info["workers"]]
        assert all(address.startswith("tls://127.0.0.1:") for address in addresses)
        for address in addresses:
            for scheme, security in strangers:
                with pytest.raises(OSError, match=r"(?i)TLS certificate|timed out|closed"):
                    asyncio.run(knock(address.replace("tls", scheme), security))
            asyncio.run(knock(address, cluster.client.security))
        # Every port of every process, those of the nannies and of pages too.
        opened = ports() - before
        assert len(opened) >= 3
        for port in opened:
            for answer in connections(f"127.0.0.1:{port}"):
                assert answer == b"" or b" 404 " in answer.splitlines()[0], (port, answer)
    with open_cluster(spec, 1, tmp_path) as second:
        assert second.client.security.tls_client_cert != cluster.client.security.tls_client_cert


def test_pages_are_served_where_they_are_asked_for_and_encrypted(tmp_path: Path, ours: Path):
    import ssl
    from urllib.request import urlopen

    spec = parse_cluster(str(site(ours, "scheduler: local", "info_pages: true", *TLS)), None)
    with open_cluster(spec, 1, tmp_path) as cluster:
        assert cluster.pages.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(ours / "ca.pem"))
        trusted.check_hostname = False
        with urlopen(cluster.pages, timeout=10, context=trusted) as page:
            assert b"Workers" in page.read()
        plain, encrypted = connections(cluster.pages.removesuffix("/info/main/workers.html"))
        assert plain == b""
        assert encrypted.startswith(b"HTTP")
    with pytest.raises(UsageError, match=r"info_pages without certificates.*all of tls_ca"):
        parse_cluster(
            str(site(ours, "scheduler: local", "info_pages: true", name="bare.yaml")), None
        )


def test_a_worker_that_is_killed_at_its_start_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import dask
    import distributed  # noqa: F401  its defaults come before what is set here

    killed = tmp_path / "killed.py"
    killed.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    recipe = str(small.own_recipe(tmp_path / "recipe"))
    given = ("run", recipe, "-w", str(tmp_path / "w"), "--quiet", "--cluster", "local", "--until",
             "features")  # fmt: skip
    with dask.config.set({"distributed.worker.preload": [str(killed)]}):
        told = small.krepes(capsys, *given)
    assert told.code == 1
    assert "a worker process ended before it began" in told.line
    assert "Nanny" not in told.err
    assert small.krepes(capsys, *given).code == 0


def test_without_the_library_that_makes_certificates_nothing_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    before = ports()
    with (
        pytest.raises(UsageError, match=r"cryptography is not installed.*pip install cryptography"),
        open_cluster(parse_cluster("local", None), 1, tmp_path),
    ):
        pass
    assert ports() == before
