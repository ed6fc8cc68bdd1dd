"""How the client behaves towards what is not, or not yet, or no longer a controller."""

import hashlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clachan.client import (
    ApiError,
    BadAnswerError,
    Client,
    ClientError,
    UnreachableError,
    UntrustedError,
    fetch_ca,
    transport,
    trusted_ca,
)
from clachan.contract.api import AccountDeclaration, Health, TokenDeclaration

if TYPE_CHECKING:
    from conftest import OddServer

HEALTHY = Health(status="ok", version="1", checks={}).json_bytes()
ACCOUNT = b'{"name": "home", "title": "", "created": "2026-01-01T00:00:00Z"}'
BUSY = b'{"error": {"code": "unavailable", "message": "busy", "field": null, "hint": null}}'


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PAUSES", (0.01, 0.02))


@pytest.fixture
def client(odd_server: "OddServer"):
    with Client(odd_server.url, token="the-token", ca_file=odd_server.ca_file) as opened:
        yield opened


def test_only_https_urls() -> None:
    for url in ("http://127.0.0.1:1", "c.example", "", "https://"):
        with pytest.raises(ClientError) as caught:
            Client(url)
        assert str(caught.value) == f"controller url: {url!r}, expected https://HOST[:PORT]"


def test_a_missing_ca_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UntrustedError) as caught:
        Client("https://127.0.0.1:1", ca_file=tmp_path / "ca.pem")
    assert str(caught.value) == (
        f"CA file: {tmp_path}/ca.pem does not exist, expected the PEM file of the controller's CA"
    )


def test_nothing_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{bound.getsockname()[1]}"
        with Client(url) as client, pytest.raises(UnreachableError) as caught:
            client.health()
    assert str(caught.value) == f"controller {url}: not reachable (Connection refused)"


def test_nobody_answers_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "CONNECT_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, answer_seconds=0.2) as client, pytest.raises(UnreachableError) as caught:
            client.create_token(TokenDeclaration())
    assert str(caught.value).startswith(f"controller {url}: no answer in time (")


def test_a_certificate_of_another_ca_is_refused(odd_server: "OddServer", tmp_path: Path) -> None:
    from clachan.server.ca import Authority

    Authority(tmp_path / "other")
    odd_server.will_answer((200, HEALTHY))
    client = Client(odd_server.url, token="the-token", ca_file=tmp_path / "other/ca.crt")
    with client, pytest.raises(UntrustedError) as caught:
        client.health()
    assert str(caught.value).startswith(f"controller {odd_server.url}: ")
    assert "certificate" in str(caught.value)
    assert str(caught.value).endswith(", expected a certificate of its CA")
    assert odd_server.asked == []


