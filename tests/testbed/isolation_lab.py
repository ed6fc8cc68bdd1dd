"""A node with guests for the tests of isolation, in network namespaces alone.

The node is a namespace with an uplink to another one, the world; a guest is a namespace behind a real tap of the node,
its frames carried by pump.py as QEMU carries a guest's. Sockets are made inside the namespaces by this one process.
Everything that arrives anywhere is seen by its token: listeners answer, sniffers see what nobody listens for.
"""

import ctypes
import itertools
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.host import HERE, LabError, run

NAMESPACES = Path("/run/netns")
CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
PACKET_OUTGOING = 4
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)
_ports = itertools.count(os.getpid())
USER = "nobody"
TOKEN = b"clachan-%d-%08d."


def obstacle() -> str | None:
    """Why this host cannot have such a network, as the reason of a skip; None when it can."""
    if os.geteuid() != 0:
        return "this machine cannot: the tests do not run as root"
    if not shutil.which("nft"):
        return "this machine cannot: the program nft is missing"
    if not Path("/dev/net/tun").exists():
        return "this machine cannot: it has no /dev/net/tun"
    return None


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and what it starts and opens, is in that network namespace."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(NAMESPACES / namespace, os.O_RDONLY)
    try:
        _enter(there)
        yield
    finally:
        _enter(here)
        os.close(here)
        os.close(there)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise LabError(f"network namespace: {os.strerror(ctypes.get_errno())}, expected to enter it")


def source_port() -> int:
    """One that no other probe has, so that an attempt to connect is known by it."""
    return 30000 + next(_ports) % 30000


def called(source_port: int) -> bytes:
    """The token of an attempt to connect, which carries no data: made of its source port."""
    return TOKEN % (os.getpid(), 90000000 + source_port)


