"""Every route with every scope: nothing is served that the matrix does not say, and to nobody else."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from clachan_lake.access.permissions import MATRIX, OPEN, Ingest, View, needed
from clachan_lake.ingest.app import application
from clachan_lake.ingest.committer import Committer
from clachan_lake.ingest.config import Config
from clachan_lake.ingest.registry import Registry
from clachan_lake.local import LocalLake

from .making import TOKEN, Server

SCOPES = ("admin", "write", "read", "compute", "work", "ingest:*", "ingest:raw", "ingest:wav")
VIEWS = ("view:stream/seen", "view:array/seen", "view:stream/other")
CONTAINED = {
    "admin": {"admin"},
    "write": {"admin", "write"},
    "read": {"admin", "write", "read"},
    "compute": {"admin", "compute"},
    "work": {"admin", "work"},
}
UNSERVED = {"/openapi.json"}
"""Of the framework's own; the guard lets nobody there."""
PARTS = {"policy": "raw", "name": "none.js"}


def who_may(method: str, path: str) -> set[str]:
    """The scopes that let a request for the data set `seen`, or to the policy `raw`, through; by the words of the
    matrix, read another way than the service reads them."""
    need = MATRIX[method, path]
    if need == OPEN:
        return {*SCOPES, *VIEWS, "nobody"}
    if isinstance(need, Ingest):
        return {"admin", "ingest:*", "ingest:raw"}
    if isinstance(need, View):
        # requests for either kind are for the stream
        return {"admin", "write", "read", f"view:{need.kind or 'stream'}/seen"}
    return CONTAINED[need]


@pytest.fixture(scope="module")
def tokens(server: Server) -> dict[str, str]:
    server.post(b"abc", reference="seen")
    server.session.put(f"{server.url}/arrays/meta?name=seen", json={"shape": [0], "dtype": "<i2"}, timeout=20)
    found = {}
    for scope in (*SCOPES, *VIEWS):
        made = server.session.post(f"{server.url}/tokens", json={"scopes": [scope]}, timeout=20)
        found[scope] = made.json()["token"]
    return found


@pytest.fixture
def routes(lake: LocalLake, tmp_path: Path) -> Iterator[set[tuple[str, str]]]:
    """Of the service, as the framework knows them."""
    config = Config(tmp_path / "lake", tmp_path / "socket", tmp_path / "token")
    registry = Registry(lake.session(), TOKEN)
    committer = Committer(lake.session(), registry, 60, lambda: None)
    app = application(config, registry, lake, committer, faults=list, due=lambda: None)
    yield {(method, route.path) for route in _flat(app.routes) for method in route.methods - {"HEAD"}}
    registry.close()


def _flat(routes: Iterable[Any]) -> Iterator[Any]:
    for route in routes:
        inside = getattr(route, "original_router", None)
        if inside is not None:
            yield from _flat(inside.routes)
        elif route.path not in UNSERVED:
            yield route


def test_the_matrix_has_every_route_and_no_other(routes: set[tuple[str, str]]) -> None:
    # what a part of a path is called is the route's own matter
    assert {(method, re.sub(r"{.+?}", "{}", path)) for method, path in routes} == {
        (method, re.sub(r"{.+?}", "{}", path)) for method, path in MATRIX
    }


def asked(server: Server, method: str, path: str, token: str | None) -> requests.Response:
    query = {"name": "seen", "kind": "stream", "reference": "seen", "id": "none", "number": 1, "before": 0, "rows": 0}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if method == "DELETE":
        query["name"] = "none"
    url = server.url + path.format(**PARTS)
    return requests.request(
        method, url, params={**query, "action": "none"}, data=b"", headers=headers, timeout=20, allow_redirects=False
    )


@pytest.mark.parametrize(("method", "path"), sorted(MATRIX))
def test_every_route_with_every_scope(server: Server, tokens: dict[str, str], method: str, path: str) -> None:
    allowed = who_may(method, path)
    for scope, token in {**tokens, "nobody": None, "wrong": "wrong-token", "empty": ""}.items():
        answer = asked(server, method, path, token)
        if scope in allowed or "nobody" in allowed:
            # the form's own answer to a wrong token is 401, too
            assert answer.status_code not in {401, 403} or "nobody" in allowed, scope
        elif scope in tokens:
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), scope
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated"), scope


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/docs", 404),
        ("GET", "/streams/", 404),
        ("GET", "//streams", 404),
        ("GET", "/Streams", 404),
        ("POST", "/ingest/", 404),
        ("POST", "/ingest/raw/", 404),
        ("POST", "/ingest/a/b", 404),
        ("POST", "/ingest/a%2Fb", 404),
        ("POST", "/portal_ingestion_policies/ingest", 404),
        ("POST", "/portal_ingestion_policies/raw/ingest/x", 404),
        ("PUT", "/ingest/raw", 405),
        ("PATCH", "/streams/meta", 405),
        ("OPTIONS", "/streams", 405),
        ("TRACE", "/streams", 405),
    ],
)
def test_what_is_not_in_the_matrix_is_not_served(server: Server, method: str, path: str, status: int) -> None:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {TOKEN}"
    request = session.prepare_request(requests.Request(method, server.url))
    request.url = server.url + path
    answer = session.send(request, timeout=20)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message", "field", "hint"}
    session.close()


def test_a_browser_is_led_to_the_login(server: Server) -> None:
    page = {"Accept": "text/html,application/xhtml+xml"}
    answer = requests.get(f"{server.url}/page?kind=stream&name=a%26b", headers=page, timeout=20, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (
        303,
        "/login?next=%2Fpage%3Fkind%3Dstream%26name%3Da%2526b",
    )
    for path, headers in (("/streams", page), ("/", {"Accept": "*/*"}), ("/", {**page, "Authorization": "Bearer x"})):
        answer = requests.get(server.url + path, headers=headers, timeout=20, allow_redirects=False)
        assert answer.status_code == 401


def test_what_a_request_needs() -> None:
    assert needed("HEAD", "/streams/data")[0] == MATRIX["GET", "/streams/data"]
    assert needed("POST", "/portal_ingestion_policies/a.b/ingest")[2] == "a.b"
    assert needed("GET", "/static/../streams")[0] == OPEN