def test_the_environment_changes_neither_trust_nor_token(
    odd_server: "OddServer", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent.pem")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    odd_server.will_answer((200, HEALTHY))
    with Client(odd_server.url, token="the-token", ca_file=odd_server.ca_file) as client:
        client.health()
    assert odd_server.asked[0][2]["Authorization"] == "Bearer the-token"


def test_what_is_not_the_error_envelope(odd_server: "OddServer", client: Client) -> None:
    odd_server.will_answer((404, b"<html>nginx</html>"))
    with pytest.raises(BadAnswerError) as caught:
        client.health()
    assert str(caught.value) == (
        f"answer to GET /healthz of {odd_server.url}: status 404, expected a Clachan controller"
    )


def test_what_is_not_the_document(odd_server: "OddServer", client: Client) -> None:
    odd_server.will_answer((200, b'{"status": "ok", "version": 5, "checks": {}}'))
    with pytest.raises(BadAnswerError, match="expected Health of clachan") as caught:
        client.health()
    assert "version Input should be a valid string" in str(caught.value)


def test_a_redirect_is_not_followed(odd_server: "OddServer", client: Client) -> None:
    odd_server.will_answer((302, b"", {"Location": "https://elsewhere.example/"}))
    with pytest.raises(BadAnswerError, match="status 302"):
        client.health()
    assert len(odd_server.asked) == 1


def test_an_api_error_has_its_parts(odd_server: "OddServer", client: Client) -> None:
    body = b'{"error": {"code": "invalid", "message": "no", "field": "parameters.x", "hint": "try y"}}'
    odd_server.will_answer((422, body))
    with pytest.raises(ApiError) as caught:
        client.health()
    error = caught.value
    assert (error.code, error.message, error.field, error.hint, error.status, str(error)) == (
        "invalid", "no", "parameters.x", "try y", 422, "no",
    )  # fmt: skip


@pytest.mark.parametrize("first", [None, (503, BUSY)])
def test_idempotent_requests_are_tried_again(
    first: tuple[int, bytes] | None, odd_server: "OddServer", client: Client
) -> None:
    odd_server.will_answer(first, (200, ACCOUNT))
    assert client.create_account(AccountDeclaration(name="home")).name == "home"
    assert [asked[0] for asked in odd_server.asked] == ["POST", "POST"]
    assert odd_server.asked[0][3] == odd_server.asked[1][3]


def test_they_are_tried_three_times(odd_server: "OddServer", client: Client) -> None:
    odd_server.will_answer((503, BUSY))
    with pytest.raises(ApiError, match="busy"):
        client.health()
    assert len(odd_server.asked) == 3


def test_a_refusal_is_not_tried_again(odd_server: "OddServer", client: Client) -> None:
    odd_server.will_answer((409, BUSY.replace(b"unavailable", b"conflict")))
    with pytest.raises(ApiError):
        client.health()
    assert len(odd_server.asked) == 1


def test_what_would_make_a_second_thing_is_not_tried_again(odd_server: "OddServer", client: Client) -> None:
    odd_server.will_answer(None)
    with pytest.raises(UnreachableError):
        client.create_token(TokenDeclaration())
    assert len(odd_server.asked) == 1


def test_pages_are_fetched_as_they_are_read(odd_server: "OddServer", client: Client) -> None:
    odd_server.will_answer(
        (200, b'{"items": [' + ACCOUNT + b'], "cursor": "next&page"}'),
        (200, b'{"items": [' + ACCOUNT + b'], "cursor": null}'),
    )
    accounts = client.accounts()
    next(accounts)
    assert len(odd_server.asked) == 1
    assert len(list(accounts)) == 1
    assert [asked[1] for asked in odd_server.asked] == [
        "/api/v1/accounts?limit=500",
        "/api/v1/accounts?limit=500&cursor=next%26page",
    ]


def test_an_artifact_with_other_bytes_is_not_kept(odd_server: "OddServer", client: Client, tmp_path: Path) -> None:
    wanted = hashlib.sha256(b"right").hexdigest()
    destination = tmp_path / "a.tar.gz"
    odd_server.will_answer((200, b"wrong"))
    with pytest.raises(BadAnswerError) as caught:
        client.download_artifact(wanted, destination)
    found = hashlib.sha256(b"wrong").hexdigest()
    assert str(caught.value) == f"artifact {wanted}: sha256 of what came is {found}, expected the same"
    odd_server.will_answer((200, b"ri", {"Content-Length": "5", "Connection": "close"}), None)
    with pytest.raises(ClientError):
        client.download_artifact(wanted, destination)
    assert [path.name for path in tmp_path.iterdir()] == ["odd-ca"]
    odd_server.will_answer((200, b"right"))
    client.download_artifact(wanted, destination)
    assert destination.read_bytes() == b"right"


def test_a_ca_is_trusted_by_the_fingerprint_in_the_join_token(odd_server: "OddServer") -> None:
    pem = odd_server.ca_file.read_text()
    odd_server.will_answer((200, pem.encode()))
    assert fetch_ca(odd_server.url) == (pem, odd_server.fingerprint)
    assert trusted_ca(odd_server.url, f"{odd_server.fingerprint[:32]}.secret") == pem
    with pytest.raises(UntrustedError) as caught:
        trusted_ca(odd_server.url, f"{'0' * 32}.secret")
    assert str(caught.value) == (
        f"CA of {odd_server.url}: fingerprint {odd_server.fingerprint}, expected one that begins with {'0' * 32}"
    )


@pytest.mark.parametrize("token", ["", "secret", f"{'0' * 32}", f"{'0' * 32}.", "0.secret", f"{'0' * 33}.secret"])
def test_a_join_token_of_another_form(token: str) -> None:
    with pytest.raises(ClientError) as caught:
        trusted_ca("https://127.0.0.1:1", token)
    assert str(caught.value) == "join token: not of the form, expected 32 hex digits, a dot and a secret"


def test_what_is_no_ca(odd_server: "OddServer") -> None:
    odd_server.will_answer((200, b"<html>"))
    with pytest.raises(BadAnswerError, match="no certificate, expected a Clachan controller"):
        fetch_ca(odd_server.url)
