"""Arrays over HTTP, request by request: what is refused says why and changes nothing."""

import resource
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from clachan_lake.errors import (
    RequestError,
)
from clachan_lake.opening import open_lake
from clachan_lake.remote import RemoteLake

from .making import TOKEN, Server, wait_for

PAIR = {"shape": [0, 2], "dtype": "<i2"}


def put(server: Server, name: str, body: Any, **headers: str) -> requests.Response:
    return server.session.put(
        f"{server.url}/arrays/meta", params={"name": name}, json=body, headers=headers, timeout=20
    )


def delete(server: Server, name: str) -> requests.Response:
    return server.session.delete(f"{server.url}/arrays/meta", params={"name": name}, timeout=20)


def post(server: Server, data: Any, **parameters: Any) -> requests.Response:
    return server.session.post(f"{server.url}/arrays/data", params=parameters, data=data, timeout=20)


def said(answer: requests.Response) -> str:
    """A refusal's message; every refusal has this form."""
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "field", "hint"}
    return str(error["message"])


def remote(server: Server) -> RemoteLake:
    lake = open_lake(server.url, token=TOKEN)
    assert isinstance(lake, RemoteLake)
    return lake


def test_an_array_is_declared(server: Server) -> None:
    wanted = {**PAIR, "order": "C", "attrs": {"rate": 48000, "units": "V"}, "chunk_bytes": 4096}
    made = put(server, "declared", wanted)
    assert made.status_code == 201
    described = {"name": "declared", "shape": [0, 2], "dtype": "<i2", "order": "C", "bytes": 0}
    assert made.json() == {**described, "attrs": {"rate": 48000, "units": "V"}}
    before = server.get("/arrays/meta", name="declared").json()
    assert put(server, "declared", wanted).status_code == 200
    assert put(server, "declared", {}).status_code == 200
    assert server.get("/arrays/meta", name="declared").json() == before
    assert post(server, b"12345678", name="declared", rows=2).status_code == 204
    grown = put(server, "declared", {**wanted, "attrs": {"rate": 1, "new": [None]}, "remove_attrs": ["units", "nope"]})
    assert (grown.status_code, grown.json()["shape"]) == (200, [2, 2])
    assert grown.json()["attrs"] == {"rate": 1, "new": [None]}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"dtype": "<i4"}, """dtype: "<i4", expected "<i2" as it has"""),
        ({"dtype": [["a", "<i2"]]}, """dtype: [["a", "<i2"]], expected "<i2" as it has"""),
        ({"order": "F"}, """order: "F", expected "C" as it has"""),
        ({"shape": [0, 3]}, "shape: [0, 3], expected [0, 2] as it has"),
        ({"shape": [0]}, "shape: [0], expected [0, 2] as it has"),
        ({"shape": [0, 2, 1]}, "shape: [0, 2, 1], expected [0, 2] as it has"),
    ],
)
def test_another_array_of_the_name_is_refused(server: Server, other: dict[str, Any], message: str) -> None:
    put(server, "taken", PAIR)
    answer = put(server, "taken", {**PAIR, **other, "attrs": {"x": 1}})
    assert (answer.status_code, said(answer)) == (409, f"array 'taken', {message}")
    assert answer.json()["error"]["field"] == next(iter(other))
    assert server.get("/arrays/meta", name="taken").json()["attrs"] == {}
    new = put(server, "taken", PAIR, **{"If-None-Match": "*"})
    assert (new.status_code, said(new)) == (412, "array 'taken': exists, expected a new name")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"dtype": "<i2"}, "shape: missing, expected one: there is no such array"),
        ({"shape": [1]}, "dtype: missing, expected one: there is no such array"),
        ({**PAIR, "dtype": "nope"}, "dtype: 'nope', expected one of numpy's"),
        ({**PAIR, "dtype": "O"}, "dtype: 'O', expected one of numpy's, of a fixed size and without Python objects"),
        ({**PAIR, "dtype": [["a", "O"]]}, "without Python objects"),
        ({**PAIR, "dtype": "(3,)i4"}, "dtype: '(3,)i4', expected one of numpy's"),
        ({**PAIR, "dtype": "S0"}, "of a fixed size"),
        ({**PAIR, "dtype": [[]]}, "expected one of numpy's"),
        ({**PAIR, "dtype": 7}, "dtype: 7, expected one of numpy's"),
        ({**PAIR, "dtype": {"a": 1}}, "expected one of numpy's"),
        ({**PAIR, "shape": [-1, 2]}, "expected up to 64 sizes of at least 0"),
        ({**PAIR, "shape": [1 << 60, 1 << 60]}, "expected at most"),
        ({**PAIR, "shape": ["3"]}, "shape.0: Input should be a valid integer"),
        ({**PAIR, "shape": 3}, "shape: Input should be a valid array"),
        ({**PAIR, "order": "A"}, "order: Input should be 'C' or 'F'"),
        ({**PAIR, "attrs": [1]}, "attrs: Input should be an object"),
        ({**PAIR, "chunk_bytes": 5}, "chunk_bytes: 5, expected a multiple of 4096"),
        ({**PAIR, "unknown": 1}, "unknown: Extra inputs are not permitted"),
        ([1], "body: Input should be an object"),
    ],
)
def test_what_cannot_be_declared_is_named(server: Server, body: Any, message: str) -> None:
    answer = put(server, "cannot", body)
    assert answer.status_code == 400
    assert message in said(answer)
    assert server.get("/arrays/meta", name="cannot").status_code == 404


