"""Transformations over HTTP: declared, acted on, run by the server's worker; the client beside the local lake."""

from typing import Any

import pytest
from clachan_lake.errors import MissingError, RequestError
from clachan_lake.interface import Lake
from clachan_lake.opening import open_lake
from clachan_lake.remote import RemoteLake
from ZODB.POSException import ConflictError

from .making import TOKEN, Server, wait_for

LINES = """
import numpy as np
def transform(batch, output, state):
    *lines, rest = (state.get("rest", "").encode() + batch.data).split(b"\\n")
    output.append(np.array([int(line) for line in lines], "i8"))
    state["rest"] = rest.decode()
"""
COLUMNS = [{"name": "n", "dtype": "int64"}]


def declare(server: Server, name: str, **document: Any) -> Any:
    return server.session.put(f"{server.url}/transformations/meta", params={"name": name}, json=document, timeout=20)


def act(server: Server, name: str, action: str, **more: Any) -> Any:
    parameters = {"name": name, "action": action, **more}
    return server.session.post(f"{server.url}/transformations/action", params=parameters, timeout=20)


def source(pattern: str) -> dict[str, str]:
    return {"kind": "stream", "pattern": pattern}


def rows(server: Server, name: str, count: int) -> list[int]:
    """Of an array, once it has so many."""

    def there() -> Any:
        answer = server.get("/arrays/meta", name=name)
        return answer.status_code == 200 and answer.json()["shape"][0] >= count

    wait_for(there, f"{count} rows of {name}")
    with open_lake(server.url, token=TOKEN) as lake:
        return lake.arrays[name][:].tolist()  # type: ignore[no-any-return]


def test_declare_run_pause_backfill_delete(server: Server) -> None:
    document = {"code": LINES, "source": source("run/.*"), "output": "{name}.out"}
    tried = server.session.put(
        f"{server.url}/transformations/meta", params={"name": "run", "dry_run": 1}, json=document, timeout=20
    )
    assert (tried.status_code, tried.headers["Clachan-Changed"]) == (201, "true")
    assert server.get("/transformations/meta", name="run").status_code == 404
    made = declare(server, "run", **document)
    assert (made.status_code, made.headers["Clachan-Changed"]) == (201, "true")
    again = declare(server, "run", **document)
    assert (again.status_code, again.headers["Clachan-Changed"], again.json()["revision"]) == (200, "false", 1)
    server.post(b"1\n2\n3", reference="run/x")
    assert rows(server, "run/x.out", 2) == [1, 2]
    assert act(server, "run", "pause").json() == {"sources": 1}
    assert act(server, "run", "pause").headers["Clachan-Changed"] == "false"
    server.post(b"4\n", reference="run/x")
    (found,) = server.get("/transformations/positions", name="run").json()["items"]
    assert (found["source"], found["state"], found["position"], found["lag_bytes"]) == ("run/x", "paused", 5, 2)
    act(server, "run", "resume")
    assert rows(server, "run/x.out", 3) == [1, 2, 34]
    declare(server, "run", **{**document, "code": LINES.replace("int(line)", "-int(line)")})
    assert act(server, "run", "backfill", source="run/x").json() == {"sources": 1}
    wait_for(lambda: rows(server, "run/x.out", 3) == [-1, -2, -34], "the back-fill")
    answer = server.session.delete(f"{server.url}/transformations/meta", params={"name": "run"}, timeout=20)
    assert answer.status_code == 204
    assert server.stream("run/x")["transformations"] == []
    assert rows(server, "run/x.out", 3) == [-1, -2, -34]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "transformation bad, key source: missing, expected a value"),
        ({"source": {"kind": "stream"}, "function": "os"}, "key function: 'os', expected one of"),
        ({"source": {"kind": "stream"}, "code": "x", "x": 1}, "key x: unknown, expected one of"),
        ({"source": {"kind": "stream"}, "function": "csv", "options": {"x": 1}}, "key x: unknown, expected one of"),
        ({"source": {"kind": "stream", "pattern": "(a|b)*)"}, "code": "x"}, "expected a regular expression"),
    ],
)
def test_what_is_wrong_is_named(server: Server, document: dict[str, Any], message: str) -> None:
    answer = declare(server, "bad", **document)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert server.get("/transformations/meta", name="bad").status_code == 404


