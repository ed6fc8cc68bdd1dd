"""`clachan instance connect` beside a TCP connection made directly: throughput of each way, latency, time to connect.

Controller, agent's part, service and user are processes of their own on one machine, so all of TLS's work for the four
connections is in these figures, and 2 cores share it.
"""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

from clachan.client.streams import Stream, Streams
from measured import BIN, ROOT, header, row

sys.path.insert(0, str(ROOT / "controller" / "tests"))
from live import Live, Node, artifact, role, running_controller

SOFTWARE = "bench.web.hello"
MIB = 1 << 20
BYTES = 256 * MIB
ROUNDS = 2000
SERVICE = """
import socket, sys, threading
block = bytes(1 << 16)

def serve(one):
    with one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        want = one.recv(1)
        if want == b"d":
            for _ in range(int(sys.argv[3]) // len(block)):
                one.sendall(block)
        elif want == b"u":
            left = int(sys.argv[3])
            while left:
                left -= len(one.recv(1 << 16))
            one.sendall(b".")
        else:
            while data := one.recv(1 << 16):
                one.sendall(data)

listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print(flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
AGENT = """
import sys, threading
from pathlib import Path
from clachan.agent.layout import Layout
from clachan.agent.link import Answers, Link, keep_doing
from clachan.agent.planning import hosts_of
from clachan.agent.streams import Carrier

layout = Layout(Path(sys.argv[1]))
link = Link(layout, layout.load_config())
hosts = hosts_of(link.client().slice().document.inventory)[0]
keep_doing(threading.Event(), "questions", Answers(link, hosts.get, Carrier(link).begin, print).step)
"""


class Direct:
    """A TCP connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        return self._socket.recv(1 << 16)

    def close(self) -> None:
        self._socket.close()


class Through:
    """A stream, used as one uses a connection."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._near, far = socket.socketpair()
        self._bringing = Thread(target=stream.bring, args=(far.fileno(), lambda: far.recv(1 << 16)))
        self._bringing.start()
        self._far, self._takes = far, stream.take()

    def send(self, data: bytes) -> None:
        self._near.sendall(data)

    def receive(self) -> bytes:
        return next(self._takes)

    def close(self) -> None:
        self._near.close()
        self._bringing.join()
        self._far.close()
        with self._stream:
            self._stream.close()


Made = Callable[[], Direct | Through]


def down(made: Made) -> float:
    """MiB a second from the service."""
    one = made()
    started = time.perf_counter()
    one.send(b"d")
    left = BYTES
    while left:
        left -= len(one.receive())
    took = time.perf_counter() - started
    one.close()
    return BYTES / MIB / took


def up(made: Made) -> float:
    """MiB a second to the service."""
    one, block = made(), bytes(1 << 16)
    started = time.perf_counter()
    one.send(b"u")
    for _ in range(BYTES // len(block)):
        one.send(block)
    one.receive()
    took = time.perf_counter() - started
    one.close()
    return BYTES / MIB / took


def latency(made: Made) -> float:
    """Milliseconds of a byte to the service and back, median."""
    one = made()
    one.send(b"e")
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        one.send(b"x")
        one.receive()
        times.append(time.perf_counter() - started)
    one.close()
    return sorted(times)[ROUNDS // 2] * 1e3


def opening(made: Made) -> float:
    """Milliseconds until a connection is there, median of 20."""
    times = []
    for _ in range(20):
        started = time.perf_counter()
        one = made()
        times.append(time.perf_counter() - started)
        one.close()
    return sorted(times)[10] * 1e3


def command(live: Live, port: int) -> float:
    """Milliseconds of the whole command for one byte there and back, median of 10."""
    times = []
    for _ in range(10):
        started = time.perf_counter()
        subprocess.run(
            [BIN / "clachan", "instance", "connect", "home.one", "--port", str(port)],
            input=b"ex",
            env=os.environ | {"CLACHAN_HOME": str(live.home)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        times.append(time.perf_counter() - started)
    return sorted(times)[5] * 1e3


@contextmanager
def agent(live: Live, node: Node, home: pathlib.Path) -> Iterator[None]:
    from clachan.agent.settings import NodeConfig

    (home / "node").mkdir(parents=True)
    for name, source in (("key.pem", node.cert[1]), ("cert.pem", node.cert[0]), ("ca.pem", node.ca_file)):
        shutil.copy(source, home / "node" / name)
    nowhere = {"slots_directory": "/nonexistent", "supervisor_socket": "/nonexistent", "platform_path": "/nonexistent"}
    config = NodeConfig(controller_url=live.url, node_name="here", mode="root", slots=0, users=[], **nowhere)
    (home / "node" / "config.json").write_bytes(config.json_bytes())
    with subprocess.Popen([sys.executable, "-c", AGENT, home]) as running:
        yield
        running.terminate()


def main() -> None:
    header("direct TCP")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="clachan-bench-", dir="/var/tmp"))
    try:
        with running_controller(folder / "home", process=True) as live:
            node = live.join("here")
            live.register(artifact(folder, "bench.web", {"hello": role()}))
            live.supply("here", SOFTWARE)
            slot = live.request("home.one", SOFTWARE)["slot"]
            address = (slot["addresses"]["ipv4"], slot["ports"]["first"])
            words = [address[0], str(address[1]), str(BYTES)]
            service = [sys.executable, "-c", SERVICE, *words]
            with (
                subprocess.Popen(service, stdout=subprocess.PIPE) as running,
                agent(live, node, folder / "agent"),
            ):
                running.stdout.readline()
                measure(live, address)
                running.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(live: Live, address: tuple[str, int]) -> None:
    user = Streams(live.url, token=live.token, ca_file=live.ca_file)

    def through() -> Through:
        return Through(user.open("home.one", address[1]))

    def direct() -> Direct:
        return Direct(address)

    direct().close()
    through().close()
    for what, measured, unit in (
        ("from the service", down, "MiB/s"),
        ("to the service", up, "MiB/s"),
        ("a byte there and back", latency, "ms"),
        ("a connection", opening, "ms"),
    ):
        ours, theirs = measured(through), measured(direct)
        row(what, f"{ours:.2f} {unit}", f"{theirs:.2f} {unit}", f"{ours / theirs:.3f}")
    row("the command, one byte there and back", f"{command(live, address[1]):.0f} ms")


if __name__ == "__main__":
    main()
