"""One error envelope for everything, whoever found the error."""

from typing import Any

import pytest
from live import API, Caller, Live

SHAPE = {"code", "message", "field", "hint"}


def envelope(response: Any) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == SHAPE
    return error


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "field", "message"),
    [
        ("GET", "/nothing", None, 404, "not_found", None, f"GET {API}/nothing: Not Found"),
        ("PATCH", "/tenants", None, 405, "invalid", None, f"PATCH {API}/tenants: Method Not Allowed"),
        ("GET", "/tenants?limit=0", None, 422, "invalid", "limit", "limit: Input should be greater than or equal to 1"),
        (
            "GET",
            "/tenants?limit=501",
            None,
            422,
            "invalid",
            "limit",
            "limit: Input should be less than or equal to 500",
        ),
        (
            "GET",
            "/tenants?cursor=x",
            None,
            422,
            "invalid",
            "cursor",
            "cursor: 'x', expected the one of the page before",
        ),
        ("POST", "/tenants", {"name": "x"}, 422, "invalid", "account", "account: Field required"),
        (
            "POST",
            "/tenants",
            {"name": "x", "account": "home", "more": 1},
            422,
            "invalid",
            "more",
            "more: Extra inputs are not permitted",
        ),
        (
            "POST",
            "/tenants",
            {"name": "x", "account": "none"},
            422,
            "invalid",
            "account",
            "account none: unknown, expected one that exists",
        ),
        (
            "POST",
            "/tenants",
            {"name": "all", "account": "home"},
            422,
            "invalid",
            "name",
            "tenant all: the name is reserved, expected another",
        ),
        (
            "POST",
            "/accounts",
            {"name": "home", "title": "other"},
            409,
            "conflict",
            "title",
            "account home: exists with another title, expected ''",
        ),
        (
            "PUT",
            "/instances/home.x",
            {"software": "acme.web.none"},
            422,
            "invalid",
            "software",
            "software acme.web.none: unknown, expected a registered one",
        ),
        (
            "PUT",
            "/instances/none.x",
            {"software": "acme.web.hello"},
            404,
            "not_found",
            "path",
            "tenant none: unknown, expected one that exists",
        ),
        (
            "PUT",
            "/instances/home.x",
            {"software": "acme.web.hello", "type": "other"},
            422,
            "invalid",
            "type",
            "type of acme.web.hello: other, expected one of main",
        ),
        (
            "PUT",
            "/instances/home.x.y",
            {"software": "acme.web.hello"},
            409,
            "conflict",
            "path",
            "instance home.x.y: is requested by its parent home.x, expected a root instance",
        ),
        ("GET", "/events?after=-1", None, 422, "invalid", "after", "after: Input should be greater than or equal to 0"),
        (
            "GET",
            "/usage?since=yesterday",
            None,
            422,
            "invalid",
            "since",
            "time 'yesterday', expected ISO 8601 with a zone, like 2026-01-31T12:00:00Z",
        ),
    ],
)
def test_errors_have_one_shape(
    shared: Live, method: str, path: str, body: Any, status: int, code: str, field: str | None, message: str
) -> None:
    response = shared.call(method, path, body)
    error = envelope(response)
    assert (response.status_code, error["code"], error["field"], error["message"]) == (status, code, field, message)


@pytest.mark.parametrize(
    "path", ["Home.x", "home", "home.", "home.X", "home.a-b", "home.x%0a", "home.%2e%2e", "a" * 300]
)
def test_a_path_that_is_no_path_is_refused(shared: Live, path: str) -> None:
    response = shared.call("PUT", f"/instances/{path}", {"software": "acme.web.hello"})
    assert response.status_code == 422
    assert envelope(response)["message"].endswith("expected tenant.name, both of [a-z][a-z0-9_]{0,30}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "body: not JSON (EOF while parsing an object at line 1 column 1), expected a JSON document"),
        (b'{"name": "a\\ud800"}', None),
        (b'{"name": NaN}', None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_a_body_that_is_no_json_is_refused(shared: Live, data: bytes, message: str | None) -> None:
    headers = {"content-type": "application/json"}
    response = shared.call("POST", "/tenants", data=data, headers=headers)
    assert response.status_code == 422
    error = envelope(response)
    assert error["code"] == "invalid"
    assert message is None or error["message"] == message


def test_a_body_that_is_too_large_is_refused(shared: Live) -> None:
    headers = {"content-type": "application/json"}
    response = shared.call("POST", "/tenants", data=b" " * (1024 * 1024 + 1), headers=headers)
    assert (response.status_code, envelope(response)["code"]) == (413, "too_large")

    def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100_000

    response = shared.call("POST", "/tenants", data=chunks(), headers=headers)
    assert (response.status_code, envelope(response)["code"]) == (413, "too_large")


def test_nobody_learns_nothing(shared: Live) -> None:
    nobody = Caller(shared.url, shared.ca_file)
    for caller in (nobody, Caller(shared.url, shared.ca_file, "clachan_wrong")):
        response = caller.call("POST", "/tenants", data=b"{", headers={"content-type": "application/json"})
        assert (response.status_code, envelope(response)["code"]) == (401, "unauthenticated")
        assert response.headers["www-authenticate"] == "Bearer"
    response = nobody.call("GET", "/tenants", headers={"authorization": "Basic eDp5"})
    assert envelope(response)["message"] == "authorization: another scheme, expected Bearer and a token"
