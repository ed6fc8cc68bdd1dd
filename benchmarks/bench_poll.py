"""Polls of nodes with 1,000 instances: unchanged, and changed before each poll, beside `slapos proxy`.

Both are asked by CALLERS callers at once. The reference node's poll is GET /getFullComputerInformation, one TCP
connection a call, as the real node does it; ours is one kept connection with the node's certificate and
If-None-Match, as our agent does it. CPU is the server's, a poll.
"""

import hashlib
import pathlib
import shutil
import socket
import ssl
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

import psutil
from measured import ROOT, header, row
from slapos_peer import Slapos

sys.path.insert(0, str(ROOT / "controller" / "tests"))
from live import Live, Node, artifact, role, running_controller

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
CALLERS = 4
SECONDS = 5
SOFTWARE = "bench.web.hello"


def cpu(server: psutil.Process) -> float:
    times = server.cpu_times()
    return times.user + times.system


def rate(
    polls: Callable[[], int], server: psutil.Process, before_each: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """Polls a second, and milliseconds of the server's CPU a poll; `before_each` is not counted."""
    before_each()
    polls()
    end, wall, used, count = time.monotonic() + SECONDS, 0.0, 0.0, 0
    while time.monotonic() < end:
        before_each()
        started, busy = time.monotonic(), cpu(server)
        count += polls()
        wall, used = wall + time.monotonic() - started, used + cpu(server) - busy
    return count / wall, used / count * 1e3


class Poller:
    """One kept connection; plain sockets, so that the caller is not what is measured."""

    def __init__(self, node: Node) -> None:
        context = ssl.create_default_context(cafile=node.ca_file)
        context.load_cert_chain(*node.cert)
        where = urlsplit(node.url)
        self.host = where.hostname
        plain = socket.create_connection((where.hostname, where.port), 60)
        self.socket = context.wrap_socket(plain, server_hostname=where.hostname)
        self.etag = ""
        self.ask()
        assert self.answer() == 200

    def ask(self) -> None:
        lines = ["GET /api/v1/nodes/self/inventory HTTP/1.1", f"Host: {self.host}", f"If-None-Match: {self.etag}"]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def answer(self) -> int:
        data = self.socket.recv(1 << 17)
        while b"\r\n\r\n" not in data:
            data += self.socket.recv(1 << 17)
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        left = int(headers.get("content-length", 0)) - len(body)
        while left > 0:
            left -= len(self.socket.recv(1 << 17))
        self.etag = headers.get("etag", self.etag)
        return int(lines[0].split()[1])


def ours(folder: pathlib.Path) -> dict[str, tuple[float, float]]:
    with running_controller(folder, process=True) as live:
        nodes = [
            live.join(f"n{number}", slots=COUNT, mode="user", labels={"n": str(number)}) for number in range(CALLERS)
        ]
        live.register(artifact(folder, "bench.web", {"hello": role({"hello_text": {"type": "str"}})}))
        for number, node in enumerate(nodes):
            fill(live, node, number)
        server = psutil.Process(live.pid)
        pollers = [Poller(node) for node in nodes]

        def all_poll(expected: int) -> int:
            for poller in pollers:
                poller.ask()
            assert [poller.answer() for poller in pollers] == [expected] * CALLERS
            return CALLERS

        turn = iter(range(10**9))

        def change_all() -> None:
            for number in range(CALLERS):
                request(live, number, 0, f"turn {next(turn)}")

        unchanged = rate(lambda: all_poll(304), server)
        changed = rate(lambda: all_poll(200), server, before_each=change_all)
        return {"unchanged": unchanged, "changed": changed}


def request(live: Live, number: int, index: int, text: str) -> None:
    placement = {"labels": {"n": str(number)}}
    live.request(f"home.n{number}_i{index}", SOFTWARE, parameters={"hello_text": text}, placement=placement)


def fill(live: Live, node: Node, number: int) -> None:
    live.supply(node.name, SOFTWARE)
    supply = node.slice()["supplies"][0]
    node.accepted({"kind": "supply", "supply": supply["id"], "digest": supply["digest"], "state": "present"})
    for index in range(COUNT):
        request(live, number, index, hashlib.sha256(b"%d" % index).hexdigest())


def peer(folder: pathlib.Path) -> tuple[float, float]:
    with Slapos(folder / "run", COUNT) as slapos:
        slapos.request(COUNT, "one")
        url = f"{slapos.url}/getFullComputerInformation?computer_id=COMP-1"

        def poll() -> None:
            with urllib.request.urlopen(url, timeout=300) as answer:
                assert len(answer.read()) > COUNT * 100

        def all_poll() -> int:
            callers = [threading.Thread(target=poll) for _ in range(CALLERS)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            return CALLERS

        return rate(all_poll, psutil.Process(slapos.proxy.pid))


def main() -> None:
    header("slapos proxy")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="clachan-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        theirs = peer(folder / "slapos")
        mine = ours(folder / "home")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for key, goal in (("unchanged", 1000), ("changed", 50)):
        text = f"{key} poll, {COUNT} instances"
        row(text, f"{mine[key][0]:.0f}/s", f"{theirs[0]:.2f}/s", f"{mine[key][0] / theirs[0]:.0f}", f">= {goal}")
        row("  CPU of the server a poll", f"{mine[key][1]:.2f} ms", f"{theirs[1]:.0f} ms")


if __name__ == "__main__":
    main()