def _call(frame: bytes) -> bytes | None:
    """The token of a TCP segment that asks for a connection; None for all other frames."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP:
        segment = frame[14 + 4 * (frame[14] & 15) :]
    elif kind == b"\x86\xdd" and frame[20] == socket.IPPROTO_TCP:
        segment = frame[54:]
    else:
        return None
    return called(int.from_bytes(segment[:2])) if len(segment) > 13 and segment[13] & 0x12 == 0x02 else None


def token() -> bytes:
    """What marks one probe, wherever it is seen."""
    return TOKEN % (os.getpid(), next(_numbers))


@dataclass
class Guest:
    """A virtual machine as the network sees it; `member` is what the module isolation was given."""

    name: str
    member: dict[str, Any]
    namespace: str

    @property
    def tap(self) -> str:
        return str(self.member["tap"])

    def address(self, family: int) -> str:
        return str(self.member[f"ipv{family}"])


@dataclass
class Seen:
    """Where a token arrived: names of places, and from which address."""

    places: dict[bytes, dict[str, str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, data: bytes, place: str, source: str) -> None:
        begin = data.find(b"clachan-%d-" % os.getpid())
        if begin >= 0 and (end := data.find(b".", begin)) > 0:
            with self.lock:
                self.places.setdefault(data[begin : end + 1], {}).setdefault(place, source)

    def of(self, mark: bytes) -> dict[str, str]:
        with self.lock:
            return dict(self.places.get(mark, {}))


class Network:
    """Namespaces, guests, listeners and sniffers; leaves nothing when it ends."""

    def __init__(self, name: str, node: str | None = None) -> None:
        """`node`: an existing namespace to be the node; by default one of its own, with a world behind `up0`."""
        self.name = f"{name}{os.getpid()}"
        self.node = node or f"{self.name}-node"
        self.world = f"{self.name}-world"
        self.owned = [] if node else [self.node]
        self.guests: dict[str, Guest] = {}
        self.seen = Seen()
        self._pumps: dict[str, subprocess.Popen[str]] = {}
        self._sockets = selectors.DefaultSelector()
        self._open: list[socket.socket] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "Network":
        for namespace in (*self.owned, self.world):
            run(["ip", "netns", "add", namespace])
            self.ip(namespace, "link set lo up")
        self.owned.append(self.world)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(5)
        for one in self._open:
            one.close()
        self._sockets.close()
        for name in list(self._pumps):
            self.unplug(name)
        for namespace in self.owned:
            with suppress(LabError):
                run(["ip", "netns", "delete", namespace])

    def ip(self, namespace: str, words: str) -> str:
        return run(["ip", "-n", namespace, *words.split()])

    def wire(self, here: str, one: str, there: str, other: str) -> None:
        """A cable between two namespaces."""
        self.ip(here, f"link add {one} type veth peer name {other} netns {there}")
        self.ip(here, f"link set {one} up")
        self.ip(there, f"link set {other} up")

    def plug(self, *guests: Guest) -> None:
        """Boot guests: each opens its tap and has the addresses and routes that its seed gives it."""
        for guest in guests:
            run(["ip", "netns", "add", guest.namespace])
            self.owned.append(guest.namespace)
            self.ip(guest.namespace, "link set lo up")
        pairs = [f"{self.node}/{one.tap}={one.namespace}/eth0@{one.member['mac']}" for one in guests]
        pump = subprocess.Popen(
            [sys.executable, str(HERE / "pump.py"), *pairs],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert pump.stdout is not None
        assert pump.stderr is not None
        if pump.stdout.readline() != "ready\n":
            raise LabError(f"pump of {', '.join(pairs)}: not ready, it said: {pump.stderr.read()[-500:]}")
        for guest in guests:
            self.guests[guest.name] = guest
            self._configure(guest)
            self.sniff(guest.namespace, "eth0", guest.name)
        self._pumps["+".join(one.name for one in guests)] = pump

    def _configure(self, guest: Guest) -> None:
        words = (
            f"link set eth0 up\naddress add {guest.address(4)}/32 dev eth0\n"
            f"route add default via 169.254.1.1 dev eth0 onlink\n"
            f"address add {guest.address(6)}/128 dev eth0 nodad\nroute add default via fe80::1 dev eth0\n"
        )
        batch = ["ip", "-n", guest.namespace, "-batch", "-"]
        subprocess.run(batch, input=words, text=True, check=True, capture_output=True)

    def unplug(self, names: str) -> None:
        """End the pump of guests that were plugged together; their names joined by +."""
        pump = self._pumps.pop(names)
        with pump:
            assert pump.stdin is not None
            pump.stdin.close()
            pump.wait(10)

    def sniff(self, namespace: str, interface: str, place: str) -> None:
        """See whatever comes in there."""
        with inside(namespace):
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            sniffer.bind((interface, ETH_P_ALL))
        self._watch(sniffer, lambda: self._sniffed(sniffer, place))

    def _sniffed(self, sniffer: socket.socket, place: str) -> None:
        frame, (_, _, kind, *_) = sniffer.recvfrom(70000)
        if kind != PACKET_OUTGOING:
            self.seen.add(frame, f"{place} (wire)", "")
            if call := _call(frame):
                self.seen.add(call, f"{place} (wire)", "")

    def listen(self, namespace: str, place: str, address: str, port: int) -> None:
        """Answer what comes to that address by TCP and UDP; `place` is what it is called."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(namespace):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                listener = socket.socket(family, kind)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address, port))
                if kind == socket.SOCK_STREAM:
                    listener.listen(64)
                    self._watch(listener, lambda it=listener: self._accept(it, place))
                else:
                    self._watch(listener, lambda it=listener: self._datagram(it, place))

    def _watch(self, one: socket.socket, handle: Any) -> None:
        one.setblocking(False)
        self._open.append(one)
        self._sockets.register(one, selectors.EVENT_READ, handle)

    def _accept(self, listener: socket.socket, place: str) -> None:
        connection, source = listener.accept()
        self._watch(connection, lambda: self._answer(connection, place, source[0]))

    def _answer(self, connection: socket.socket, place: str, source: str) -> None:
        data = b""
        with suppress(OSError):
            data = connection.recv(4096)
            self.seen.add(data, place, source)
            connection.send(data)
        if not data:
            self._sockets.unregister(connection)
            connection.close()

    def _datagram(self, listener: socket.socket, place: str) -> None:
        data, source = listener.recvfrom(4096)
        self.seen.add(data, place, source[0])
        with suppress(OSError):
            listener.sendto(data, source)

    def _serve(self) -> None:
        while not self._ending.is_set():
            for key, _ in self._sockets.select(0.05):
                with suppress(OSError):
                    key.data()

    def nft(self, *words: str, text: str | None = None) -> str:
        """What nft says at the node."""
        with inside(self.node):
            return subprocess.run(["nft", *words], input=text, capture_output=True, text=True, check=True).stdout

    def has_table(self) -> bool:
        return "table inet clachan" in self.nft("list", "tables")

    def links(self) -> set[str]:
        """The node's interfaces, but for its own."""
        return {one["ifname"] for one in json.loads(self.ip(self.node, "-j link show"))} - {"lo", "up0"}

    def setting(self, name: str, value: str | None = None) -> str:
        """A kernel setting of the node's network, set when a value is given."""
        path = Path("/proc/sys/net") / name
        with inside(self.node):
            if value is not None:
                path.write_text(value)
            return path.read_text().strip()
