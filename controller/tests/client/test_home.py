"""Where a platform's directory is, and which controller and token a client takes."""

import json
from pathlib import Path

import pytest
from clachan.client import NoCredentialsError
from clachan.client.home import Credentials, home, load_credentials


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLACHAN_HOME", "CLACHAN_URL", "CLACHAN_TOKEN", "CLACHAN_CA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_home_is_chosen_by_the_environment_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLACHAN_HOME", str(tmp_path))
    assert home() == tmp_path


@pytest.mark.parametrize(
    ("user", "data", "expected"),
    [
        (0, None, "/var/lib/clachan"),
        (0, "/data", "/var/lib/clachan"),
        (1000, "/data", "/data/clachan"),
        (1000, None, "/people/ann/.local/share/clachan"),
    ],
)
def test_home_of_root_and_of_others(
    user: int, data: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setenv("HOME", "/people/ann")
    if data:
        monkeypatch.setenv("XDG_DATA_HOME", data)
    assert home() == Path(expected)


def test_a_relative_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLACHAN_HOME", "here")
    assert home() == tmp_path / "here"


def test_saved_credentials_are_loaded_and_private(tmp_path: Path) -> None:
    stored = Credentials("https://c.example:1", "secret-token", tmp_path / "ca.pem")
    path = stored.save(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_credentials(tmp_path) == stored
    assert "secret-token" not in repr(stored)


def test_a_ca_file_is_relative_to_the_credentials(tmp_path: Path) -> None:
    (tmp_path / "credentials.json").write_text('{"url": "https://c.example", "token": "t", "ca_file": "ca.pem"}')
    assert load_credentials(tmp_path).ca_file == tmp_path / "ca.pem"


def test_the_environment_goes_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Credentials("https://c.example:1", "stored", None).save(tmp_path)
    monkeypatch.setenv("CLACHAN_TOKEN", "given")
    monkeypatch.setenv("CLACHAN_CA", "/etc/other.pem")
    assert load_credentials(tmp_path) == Credentials("https://c.example:1", "given", Path("/etc/other.pem"))


def test_the_stored_token_is_not_for_another_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Credentials("https://c.example:1", "stored", tmp_path / "ca.pem").save(tmp_path)
    monkeypatch.setenv("CLACHAN_URL", "https://elsewhere.example:1")
    assert load_credentials(tmp_path) == Credentials("https://elsewhere.example:1", None, None)
    monkeypatch.setenv("CLACHAN_URL", "https://c.example:1/")
    assert load_credentials(tmp_path).token == "stored"


def test_no_credentials_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoCredentialsError) as caught:
        load_credentials(tmp_path)
    assert str(caught.value) == (
        f"credentials: {tmp_path}/credentials.json does not exist, expected it from 'clachan login' or 'clachan up', "
        "or CLACHAN_URL and CLACHAN_TOKEN in the environment"
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"url": 5', '{"token": "hidden"}'])
def test_broken_credentials_are_an_error_that_hides_them(content: str, tmp_path: Path) -> None:
    (tmp_path / "credentials.json").write_text(content)
    with pytest.raises(NoCredentialsError, match="expected JSON with url, token and ca_file") as caught:
        load_credentials(tmp_path)
    assert str(caught.value).startswith(f"credentials {tmp_path}/credentials.json: ")
    assert "hidden" not in str(caught.value)


def test_a_wrong_type_of_url_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "credentials.json").write_text(json.dumps({"url": 5, "token": "t", "ca_file": None}))
    with pytest.raises(NoCredentialsError, match="expected JSON with url, token and ca_file"):
        load_credentials(tmp_path)
