"""Encrypted clusters: who has no certificate of the authority gets nowhere."""

from __future__ import annotations

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


def listening() -> set[str]:
    """Addresses at which this process and its children accept connections."""
    import psutil

    here = psutil.Process()
    found = set()
    for process in [here, *here.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            sockets = process.net_connections(kind="inet")
            found |= {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_schedulers_workers_and_dashboards_listen_on_the_loopback_alone(tmp_path: Path, kind: str):
    pytest.importorskip("dask_jobqueue")
    before = listening()
    spec = parse_cluster(
        "local" if kind == "local" else str(site(tmp_path, "scheduler: slurm")), None
    )
    with open_cluster(spec, 1, tmp_path / "jobs"):
        assert listening() - before <= {"127.0.0.1"}
        assert "127.0.0.1" in listening()
