"""The roles of a Dask cluster: converged by Ansible, their programs started as their slots say, behind TLS, doing a job
of a lake through a worker."""

import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from clachan_lake.errors import JobError
from clachan_lake.jobs import credential
from clachan_lake.opening import open_lake

from .making import TOKEN, Server
from .test_elastic import children
from .test_roles import BIN, Home, start

pytestmark = pytest.mark.slow
OF_THE_SCHEDULER = {"scheduler": "address", "sizing": "sizing", "credential": "credential"}
pytest.importorskip("distributed", reason="this machine cannot: distributed is not installed")


@pytest.fixture
def running() -> "Iterator[list[subprocess.Popen[bytes]]]":
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in reversed(processes):
        process.terminate()
        process.wait(40)


def listening(pid: int) -> set[str]:
    """Addresses of its TCP sockets that listen."""
    import psutil

    return {
        f"{one.laddr.ip}:{one.laddr.port}" for one in psutil.Process(pid).net_connections() if one.status == "LISTEN"
    }


def home_with_dask(folder: Path) -> Home:
    home = Home(folder, "127.77.0.8")
    (home.directory / "envs/science").symlink_to(BIN.parent)
    return home


@pytest.mark.heavy
def test_a_cluster_does_a_job_of_a_lake(
    tmp_path: Path, server: Server, running: "list[subprocess.Popen[bytes]]"
) -> None:
    home = home_with_dask(tmp_path)
    scheduler = home.add("dask_scheduler", 0, [])
    said = home.converge()
    published = home.published(scheduler)
    assert published["address"].startswith("tls://127.77.0.8:")
    assert published["credential"] == (scheduler / "etc/credential.pem").read_text()
    assert published["credential"].splitlines()[1] not in said
    options = {f"dask_worker_{what}": published[name] for what, name in OF_THE_SCHEDULER.items()}
    dask_worker = home.add("dask_worker", 1, ["dask_worker_credential"], **options, dask_worker_number=1)
    worker = home.add(
        "worker",
        2,
        ["worker_token", "worker_dask_credential"],
        worker_url=server.url,
        worker_token=TOKEN,
        worker_dask_credential=published["credential"],
        worker_environment="science",
    )
    dask = home.add("dask", 3, [], dask_workers=3)
    said = home.converge()
    assert published["credential"].splitlines()[1] not in said
    assert "changed=0" in home.converge().partition("PLAY RECAP")[2]
    requested = {file.stem: json.loads(file.read_text()) for file in (dask / "etc/requests.d").iterdir()}
    assert sorted(requested) == ["scheduler", "w1", "w2", "w3"]
    assert requested["w2"]["parameters"]["dask_worker_scheduler"] == {"from": "home.dask.scheduler", "key": "address"}
    assert home.published(dask) == {"workers": 3}
    home.records["home.dask"]["clachan_instance"]["children"] = {
        "scheduler": {"state": "started", "published": published}
    }
    home.converge()
    assert home.published(dask) == {"workers": 3} | {key: published[key] for key in ("address", "credential")}

    running += [start(scheduler, "scheduler"), start(dask_worker, "worker"), start(worker, "worker")]
    with open_lake(server.url, token=TOKEN) as lake:
        job = lake.submit(lambda: os.getpid(), scheduler=published["address"])
        busy = job.result(90)
        assert children(running[1]) == [busy]
        plain = lake.submit(len, "x", scheduler=published["address"].replace("tls", "tcp"))
        with pytest.raises(JobError):
            plain.result(60)
    # nothing but what is declared listens, and nobody without the credential is answered
    for pid, address in (
        (running[0].pid, published["address"]),
        (busy, home.published(dask_worker)["address"]),
    ):
        host, port = address.removeprefix("tls://").split(":")
        assert listening(pid) <= {f"{host}:{int(port) + more}" for more in range(3)}
        for path in (
            "/",
            "/metrics",
            "/info/main/workers.html",
            "/health",
            "/api/v1",
            "/json/counts.json",
        ):
            answer = requests.get(f"http://{host}:{int(port) + 1}{path}", timeout=10)
            assert (answer.status_code, len(answer.content) < 200) == (404, True), path
        # of the paths that it has
        assert requests.get(f"http://{host}:{int(port) + 1}/sitemap.json", timeout=10).json() == {
            "paths": ["/sitemap.json"]
        }
    assert not answered(published["address"], None)
    other = tmp_path / "other.pem"
    credential.credential(other)
    assert not answered(published["address"], other)
    assert answered(published["address"], scheduler / "etc/credential.pem")


def answered(address: str, pem: Path | None) -> bool:
    """Whether the server goes on speaking after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if pem:
        context.load_cert_chain(pem)
    host, port = address.removeprefix("tls://").split(":")
    try:
        with socket.create_connection((host, int(port)), 10) as plain, context.wrap_socket(plain) as line:
            line.settimeout(10)
            return bool(line.recv(1))
    except OSError:
        return False


def test_a_credential_is_made_once_and_anew_when_it_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "credential.pem"
    assert credential.credential(file, look=True) == ("", False)
    assert not file.exists()
    text, made = credential.credential(file)
    assert made
    assert file.stat().st_mode & 0o777 == 0o600
    assert credential.credential(file) == (text, False)
    file.write_text(text[:300])
    anew, made = credential.credential(file)
    assert made
    assert anew != text
    assert credential.main(["--nothing"]) == 2
