"""Tokens over real sockets: what one may is what its scopes say, until it expires or is revoked."""

import base64
import time
from typing import Any

import pytest
import requests
from clachan_lake.access import credentials
from clachan_lake.access.principal import Principal
from clachan_lake.access.scopes import allow, check_scope
from clachan_lake.errors import MissingError, RemoteError, RequestError
from clachan_lake.ingest.registry import Registry
from clachan_lake.ingest.tending import Tending
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake
from clachan_lake.refusal import RefusedError

from .making import TOKEN, Server, wait_for


def error(answer: requests.Response) -> str:
    return str(answer.json()["error"]["message"])


def make(server: Server, *scopes: str, **more: Any) -> tuple[str, str]:
    answer = server.session.post(f"{server.url}/tokens", json={"scopes": scopes, **more}, timeout=20)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.json()["id"], answer.json()["token"]


def send(server: Server, token: str, body: bytes, policy: str = "raw", **parameters: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return requests.post(f"{server.url}/ingest/{policy}", body, params=parameters, headers=headers, timeout=20)


def declare(server: Server, policy: str, **keys: Any) -> None:
    answer = server.session.put(f"{server.url}/policies/meta", params={"name": policy}, json=keys, timeout=20)
    assert answer.status_code in {200, 201}, answer.text


@pytest.mark.parametrize(
    ("scope", "need", "allowed"),
    [
        ("admin", "admin", True),
        ("admin", "ingest:raw", True),
        ("admin", "view:array/x", True),
        ("write", "read", True),
        ("write", "admin", False),
        ("write", "ingest:raw", False),
        ("write", "compute", False),
        ("read", "view:stream/x", True),
        ("read", "write", False),
        ("compute", "compute", True),
        ("compute", "read", False),
        ("ingest:raw", "ingest:raw", True),
        ("ingest:raw", "ingest:raw2", False),
        ("ingest:*", "ingest:raw", True),
        ("ingest:*", "read", False),
        ("view:array/x", "view:array/x", True),
        ("view:array/x", "view:array/xy", False),
        ("view:array/x", "view:stream/x", False),
        ("view:array/x", "read", False),
    ],
)
def test_what_a_scope_contains(scope: str, need: str, *, allowed: bool) -> None:
    assert allow([check_scope(scope)], need) is allowed


@pytest.mark.parametrize(
    "scope",
    ["", "root", "ingest:", "ingest:a/b", "ingest:**", "view:x", "view:job/x", "view:array/", "read ", "a\nb", 1],
)
def test_what_is_no_scope(lake: LocalLake, scope: Any) -> None:
    with lake.transaction(), pytest.raises(ValueError, match=r"token, key scopes: .*, expected admin, write, read"):
        lake.tokens.create(scopes=[scope])


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({}, "token, key scopes: missing, expected a value"),
        ({"scopes": []}, "token, key scopes: [], expected a list of 1-100 scopes"),
        ({"scopes": "read"}, "token, key scopes: 'read', expected a list of 1-100 scopes"),
        ({"scopes": ["read"], "seconds": 0}, "token, key seconds: 0, expected a whole number of at least 1, or null"),
        ({"scopes": ["read"], "note": 5}, "token, key note: 5, expected at most 1024 bytes of text"),
        ({"scopes": ["read"], "same_content_seconds": -1}, "key same_content_seconds: -1, expected 0-604800 seconds"),
        ({"scopes": ["read"], "self": 1}, "token, key self: unknown, expected one of scopes, seconds, note"),
    ],
)
def test_what_is_wrong_with_an_order_is_named(server: Server, order: dict[str, Any], message: str) -> None:
    answer = server.session.post(f"{server.url}/tokens", json=order, timeout=20)
    assert answer.status_code == 400
    assert message in error(answer)


