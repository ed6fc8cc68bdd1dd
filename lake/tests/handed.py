"""What the tests of mapped arrays at a URL make: readers near and far, and what a server hands over."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
from clachan_lake import near
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.remote import RemoteLake

from .making import TOKEN, Server
from .test_array_routes import remote

MIB = 1 << 20


def at_socket(server: Server) -> LocalLake:
    lake = open_lake(server.socket, blobs=server.folder / "blobs")
    assert isinstance(lake, LocalLake)
    return lake


def at_distance(server: Server) -> RemoteLake:
    """As from another machine."""
    lake = remote(server)
    lake.nearness.rule_out()
    return lake


def mapping(array: Any) -> tuple[str, str]:
    """Permissions and file of the mapping that the array's first byte is in."""
    address = array.ctypes.data
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, *_, name = line.split(maxsplit=5) if line.count("/") else (*line.split()[:2], "")
        low, high = (int(edge, 16) for edge in span.split("-"))
        if low <= address < high:
            return permissions, name
    raise AssertionError(f"{address:x}: not mapped")


def is_near(array: Any) -> bool:
    permissions, name = mapping(array)
    return permissions == "r--s" and "/blobs/" in name


def make(server: Server, name: str, values: Any, **how: Any) -> None:
    with at_socket(server) as lake, lake.transaction():
        lake.arrays.create(name, values.shape, values.dtype, **how)[...] = values


def scatter(server: Server, name: str, count: int) -> None:
    """An array whose every second chunk of 4,096 bytes is a file of its own."""
    with at_socket(server) as lake, lake.transaction():
        array = lake.arrays.create(name, 2 * count * 4096, "u1", chunk_bytes=4096)
        for number in range(count):
            array[2 * number * 4096 : (2 * number + 1) * 4096] = 1 + number % 250


def told(server: Server, name: str, token: str = TOKEN, **more: Any) -> requests.Response:
    return requests.get(
        f"{server.url}/arrays/files",
        params={"name": name, "start": 0, "stop": 1 << 40, "here": near.place(), **more},
        headers={"Authorization": f"Bearer {token}"},
        timeout=20,
    )


def fetched(answer: dict[str, Any], **more: Any) -> list[int]:
    return near.fetch(*({**answer, **more}[key] for key in ("socket", "ticket", "proof", "files")))


def closed(numbers: list[int]) -> int:
    """How many there were."""
    for number in numbers:
        os.close(number)
    return len(numbers)


def connected(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(20)
    try:
        connection.connect(f"\0{name}")
    except OSError:
        connection.close()
        raise
    return connection


def run(script: str, *arguments: Any, begin: Sequence[str] = ()) -> str:
    done = subprocess.run(
        [*begin, sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()
