"""For how long a policy keeps chunks and their ids, and how much it may hold."""

import time
from typing import Any

import pytest
import requests

from .making import Server, wait_for


def error(answer: requests.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


def declare(server: Server, policy: str, **keys: Any) -> None:
    answer = server.session.put(f"{server.url}/policies/meta", params={"name": policy}, json=keys, timeout=20)
    assert answer.status_code in {200, 201}, answer.text


def test_ids_are_known_for_as_long_as_the_policy_says(server: Server) -> None:
    declare(server, "short", ids_seconds=4)
    assert server.post(b"a", "short", reference="ids", chunk_id="1").headers["Clachan-Repeat"] == "false"
    assert server.post(b"a", "short", reference="ids", chunk_id="1").headers["Clachan-Repeat"] == "true"
    began = time.monotonic()

    def forgotten() -> bool:
        return server.post(b"a", "short", reference="ids", chunk_id="1").headers["Clachan-Repeat"] == "false"

    wait_for(forgotten, "the id's end", 10)
    assert time.monotonic() - began > 2
    assert server.get("/streams/data", name="ids").content == b"aa"


@pytest.mark.slow
def test_a_quota_is_of_all_that_a_policy_made(own_server: Server) -> None:
    own_server.start()
    declare(own_server, "small", quota_bytes=1000)
    declare(own_server, "rows", into="array", dtype="<i4", quota_bytes=8)
    assert own_server.post(b"x" * 600, "small", reference="a").status_code == 204
    full = own_server.post(b"x" * 600, "small", reference="b")
    assert (full.status_code, full.headers["Retry-After"], error(full)["code"]) == (507, "60", "unavailable")
    assert error(full)["message"] == (
        "policy small: 600 bytes held and 600 more, expected at most its quota_bytes 1000"
    )
    assert own_server.get("/streams/meta", name="b").status_code == 404
    never = own_server.post(b"x" * 1001, "small", reference="b")
    assert (never.status_code, error(never)["message"]) == (
        413,
        "body: 1001 bytes, expected at most the quota_bytes of policy small: 1000",
    )

    def parts() -> Any:
        yield b"x" * 600

    chunked = own_server.session.post(f"{own_server.url}/ingest/small?reference=b", parts(), timeout=20)
    assert chunked.status_code == 507
    assert own_server.post(b"x" * 400, "small", reference="b").status_code == 204
    assert own_server.post(b"x", "small", reference="a").status_code == 507
    assert own_server.post(b"\0" * 8, "rows", reference="r").status_code == 204
    assert own_server.post(b"\0" * 4, "rows", reference="r").status_code == 507
    own_server.stop()
    own_server.start()
    assert own_server.post(b"x", "small", reference="a").status_code == 507
    assert own_server.post(b"\0" * 4, "rows", reference="r").status_code == 507
    own_server.session.delete(f"{own_server.url}/streams/meta?name=a", timeout=20)
    wait_for(lambda: own_server.post(b"x" * 500, "small", reference="c").status_code == 204, "the room", 10)
    assert own_server.post(b"x" * 500, "small", reference="c").status_code == 507


def test_what_is_older_or_more_than_is_kept_goes_from_the_start(server: Server) -> None:
    declare(server, "bytes", keep_bytes=25)
    declare(server, "seconds", keep_seconds=2)
    for number in range(6):
        server.post(b"%d" % number * 10, "bytes", reference="rolling")
    server.post(b"old", "seconds", reference="aging")

    def rolled() -> dict[str, Any] | None:
        found = server.stream("rolling")
        return found if found["start"] else None

    found = wait_for(rolled, "the truncation", 10)
    # whole chunks, and never less than is to be kept
    assert (found["start"], found["size"], found["chunks"]) == (30, 60, 3)
    assert server.get("/streams/data", name="rolling").content == b"3" * 10 + b"4" * 10 + b"5" * 10
    gone = server.session.get(f"{server.url}/streams/data?name=rolling", headers={"Range": "bytes=5-9"}, timeout=20)
    assert (gone.status_code, gone.headers["Clachan-Stream-Start"]) == (416, "30")
    part = server.session.get(f"{server.url}/streams/data?name=rolling", headers={"Range": "bytes=45-54"}, timeout=20)
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (
        206,
        b"4" * 5 + b"5" * 5,
        "bytes 45-54/60",
    )
    wait_for(lambda: server.stream("aging")["start"] == 3, "the end of what was old", 10)
    assert server.stream("aging")["size"] == 3
    answer = server.post(b"new", "seconds", reference="aging", offset=3)
    assert (answer.status_code, answer.headers["Clachan-Stream-Size"]) == (204, "6")
    assert server.get("/streams/data", name="aging").content == b"new"


def test_a_reader_goes_on_while_what_it_reads_is_truncated(server: Server) -> None:
    body = bytes(range(256)) * 16_384
    for _ in range(4):
        server.post(body, reference="read")
    url = f"{server.url}/streams/data?name=read"
    with server.session.get(url, timeout=20, stream=True) as answer:
        parts = answer.iter_content(1 << 16)
        got = next(parts)
        done = server.session.post(f"{server.url}/streams/truncate?name=read&before={3 * len(body)}", timeout=20)
        assert done.json() == {"start": 3 * len(body), "size": 4 * len(body), "forgotten": 3 * len(body)}
        got += b"".join(parts)
    assert got == 4 * body
    assert server.get("/streams/data", name="read").content == body