def test_what_is_not_there_is_404(server: Server) -> None:
    for answer in (act(server, "nope", "pause"), server.get("/transformations/positions", name="nope")):
        assert (answer.status_code, answer.json()["error"]["field"]) == (404, "name")
    assert act(server, "nope", "explode").status_code in {400, 422}


def test_lists_come_in_pages(server: Server) -> None:
    for name in ("page-a", "page-b", "page-c"):
        declare(server, name, code="x = 1", source=source("nothing"), paused=True)
    first = server.get("/transformations", limit=2, prefix="page-").json()
    assert [one["transformation"] for one in first["items"]] == ["page-a", "page-b"]
    rest = server.get("/transformations", limit=2, prefix="page-", cursor=first["cursor"]).json()
    assert ([one["transformation"] for one in rest["items"]], rest["cursor"]) == (["page-c"], None)
    declare(server, "page-a", code="x = 1", source=source("page/.*"), paused=True)
    for name in ("page/1", "page/2", "page/3"):
        server.post(b"x", reference=name)
    first = server.get("/transformations/positions", name="page-a", limit=2).json()
    rest = server.get("/transformations/positions", name="page-a", cursor=first["cursor"]).json()
    assert [one["source"] for one in (*first["items"], *rest["items"])] == ["page/1", "page/2", "page/3"]
    assert rest["cursor"] is None


def test_the_client_does_as_the_local_lake(server: Server) -> None:
    with open_lake(server.url, token=TOKEN) as lake:
        assert isinstance(lake, RemoteLake)
        found = lake.transformations
        document = {"function": "jsonl", "source": source("client/.*"), "output": "{name}.out"}
        with pytest.raises(RequestError, match="key options: options, key columns: missing"):
            found.declare("client", **document)
        assert found.declare("client", **document, options={"columns": COLUMNS})
        assert not found.declare("client", **document, options={"columns": COLUMNS})
        assert "client" in found
        assert "nope" not in found
        assert found["client"]["options"] == {"columns": COLUMNS}
        assert "client" in list(found)
        server.post(b'{"n":1}\n{"n":2}\n', reference="client/x")
        assert rows(server, "client/x.out", 2) == [(1,), (2,)]
        assert found.describe("client")["lag_bytes"] == 0
        assert [one["source"] for one in found.positions("client")] == ["client/x"]
        assert found.pause("client")
        assert found.resume("client")
        assert found.retry("client") == 0
        assert found.backfill("client", "client/x") == 1
        found.delete("client")
        with pytest.raises(MissingError, match="transformations, 'client': none of this name"):
            found.describe("client")
    with open_lake(server.socket, blobs=server.folder / "blobs") as local:
        assert set(found.__class__.__mro__[1].__abstractmethods__) <= set(dir(local.transformations))  # type: ignore[attr-defined]


def append(lake: Lake, name: str, data: bytes) -> None:
    """Again while the keeper commits to the same stream."""
    for _ in range(10):
        try:
            with lake.transaction():
                lake.streams[name].append(data)
            return
        except ConflictError:
            continue
    raise AssertionError(f"stream {name}: 10 conflicts, expected fewer")


def test_what_comes_through_the_socket_is_run_too(server: Server) -> None:
    """Nobody tells the keeper of it."""
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake:
        with lake.transaction():
            lake.transformations.declare("socket", code=LINES, source=source("socket/x"), output="{name}.out")  # type: ignore[attr-defined]
            lake.streams.create("socket/x").append(b"1\n")
        assert rows(server, "socket/x.out", 1) == [1]
        append(lake, "socket/x", b"2\n")
        assert rows(server, "socket/x.out", 2) == [1, 2]


def test_a_write_token_may_act_but_not_bring_code(server: Server) -> None:
    declare(server, "scoped", code=LINES, source=source("scoped"))
    made = server.session.post(f"{server.url}/tokens", json={"scopes": ["write"]}, timeout=20).json()
    bearer = {"Authorization": f"Bearer {made['token']}"}
    parameters: dict[str, str] = {"name": "scoped"}
    put = server.session.put(
        f"{server.url}/transformations/meta", params=parameters, json={}, headers=bearer, timeout=20
    )
    assert put.status_code == 403
    acted = server.session.post(
        f"{server.url}/transformations/action", params={**parameters, "action": "pause"}, headers=bearer, timeout=20
    )
    assert acted.status_code == 200
