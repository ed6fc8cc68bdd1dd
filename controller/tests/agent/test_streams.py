"""Streams with the real agent: a real service in a slot's address, the real command on the other side, and kills."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from clachan.agent.layout import AgentError
from clachan.agent.planning import Host, hosts_of
from clachan.agent.streams import connect

from .conftest import Node, wait_for
from .test_live import Lab, _join

COMMAND = str(Path(sys.executable).with_name("clachan"))
MIB = 1 << 20


class Service:
    """Listens; `serve` gets each connection in a thread of its own. `ended` is set when one was over."""

    def __init__(self, address: tuple[str, int], serve: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(address, family=socket.AF_INET)
        self._serve = serve
        self.ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._serve(connection)
        self.ended.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def swallow(connection: socket.socket) -> None:
    """Reads until the end, then says the digest of what came."""
    digest = sha256()
    while data := connection.recv(65536):
        digest.update(data)
    connection.sendall(digest.hexdigest().encode())


def deaf(connection: socket.socket) -> None:
    """Never reads, and waits for its end."""
    while connection.fileno() >= 0 and not gone(connection):
        time.sleep(0.05)


def gone(connection: socket.socket) -> bool:
    """Whether the peer has closed or reset it, seen without reading."""
    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state != 1  # TCP_ESTABLISHED


@pytest.fixture(scope="module")
def module_lab(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, platform: Path, things: Any
) -> Iterator[tuple[Lab, dict[str, Any]]]:
    """A controller and an agent, each a process of its own, and the slot of the instance home.one."""
    import pwd
    import shutil
    import tempfile

    home = Path(tempfile.mkdtemp(prefix="h", dir=folder))
    home.chmod(0o755)
    node = Node(home, platform, things, [pwd.getpwuid(os.geteuid()).pw_name], slots=60)
    node.start_supervisord()
    node.layout.identity.unlink()
    lab = Lab(tmp_path_factory.mktemp("lab"), node)
    try:
        _join(lab)
        lab.controller.request("home.one", "acme.things.hello")
        lab.until(lambda: lab.settled("home.one"))
        yield lab, lab.instance("home.one")["slot"]
    finally:
        lab.end_agent()
        lab.stop_controller()
        node.close()
        shutil.rmtree(home, ignore_errors=True)


class Bench:
    """The lab, the services that a test started, and the command."""

    def __init__(self, lab: Lab, slot: dict[str, Any]) -> None:
        self.lab = lab
        self.address = (slot["addresses"]["ipv4"], random.choice(range(slot["ports"]["first"], 20020)))
        self._services: list[Service] = []
        self._commands: list[subprocess.Popen[bytes]] = []

    def serve(self, how: Callable[[socket.socket], None]) -> Service:
        self._services.append(Service(self.address, how))
        return self._services[-1]

    def connect(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        command = [COMMAND, "instance", "connect", "home.one", "--port", str(self.address[1]), *words]
        environment = os.environ | {"CLACHAN_HOME": str(self.lab.controller.home)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._commands.append(subprocess.Popen(command, env=environment, **(pipes | options)))
        return self._commands[-1]

    def talking(self) -> subprocess.Popen[bytes]:
        """A command that has said and heard something."""
        running = self.connect()
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"hello")
        running.stdin.flush()
        assert running.stdout.read(5) == b"hello"
        return running

    def close(self) -> None:
        for running in self._commands:
            running.kill()
            running.communicate()
        for one in self._services:
            one.close()


@pytest.fixture
def bench(module_lab: tuple[Lab, dict[str, Any]]) -> Iterator[Bench]:
    found = Bench(*module_lab)
    yield found
    found.close()


pytestmark = pytest.mark.slow


def test_100_mib_both_ways_at_once_arrive_intact(bench: Bench) -> None:
    bench.serve(echo)
    blob = os.urandom(100 * MIB)
    out, err = bench.connect().communicate(blob, timeout=120)
    assert (len(out), err) == (len(blob), b"")
    assert sha256(out).digest() == sha256(blob).digest()


def test_the_end_of_the_input_is_carried_and_its_answer_comes(bench: Bench) -> None:
    bench.serve(swallow)
    running = bench.connect()
    out, _ = running.communicate(b"x" * MIB, timeout=60)
    assert (out.decode(), running.returncode) == (sha256(b"x" * MIB).hexdigest(), 0)


def test_the_services_end_ends_the_command_though_its_input_is_open(bench: Bench) -> None:
    bench.serve(lambda connection: connection.sendall(b"\x00\xff\r\n\n"))
    running = bench.connect()
    assert running.wait(20) == 0
    assert running.stdout is not None
    assert running.stdout.read() == b"\x00\xff\r\n\n"


def test_a_reader_that_has_enough_ends_it(bench: Bench) -> None:
    def flood(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"x" * MIB)

    service = bench.serve(flood)
    running = bench.connect()
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.read(10)
    running.stdout.close()
    assert running.wait(20) == 1
    assert running.stderr.read() == b""
    assert service.ended.wait(10)


def test_an_address_of_this_machine_leads_there(bench: Bench) -> None:
    bench.serve(swallow)
    running = bench.connect("--listen", "[::1]:0")
    assert running.stdout is not None
    address = running.stdout.readline().decode().strip()
    port = int(address.removeprefix("[::1]:"))
    blobs = [os.urandom(8 * MIB) for _ in range(3)]
    clients = [socket.create_connection(("::1", port)) for _ in blobs]
    threads = [threading.Thread(target=one.sendall, args=(blob,)) for one, blob in zip(clients, blobs, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for client, blob in zip(clients, blobs, strict=True):
        with client:
            client.shutdown(socket.SHUT_WR)
            client.settimeout(60)
            assert client.recv(64, socket.MSG_WAITALL).decode() == sha256(blob).hexdigest()
            assert client.recv(1) == b""
    running.send_signal(signal.SIGINT)
    assert running.wait(10) == 130


def test_nobody_listens(bench: Bench) -> None:
    running = bench.connect()
    out, err = running.communicate(b"", timeout=60)
    message = f"clachan: instance home.one: port {bench.address[1]} refuses connections"
    assert (running.returncode, out) == (1, b"")
    assert err.decode() == f"{message}, expected a service that listens there\n"


@pytest.mark.parametrize("how", [echo, deaf])
def test_a_killed_command_ends_the_services_connection(bench: Bench, how: Callable[[socket.socket], None]) -> None:
    """Also while the service reads nothing, and all that is between them is full."""
    service = bench.serve(how)
    if how is echo:
        running = bench.talking()
    else:
        with Path("/dev/zero").open("rb") as zeros:
            running = bench.connect(stdin=zeros)
        time.sleep(3)
    running.kill()
    assert service.ended.wait(5)


def test_a_killed_agent_ends_both_sides_and_the_next_one_serves(bench: Bench) -> None:
    service = bench.serve(echo)
    running = bench.talking()
    bench.lab.end_agent(signal.SIGKILL)
    try:
        assert running.wait(5) == 1
        assert running.stderr is not None
        expected = f"clachan: stream to home.one port {bench.address[1]}: broke off, expected its end\n"
        assert running.stderr.read().decode() == expected
        assert service.ended.wait(5)
        began = time.monotonic()
        _, err = bench.connect().communicate(b"", timeout=60)
        assert time.monotonic() - began < 15
        assert err.decode() == (
            "clachan: instance home.one, on node here: node: no answer within 10 s, expected its agent to run\n"
        )
    finally:
        bench.lab.start_agent()
    out, _ = bench.connect().communicate(b"again", timeout=60)
    assert out == b"again"


def test_a_killed_controller_ends_both_sides_and_the_next_one_serves(bench: Bench) -> None:
    service = bench.serve(echo)
    running = bench.talking()
    assert bench.lab.controller.pid is not None
    os.kill(bench.lab.controller.pid, signal.SIGKILL)
    try:
        assert running.wait(5) == 1
        assert service.ended.wait(5)
    finally:
        bench.lab.stop_controller()
        bench.lab.start_controller()
    wait_for(lambda: bench.connect().communicate(b"again", timeout=60)[0] == b"again", 60)


def test_a_service_that_dies_is_an_end(bench: Bench) -> None:
    """A process with an open connection is killed: the kernel closes it, which is all that anyone sees."""
    script = (
        "import socket, sys\n"
        f"listener = socket.create_server({bench.address!r})\n"
        "print(flush=True)\n"
        "connection, _ = listener.accept()\n"
        "connection.sendall(connection.recv(5))\n"
        "connection.recv(5)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        service.stdout.readline()
        running = bench.talking()
        service.kill()
        assert running.wait(5) == 0


def host(index: int = 3, ipv4: str = "127.9.0.19") -> Host:
    slot = {
        "name": f"s{index:03d}",
        "index": index,
        "user": "nobody",
        "directory": "/srv/slots/s003",
        "addresses": {"ipv4": ipv4, "ipv6": "fd00::1"},
        "ports": {"first": 20060, "count": 20},
        "limits": {"memory_mib": 1, "tasks": 1, "cpu_milli": 1},
    }
    instance = {
        "id": "id-one",
        "revision": 1,
        "path": "home.one",
        "tenant": "home",
        "software": "acme.things.hello",
        "digest": "0" * 64,
        "type": "main",
        "state": "started",
        "node": "here",
        "slot": slot,
        "parent": None,
        "children": {},
        "sealed": [],
    }
    from clachan.contract.inventory import Inventory

    inventory = Inventory(
        platform="p",
        node="here",
        records={"home.one": {"clachan_instance": instance}},
        groupings={},
        software={},
        supplies=[],
    )
    return hosts_of(inventory)[0]["id-one"]


@pytest.mark.parametrize("port", [22, 20059, 20080])
def test_only_ports_of_the_slot_are_connected_to(port: int) -> None:
    with pytest.raises(AgentError) as caught:
        connect(host(), port, any_port=False)
    assert str(caught.value) == f"instance home.one: port {port} is not of its slot"


def test_a_vm_is_reached_over_its_own_link_only() -> None:
    """Something listens at its address, as another machine may; without its link it is not taken for the VM."""
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: the tests do not run as root")
    with socket.create_server(("127.9.0.19", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AgentError) as caught:
            connect(host(index=3999), port, any_port=True)
    assert str(caught.value) == (
        f"instance home.one: port {port} is not reached (link cv3999 is missing), expected a service that listens there"
    )