def test_only_a_digest_is_kept(lake: LocalLake) -> None:
    with lake.transaction():
        key, token = lake.tokens.create(scopes=["read"], note="for <b>me</b>", seconds=60)
    document = lake.documents("tokens")[key]
    assert token not in str(document)
    assert set(lake.tokens[key]) == {"scopes", "expires", "revoked", "note", "same_content_seconds"}
    assert lake.tokens[key]["expires"] > time.time() * 1000 + 50_000
    with lake.transaction():
        lake.tokens.revoke(key)
    revoked = lake.tokens[key]["revoked"]
    with lake.transaction():
        lake.tokens.revoke(key)
    assert lake.tokens[key]["revoked"] == revoked
    with pytest.raises(MissingError, match="tokens, 'x': none of this name"), lake.transaction():
        lake.tokens.revoke("x")


def test_tokens_that_have_not_held_for_long_are_forgotten(lake: LocalLake) -> None:
    with lake.transaction():
        valid, _ = lake.tokens.create(scopes=["read"], seconds=10_000)
        ended, _ = lake.tokens.create(scopes=["read"])
        lake.tokens.revoke(ended)
        forever, _ = lake.tokens.create(scopes=["read"])
    tending = Tending(lake.session(), Registry(lake.session(), TOKEN))
    tending.purge()
    lake.refresh()
    assert set(lake.tokens) == {valid, ended, forever}
    month = 30 * 86_400_000
    document = lake.documents("tokens")[ended]
    with lake.transaction():
        lake.documents("tokens").put(ended, {**document, "revoked": document["revoked"] - month - 1000})
    lake.refresh()
    tending.step()
    tending.purge()
    lake.refresh()
    assert set(lake.tokens) == {valid, forever}


def test_a_change_of_one_among_many_is_learned(lake: LocalLake) -> None:
    """More than a session keeps in memory."""
    with lake.transaction():
        made = [lake.tokens.create(scopes=["read"]) for _ in range(2500)]
    registry = Registry(lake.session(), TOKEN)
    assert registry.principal(made[7][1]).id == made[7][0]
    with lake.transaction():
        lake.tokens.revoke(made[7][0])
        late, token = lake.tokens.create(scopes=["write"])
    assert registry.principal(made[7][1]).id == made[7][0]
    registry.refresh()
    with pytest.raises(RefusedError, match=f"token {made[7][0]} is revoked"):
        registry.principal(made[7][1])
    assert registry.principal(token) == Principal(late, frozenset({"write"}))
    assert registry.principal(made[2400][1]).id == made[2400][0]
    assert registry.principal(TOKEN).may("admin")
    for wrong in ("", "x", TOKEN + " ", TOKEN[:-1], "\udcff", made[3][0]):
        with pytest.raises(RefusedError, match="credentials: none or wrong"):
            registry.principal(wrong)


def test_a_document_that_cannot_be_is_not_in_force(lake: LocalLake, caplog: pytest.LogCaptureFixture) -> None:
    with lake.transaction():
        lake.policies.declare("good")
        lake.documents("policies").put("bad", {"into": "nothing"})
        lake.documents("tokens").put("bad", {"sha256": "0" * 64, "scopes": ["root"]})
    registry = Registry(lake.session(), TOKEN)
    assert set(registry.policies) == {"good"}
    assert [record.message for record in caplog.records] == [
        "not in force: policy bad, key into: 'nothing', expected stream or array",
        "not in force: token 'bad', key scopes: 'root', expected admin, write, read, compute, work, ingest:<policy>, "
        "ingest:* or view:<stream or array>/<name>",
    ]
    with lake.transaction():
        lake.policies.declare("bad")
    registry.refresh()
    assert set(registry.policies) == {"good", "bad"}


