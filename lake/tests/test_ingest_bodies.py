"""Bodies as senders make them: compressed, msgpack, in chunks, slow, many at once, and those that mean harm."""

import asyncio
import base64
import contextlib
import gzip
import json
import os
import socket
import statistics
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import uvicorn
from clachan_lake import database
from clachan_lake.format import PIECE_BYTES
from clachan_lake.ingest import receiving
from clachan_lake.ingest.inflating import PART_BYTES, Inflater
from clachan_lake.ingest.protocol import DIRECT, BodyProtocol
from clachan_lake.ingest.spool import WAITING_BYTES, Spool
from clachan_lake.streams.extents import Extents, Room
from transaction import TransactionManager

from .making import TOKEN, Server, wait_for
from .test_ingest import error

MIB = 1 << 20


def post(server: Server, body: bytes | Iterator[bytes], reference: str, **headers: str) -> requests.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.session.post(
        f"{server.url}/ingest/raw", params={"reference": reference}, data=body, headers=names, timeout=60
    )


def stored(server: Server, name: str) -> bytes:
    return server.get("/streams/data", name=name).content


@pytest.mark.parametrize("size", [1, PIECE_BYTES, PIECE_BYTES + 1, 3 * MIB + 7])
def test_gzip_is_stored_as_what_is_inside(server: Server, size: int) -> None:
    body = (os.urandom(997) * (size // 997 + 1))[:size]
    packed = gzip.compress(body)
    name = f"gzip{size}"
    for given in (packed, iter([packed[:9], packed[9:]]), packed + gzip.compress(body)):
        assert post(server, given, name, Content_Encoding="gzip").status_code == 204
    assert post(server, packed, name, Content_Encoding="X-GZIP").status_code == 204
    assert stored(server, name) == body * 5
    assert server.stream(name)["chunks"] == 4


def test_gzip_that_is_none_cut_or_damaged_stores_nothing(server: Server) -> None:
    packed = gzip.compress(os.urandom(200_000))
    damaged = bytearray(packed)
    damaged[-6] ^= 1
    for body, message in (
        (b"not gzip at all", "body: Error -3 while decompressing data: incorrect header check, expected gzip"),
        (packed[:-1], "body: gzip that was cut, expected all of it"),
        (packed[:5], "body: gzip that was cut, expected all of it"),
        (bytes(damaged), "body: Error -3 while decompressing data: incorrect data check, expected gzip"),
        (packed + b"more", "body: Error -3 while decompressing data: incorrect header check, expected gzip"),
        (gzip.compress(b""), "body: empty, expected bytes, or final=1"),
    ):
        answer = post(server, body, "bad-gzip", Content_Encoding="gzip")
        assert answer.status_code == 400
        assert str(error(answer)["message"]).startswith(message)
    assert server.get("/streams/meta", name="bad-gzip").status_code == 404
    wait_for(lambda: not list((server.folder / "incoming").iterdir()), "the spooled bodies' end")


def test_a_gzip_bomb_is_refused_and_takes_no_memory(own_server: Server) -> None:
    own_server.settings["maximum_body_mib"] = 8
    own_server.start()
    assert own_server.process
    maker = zlib.compressobj(9, wbits=31)
    bomb = b"".join(maker.compress(bytes(MIB)) for _ in range(1024)) + maker.flush()
    assert len(bomb) < 2 * MIB
    assert post(own_server, gzip.compress(bytes(8 * MIB)), "bomb", Content_Encoding="gzip").status_code == 204
    process = psutil.Process(own_server.process.pid)
    before, peak, ended = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    for _ in range(5):
        answer = post(own_server, bomb, "bomb", Content_Encoding="gzip")
        assert (answer.status_code, error(answer)["code"]) == (413, "too_large")
    ended.set()
    watching.join()
    assert peak[0] - before < 16 * MIB
    assert own_server.stream("bomb")["chunks"] == 1
    assert list((own_server.folder / "incoming").iterdir()) == []


def test_what_is_inflated_comes_in_parts() -> None:
    packed = gzip.compress(bytes(5 * MIB))
    inflater = Inflater()
    parts = [part for at in range(0, len(packed), 100) for part in inflater.inflate(packed[at : at + 100])]
    inflater.check_end()
    assert sum(map(len, parts)) == 5 * MIB
    assert max(map(len, parts)) <= PART_BYTES


def test_fluentd_and_fluent_bit_are_served_as_they_are(server: Server) -> None:
    """The Wendelin output, and stock out_http with msgpack, with JSON lines, and compressed."""
    basic = "Basic " + base64.b64encode(f"fluentd:{TOKEN}".encode()).decode()
    time_type = b"\xd7\x00" + struct.pack(">II", 1_790_000_000, 5)
    msgpack = b"\x92" + time_type + b"\x81\xa7message\xc4\x03abc"
    lines = b'{"message":"one"}\n{"message":"two"}\n'
    wendelin = f"{server.url}/portal_ingestion_policies/raw/ingest?reference=fluentd.sensor"
    plain = f"{server.url}/ingest/raw?reference=fluentd.sensor"
    requests_ = [
        (wendelin, msgpack, {"Content-Type": "application/octet-stream"}),
        (plain, msgpack, {"Content-Type": "application/x-msgpack"}),
        (plain, lines, {"Content-Type": "application/x-ndjson"}),
        (plain, gzip.compress(lines), {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
    ]
    for url, body, headers in requests_:
        answer = requests.post(url, body, headers={**headers, "Authorization": basic}, timeout=20)
        assert (answer.status_code, answer.content) == (204, b"")
    assert stored(server, "fluentd.sensor") == msgpack * 2 + lines * 2


def test_the_query_is_read_strictly(server: Server) -> None:
    for query, field in (
        ("reference=a&reference=b", "reference"),
        ("reference=", "reference"),
        ("reference=q&offset=-1", "offset"),
        ("reference=q&offset=%D9%A1", "offset"),
        ("reference=q&final=perhaps", "final"),
    ):
        answer = server.session.post(f"{server.url}/ingest/raw?{query}", b"x", timeout=9)
        assert (answer.status_code, error(answer)["field"]) == (400, field), query
    answer = server.session.post(f"{server.url}/ingest/raw?reference=%ff%fe", b"x", timeout=9)
    assert answer.status_code == 400
    assert str(error(answer)["message"]).endswith("expected UTF-8 in percent encoding")
    for tag in ("a\x00b", "a\x1b[31m", "a\u202eb", "~mine"):
        assert server.post(b"x", reference=tag).status_code == 400
    assert server.get("/streams/meta", name="q").status_code == 404


HEAD = "POST /ingest/raw?reference={} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n"


def begin(server: Server, name: str, length: int, body: bytes) -> socket.socket:
    """A request, perhaps not all of it."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(HEAD.format(name, TOKEN, length).encode() + body)
    return connection


def test_slow_senders_do_not_hold_others_up(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(begin(server, f"slow{n}", 400_000, b"s" * 300_000)) for n in range(100)]
        slow += [stack.enter_context(begin(server, f"small{n}", 100, b"s")) for n in range(100)]
        times = []
        for _ in range(20):
            began = time.monotonic()
            assert server.post(b"quick", reference="quick").status_code == 204
            times.append(time.monotonic() - began)
        assert statistics.median(times) < 1
        for number, connection in enumerate(slow):
            connection.sendall(b"s" * (100_000 if number < 100 else 99))
            assert connection.recv(100).startswith(b"HTTP/1.1 204")
    assert server.stream("slow99")["size"] == 400_000
    assert stored(server, "small99") == b"s" * 100


def test_a_body_is_stored_whole_however_it_is_cut(server: Server) -> None:
    body = os.urandom(3 * MIB + 7)
    for name, size in (("cut1", 100_000), ("cut2", 65_536), ("cut3", 700_001)):
        with begin(server, name, len(body), body[:1]) as connection:
            for at in range(1, len(body), size):
                connection.sendall(body[at : at + size])
                time.sleep(0.001)
            assert connection.recv(100).startswith(b"HTTP/1.1 204")
        assert stored(server, name) == body


def answers(connection: socket.socket, count: int) -> list[bytes]:
    """Their first lines; those of 204 have no body."""
    found = b""
    while found.count(b"\r\n\r\n") < count and (data := connection.recv(4096)):
        found += data
    return [one.partition(b"\r\n")[0] for one in found.split(b"\r\n\r\n")[:count]]


def test_requests_in_one_go_are_answered_in_turn(server: Server) -> None:
    bodies = [os.urandom(size) for size in (2 * MIB + 1, 70_000, 5, MIB)]
    with begin(server, "turn0", len(bodies[0]), bodies[0]) as connection:
        for number, body in list(enumerate(bodies))[1:]:
            connection.sendall(HEAD.format(f"turn{number}", TOKEN, len(body)).encode() + body)
        assert answers(connection, 4) == [b"HTTP/1.1 204 No Content"] * 4
    assert [stored(server, f"turn{number}") for number in range(4)] == bodies


def test_who_asks_whether_to_go_on_is_told(server: Server) -> None:
    head = HEAD.format("continue", TOKEN, 300_000).replace("Host: x", "Host: x\r\nExpect: 100-continue").encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head)
        assert answers(connection, 1) == [b"HTTP/1.1 100 Continue"]
        connection.sendall(b"c" * 300_000)
        assert answers(connection, 1) == [b"HTTP/1.1 204 No Content"]
    assert stored(server, "continue") == b"c" * 300_000


def test_no_more_is_read_than_the_disk_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of 16 MiB, each part of which takes its time to be written."""
    body, waiting = os.urandom(16 * MIB), []
    write = Room.write

    def slow(room: Room, parts: list[bytes]) -> None:
        waiting.append(sum(map(len, parts)))
        time.sleep(0.01)
        write(room, parts)

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        with Spool(Extents(tmp_path), 32 * MIB) as spool:
            found = await spool.take(scope[DIRECT])
            assert isinstance(found, Path)
            same = found.read_bytes() == body
        await send({"type": "http.response.start", "status": 204 if same else 500, "headers": []})
        await send({"type": "http.response.body"})

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = uvicorn.Server(uvicorn.Config(app, http=BodyProtocol, lifespan="off", log_config=None))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(HEAD.format("x", TOKEN, len(body)).encode() + body)
            async with asyncio.timeout(30):
                assert (await reader.readline()).startswith(b"HTTP/1.1 204")
            writer.close()
            server.should_exit = True
            await serving

    monkeypatch.setattr(Room, "write", slow)
    asyncio.run(main())
    assert sum(waiting) == len(body)
    # one part more than is to wait, of 256 KiB, and what came before it was asked for
    assert len(waiting) > 10
    assert max(waiting) <= 2 * WAITING_BYTES


@pytest.mark.parametrize("streams", [1, 16])
def test_sixteen_senders_at_once(server: Server, streams: int) -> None:
    bodies = {(who, n): b"%02d.%03d;" % (who, n) * (9000 if n % 5 == 4 else 3) for who in range(16) for n in range(15)}

    def send(who: int) -> None:
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {TOKEN}"
            for n in range(15):
                name = f"sixteen{streams}.{who % streams}"
                url = f"{server.url}/ingest/raw?reference={name}&chunk_id={who}.{n}"
                for repeat in ("false", "true") if n % 4 == 0 else ("false",):
                    answer = session.post(url, bodies[who, n], timeout=60)
                    assert (answer.status_code, answer.headers["Clachan-Repeat"]) == (204, repeat)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send, range(16)))
    found = [stored(server, f"sixteen{streams}.{n}") for n in range(streams)]
    assert sum(map(len, found)) == sum(map(len, bodies.values()))
    for (who, _n), body in bodies.items():
        assert found[who % streams].count(body) == 1


@pytest.mark.slow
def test_too_many_requests_are_told_to_come_again(own_server: Server) -> None:
    """While another process's commit stands still; what was taken before is stored when it goes on."""
    own_server.start()
    client = database.join(own_server.socket, own_server.folder / "blobs", 10)
    db = database.database(client)
    manager = TransactionManager()
    connection = db.open(manager)
    connection.root()["streams"]._p_changed = True
    transaction = manager.get()
    connection.tpc_begin(transaction)
    connection.commit(transaction)
    connection.tpc_vote(transaction)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(begin(own_server, f"w{n % 7}", 8, b"%08d" % n)) for n in range(receiving.BODIES)]

        def refused() -> list[requests.Response]:
            with contextlib.suppress(requests.ReadTimeout):
                answer = own_server.session.post(f"{own_server.url}/ingest/raw?reference=late", b"x", timeout=1)
                return [answer] if answer.status_code == 429 else []
            return []

        (answer,) = wait_for(refused, "a refusal", 60)
        assert (answer.headers["Retry-After"], error(answer)["code"]) == ("1", "busy")
        assert "nothing of it was stored" in str(error(answer)["hint"])
        assert own_server.get("/healthz").status_code == 200
        connection.tpc_abort(transaction)
        for one in waiting[::-1]:
            assert one.recv(100).startswith(b"HTTP/1.1 204")
    manager.abort()
    connection.close()
    db.close()
    found = b"".join(stored(own_server, f"w{n}") for n in range(7))
    numbers = sorted(int(found[at : at + 8]) for at in range(0, len(found), 8))
    assert numbers == list(range(receiving.BODIES))
    assert own_server.post(b"x", reference="late").status_code == 204


def test_a_refusal_has_the_one_form_at_the_front_as_well(server: Server) -> None:
    """Guard and faults are answered by the application, whatever it is that meets the request first."""
    answer = requests.post(f"{server.url}/ingest/raw?reference=x", b"x", timeout=9)
    assert (answer.status_code, error(answer)["code"]) == (401, "unauthenticated")
    assert "WWW-Authenticate" in answer.headers
    answer = server.session.post(f"{server.url}/ingest/a/b?reference=x", b"x", timeout=9)
    assert answer.status_code == 404
    assert json.loads(answer.content)["error"]["code"] == "not_found"
