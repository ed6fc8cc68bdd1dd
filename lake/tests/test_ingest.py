"""Ingestion over real sockets: what is acknowledged is stored once; what is wrong is said and leaves nothing."""

import asyncio
import base64
import hashlib
import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from clachan_lake.format import PIECE_BYTES
from clachan_lake.ingest.spool import Spool, each
from clachan_lake.opening import open_lake
from clachan_lake.refusal import RefusedError
from clachan_lake.streams.extents import Extents

from .making import TOKEN, Server, wait_for


def error(answer: requests.Response) -> dict[str, str | None]:
    """The envelope's inside; every refusal has exactly this form."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "field", "hint"}
    return body["error"]


def test_chunks_become_a_stream(server: Server) -> None:
    parts = [b"one", b"x" * (PIECE_BYTES + 1), b"y" * 300_000]
    for number, part in enumerate(parts):
        answer = server.post(part, reference="plain", chunk_id=f"c{number}", final=int(number == 2))
        assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Clachan-Stream-Size"] == str(sum(map(len, parts)))
    described = server.stream("plain")
    assert (described["size"], described["chunks"], described["final"]) == (sum(map(len, parts)), 3, True)
    assert server.get("/streams/data", name="plain").content == b"".join(parts)
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    assert server.get("/streams/sha256", name="plain").json()["sha256"] == digest


def test_the_request_of_fluentd_is_served(server: Server) -> None:
    """As its Wendelin output sends it: basic auth, a content type, no chunk id, the policy in the path."""
    credentials = base64.b64encode(f"fluentd:{TOKEN}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/octet-stream"}
    body = b"\x92\xcejJ\xa7\x00\x81\xa1a\x01"
    for _ in range(2):
        answer = requests.post(
            f"{server.url}/portal_ingestion_policies/raw/ingest?reference=a.b.c", body, headers=headers, timeout=10
        )
        assert answer.status_code == 204
    assert server.get("/streams/data", name="a.b.c").content == body * 2


def test_a_repeat_changes_nothing(server: Server) -> None:
    first = server.post(b"abc", reference="repeat", chunk_id="1")
    again = server.post(b"abc", reference="repeat", chunk_id="1")
    by_header = server.session.post(
        f"{server.url}/ingest/raw",
        params={"reference": "repeat"},
        data=b"abc",
        headers={"Clachan-Chunk-Id": "1"},
        timeout=9,
    )
    assert [answer.status_code for answer in (first, again, by_header)] == [204] * 3
    assert [answer.headers["Clachan-Repeat"] for answer in (first, again, by_header)] == ["false", "true", "true"]
    assert server.get("/streams/data", name="repeat").content == b"abc"
    other = server.post(b"xyz", reference="repeat", chunk_id="1")
    assert (other.status_code, other.headers["Clachan-Stream-Size"]) == (409, "3")
    assert "expected the 3 bytes that are stored under this id" in str(error(other)["message"])
    assert server.get("/streams/data", name="repeat").content == b"abc"


def test_an_offset_must_be_the_end(server: Server) -> None:
    assert server.post(b"abc", reference="offset", offset=5).status_code == 409
    assert server.get("/streams/meta", name="offset").status_code == 404
    assert server.post(b"abc", reference="offset", offset=0).status_code == 204
    answer = server.post(b"def", reference="offset", offset=2)
    assert (answer.status_code, answer.headers["Clachan-Stream-Size"]) == (409, "3")
    assert error(answer)["message"] == "stream offset, offset: 2, expected its size 3"
    assert server.post(b"def", reference="offset", offset=3).status_code == 204
    assert server.get("/streams/data", name="offset").content == b"abcdef"


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Basic " + base64.b64encode(b"u:wrong").decode(), "Basic !", "x"]
)
def test_a_bad_token_is_refused(server: Server, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}
    for method, path in [("POST", "/ingest/raw?reference=bad"), ("GET", "/streams"), ("GET", "/arrays/meta?name=x")]:
        answer = requests.request(method, server.url + path, data=b"abc", headers=headers, timeout=10)
        assert answer.status_code == 401
        assert "WWW-Authenticate" in answer.headers
        assert error(answer)["code"] == "unauthenticated"
    assert server.get("/streams/meta", name="bad").status_code == 404


def test_wrong_requests_have_a_clear_answer(server: Server) -> None:
    unknown = server.post(b"abc", "nope", reference="wrong")
    assert (unknown.status_code, error(unknown)["message"]) == (404, "policy: 'nope', expected one of raw, wav")
    missing = server.post(b"abc")
    assert (missing.status_code, error(missing)["field"]) == (400, "reference")
    assert error(server.post(b"", reference="wrong"))["message"] == "body: empty, expected bytes, or final=1"
    assert error(server.post(b"abc", reference="wrong", offset="x"))["field"] == "offset"
    control = server.post(b"abc", reference="a\nb")
    assert (control.status_code, error(control)["code"]) == (400, "invalid")
    assert server.post(b"abc", reference="x" * 2000).status_code == 400
    assert server.post(b"abc", reference="wrong", chunk_id="y" * 300).status_code == 400
    packed = server.session.post(
        f"{server.url}/ingest/raw?reference=wrong", b"abc", headers={"Content-Encoding": "br"}, timeout=9
    )
    assert (packed.status_code, error(packed)["message"]) == (415, "content-encoding: br, expected gzip or identity")
    assert error(server.get("/nothing"))["code"] == "not_found"
    assert error(server.session.put(f"{server.url}/ingest/raw", timeout=9))["code"] == "invalid"
    assert server.get("/streams/meta", name="wrong").status_code == 404
    server.post(b"abc", reference="policies")
    other = server.post(b"abc", "wav", reference="policies")
    assert (other.status_code, error(other)["message"]) == (
        409,
        "stream policies, policy: wav, expected raw, which made it",
    )


def test_strange_tags_are_only_names(server: Server) -> None:
    for tag in ("../../etc/passwd", "/abs", "..", "a?b&c=d#e%41+", "{{ 7*7 }}", "<b>", "naïve ☃", "-rf"):
        assert server.post(tag.encode(), reference=tag).status_code == 204
        assert server.stream(tag)["name"] == tag
        assert server.get("/streams/data", name=tag).content == tag.encode()
    assert not list(server.directory.rglob("passwd"))


def send_raw(server: Server, text: str, body: bytes, pause: float = 0) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(text.format(token=TOKEN).encode() + b"\r\n\r\n")
    connection.sendall(body)
    time.sleep(pause)
    return connection


HEAD = "POST /ingest/raw?reference={tag} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {{token}}\r\n{rest}"


@pytest.mark.parametrize("rest", ["Content-Length: 2000000", "Transfer-Encoding: chunked"])
def test_a_cut_body_stores_nothing(own_server: Server, rest: str) -> None:
    server = own_server.start()
    body = b"x" * 1_000_000 if "Length" in rest else b"1e8480\r\n" + b"x" * 1_000_000
    connection = send_raw(server, HEAD.format(tag="cut", rest=rest), body)
    incoming = server.folder / "incoming"
    wait_for(lambda: list(incoming.iterdir()), "the spooled body")
    connection.close()
    wait_for(lambda: not list(incoming.iterdir()), "the spooled body's end")
    assert server.get("/streams/meta", name="cut").status_code == 404


def test_a_body_that_lies_about_its_length_stores_nothing(server: Server) -> None:
    for number, rest in enumerate(["Content-Length: -5", "Content-Length: 9x", "Transfer-Encoding: chunked"]):
        with send_raw(server, HEAD.format(tag=f"lie{number}", rest=rest), b"zz\r\nnot a chunk\r\n") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
        assert server.get("/streams/meta", name=f"lie{number}").status_code == 404


def test_a_large_body_is_refused_and_leaves_nothing(own_server: Server) -> None:
    own_server.settings["maximum_body_mib"] = 1
    own_server.start()
    for body in (b"x" * ((1 << 20) + 1), (b"x" * 65536 for _ in range(40))):
        answer = own_server.post(body, reference="large")  # type: ignore[arg-type]
        assert (answer.status_code, error(answer)["code"]) == (413, "too_large")
    assert own_server.get("/streams/meta", name="large").status_code == 404
    assert list((own_server.folder / "incoming").iterdir()) == []
    assert own_server.post(b"x" * (1 << 20), reference="large").status_code == 204


@pytest.mark.slow
def test_a_full_disk_refuses_and_keeps_what_is_there(own_server: Server) -> None:
    """First by the free space, then by writes that fail: of the body, and of the commit."""
    own_server.settings["minimum_free_mib"] = 1 << 40
    own_server.start()
    answer = own_server.post(b"abc", reference="full")
    assert answer.status_code == 507
    assert "MiB free, expected" in str(error(answer)["message"])
    own_server.stop()
    own_server.settings["minimum_free_mib"] = 0

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, 2_500_000))

    own_server.limits = limit
    own_server.start()
    assert own_server.post(b"x" * 3_000_000, reference="full").status_code == 507
    stored = 0
    for number in range(120):
        answer = own_server.post(bytes([number]) * 30_000, reference="full")
        if answer.status_code != 204:
            break
        stored += 1
    assert (answer.status_code, error(answer)["code"]) == (507, "unavailable"), own_server.log[-3000:]
    assert 40 <= stored < 120
    expected = b"".join(bytes([number]) * 30_000 for number in range(stored))
    assert own_server.get("/streams/data", name="full").content == expected
    # it ends by itself, for its supervisor to start it again: what is in FileStorage's buffers must not be written
    assert own_server.process
    assert own_server.process.wait(20) == 1
    own_server.limits = None
    own_server.start()
    assert own_server.get("/streams/data", name="full").content == expected
    assert own_server.post(b"again", reference="full").status_code == 204
    assert own_server.get("/streams/data", name="full").content == expected + b"again"


def test_many_senders_share_commits(server: Server) -> None:
    def send(number: int) -> int:
        return sum(
            server.post(b"%d.%d;" % (number, part), reference=f"many{number % 4}").status_code for part in range(10)
        )

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(8))) == [2040] * 8
    found = b"".join(server.get("/streams/data", name=f"many{number}").content for number in range(4))
    assert sorted(found.split(b";")[:-1]) == sorted(b"%d.%d" % (a, b) for a in range(8) for b in range(10))


@pytest.mark.slow
def test_killed_during_ingestion_the_lake_has_what_was_acknowledged_once(own_server: Server) -> None:
    """A client that repeats until it has an answer, a server that is killed again and again."""
    own_server.start()
    chunks = [os.urandom(20 + number * 997 % 60_000) for number in range(150)]
    acknowledged: list[int] = []
    going = threading.Event()
    going.set()

    def send() -> None:
        for number, chunk in enumerate(chunks):
            while True:
                try:
                    answer = own_server.post(chunk, reference="k", chunk_id=str(number), final=int(number == 149))
                except requests.RequestException:
                    time.sleep(0.05)
                    continue
                assert answer.status_code == 204, answer.text
                acknowledged.append(number)
                break
        going.clear()

    sender = threading.Thread(target=send)
    sender.start()
    kills = 0
    while going.is_set() and kills < 6:
        time.sleep(0.05 + 0.07 * kills)
        own_server.kill()
        kills += 1
        own_server.start()
    sender.join(60)
    assert not sender.is_alive()
    assert kills >= 2
    assert acknowledged == list(range(150))
    assert own_server.get("/streams/data", name="k").content == b"".join(chunks)
    own_server.kill()
    with open_lake(own_server.folder) as lake:
        stream = lake.streams["k"]
        assert stream.read() == b"".join(chunks)
        assert (stream.final, stream.describe()["chunks"]) == (True, 150)
        assert stream.verify() == []  # type: ignore[attr-defined]


def test_healthz_needs_no_token(server: Server) -> None:
    answer = requests.get(f"{server.url}/healthz", timeout=10)
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "version": "0.1.0", "checks": []}


def test_secrets_stand_nowhere(server: Server, tmp_path: Path) -> None:
    assert TOKEN not in server.log
    assert TOKEN not in Path(f"/proc/{server.process.pid}/cmdline").read_text()  # type: ignore[union-attr]
    assert TOKEN not in Path(f"/proc/{server.process.pid}/environ").read_text()  # type: ignore[union-attr]
    assert TOKEN not in json.dumps(server.get("/streams").json())


@pytest.mark.parametrize("shared", [False, True])
def test_a_sender_that_falls_silent_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield b"x" * (PIECE_BYTES + 1)
        await asyncio.sleep(60)

    async def receive() -> None:
        with Spool(Extents(tmp_path, shared=shared), 1 << 20) as spool:
            await spool.receive(each(silent()))

    monkeypatch.setattr("clachan_lake.ingest.spool.SILENT_SECONDS", 0.1)
    with pytest.raises(RefusedError, match=r"body: nothing came for 0\.1 s") as refused:
        asyncio.run(receive())
    assert refused.value.status == 408
    assert list(tmp_path.iterdir()) == []