def test_a_token_is_for_its_policy_alone(server: Server) -> None:
    _, token = make(server, "ingest:raw")
    assert send(server, token, b"abc", reference="own").status_code == 204
    other = send(server, token, b"abc", "wav", reference="own")
    assert (other.status_code, error(other)) == (403, "token: without the scope 'ingest:wav', expected one that has it")
    for path in ("/streams", "/streams/data?name=own", "/policies", "/tokens"):
        answer = requests.get(server.url + path, headers={"Authorization": f"Bearer {token}"}, timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert server.get("/streams/data", name="own").content == b"abc"


def test_a_revoked_token_is_refused_at_once(server: Server) -> None:
    key, token = make(server, "ingest:*")
    assert send(server, token, b"1", reference="revoked").status_code == 204
    assert server.session.delete(f"{server.url}/tokens/meta?id={key}", timeout=20).status_code == 204
    answer = send(server, token, b"2", reference="revoked")
    assert (answer.status_code, error(answer)) == (401, f"credentials: token {key} is revoked, expected one that holds")
    assert server.get("/streams/data", name="revoked").content == b"1"
    missing = server.session.delete(f"{server.url}/tokens/meta?id=none", timeout=20)
    assert (missing.status_code, error(missing)) == (404, "tokens, 'none': none of this name")
    assert missing.json()["error"]["field"] == "id"


def test_an_expired_token_is_refused(server: Server) -> None:
    key, token = make(server, "read", seconds=1)
    headers = {"Authorization": f"Bearer {token}"}
    assert requests.get(f"{server.url}/streams", headers=headers, timeout=20).status_code == 200
    time.sleep(1.1)
    answer = requests.get(f"{server.url}/streams", headers=headers, timeout=20)
    assert (answer.status_code, error(answer)) == (401, f"credentials: token {key} is expired, expected one that holds")


def test_what_another_process_revokes_is_refused_within_a_second(server: Server) -> None:
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake:
        assert isinstance(lake, LocalLake)
        with lake.transaction():
            key, token = lake.tokens.create(scopes=["read"])
        headers = {"Authorization": f"Bearer {token}"}

        def status() -> int:
            return requests.get(f"{server.url}/streams", headers=headers, timeout=20).status_code

        wait_for(lambda: status() == 200, "the token made beside the server", 3)
        with lake.transaction():
            lake.tokens.revoke(key)
        began = time.monotonic()
        wait_for(lambda: status() == 401, "the revocation", 3)
        assert time.monotonic() - began < 2


def test_where_a_token_may_stand(server: Server) -> None:
    server.post(b"abc", reference="seen")
    _, read = make(server, "read")
    _, view = make(server, "view:stream/seen")
    url = f"{server.url}/streams/meta?name=seen"
    basic = base64.b64encode(f"anybody:{read}".encode()).decode()
    for headers in ({"Authorization": f"Basic {basic}"}, {"Authorization": f"bearer {read}"}):
        assert requests.get(url, headers=headers, timeout=20).status_code == 200
    assert requests.get(url, cookies={credentials.COOKIE: read}, timeout=20).status_code == 200
    assert requests.get(f"{url}&token={view}", timeout=20).status_code == 200
    in_url = requests.get(f"{url}&token={read}", timeout=20)
    assert in_url.status_code == 401
    assert error(in_url) == "credentials: a token in the URL, expected one whose only scopes are view:…"
    assert requests.get(f"{url}&token={view}&token={view}", timeout=20).status_code == 401
    # what a page of another site can make a browser send has no force
    by_cookie = requests.post(
        f"{server.url}/ingest/raw?reference=seen", b"x", cookies={credentials.COOKIE: TOKEN}, timeout=20
    )
    assert by_cookie.status_code == 401
    in_url = requests.post(f"{server.url}/ingest/raw?reference=seen&token={TOKEN}", b"x", timeout=20)
    assert in_url.status_code == 401
    assert server.get("/streams/data", name="seen").content == b"abc"


def test_a_view_is_of_one_data_set(server: Server) -> None:
    for name in ("one", "two"):
        server.post(b"abc", reference=name)
    _, token = make(server, "view:stream/one")
    headers = {"Authorization": f"Bearer {token}"}

    def status(query: str) -> int:
        return requests.get(f"{server.url}/streams/data?{query}", headers=headers, timeout=20).status_code

    assert status("name=one") == 200
    for query in ("name=two", "name=one&name=two", "name=two&name=one", "", "name=", "Name=one", "name=one%00"):
        assert status(query) == 403, query
    assert requests.get(f"{server.url}/streams", headers=headers, timeout=20).status_code == 403
    assert requests.get(f"{server.url}/arrays/meta?name=one", headers=headers, timeout=20).status_code == 403


def test_equal_content_of_one_sender_is_a_repeat_where_the_token_says_so(server: Server) -> None:
    _, token = make(server, "ingest:*", same_content_seconds=60)
    _, another = make(server, "ingest:*", same_content_seconds=60)
    _, plain = make(server, "ingest:*")
    answers = [send(server, token, b"event 1\n", reference="window") for _ in range(3)]
    assert [answer.headers["Clachan-Repeat"] for answer in answers] == ["false", "true", "true"]
    assert {answer.headers["Clachan-Stream-Size"] for answer in answers} == {"8"}
    # other bytes, another stream, another sender, a chunk id: none of them is a repeat
    assert send(server, token, b"event 2\n", reference="window").headers["Clachan-Repeat"] == "false"
    assert send(server, token, b"event 1\n", reference="window2").headers["Clachan-Repeat"] == "false"
    assert send(server, another, b"event 1\n", reference="window").headers["Clachan-Repeat"] == "false"
    assert send(server, token, b"event 1\n", reference="window", chunk_id="7").headers["Clachan-Repeat"] == "false"
    # without it equal bytes are as many events
    for _ in range(3):
        assert send(server, plain, b"silence\n", reference="window").headers["Clachan-Repeat"] == "false"
    content = server.get("/streams/data", name="window").content
    assert content == b"event 1\nevent 2\nevent 1\nevent 1\n" + 3 * b"silence\n"


@pytest.mark.slow
def test_equal_content_is_recognised_by_a_server_begun_again(own_server: Server) -> None:
    own_server.start()
    _, token = make(own_server, "ingest:*", same_content_seconds=600)
    assert send(own_server, token, b"abc", reference="x").headers["Clachan-Repeat"] == "false"
    own_server.kill()
    own_server.start()
    assert send(own_server, token, b"abc", reference="x").headers["Clachan-Repeat"] == "true"
    assert own_server.get("/streams/data", name="x").content == b"abc"


def test_equal_content_is_recognised_for_the_window_only(server: Server) -> None:
    _, short = make(server, "ingest:*", same_content_seconds=4)
    # another's longer window keeps what is known longer, and changes nothing
    _, long = make(server, "ingest:*", same_content_seconds=600)
    send(server, long, b"abc", reference="short window")
    for _ in range(2):
        answers = [send(server, short, b"abc", reference="short window") for _ in range(2)]
        assert [answer.headers["Clachan-Repeat"] for answer in answers] == ["false", "true"]
        time.sleep(4.1)
    assert send(server, long, b"abc", reference="short window").headers["Clachan-Repeat"] == "true"
    assert server.get("/streams/data", name="short window").content == b"abcabcabc"


def test_equal_content_for_an_array(server: Server) -> None:
    declare(server, "rows", into="array", dtype="<i4")
    _, token = make(server, "ingest:rows", same_content_seconds=60)
    answers = [send(server, token, b"\1\0\0\0", "rows", reference="counted") for _ in range(2)]
    assert [answer.headers["Clachan-Repeat"] for answer in answers] == ["false", "true"]
    assert [answer.headers["Clachan-Array-Rows"] for answer in answers] == ["1", "1"]


def test_tokens_from_python(server: Server) -> None:
    with open_lake(server.url, token=TOKEN) as lake:
        key, token = lake.tokens.create(scopes=["read"], note="a notebook")
        assert key in lake.tokens
        assert lake.tokens[key]["scopes"] == ["read"]
        with open_lake(server.url, token=token) as reader:
            assert "raw" in reader.policies
            with pytest.raises(RemoteError, match="403 token: without the scope 'admin', expected one that has it"):
                reader.policies.declare("mine")
        with pytest.raises(RequestError, match="token, key scopes: 'root', expected admin"):
            lake.tokens.create(scopes=["root"])
        lake.tokens.revoke(key)
        assert lake.tokens[key]["revoked"]
        with open_lake(server.url, token=token) as reader, pytest.raises(RemoteError, match="is revoked"):
            list(reader.streams)
        with pytest.raises(MissingError):
            lake.tokens["none"]