def test_strange_names_and_bodies(server: Server) -> None:
    for name in ("../../etc/passwd", "a?b&c=d", "{{ 7*7 }}", "naïve ☃", "<b>"):
        assert put(server, name, PAIR).status_code == 201
        assert post(server, b"1234", name=name, rows=1).status_code == 204
        assert server.get("/arrays/data", name=name).content == b"1234"
        assert delete(server, name).status_code == 204
    for name in ("", "a\nb", "x" * 2000):
        assert put(server, name, PAIR).status_code == 400
    no_json = server.session.put(f"{server.url}/arrays/meta?name=json", data=b"{nope", timeout=9)
    assert (no_json.status_code, "Invalid JSON" in said(no_json)) == (400, True)
    large = put(server, "large", {**PAIR, "attrs": {"x": "y" * (1 << 20)}})
    assert (large.status_code, said(large)) == (
        413,
        f"body: {large.request.headers['Content-Length']} bytes or more, expected at most {1 << 20}",
    )
    assert put(server, "nan", {**PAIR, "attrs": {"x": 1}}).status_code == 201
    nan = server.session.put(f"{server.url}/arrays/meta?name=nan", data=b'{"attrs": {"x": NaN}}', timeout=9)
    assert nan.status_code == 400
    assert server.get("/arrays/meta", name="nan").json()["attrs"] == {"x": 1}


def test_a_dry_run_answers_and_changes_nothing(server: Server) -> None:
    def dry(body: Any, **headers: str) -> requests.Response:
        where = f"{server.url}/arrays/meta?name=dry&dry_run=1"
        return server.session.put(where, json=body, headers=headers, timeout=9)

    assert (dry(PAIR).status_code, dry(PAIR).json()["shape"]) == (201, [0, 2])
    assert server.get("/arrays/meta", name="dry").status_code == 404
    assert "chunk_bytes: 5, expected" in said(dry({**PAIR, "chunk_bytes": 5}))
    put(server, "dry", PAIR)
    described = dry({"attrs": {"x": 1}})
    assert (described.status_code, described.json()["attrs"]) == (200, {"x": 1})
    assert server.get("/arrays/meta", name="dry").json()["attrs"] == {}
    assert (dry({"order": "F"}).status_code, dry(PAIR, **{"If-None-Match": "*"}).status_code) == (409, 412)


def test_an_array_is_deleted(server: Server) -> None:
    put(server, "deleted", PAIR)
    answer = delete(server, "deleted")
    assert (answer.status_code, answer.content) == (204, b"")
    again = delete(server, "deleted")
    assert (again.status_code, said(again)) == (404, "array 'deleted': none of this name")
    assert put(server, "deleted", {"shape": [3], "dtype": "f8"}).status_code == 201


def test_rows_are_appended(server: Server) -> None:
    put(server, "rows", PAIR)
    for number, rows in enumerate((1, 0, 5000, 40_000)):
        data = np.full((rows, 2), number, "<i2").tobytes()
        answer = post(server, data, name="rows", rows=rows)
        assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Clachan-Array-Rows"] == "45001"
    found = np.frombuffer(server.get("/arrays/data", name="rows").content, "<i2").reshape(-1, 2)
    assert found[:, 1].tolist() == [0] + [2] * 5000 + [3] * 40_000
    assert list((server.folder / "incoming").iterdir()) == []


