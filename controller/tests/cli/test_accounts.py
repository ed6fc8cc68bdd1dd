"""login, account, tenant, user, token: what they say is what the API says."""

import json
from pathlib import Path

import pytest
from clachan.client import Client
from clachan.contract.api import UserDeclaration


def plain(documents):
    return [each.model_dump(mode="json", by_alias=True) for each in documents]


@pytest.mark.parametrize(("noun", "method"), [("account", "accounts"), ("tenant", "tenants"), ("user", "users")])
def test_lists_are_the_apis_own_objects(noun, method, cli, client) -> None:
    ran = cli(noun, "list", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.json == plain(getattr(client, method)())
    assert "home" in cli(noun, "list").out or noun == "user"


def test_create_is_idempotent_and_a_conflict_is_one_line(cli) -> None:
    first = cli("account", "create", "acme", "--title", "Acme", "--json")
    assert (first.status, first.json["name"], first.json["title"]) == (0, "acme", "Acme")
    assert cli("account", "create", "acme", "--title", "Acme", "--json").json == first.json
    other = cli("account", "create", "acme", "--title", "Other")
    assert (other.status, other.out) == (1, "")
    assert other.err.splitlines()[0] == "clachan: account acme: exists with another title, expected 'Acme'"
    assert cli("tenant", "create", "lab", "--account", "acme").out == "tenant lab of account acme\n"
    assert cli("tenant", "create", "lab2", "--account", "nobody").err.startswith(
        "clachan: account nobody: unknown, expected one that exists\n"
    )


def test_users_and_their_tokens(cli, live) -> None:
    assert cli("tenant", "create", "school").status == 0
    made = cli("user", "create", "ann", "--tenant", "school", "--json")
    assert (made.json["role"], made.json["tenants"], made.json["reveal"]) == ("member", ["school"], False)
    token = cli("token", "create", "--user", "ann", "--lasts", "2d", "--title", "laptop", "--json").json
    with Client(live.url, token=token["token"], ca_file=live.home / "controller/ca/ca.crt") as ann:
        assert (ann.principal().name, ann.principal().tenants) == ("ann", ["school"])
    listed = {each["id"]: each for each in cli("token", "list", "--json").json}
    assert listed[token["id"]] == token | {"token": None}
    assert token["token"] not in cli("token", "list").out
    assert cli("token", "delete", token["id"]).out == f"token {token['id']} deleted\n"
    assert token["id"] not in cli("token", "list").out


def test_a_token_is_ones_own_by_default(cli) -> None:
    ran = cli("token", "create")
    assert "of       operator\n" in ran.out
    assert "token    clachan_" in ran.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["account", "create", "Acme"], "name 'Acme', expected [a-z][a-z0-9_]{0,30}"),
        (["user", "create", "bob", "--tenant", "No"], "tenants.0: name 'No', expected [a-z][a-z0-9_]{0,30}"),
        (["account", "create", "a", "--title", "x" * 4001], "title: String should have at most 4000 characters"),
        (["token", "create", "--lasts", "1s"], "seconds: Input should be greater than or equal to 60"),
        (["user", "create", "bob", "--role", "king"], "role 'king', expected one of admin, operator, member"),
        (["token", "create", "--lasts", "soon"], "duration 'soon', expected a number and one of s, m, h, d, like 12h"),
        (["token", "create", "--user", "a", "--instance", "home.b"], "token: both --user and --instance, expected one"),
    ],
)
def test_wrong_use(arguments, text, cli) -> None:
    ran = cli(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert text in " ".join(ran.err.replace("│", "").split())


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, cli, tmp_path: Path):
    """The command with another home, in which nobody has logged in."""
    monkeypatch.setenv("CLACHAN_HOME", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


def test_login_with_a_fingerprint_remembers(cli, live, elsewhere) -> None:
    from clachan.client import fetch_ca

    known = json.loads((live.home / "credentials.json").read_text())
    _, fingerprint = fetch_ca(known["url"])
    ran = cli("login", known["url"] + "/", "--fingerprint", fingerprint[:40].upper(), stdin=known["token"] + "\n")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"{known['url']}: user operator, admin; remembered in {elsewhere}/credentials.json\n"
    assert cli("account", "list").status == 0
    assert (elsewhere / "credentials.json").stat().st_mode & 0o777 == 0o600
    again = cli("login", known["url"], "--ca", str(elsewhere / "controller-ca.pem"), "--json", stdin=known["token"])
    assert again.json["name"] == "operator"


def test_login_that_fails_remembers_nothing(cli, live, elsewhere, tmp_path) -> None:
    known = json.loads((live.home / "credentials.json").read_text())
    ca = ["--ca", str(live.home / "controller/ca/ca.crt")]
    wrong = cli("login", known["url"], *ca, stdin="clachan_wrong")
    assert wrong.status == 1
    assert wrong.err.startswith("clachan: token: ")
    liar = cli("login", known["url"], "--fingerprint", "0" * 64, stdin=known["token"])
    assert liar.status == 1
    assert liar.err.endswith(f", expected {'0' * 64}\n")
    assert cli("login", known["url"], stdin=known["token"]).err == (
        "clachan: login: no CA to trust, expected --ca or --fingerprint\n"
    )
    empty = cli("login", known["url"], *ca, stdin="\n")
    assert (empty.status, empty.err) == (
        2,
        "clachan: token: empty or not one word, expected the token as it was given\n",
    )
    missing = cli("login", known["url"], *ca, "--token-file", str(tmp_path / "none"))
    assert (missing.status, missing.err) == (
        2,
        f"clachan: file {tmp_path}/none: No such file or directory, expected one that can be read\n",
    )
    assert not list(elsewhere.iterdir())


def test_no_credentials(cli, elsewhere) -> None:
    ran = cli("node", "list")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        f"clachan: credentials: {elsewhere}/credentials.json does not exist, expected it from 'clachan login' or "
        "'clachan up', or CLACHAN_URL and CLACHAN_TOKEN in the environment\n"
    )


def test_a_member_is_told_what_is_missing(cli, client, monkeypatch) -> None:
    client.create_user(UserDeclaration(name="guest", role="member"))
    token = cli("token", "create", "--user", "guest", "--json").json["token"]
    monkeypatch.setenv("CLACHAN_TOKEN", token)
    ran = cli("user", "list")
    assert (ran.status, ran.out) == (1, "")
    assert len(ran.err.splitlines()) <= 2
    assert "admin" in ran.err
