"""Who gets the files of an array that a server hands over, for how long, and how many wait."""

import asyncio
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from clachan_lake import near
from clachan_lake.ingest import handing
from clachan_lake.ingest.handing import CONNECTIONS, OPEN_FILES, SETS, Handing

from .handed import MIB, closed, connected, fetched, is_near, make, run, scatter, told
from .making import TOKEN, Server, wait_for
from .test_array_routes import remote
from .test_remote_arrays import leases

# -- who may have them


def test_a_ticket_is_good_once(server: Server) -> None:
    make(server, "once", np.arange(MIB))
    answer = told(server, "once").json()
    assert closed(fetched(answer)) == answer["files"] + 1
    for ticket in (answer["ticket"], "00" * 16, "", "00" * 15, "00" * 40):
        with pytest.raises(OSError, match=r"0 files without the proof, expected 2 with it|Broken pipe|reset"):
            fetched(answer, ticket=ticket)
    assert told(server, "once").json()["ticket"] != answer["ticket"]


def test_a_token_without_the_scope_is_refused(server: Server) -> None:
    make(server, "scoped", np.arange(MIB))
    make(server, "other", np.arange(MIB))
    for scope, status in (("view:array/scoped", 200), ("read", 200), ("view:array/other", 403), ("ingest:*", 403)):
        made = server.session.post(f"{server.url}/tokens", json={"scopes": [scope]}, timeout=20).json()
        assert told(server, "scoped", made["token"]).status_code == status
    assert told(server, "scoped", "wrong").status_code == 401
    assert told(server, "none").status_code == 404
    for wrong in ({"most": 0}, {"most": 999}, {"start": -1}, {"at": "nope"}, {"stop": "x"}):
        assert told(server, "scoped", **wrong).status_code == 400


def test_who_is_elsewhere_is_told_nothing(server: Server) -> None:
    make(server, "elsewhere", np.arange(MIB))
    for place in ("", "x", "0" * 64):
        assert told(server, "elsewhere", here=place).json() == {"socket": None}
    with remote(server) as lake:
        lake.nearness.place = "0" * 64
        array = lake.arrays["elsewhere"]
        assert array[:].sum() == MIB * (MIB - 1) // 2
        assert not lake.nearness.is_likely
        assert not lake.session().nearness.is_likely
        assert not is_near(array[:])


OTHER_NETWORK = """
import sys
from clachan_lake import near
name, ticket, proof, place = sys.argv[1:]
assert near.place() not in (None, place)
try:
    near.fetch(name, ticket, proof, 1)
except ConnectionRefusedError:
    print("refused")
"""


def test_another_network_namespace_is_elsewhere(server: Server) -> None:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine cannot: no network namespaces for this user")
    make(server, "namespace", np.arange(MIB))
    answer = told(server, "namespace").json()
    words = [answer[key] for key in ("socket", "ticket", "proof")]
    assert run(OTHER_NETWORK, *words, near.place(), begin=["unshare", "-n"]) == "refused"
    assert closed(fetched(answer)) == 2


def test_descriptors_are_for_reading_blobs_of_that_array(server: Server) -> None:
    make(server, "mine", np.arange(MIB))
    make(server, "yours", np.arange(MIB) + 1)
    answer = told(server, "mine").json()
    lease, *files = fetched(answer)
    try:
        paths = [Path(f"/proc/self/fd/{number}").readlink() for number in files]
        blobs = server.folder / "blobs"
        assert Path(f"/proc/self/fd/{lease}").readlink() == blobs / ".leases"
        assert all(path.is_relative_to(blobs) and path.suffix == ".blob" for path in paths)
        assert np.frombuffer(paths[0].read_bytes(), "<i8").tolist() == list(range(MIB))
        for number in (lease, *files):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(number, b"x", 0)
            with pytest.raises(OSError, match="Invalid argument"):
                os.ftruncate(number, 0)
    finally:
        closed([lease, *files])


ANOTHER_USER = """
import errno, os, sys
import numpy as np
from clachan_lake import near
from clachan_lake.opening import open_lake
from clachan_lake.remote_files import RemoteFiles

url, token, folder = sys.argv[1:]
lake = open_lake(url, token=token)
array = lake.arrays["closed"]
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    os.listdir(folder)
    sys.exit("open")
except PermissionError:
    pass
rows = array[:]
assert ".blob" in open("/proc/self/maps").read()
told = lake.get("/arrays/files", name="closed", start=0, stop=array.nbytes, here=near.place()).json()
for number in near.fetch(told["socket"], told["ticket"], told["proof"], told["files"]):
    for mode in (os.O_WRONLY, os.O_RDWR):
        try:
            os.open(f"/proc/self/fd/{number}", mode)
            sys.exit("writable")
        except PermissionError:
            pass
print(int(rows.sum()))
"""