def test_what_cannot_be_appended_is_named(server: Server) -> None:
    put(server, "append", PAIR)
    put(server, "one", {"shape": [], "dtype": "f8"})
    assert post(server, b"", name="append").status_code == 400
    wrong = post(server, b"12345", name="append", rows=2)
    assert (wrong.status_code, said(wrong)) == (400, "body: 5 bytes, expected 8: 2 rows of 4 bytes")
    missing = post(server, b"1234", name="nope", rows=1)
    assert (missing.status_code, said(missing)) == (404, "array 'nope': none of this name")
    single = post(server, b"12345678", name="one", rows=1)
    assert (single.status_code, said(single)) == (409, "array 'one': without axes, expected one that has rows")
    chunked = post(server, iter([b"1234"]), name="append", rows=1)
    assert (chunked.status_code, said(chunked)) == (411, "content-length: missing, expected the bytes of the rows")
    packed = server.session.post(
        f"{server.url}/arrays/data?name=append&rows=1", b"1234", headers={"Content-Encoding": "gzip"}, timeout=9
    )
    assert packed.status_code == 415
    for rows in ("-1", "x"):
        assert post(server, b"1234", name="append", rows=rows).status_code == 400
    assert server.get("/arrays/meta", name="append").json()["shape"] == [0, 2]


def test_after_is_where_the_rows_must_come_to_stand(server: Server) -> None:
    put(server, "after", PAIR)
    assert post(server, b"1234", name="after", rows=1, after=0).status_code == 204
    for after in (0, 5):
        answer = post(server, b"5678", name="after", rows=1, after=after)
        assert (answer.status_code, answer.headers["Clachan-Array-Rows"]) == (409, "1")
        assert said(answer) == f"array 'after', after: {after}, expected its rows 1"
    assert post(server, b"5678", name="after", rows=1, after=1).status_code == 204
    assert server.get("/arrays/data", name="after").content == b"12345678"


def test_a_body_that_is_cut_appends_nothing(server: Server) -> None:
    put(server, "cut", PAIR)
    head = f"POST /arrays/data?name=cut&rows=500000 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 2000000\r\n\r\n".encode() + b"x" * 1_000_000)
        wait_for(lambda: list((server.folder / "incoming").iterdir()), "the spooled body")
    wait_for(lambda: not list((server.folder / "incoming").iterdir()), "the spooled body's end")
    assert server.get("/arrays/meta", name="cut").json()["shape"] == [0, 2]


def test_a_body_is_never_whole_in_memory(own_server: Server) -> None:
    own_server.start()
    put(own_server, "big", {"shape": [0, 1 << 20], "dtype": "u1"})
    post(own_server, bytes(1 << 20), name="big", rows=1)
    assert own_server.process
    status = Path(f"/proc/{own_server.process.pid}/status")
    going = threading.Event()
    seen: list[int] = []

    def watch() -> None:
        while not going.wait(0.005):
            anonymous = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
            seen.append(int(anonymous.split()[1]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        time.sleep(0.1)
        assert post(own_server, np.ones(60 << 20, np.uint8).data, name="big", rows=60).status_code == 204
    finally:
        going.set()
        watcher.join()
    assert len(seen) > 10
    assert max(seen) - seen[0] < 24 << 10
    with remote(own_server) as lake:
        assert int(lake.arrays["big"][1:].sum(dtype="i8")) == 60 << 20


def test_too_much_at_once_is_refused(own_server: Server) -> None:
    own_server.settings["maximum_body_mib"] = 1
    own_server.start()
    put(own_server, "a", PAIR)
    answer = post(own_server, b"x" * (4 << 20), name="a", rows=1 << 20)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    with remote(own_server) as lake, pytest.raises(RequestError, match=r"413 body: 4194304 .*\(send it in parts"):
        lake.arrays["a"].append(np.zeros((1 << 20, 2), "i2"))
    assert own_server.get("/arrays/meta", name="a").json()["shape"] == [0, 2]


@pytest.mark.slow
def test_a_full_disk_refuses_and_keeps_what_is_there(own_server: Server) -> None:
    own_server.settings["minimum_free_mib"] = 1 << 40
    own_server.start()
    assert put(own_server, "full", PAIR).status_code == 507
    own_server.stop()
    own_server.settings["minimum_free_mib"] = 0

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))

    own_server.limits = limit
    own_server.start()
    put(own_server, "full", {"shape": [0], "dtype": "<u4"})
    big = post(own_server, b"x" * 4_000_000, name="full", rows=1_000_000)
    assert (big.status_code, "expected room" in said(big)) == (507, True)
    stored = 0
    for number in range(200):
        answer = post(
            own_server, np.full(20_000, number, "<u4").tobytes(), name="full", rows=20_000, after=20_000 * stored
        )
        if answer.status_code != 204:
            break
        stored += 1
    assert (answer.status_code, stored > 10) == (507, True), own_server.log[-3000:]
    own_server.stop()
    own_server.limits = None
    own_server.start()
    with remote(own_server) as lake:
        array = lake.arrays["full"]
        assert array.shape == (20_000 * stored,)
        np.testing.assert_array_equal(array[:], np.repeat(np.arange(stored, dtype="u4"), 20_000))
        array.append(np.zeros(5, "u4"), after=20_000 * stored)
