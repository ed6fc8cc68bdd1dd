"""A Dask cluster that grows and shrinks: a real scheduler, places that stand by, and real workers, over TLS."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.elastic import sizing, standby
from clachan_lake.jobs.credential import credential
from clachan_lake.telling import tell, told

from .making import wait_for
from .test_roles import free_port

pytestmark = pytest.mark.slow
distributed = pytest.importorskip("distributed", reason="this machine cannot: distributed is not installed")
SCHEDULER = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--protocol", "tls", "--no-dashboard", "--no-show"]
WORKER = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny", "--no-dashboard", "--nthreads", "1"]


class Cluster:
    """A scheduler and places w1 to wN of workers, all of them processes."""

    def __init__(self, folder: Path, places: int, **options: Any) -> None:
        self.folder = folder
        self.pem = folder / "credential.pem"
        credential(self.pem)
        self.port, sized = free_port("127.0.0.1"), free_port("127.0.0.1")
        self.address, self.sized = f"tls://127.0.0.1:{self.port}", f"127.0.0.1:{sized}"
        self.settings = {
            "host": "127.0.0.1",
            "port": sized,
            "credential": str(self.pem),
            "state": str(folder / "size.json"),
            "maximum": places,
            "idle_seconds": 1,
            **options,
        }
        self.configure()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start_scheduler()
        for number in range(1, places + 1):
            self.add(number)

    def configure(self, **options: Any) -> None:
        self.settings |= options
        tell(self.folder / "sizing.json", self.settings)

    def start_scheduler(self) -> None:
        preload = ["--preload", "clachan_lake.elastic.sizing", "--dashboard-address", "127.0.0.1:0"]
        self._start("scheduler", [*SCHEDULER, "--host", "127.0.0.1", "--port", str(self.port), *preload])

    def add(self, number: int) -> None:
        name, port = f"w{number}", free_port("127.0.0.1")
        command = [*WORKER, self.address, "--name", name, "--host", "127.0.0.1", "--worker-port", str(port)]
        given = {
            "name": name,
            "number": number,
            "sizing": self.sized,
            "credential": str(self.pem),
            "state": str(self.state(name)),
            "listens": f"127.0.0.1:{port}",
            "command": [*command, "--local-directory", str(self.folder)],
        }
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(given))
        self._start(name, [sys.executable, "-I", "-m", "clachan_lake.elastic.standby", str(file)])

    def _start(self, name: str, command: list[str]) -> None:
        tls = {f"{who}__{what}": str(self.pem) for who in ("SCHEDULER", "WORKER") for what in ("CERT", "KEY")}
        prefixed = {
            f"DASK_DISTRIBUTED__COMM__TLS__{name}": it for name, it in {**tls, "CA_FILE": str(self.pem)}.items()
        }
        environment = os.environ | prefixed | {sizing.VARIABLE: str(self.folder / "sizing.json")}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def state(self, name: str) -> Path:
        return self.folder / f"{name}.state"

    def says(self, name: str) -> str:
        return standby.said(self.state(name), time.time())[0]

    @property
    def size(self) -> dict[str, Any]:
        return told(self.folder / "size.json")

    def client(self) -> Any:
        pem = str(self.pem)
        secured = distributed.Security(
            tls_ca_file=pem, tls_client_cert=pem, tls_client_key=pem, require_encryption=True
        )
        return distributed.Client(self.address, security=secured, timeout=30, set_as_default=False)

    def close(self) -> None:
        # the scheduler last: a worker that is told to end while it looks for one takes its time
        for process in reversed(self.processes.values()):
            process.terminate()
            process.wait(30)


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    made = Cluster(tmp_path, 3, **getattr(request, "param", {}))
    yield made
    made.close()


def slow() -> Callable[[int], int]:
    """Sent by its value: workers do not have this module."""

    def slowly(number: int) -> int:
        time.sleep(0.4)
        return number

    return slowly


def children(process: "subprocess.Popen[bytes]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.parametrize("cluster", [{"price": 360}], indirect=True)
def test_workers_run_while_there_is_work(cluster: Cluster) -> None:
    wait_for(lambda: cluster.size.get("places") == 3, "places", 30)
    assert cluster.size["workers"] == 0
    assert {cluster.says(name) for name in ("w1", "w2", "w3")} == {"stands by: there is no work for it"}
    with cluster.client() as client:
        # one task: one worker, that with the lowest number
        assert client.submit(slow(), 1).result(60) == 1
        assert [worker["name"] for worker in client.scheduler_info(-1)["workers"].values()] == ["w1"]
        assert cluster.says("w1") == "the worker runs"
        # more than one worker does in five seconds: all of them
        futures = client.map(slow(), range(100))
        wait_for(lambda: cluster.size["workers"] == 3, "three workers", 60)
        assert client.gather(futures) == list(range(100))
        del futures
        wait_for(lambda: cluster.size["workers"] == 0, "none", 60)
        wait_for(lambda: not any(children(cluster.processes[name]) for name in ("w1", "w2", "w3")), "no process", 30)
        # what a worker holds for somebody is not thrown away, however long nothing is done
        kept = client.submit(bytes, 1000)
        assert len(kept.result(60)) == 1000
        time.sleep(4)
        assert cluster.size["workers"] == 1
        assert len(client.submit(len, kept).result(30) * b"x") == 1000
    wait_for(lambda: cluster.size["workers"] == 0, "none", 60)
    text, well = sizing.said(cluster.folder / "size.json", time.time())
    assert well
    hours = cluster.size["worker_seconds"] / 3600
    assert hours > 10 / 3600
    assert text == f"0 of 3 workers run, 0 wanted; {hours:.2f} worker hours, cost {hours * 360:.2f}"


@pytest.mark.heavy
@pytest.mark.parametrize("cluster", [{"minimum": 1, "seconds": 3600}], indirect=True)
def test_numbers_change_while_it_works_and_its_time_ends(cluster: Cluster) -> None:
    wait_for(lambda: cluster.size.get("workers") == 1, "the least", 30)
    cluster.configure(minimum=2)
    wait_for(lambda: cluster.size["workers"] == 2, "more", 30)
    # the place of a worker dies: its worker with it, and another one's runs
    pid = children(cluster.processes["w1"])[0]
    cluster.processes["w1"].kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the worker's end", 30)
    wait_for(lambda: cluster.says("w3") == "the worker runs", "another one", 40)
    # the scheduler dies: the workers end, and come again with the next; what was used is not forgotten
    used, began = cluster.size["worker_seconds"], cluster.size["began"]
    cluster.processes["scheduler"].kill()
    cluster.processes["scheduler"].wait()
    cluster.start_scheduler()
    wait_for(lambda: cluster.size["time"] > time.time() - 2 and cluster.size["workers"] == 2, "again", 60)
    assert cluster.size["worker_seconds"] > used
    assert cluster.size["began"] == began
    with cluster.client() as client:
        assert client.submit(slow(), 7).result(60) == 7
        cluster.configure(seconds=1)
        wait_for(lambda: cluster.size["workers"] == 0, "the end", 30)
        assert "; its time is over, so no worker runs" in sizing.said(cluster.folder / "size.json", time.time())[0]
        late = client.submit(slow(), 8)
        with pytest.raises(TimeoutError):
            late.result(4)
        cluster.configure(seconds=3600)
        assert late.result(60) == 8


def test_who_has_no_credential_or_asks_wrongly_hears_nothing(cluster: Cluster, tmp_path: Path) -> None:
    wait_for(lambda: cluster.size.get("places") == 3, "places", 30)
    host, _, port = cluster.sized.rpartition(":")

    def ask(pem: Path, line: bytes) -> bytes:
        secured = sizing.context(pem, ssl.Purpose.SERVER_AUTH)
        try:
            with socket.create_connection((host, int(port)), 9) as plain, secured.wrap_socket(plain) as sent:
                sent.sendall(line)
                return sent.recv(100)
        except OSError:
            return b""

    right = b'{"name": "w9", "number": 9}\n'
    assert ask(cluster.pem, right) == b'{"run": false}\n'
    credential(tmp_path / "other.pem")
    assert ask(tmp_path / "other.pem", right) == b""
    for wrong in (b"\n", b"[]\n", b'{"name": "w9"}\n', b'{"name": "w9", "number": "x"}\n', b"x" * 5000):
        assert ask(cluster.pem, wrong) == b""
    assert ask(cluster.pem, right) == b'{"run": false}\n'
    assert cluster.processes["scheduler"].poll() is None
    with socket.create_connection((host, int(port)), 9) as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert plain.recv(100) == b""


def test_what_is_not_well_is_said(tmp_path: Path) -> None:
    now = time.time()
    file = tmp_path / "x.json"
    assert sizing.said(file, now) == (f"size {file}: not written for 60 s, expected so by the scheduler", False)
    assert standby.said(file, now) == (f"worker {file}: not written for 60 s, expected so", False)
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    place = {"time": now, "wanted": True, "listens": address, "started": now - 100}
    for changed, message in [
        ({}, f"worker {address}: Connection refused"),
        ({"wanted": None}, "the scheduler does not answer"),
        ({"time": now - 61}, f"worker {file}: not written for 60 s, expected so"),
    ]:
        tell(file, place | changed)
        assert standby.said(file, now) == (message, False)
    tell(file, place | {"started": now - 5})
    assert standby.said(file, now) == ("the worker starts", True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sizing": "here"}, "key sizing: 'here', expected HOST:PORT"),
        ({"command": []}, "key command: [], expected a command, a list of words"),
        ({"more": 1}, "key more: unknown, expected one of name, number, sizing"),
    ],
)
def test_a_place_that_is_told_nonsense_says_so(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    credential(tmp_path / "c.pem")
    right = {"name": "w1", "number": 1, "sizing": "127.0.0.1:1", "credential": str(tmp_path / "c.pem")}
    right |= {"state": str(tmp_path / "s"), "listens": "127.0.0.1:2", "command": ["true"]}
    (tmp_path / "p.json").write_text(json.dumps(right | changed))
    command = [sys.executable, "-m", "clachan_lake.elastic.standby", str(tmp_path / "p.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, message in done.stderr) == (1, True)


def test_a_place_that_is_told_to_end_ends_its_worker(cluster: Cluster) -> None:
    cluster.configure(minimum=1)
    wait_for(lambda: cluster.size.get("workers") == 1, "one", 30)
    pid = children(cluster.processes["w1"])[0]
    cluster.processes["w1"].send_signal(signal.SIGTERM)
    assert cluster.processes["w1"].wait(30) == 0
    assert not Path(f"/proc/{pid}").exists()