def test_another_user_reads_what_is_in_a_closed_folder(server: Server) -> None:
    if os.geteuid() != 0:
        pytest.skip("this machine cannot: not root, so no process of another user")
    make(server, "closed", np.arange(MIB))
    server.folder.chmod(0o700)
    assert run(ANOTHER_USER, server.url, TOKEN, server.folder) == str(MIB * (MIB - 1) // 2)


def test_files_without_the_proof_are_not_taken(server: Server) -> None:
    """Somebody else has the socket's name where the reader is."""
    make(server, "forged", np.arange(MIB))
    before = set(os.listdir("/proc/self/fd"))
    for proof, count in ((bytes(16), 1), (b"\1" * 16, 0), (b"\1" * 16, 2), (b"", 1)):
        with Forger(proof, count) as forger, pytest.raises(OSError, match="without the proof"):
            near.fetch(forger.name, "00" * 16, "01" * 16, 0)
    with Forger(b"\1" * 16, 1, "/dev/null") as forger, pytest.raises(OSError, match="other than regular files"):
        near.fetch(forger.name, "00" * 16, "01" * 16, 0)
    assert set(os.listdir("/proc/self/fd")) == before


class Forger:
    """Answers one connection with a proof and so many descriptors."""

    def __init__(self, proof: bytes, count: int, path: str = __file__) -> None:
        self.name = f"clachan-test-{os.getpid()}-{os.urandom(8).hex()}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"\0{self.name}")
        self._listener.listen()
        self._thread = threading.Thread(target=self._answer, args=[proof, count, path])
        self._thread.start()

    def _answer(self, proof: bytes, count: int, path: str) -> None:
        connection, _ = self._listener.accept()
        with connection, open(path, "rb") as file:
            connection.recv(64)
            if count:
                socket.send_fds(connection, [proof], [file.fileno()] * count)
            else:
                connection.send(proof)

    def __enter__(self) -> "Forger":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()


# -- what waits is bounded


def opened(server: Server) -> int:
    assert server.process
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def test_who_never_fetches_takes_no_more_than_a_bounded_room(server: Server) -> None:
    make(server, "never", np.zeros(8 * 4096, "u1") + 1, chunk_bytes=4096)
    scatter(server, "many", 300)
    told(server, "never")
    before, locks = opened(server), leases(server)
    tickets = [told(server, "many").json() for _ in range(8)] + [told(server, "never").json() for _ in range(80)]
    assert tickets[0]["files"] == near.FILES
    assert opened(server) <= before + OPEN_FILES
    # who reads meanwhile is served, and closes the oldest of them
    with remote(server) as lake:
        assert is_near(lake.arrays["many"].snapshot()[:])
    with pytest.raises(OSError, match="0 files without the proof"):
        fetched(tickets[0])
    assert closed(fetched(tickets[-1])) == 2
    silent = [connected(tickets[0]["socket"]) for _ in range(CONNECTIONS + 8)]
    wait_for(lambda: opened(server) <= before and leases(server) <= locks, "end of what was not fetched")
    with pytest.raises(OSError, match="0 files without the proof"):
        fetched(tickets[-2])
    for connection in silent:
        connection.close()
    with remote(server) as lake:
        assert is_near(lake.arrays["many"].snapshot()[:])


def some(count: int) -> list[int]:
    return [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]


def test_sets_of_files_wait_for_some_time_and_in_some_room(monkeypatch: pytest.MonkeyPatch) -> None:
    made, before = Handing(), len(os.listdir("/proc/self/fd"))
    tickets = [made.offer(some(2))[0] for _ in range(SETS + 10)]
    assert len(os.listdir("/proc/self/fd")) == before + 2 * SETS
    assert made.take(bytes.fromhex(tickets[9])) is None
    found = made.take(bytes.fromhex(tickets[10]))
    assert found is not None
    found.close()
    assert made.take(bytes.fromhex(tickets[10])) is None
    for _ in range(9):
        made.offer(some(100))
        assert len(os.listdir("/proc/self/fd")) <= before + OPEN_FILES
    monkeypatch.setattr(handing, "WAIT_SECONDS", 0.05)
    late, _proof = made.offer(some(1))
    time.sleep(0.1)
    made.close()
    late, _proof = made.offer(some(1))
    time.sleep(0.1)
    assert made.take(bytes.fromhex(late)) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_socket_ends_with_its_service() -> None:
    async def work() -> str:
        made = Handing()
        task = asyncio.create_task(made.run())
        while made.name is None:
            await asyncio.sleep(0.01)
        name = made.name
        ticket, proof = made.offer(some(1))
        with pytest.raises(OSError, match="other than regular files"):
            await asyncio.to_thread(near.fetch, name, ticket, proof, 0)
        made.offer(some(1))
        connected(name).close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert made.name is None
        return name

    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ConnectionRefusedError):
        connected(asyncio.run(work()))
    assert set(os.listdir("/proc/self/fd")) >= before
